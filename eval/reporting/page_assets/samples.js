// The sample browser: what is chosen, the list that follows from it, and the keys that move in it.

const PAGE_SIZE = 50;
const ORDERS = {
  change: "change, largest first",
  run: "as in the run",
  lowest: "score, lowest first",
  highest: "score, highest first",
  loss: "change, largest loss first",
  gain: "change, largest gain first",
};

// An entry is an example under one template, with its answers by length.
function entriesOf(examples) {
  return examples.flatMap((example) => {
    const byTemplate = new Map();
    const ordered = [...example.answers].sort((first, second) => first.maxlen - second.maxlen);
    for (const answer of ordered) {
      answer.name ??= count(answer.maxlen);
      if (!byTemplate.has(answer.template)) byTemplate.set(answer.template, new Map());
      byTemplate.get(answer.template).set(answer.maxlen, answer);
    }
    return [...byTemplate].map(([template, answers]) => ({ example, template, answers, text: null }));
  });
}

// What the search looks in, made when it is first used.
function searchText(entry) {
  const { example } = entry;
  const texts = [example.id, example.query, ...(example.references ?? [])];
  entry.text ??= [...texts, ...[...entry.answers.values()].map(({ text }) => text)].join("\n").toLowerCase();
  return entry.text;
}

// Tasks may be scored by metrics of their own: without a choice, each is shown by its headline.
const metricOf = (entry, { metric, headlines }) => metric || headlines[entry.example.task];
const scoreAt = (entry, length, state) => entry.answers.get(length)?.scores?.[metricOf(entry, state)] ?? null;

function changeOf(entry, state) {
  const [after, before] = [scoreAt(entry, state.length, state), scoreAt(entry, state.other, state)];
  return after === null || before === null ? null : after - before;
}

// What may be wrong with an answer, as the checks above name it.
const FLAWS = {
  length: "cut by the limit",
  loop: "loops",
  empty: "empty",
  copy: "copies of the prompt",
  unread: "zeros in other scripts",
};
const hasFlaw = (entry, { show, length }) => !show || (entry.answers.get(length)?.flaws ?? []).includes(show);

function orderedEntries(entries, state) {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = entries.filter(
    (entry) =>
      (!state.task || entry.example.task === state.task) &&
      (!state.template || entry.template === state.template) &&
      hasFlaw(entry, state) &&
      words.every((word) => searchText(entry).includes(word)),
  );
  if (state.order === "run") return found;
  const sign = ["highest", "gain", "change"].includes(state.order) ? -1 : 1;
  const value = (entry) => {
    if (state.order === "lowest" || state.order === "highest") return scoreAt(entry, state.length, state);
    const change = changeOf(entry, state);
    return state.order === "change" && change !== null ? Math.abs(change) : change;
  };
  const keyed = found.map((entry) => [value(entry), entry]);
  const known = keyed.filter(([key]) => key !== null).sort(([first], [second]) => sign * (first - second));
  return [...known, ...keyed.filter(([key]) => key === null)].map(([, entry]) => entry);
}

