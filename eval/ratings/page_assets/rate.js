// A rating sheet: one screen a document and query, its answers side by side under letters. Every rating is sent at once.

const { screens, windows, scales } = JSON.parse(document.getElementById("sheet").textContent);
const main = document.getElementById("main");
const scaleNames = Object.keys(scales);
const isRated = (card) => scaleNames.every((name) => name in card.ratings);
const allCards = screens.flatMap(({ cards }) => cards);
// What is on the screen: its number, and which card and scale the keys go to.
const at = { screen: 0, card: 0, scale: 0 };
const open = { references: false, window: false };

// Ratings leave one after the other; what could not be saved is sent again.
const unsent = new Map();
let isSending = false;

async function send() {
  if (isSending) return;
  isSending = true;
  while (unsent.size) {
    const [key, body] = unsent.entries().next().value;
    try {
      const reply = await fetch("rate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      if (!reply.ok) throw new Error(await reply.text());
      if (unsent.get(key) === body) unsent.delete(key);
      showSaved("Saved");
      showFinished();
    } catch (error) {
      showSaved(`Not saved: ${error.message}. Keep this page open; it tries again.`, true);
      setTimeout(send, 3000);
      break;
    }
  }
  isSending = false;
}

function showSaved(text, isWrong = false) {
  const node = document.getElementById("saved");
  node.textContent = text;
  node.classList.toggle("wrong", isWrong);
}

// An answer counts as saved when the server has said so.
function showFinished() {
  document.querySelector(".finished").hidden = unsent.size > 0 || !allCards.every(isRated);
}

function rate(cardIndex, name, value) {
  const card = screens[at.screen].cards[cardIndex];
  if (value === null) delete card.ratings[name];
  else card.ratings[name] = value;
  unsent.set(`${at.screen}/${cardIndex}`, { screen: at.screen, card: cardIndex, ratings: { ...card.ratings } });
  send();
  showProgress();
}

function showProgress() {
  const rated = allCards.filter(isRated).length;
  const text = `Document ${at.screen + 1} of ${screens.length} · ${rated} of ${allCards.length} answers rated`;
  document.getElementById("progress").textContent = text;
  document.getElementById("done").value = rated / allCards.length;
}

function fold(name, title, text) {
  const node = el("details", { open: open[name] }, el("summary", {}, title), text);
  node.addEventListener("toggle", () => {
    open[name] = node.open;
  });
  node.dataset.name = name;
  return node;
}

function windowView(pieces) {
  const parts = pieces.map(({ skipped, text }) => [
    skipped ? el("span", { class: "gap" }, `… ${count(skipped)} characters that no answer was based on …`) : null,
    text,
  ]);
  return el("div", { class: "document", tabindex: "0" }, ...parts.flat());
}

function scaleView(card, cardIndex, name, scaleIndex) {
  const [low, high] = scales[name];
  const points = [];
  for (let value = low; value <= high; value += 1) {
    const input = el("input", {
      type: "radio",
      name: `${cardIndex}-${scaleIndex}`,
      value,
      checked: card.ratings[name] === value,
      "aria-label": `${name} of answer ${letter(cardIndex)}: ${value}`,
    });
    input.addEventListener("change", () => {
      Object.assign(at, { card: cardIndex, scale: scaleIndex });
      rate(cardIndex, name, value);
      mark();
    });
    points.push(el("label", {}, input, String(value)));
  }
  return el("fieldset", {}, el("span", { class: "name" }, name), el("span", { class: "points" }, ...points));
}

const letter = (index) => String.fromCharCode(65 + index);

function cardView(card, index) {
  const text = card.text
    ? el("div", { class: "text", tabindex: "0" }, card.text)
    : el("div", { class: "text empty" }, "This answer is empty.");
  const fields = scaleNames.map((name, scale) => scaleView(card, index, name, scale));
  const head = el("h2", {}, `Answer ${letter(index)}`, el("small", {}));
  const node = el("section", { class: "card" }, head, text, el("div", { class: "scales" }, ...fields));
  node.addEventListener("pointerdown", () => {
    if (at.card !== index) Object.assign(at, { card: index, scale: 0 });
    mark();
  });
  return node;
}

// Shows where the keys go, and which answers are rated.
function mark() {
  const { cards } = screens[at.screen];
  document.querySelectorAll(".card").forEach((node, index) => {
    node.classList.toggle("current", index === at.card);
    const small = node.querySelector("h2 small");
    small.textContent = isRated(cards[index]) ? "rated" : "";
    small.classList.toggle("done", isRated(cards[index]));
    node.querySelectorAll("fieldset").forEach((field, scale) => {
      field.classList.toggle("current", index === at.card && scale === at.scale);
      const value = cards[index].ratings[scaleNames[scale]];
      field.querySelectorAll("input").forEach((input) => {
        input.checked = Number(input.value) === value;
      });
    });
  });
  showFinished();
}

function show(screen, card = 0) {
  Object.assign(at, { screen, card, scale: 0 });
  const { query, references, window, cards } = screens[screen];
  main.replaceChildren(
    el("p", { class: "finished", hidden: true }, "All answers are rated and saved. You may close this page."),
    el("p", { class: "query" }, query ?? "Summarize the document."),
    ...(references.length
      ? [fold("references", references.length > 1 ? `References (${references.length})` : "Reference", el("div", { class: "references" }, ...references.map((text) => el("p", {}, text))))]
      : []),
    fold("window", "Document, as far as it was shown", windowView(windows[window])),
    el("div", { class: "cards" }, ...cards.map(cardView)),
    el(
      "div",
      { class: "steps" },
      button("← Previous", () => step(-1), { disabled: screen === 0 }),
      button("Next unrated", nextUnrated),
      button("Next →", () => step(1), { disabled: screen === screens.length - 1 }),
    ),
  );
  showProgress();
  mark();
  scrollTo(0, 0);
}

function step(by) {
  const screen = at.screen + by;
  if (screen >= 0 && screen < screens.length) show(screen);
}

function nextUnrated() {
  const after = (index) => (at.screen + 1 + index) % screens.length;
  const order = screens.map((_, index) => after(index));
  const found = [at.screen, ...order].find((index) => !screens[index].cards.every(isRated));
  if (found !== undefined) {
    const { cards } = screens[found];
    show(found, cards.findIndex((card) => !isRated(card)));
    at.scale = scaleNames.findIndex((name) => !(name in cards[at.card].ratings));
    mark();
  }
}

// A digit rates, and goes to the next scale, the next answer, and at the end stays.
function rateByKey(value) {
  const name = scaleNames[at.scale];
  const [low, high] = scales[name];
  if (value < low || value > high) return;
  rate(at.card, name, value);
  if (at.scale + 1 < scaleNames.length) at.scale += 1;
  else if (at.card + 1 < screens[at.screen].cards.length) Object.assign(at, { card: at.card + 1, scale: 0 });
  mark();
}

function move(card, scale) {
  const { cards } = screens[at.screen];
  at.card = Math.min(Math.max(at.card + card, 0), cards.length - 1);
  at.scale = Math.min(Math.max(at.scale + scale, 0), scaleNames.length - 1);
  mark();
  document.querySelectorAll(".card")[at.card].scrollIntoView({ block: "nearest" });
}

const KEYS = {
  n: () => step(1),
  p: () => step(-1),
  u: nextUnrated,
  w: () => toggle("window"),
  r: () => toggle("references"),
  x: () => {
    rate(at.card, scaleNames[at.scale], null);
    mark();
  },
  ArrowLeft: () => move(-1, 0),
  ArrowRight: () => move(1, 0),
  ArrowUp: () => move(0, -1),
  ArrowDown: () => move(0, 1),
};

function toggle(name) {
  const node = document.querySelector(`details[data-name="${name}"]`);
  // The event comes later, and the next document may be drawn before it.
  if (node) open[name] = node.open = !node.open;
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = /^\d$/.test(event.key) ? () => rateByKey(Number(event.key)) : KEYS[event.key];
  // Arrows scroll what has the focus and can scroll.
  const scrolls = event.key.startsWith("Arrow") && event.target.closest(".text, .document");
  if (!act || scrolls) return;
  event.preventDefault();
  act();
});

addEventListener("beforeunload", (event) => {
  if (unsent.size) event.preventDefault();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = () => {
  document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
};
dark.addEventListener("change", setTheme);
setTheme();
const first = screens.findIndex(({ cards }) => !cards.every(isRated));
show(first < 0 ? 0 : first);
if (first >= 0) nextUnrated();
