// One example: its query, references and answers side by side, scores and costs, and its document.

function sampleView(data, entry, state, choose) {
  const { example } = entry;
  const shown = entry.answers.get(state.length) ?? null;
  const other = state.other === state.length ? null : (entry.answers.get(state.other) ?? null);
  const source = data.documents[example.document] ?? null;
  const parts = [
    el("h3", { tabindex: "-1" }, example.id),
    copies(el("button", { type: "button", class: "link" }, "Copy link"), () => new URL(linkTo(entry, state), location.href).href),
    el("p", { class: "origin" }, [example.task, entry.template].join(" · ")),
  ];
  if (example.query) parts.push(el("p", { class: "query" }, el("b", {}, "Query "), example.query));
  const answers = [shown, other].filter((answer) => answer !== null);
  if (data.names) answers.sort((first, second) => first.maxlen - second.maxlen);
  if (answers.some((answer) => answer.text !== null)) {
    parts.push(textsView(data, example.references ?? [], answers, metricOf(entry, state)), overlapLegend());
  } else {
    parts.push(el("p", { class: "note" }, shown ? "Texts were left out of this page." : "No answer at this length."));
  }
  parts.push(scoresView(data, entry, [shown, other], choose));
  if (source) parts.push(documentView(source, entry, shown));
  return parts;
}

function textsView(data, references, answers, metric) {
  const texts = answers.map((answer) => answer.text ?? "");
  const column = (title, detail, ...content) =>
    el("div", { class: "text" }, el("h4", {}, title, " ", el("small", {}, detail)), ...content);
  const referenceTexts = references.map((text) => el("p", {}, ...markedText(text, texts.slice(0, 1))));
  return el(
    "div",
    { class: "texts" },
    column(references.length > 1 ? `${references.length} references` : "Reference", "", ...referenceTexts),
    ...answers.map((answer, index) =>
      column(
        data.names ? answer.name : `At ${answer.name}`,
        `${data.metrics[metric]} ${score(answer.scores?.[metric])}`,
        thoughtView(answer),
        texts[index] ? el("p", {}, ...markedText(texts[index], references)) : el("p", { class: "note" }, "Empty answer."),
      ),
    ),
  );
}

// What was thought before an answer, folded: it is not scored.
function thoughtView(answer) {
  if (!answer.thought) return null;
  const summary = el("summary", {}, `Thought, ${count(answer.num_thought_tokens)} tokens, not scored`);
  return el("details", { class: "thought" }, summary, el("p", {}, answer.thought));
}

function overlapLegend() {
  return el(
    "p",
    { class: "legend" },
    "Shared with the other side: ",
    el("mark", { class: "word" }, "content word"),
    " ",
    el("mark", { class: "phrase" }, "two or more words in a row"),
    " (lower case, without stemming; the reference is marked for the first answer)",
  );
}

function scoresView(data, entry, chosen, choose) {
  const scored = (metric) => [...entry.answers.values()].some((answer) => metric in (answer.scores ?? {}));
  const columns = [
    ...Object.keys(data.metrics)
      .filter(scored)
      .map((metric) => [data.metrics[metric], (answer) => score(answer.scores?.[metric], 2)]),
    ...data.columns.map((column) => [column.heading, (answer) => shownValue(answer[column.key], column)]),
  ];
  const rows = [...entry.answers.values()].map((answer) =>
    el(
      "tr",
      { class: chosen.includes(answer) ? "chosen" : null },
      el("th", { scope: "row" }, button(answer.name, () => choose(answer.maxlen), { "data-length": answer.maxlen, title: "Show this answer" })),
      ...columns.map(([, value]) => el("td", { class: "number" }, value(answer))),
    ),
  );
  const header = [data.names ? "run" : "maxlen", ...columns.map(([name]) => name)].map((name) =>
    el("th", { scope: "col", class: "number" }, name),
  );
  const table = el(
    "table",
    {},
    el("caption", {}, `Scores (× 100) and cost of each ${data.names ? "run" : "length"}; kept and dropped are tokens of the context`),
    el("thead", {}, el("tr", {}, ...header)),
    el("tbody", {}, ...rows),
  );
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores and cost" }, table);
}