// Search, filters and order; each change goes to `update`. Those with nothing to choose from are hidden by the styles.
function controlsView(data, entries, lengths, state, update) {
  const selects = {};
  const control = (name, label, options) => {
    const parse = typeof state[name] === "number" ? Number : String;
    const select = el("select", {}, ...options.map(([value, text]) => el("option", { value }, text)));
    select.value = state[name];
    select.addEventListener("change", () => update({ [name]: parse(select.value) }));
    selects[name] = select;
    return el("label", { class: options.length > 1 ? null : "single" }, label, select);
  };
  const filter = (all, values) => {
    const distinct = [...new Set(values)];
    return [["", all], ...(distinct.length > 1 ? distinct.map((value) => [value, value]) : [])];
  };
  const search = el("input", { type: "search", autocomplete: "off", placeholder: "id, query, reference, answer" });
  search.addEventListener("input", () => update({ search: search.value }));
  const { metrics, names } = data;
  const lengthOptions = lengths.map((length) => [length, names?.[length] ?? count(length)]);
  const controls = el(
    "div",
    { class: "controls", role: "group", "aria-label": "Which examples, and in which order" },
    el("label", { class: "search" }, "Search", search),
    control("task", "Task", filter("all tasks", entries.map(({ example }) => example.task))),
    control("template", names ? "Setting" : "Template", filter(names ? "all settings" : "all templates", entries.map(({ template }) => template))),
    control("show", "Answers", [
      ["", "all"],
      ...Object.entries(FLAWS).filter(([flaw]) =>
        entries.some(({ answers }) => [...answers.values()].some(({ flaws }) => flaws?.includes(flaw))),
      ),
    ]),
    control("length", names ? "Run" : "Length", lengthOptions),
    control("other", "Compared with", lengthOptions),
    control("metric", "Score", [
      ...(state.metric ? [] : [["", "headline of each task"]]),
      ...Object.entries(metrics),
    ]),
    control("order", "Order", Object.entries(ORDERS)),
  );
  return { controls, selects };
}

function itemView(entry, state) {
  const { example } = entry;
  const difference = changeOf(entry, state);
  const about = example.query ?? (example.references ?? [])[0] ?? "";
  const direction = difference ? (difference > 0 ? " gain" : " loss") : "";
  return el(
    "div",
    { role: "option", class: "item" },
    el("span", { class: "id" }, example.id),
    el("span", { class: "score" }, score(scoreAt(entry, state.length, state))),
    el("span", { class: "about" }, about.slice(0, 160)),
    el("span", { class: "change" + direction }, state.other === state.length ? "" : change(difference)),
  );
}

function keepInView(list, node) {
  const [above, below] = [node.offsetTop, node.offsetTop + node.offsetHeight];
  if (above < list.scrollTop) list.scrollTop = above;
  else if (below > list.scrollTop + list.clientHeight) list.scrollTop = below - list.clientHeight;
}

