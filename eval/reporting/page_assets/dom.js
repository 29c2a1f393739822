// Elements from text, never from markup: what a document or a model wrote stays text.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function button(text, action, attributes = {}) {
  const node = el("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", action);
  return node;
}

const count = (value) => value.toLocaleString("en-US");

const fixed = (value, digits) =>
  value === null || value === undefined
    ? "–"
    : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

const score = (value, digits = 1) => fixed(value === null || value === undefined ? null : 100 * value, digits);

function change(value) {
  if (value === null) return "–";
  return (value < 0 ? "−" : "+") + score(Math.abs(value));
}

// A value of a column that the page's data describes: a number in its unit, or a text.
function shownValue(value, { digits, unit }) {
  if (typeof value === "string") return value;
  return fixed(value === null || value === undefined ? null : value / unit, digits);
}
