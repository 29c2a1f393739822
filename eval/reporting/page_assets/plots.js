// Charts in both colour themes. The light one is always there, for paper; the styles show the one that is wanted.

function startPlots() {
  const { specs, themes } = JSON.parse(document.getElementById("plot-data").textContent);
  const root = document.documentElement;
  const drawn = new Map(); // element -> { width, view, finalize }
  const plots = [...document.querySelectorAll(".plot")].map((box, index) => {
    const parts = Object.fromEntries(["light", "dark"].map((name) => [name, el("div", { class: name })]));
    box.append(parts.light, parts.dark);
    box.after(el("p", { class: "save" }, ...["svg", "png"].map((type) => saveButton(type, parts.light, box))));
    return { box, parts, spec: specs[index] };
  });

  function saveButton(type, part, box) {
    const label = `Save ${box.dataset.name} as ${type.toUpperCase()}`;
    const save = async () => {
      const href = await drawn.get(part).view.toImageURL(type, 2);
      el("a", { href, download: `${box.dataset.name}.${type}` }).click();
    };
    return button(type.toUpperCase(), save, { "aria-label": label, title: label });
  }

  async function draw(name) {
    for (const { box, parts, spec } of plots) {
      const width = spec.facet || spec.concat ? Math.floor(box.clientWidth) : Math.min(Math.floor(box.clientWidth), 640);
      const before = drawn.get(parts[name]);
      if (before?.width === width) continue;
      before?.finalize();
      const config = { ...themes[name], background: name === "light" ? "white" : "transparent" };
      config.legend = { ...config.legend, labelLimit: width - 110 };
      const options = { mode: "vega-lite", ast: true, renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true }, config };
      const { view, finalize } = await vegaEmbed(parts[name], sized(spec, width), options);
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
  const room = 90; // of the vertical axis: views above each other do not fit themselves to a width
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

function startTheme() {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    toggle.textContent = dark ? "Light colours" : "Dark colours";
  };
  apply(preferred.matches);
  preferred.addEventListener("change", (event) => apply(event.matches));
  toggle.addEventListener("click", () => apply(root.dataset.theme !== "dark"));
  toggle.hidden = false;
}