function startSamples() {
  const source = document.getElementById("sample-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const entries = entriesOf(data.examples);
  const lengths = [...new Set(entries.flatMap(({ answers }) => [...answers.keys()]))].sort((a, b) => a - b);
  const headlines = data.headlines ?? {};
  const distinct = [...new Set(Object.values(headlines))];
  const metric = distinct.length > 1 ? "" : (distinct[0] ?? Object.keys(data.metrics).at(-1));
  const state = {
    ...{ search: "", task: "", template: "", show: "", order: lengths.length > 1 ? "change" : "run", metric, headlines },
    ...{ length: lengths.at(-1), other: lengths[0] },
    hasLengths: lengths.length > 1,
    hasTasks: new Set(entries.map(({ example }) => example.task)).size > 1,
    hasTemplates: new Set(entries.map(({ template }) => template)).size > 1,
  };
  let visible = orderedEntries(entries, state);
  let selected = 0;

  const list = el("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Examples" });
  const status = el("p", { class: "count", role: "status" });
  const detail = el("article", { class: "sample", "aria-label": "Example" });
  const range = el("span", {});
  const previous = button("Previous", () => select((page() - 1) * PAGE_SIZE));
  const next = button("Next", () => select((page() + 1) * PAGE_SIZE));
  const page = () => Math.floor(selected / PAGE_SIZE);
  const { controls, selects } = controlsView(data, entries, lengths, state, (changes) => {
    update(changes);
    if ("length" in changes || "other" in changes) address();
  });

  function update(changes) {
    const entry = visible[selected];
    Object.assign(state, changes);
    for (const name of Object.keys(changes)) {
      if (selects[name]) selects[name].value = state[name];
      else if (name === "search") controls.querySelector("input").value = state.search;
    }
    visible = orderedEntries(entries, state);
    // A new order or kind begins at its top; otherwise the example stays, where it is still among the found.
    selected = "order" in changes || "show" in changes ? 0 : Math.max(visible.indexOf(entry), 0);
    showList();
    showDetail();
  }

  function select(index) {
    const target = Math.min(Math.max(index, 0), visible.length - 1);
    if (target < 0 || target === selected) return;
    selected = target;
    showList();
    showDetail();
    address();
  }

  // The address is that of the example, so that it can be passed on; the way back leads to where the page was opened.
  function address() {
    if (visible[selected]) history.replaceState(null, "", linkTo(visible[selected], state));
  }

  function follow() {
    const link = readLink();
    if (!link) return;
    const { id, template, state: changes } = link;
    if (!lengths.includes(changes.length)) delete changes.length;
    if (!lengths.includes(changes.other)) delete changes.other;
    // Only a filter for answers of a kind hides others; an example stands among all.
    const filters = id === null ? { task: "", template: "", show: "", ...changes } : { ...changes, ...{ task: "", template: "", show: "" } };
    update({ search: "", ...filters });
    if (id !== null) {
      const isMeant = ({ example, template: own }) =>
        example.id === id && (!changes.task || example.task === changes.task) && (!template || own === template);
      const index = visible.findIndex(isMeant);
      if (index < 0) status.textContent = `No example ${id} on this page`;
      else if (index === selected) showDetail();
      else select(index);
    }
    document.getElementById("samples").scrollIntoView();
  }

  function showList() {
    const first = page() * PAGE_SIZE;
    const items = visible.slice(first, first + PAGE_SIZE);
    const nodes = items.map((entry) => itemView(entry, state));
    nodes.forEach((node, index) => {
      node.id = `entry-${first + index}`;
      node.setAttribute("aria-selected", String(first + index === selected));
      node.addEventListener("click", () => select(first + index));
    });
    list.replaceChildren(...nodes);
    if (items.length) list.setAttribute("aria-activedescendant", `entry-${selected}`);
    else list.removeAttribute("aria-activedescendant");
    status.textContent = `${count(visible.length)} of ${count(entries.length)}`;
    const last = first + items.length;
    range.textContent = items.length ? `${count(first + 1)}–${count(last)}` : "none";
    previous.disabled = first === 0;
    next.disabled = last >= visible.length;
    if (items.length) keepInView(list, nodes[selected - first]);
  }

  function showDetail() {
    const entry = visible[selected];
    const choose = (length) => {
      update({ length });
      address();
      // The button that was pressed is gone with the view before; its like takes the focus.
      [...detail.querySelectorAll("th button")].find((node) => Number(node.dataset.length) === length).focus();
    };
    const parts = entry ? sampleView(data, entry, state, choose) : [el("p", { class: "note" }, "No example is found.")];
    detail.replaceChildren(...parts);
  }

  // What a chart was clicked for: an example of a setting, whatever is searched for.
  document.addEventListener("sample", ({ detail: { id, task, panel } }) => {
    update({ search: "", task: "", template: "", show: "" });
    const index = visible.findIndex(({ example, template }) => example.id === id && example.task === task && template === panel);
    if (index >= 0) select(index);
    document.getElementById("samples").scrollIntoView();
  });

  const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) select(selected + steps[event.key]);
    else if (event.key === "Enter") detail.querySelector("h3")?.focus();
    else return;
    event.preventDefault();
  });
  detail.addEventListener("keydown", (event) => {
    if (event.key === "Escape") list.focus();
  });

  const help = el("p", { class: "keys" }, "In the list: arrows or j and k move, Enter goes to the example, Escape back.");
  const pager = el("p", { class: "pager" }, previous, range, next);
  const side = el("div", { class: "side" }, el("div", { class: "status" }, status, pager), list, help);
  document.getElementById("sample-browser").append(controls, el("div", { class: "browser" }, side, detail));
  update({});
  window.addEventListener("hashchange", follow);
  // A link that is followed again changes no address.
  document.querySelectorAll(".checks a").forEach((link) => link.addEventListener("click", () => setTimeout(follow)));
  follow();
}
