// A document: how much of it each length kept, and its text with what was cut, the oracle's sentences and evidence.

// Offsets count code points, as in Python, where a JavaScript string counts UTF-16 units.
function measured(text) {
  if (!/[\uD800-\uDFFF]/.test(text)) return { size: text.length, slice: (start, end) => text.slice(start, end) };
  const points = Array.from(text);
  return { size: points.length, slice: (start, end) => points.slice(start, end).join("") };
}

const covers = (spans, position) => spans.some(([start, end]) => start <= position && position < end);

// Where the kept text of one length begins or ends inside the document.
function cutsOf(answer, length) {
  return answer.kept.flatMap(([start, end]) => [
    ...(start > 0 ? [{ position: start, label: `${count(answer.maxlen)} begins ▸` }] : []),
    ...(end < length ? [{ position: end, label: `◂ ${count(answer.maxlen)} ends` }] : []),
  ]);
}

function bar(answer, example, length) {
  const percent = (value) => `${(100 * value) / (length || 1)}%`;
  const part = (name, [start, end]) => {
    const node = el("i", { class: name });
    node.style.left = percent(start);
    node.style.width = percent(end - start);
    return node;
  };
  return el(
    "div",
    { class: "bar", "aria-hidden": "true" },
    ...answer.kept.map((span) => part("kept", span)),
    ...(example.oracle ?? []).map((span) => part("oracle", span)),
    ...(example.evidence ?? []).map((span) => part("evidence", span)),
  );
}

function keptShare(answer, length) {
  return answer.kept.reduce((sum, [start, end]) => sum + end - start, 0) / (length || 1);
}

function documentView(source, entry, shown) {
  const { example } = entry;
  const { length } = source;
  const pieces = source.text === null ? source.pieces : [[0, source.text]];
  const pane = el("div", { class: "document", tabindex: "0", role: "region", "aria-label": "Document" });
  const marks = { cut: new Map(), oracle: [], evidence: [] };
  if (pieces.length) fillPane(pane, pieces, length, entry, shown, marks);
  const scrollTo = (node) => {
    pane.scrollTop = node.offsetTop - 60;
    pane.focus({ preventScroll: true });
  };
  const rows = [...entry.answers.values()].map((answer) => {
    const target = marks.cut.get(answer.maxlen);
    const label = count(answer.maxlen);
    return el(
      "div",
      { class: "bar-row" + (answer === shown ? " chosen" : "") },
      target ? button(label, () => scrollTo(target), { title: "Show the cut in the document" }) : el("span", {}, label),
      bar(answer, example, length),
      el("span", { class: "share" }, `${fixed(100 * keptShare(answer, length), 0)}% kept`),
    );
  });
  const nextButton = (nodes, name) => {
    let next = 0;
    const step = () => {
      scrollTo(nodes[next]);
      next = (next + 1) % nodes.length;
    };
    return nodes.length ? button(`Next ${name} (${nodes.length})`, step) : null;
  };
  const legend = el(
    "p",
    { class: "legend" },
    el("span", {}, "kept"),
    pieces.length ? el("span", { class: "cut" }, "cut") : null,
    example.oracle?.length ? el("span", { class: "oracle" }, "oracle’s sentence") : null,
    example.evidence?.length ? el("span", { class: "evidence" }, "gold evidence") : null,
    nextButton(marks.oracle, "oracle’s sentence"),
    nextButton(marks.evidence, "evidence"),
  );
  const title = `Document, ${count(length)} characters, as cut at ${shown ? count(shown.maxlen) : "no length"}`;
  const text = pieces.length ? [pane] : [];
  return el("section", { class: "source" }, el("h4", {}, title), el("div", { class: "bars" }, ...rows), legend, ...text);
}

function fillPane(pane, pieces, length, entry, shown, marks) {
  const { example } = entry;
  const oracle = example.oracle ?? [];
  const evidence = example.evidence ?? [];
  const kept = shown ? shown.kept : [];
  const cuts = [...entry.answers.values()].flatMap((answer) =>
    cutsOf(answer, length).map((cut) => ({ ...cut, maxlen: answer.maxlen })),
  );
  const edges = new Set([...kept, ...oracle, ...evidence].flat().concat(cuts.map(({ position }) => position)));
  let reached = 0;
  const addGap = (until) => {
    if (until > reached) pane.append(el("span", { class: "gap" }, `… ${count(until - reached)} characters …`));
  };
  for (const [offset, text] of pieces) {
    addGap(offset);
    const { size, slice } = measured(text);
    const inside = [...edges].filter((edge) => edge > offset && edge < offset + size);
    const stops = [offset, ...inside.sort((first, second) => first - second), offset + size];
    for (let index = 0; index + 1 < stops.length; index += 1) {
      const [start, end] = [stops[index], stops[index + 1]];
      for (const cut of cuts.filter(({ position }) => position === start)) {
        const node = el("span", { class: "cut-mark" + (cut.maxlen === shown?.maxlen ? " chosen" : "") }, cut.label);
        if (!marks.cut.has(cut.maxlen)) marks.cut.set(cut.maxlen, node);
        pane.append(node);
      }
      const names = [
        ...(covers(kept, start) ? [] : ["cut"]),
        ...(covers(oracle, start) ? ["oracle"] : []),
        ...(covers(evidence, start) ? ["evidence"] : []),
      ];
      const node = el("span", { class: names.join(" ") || null }, slice(start - offset, end - offset));
      pane.append(node);
      if (oracle.some(([first]) => first === start)) marks.oracle.push(node);
      if (evidence.some(([first]) => first === start)) marks.evidence.push(node);
    }
    reached = offset + size;
  }
  addGap(length);
}
