// Charts in both colour themes. The light one is always there, for paper; the styles show the one that is wanted.

function startPlots() {
  const { specs, titles, themes } = JSON.parse(document.getElementById("plot-data").textContent);
  const root = document.documentElement;
  const drawn = new Map(); // element -> { width, view, finalize }
  const plots = [...document.querySelectorAll(".plot")].map((box, index) => {
    const parts = Object.fromEntries(["light", "dark"].map((name) => [name, el("div", { class: name })]));
    box.append(parts.light, parts.dark);
    box.after(el("p", { class: "save" }, ...["svg", "png"].map((type) => saveButton(type, index, box))));
    return { box, parts, spec: specs[index] };
  });

  // What leaves the page carries its title and source.
  function saveButton(type, index, box) {
    const label = `Save ${box.dataset.name} as ${type.toUpperCase()}`;
    const save = async () => {
      const { view, finalize } = await vegaEmbed(el("div"), { ...specs[index], title: titles[index] }, optionsOf("light"));
      const href = await view.toImageURL(type, 2);
      finalize();
      el("a", { href, download: `${box.dataset.name}.${type}` }).click();
    };
    return button(type.toUpperCase(), save, { "aria-label": label, title: label });
  }

  function optionsOf(name, width) {
    const config = { ...themes[name], background: name === "light" ? "white" : "transparent" };
    if (width) config.legend = { ...config.legend, labelLimit: width - 110 };
    return { mode: "vega-lite", ast: true, renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true }, config };
  }

  async function draw(name) {
    const main = document.getElementById("main");
    const inView = ({ box }) => box.clientWidth > 0;
    for (const { box, parts, spec } of [...plots.filter(inView), ...plots.filter((plot) => !inView(plot))]) {
      // What is folded or not chosen has no width yet, and gets one that suits most screens, for paper.
      const before = drawn.get(parts[name]);
      const most = spec.facet || spec.concat ? Infinity : box.closest(".switch") ? 860 : 640;
      const width = Math.min(Math.floor(box.clientWidth || before?.width || main.clientWidth), most);
      if (before?.width === width) continue;
      before?.finalize();
      const { view, finalize } = await vegaEmbed(parts[name], sized(spec, width), optionsOf(name, width));
      if (spec.usermeta?.shows) {
        view.addEventListener("click", (_, item) => {
          if (item?.datum?.id) document.dispatchEvent(new CustomEvent(spec.usermeta.shows, { detail: item.datum }));
        });
      }
      drawn.set(parts[name], { width, view, finalize });
    }
  }

  // One after the other, so that two changes of the window never draw into the same element at once.
  let last = Promise.resolve();
  const drawAll = () => {
    last = last.then(() => draw("light")).then(() => (root.dataset.theme === "dark" ? draw("dark") : null));
    return last;
  };
  new MutationObserver(drawAll).observe(root, { attributeFilter: ["data-theme"] });
  let timer;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(drawAll, 150);
  });
  return drawAll();
}

function sized(spec, width) {
  if (spec.facet || spec.concat) return inPanels(spec, width);
  if (!spec.vconcat) return { ...spec, width, autosize: { type: "fit-x", contains: "padding" } };
  // Of what stands beside the views: those above each other do not fit themselves to a width.
  const room = spec.usermeta?.room ?? 90;
  return { ...spec, vconcat: spec.vconcat.map((view) => ({ ...view, width: width - room })) };
}

// As many panels beside each other as have room; each has its own horizontal axis, and all share the vertical one.
function inPanels(spec, width) {
  const [axis, gap, least, most] = [80, 24, 230, 340];
  const room = Math.floor((width - axis + gap) / (least + gap));
  const columns = Math.max(1, Math.min(spec.usermeta.panels, room));
  const panel = Math.min(Math.floor((width - axis + gap) / columns) - gap, most);
  if (spec.concat) return { ...spec, columns, concat: spec.concat.map((view) => ({ ...view, width: panel - gap })) };
  const header = { ...spec.facet.header, labelLimit: panel };
  return { ...spec, columns, facet: { ...spec.facet, header }, spec: { ...spec.spec, width: panel } };
}

// The chosen theme is kept for all reports of this browser, where it lends a page of this kind some memory.
const THEME = "masformer-theme";

function storedTheme(value) {
  try {
    if (value) localStorage.setItem(THEME, value);
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}

function startTheme() {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = (theme) => {
    root.dataset.theme = theme;
    toggle.textContent = theme === "dark" ? "Light colours" : "Dark colours";
  };
  const ofSystem = () => (preferred.matches ? "dark" : "light");
  apply({ dark: "dark", light: "light" }[storedTheme()] ?? ofSystem());
  preferred.addEventListener("change", () => (storedTheme() ? null : apply(ofSystem())));
  toggle.addEventListener("click", () => {
    apply(root.dataset.theme === "dark" ? "light" : "dark");
    storedTheme(root.dataset.theme);
  });
  toggle.hidden = false;
}
