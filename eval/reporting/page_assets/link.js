// Links to an example at a length, or to the answers of a kind: `#sample=ID&maxlen=8192` and `#show=loop&maxlen=8192`.

// Names in a link, and the parts of the state that they set.
const LINKED = { task: "task", template: "template", maxlen: "length", with: "other", show: "show" };

// What the address names, or null where it names no samples.
function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("sample") && !given.has("show")) return null;
  const state = {};
  for (const [name, part] of Object.entries(LINKED)) {
    const value = given.get(name);
    if (value !== null) state[part] = part === "length" || part === "other" ? Number(value) : value;
  }
  return { id: given.get("sample"), template: given.get("template"), state };
}

function linkTo(entry, state) {
  const named = new URLSearchParams({ sample: entry.example.id, maxlen: state.length });
  if (state.hasLengths) named.set("with", state.other);
  if (state.hasTasks) named.set("task", entry.example.task);
  if (state.hasTemplates) named.set("template", entry.template);
  return `#${named}`;
}
