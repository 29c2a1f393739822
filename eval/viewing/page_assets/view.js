// The list of runs, or one run; what has changed is asked for every few seconds and drawn anew.

const EVERY_MILLISECONDS = 3000;
const source = document.getElementById("content");
const kind = source.dataset.kind;
const main = document.getElementById("main");
const linkTo = (file) => `files/${file.split("/").map(encodeURIComponent).join("/")}`;
const runLink = (name) => `run?run=${encodeURIComponent(name)}`;
const inFolder = (name, file) => (name === "." ? file : `${name}/${file}`);
const cell = (...content) => el("td", {}, ...content);
const number = (text) => el("td", { class: "number" }, text);

function pill(state) {
  return el("span", { class: `state ${state.replace(" ", "-")}` }, state);
}

function when(text) {
  const time = new Date(text);
  return text && !Number.isNaN(time.getTime()) ? time.toLocaleString("sv-SE").slice(0, 16) : "–";
}

// A time in its two largest units, as far as they matter.
function duration(seconds) {
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  if (minutes >= 10) return `${minutes} min`;
  return minutes ? `${minutes} min ${Math.round(seconds) % 60} s` : `${Math.round(seconds)} s`;
}

function table(caption, headings, rows) {
  const head = headings.map(([name, isNumber]) => el("th", { scope: "col", class: isNumber ? "number" : null }, name));
  const body = el("tbody", {}, ...rows);
  const parts = [el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), body];
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, el("table", {}, ...parts));
}

// ---- The list

const chosen = new Set();
const search = el("input", { type: "search", autocomplete: "off" });
const counted = el("span", { class: "count", role: "status" });
const told = el("p", { class: "made", role: "status" });
const pages = el("p", { class: "pages" });
const listed = el("div", { class: "table" });
let list = { runs: [], pages: [] };

function startList() {
  const compare = button("Compare two", () => make({ what: "compare", runs: inOrder() }), { id: "compare", disabled: true });
  const rank = button("Make a leaderboard", () => make({ what: "leaderboard" }), { id: "rank" });
  const filter = el("label", { class: "filter" }, "Filter runs", search);
  main.append(el("div", { class: "tools" }, filter, counted, compare, rank, told), pages, listed);
  search.addEventListener("input", showList);
}

// The older run first, so that positive differences favour the newer one.
const inOrder = () => list.runs.map(({ name }) => name).filter((name) => chosen.has(name)).reverse();

async function make(request) {
  const buttons = [...document.querySelectorAll(".tools button")];
  buttons.forEach((one) => (one.disabled = true));
  told.classList.remove("wrong");
  told.textContent = request.what === "compare" ? `Comparing ${request.runs.join(" with ")} …` : "Ranking all runs …";
  try {
    const reply = await fetch("make", { method: "POST", body: JSON.stringify(request) });
    if (!reply.ok) throw new Error(await reply.text());
    const { file } = await reply.json();
    told.replaceChildren("Made: ", el("a", { href: linkTo(file), id: "made" }, file));
    await ask();
  } catch (error) {
    told.classList.add("wrong");
    told.textContent = error.message;
  }
  buttons.forEach((one) => (one.disabled = false));
  showChoice();
}

function showChoice() {
  document.getElementById("compare").disabled = chosen.size !== 2;
}

function textOf(run) {
  const parts = [run.name, run.state, run.kind, run.model, run.plan, run.remark, ...run.tasks, ...run.lengths];
  return parts.join(" ").toLowerCase();
}

function runRow(run) {
  const box = el("input", { type: "checkbox", "aria-label": `Choose ${run.name}` });
  box.checked = chosen.has(run.name);
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(run.name);
    else chosen.delete(run.name);
    showChoice();
  });
  const isRun = run.kind === "answers";
  const [report, ...others] = run.files;
  const goal = run.state === "running" && isRun ? runLink(run.name) : report ? linkTo(inFolder(run.name, report)) : null;
  const name = goal ?? (isRun ? runLink(run.name) : null);
  const lengths = run.lengths.map((length) => count(length)).join(" ");
  const links = run.files.map((file) => el("a", { href: linkTo(inFolder(run.name, file)) }, file.replace(/\.\w+$/, "")));
  const soFar = isRun ? [el("a", { href: runLink(run.name) }, run.state === "running" ? "progress" : "answers")] : [];
  const separated = [...links, ...soFar].flatMap((link, index) => (index ? [" · ", link] : [link]));
  return el(
    "tr",
    {},
    el("td", { class: "choose" }, isRun && run.scores.length ? box : ""),
    el("td", { class: "name" }, name ? el("a", { href: name }, run.name) : run.name),
    cell(pill(run.state), el("small", {}, run.ahead ? timeLeft(run.ahead) : run.remark)),
    cell(run.kind === "answers" ? run.tasks.join(", ") : `${run.kind}: ${run.tasks.join(", ")}`.replace(/^: $/, "–")),
    cell(run.model || "–", run.plan ? el("small", {}, run.plan) : ""),
    cell(lengths || "–"),
    cell(...(run.scores.length ? run.scores.map(([score, about]) => el("div", { class: "score" }, score, el("small", {}, about))) : ["–"])),
    el("td", { class: "whole" }, when(run.started)),
    cell(...separated),
  );
}

function showList() {
  const words = search.value.toLowerCase().split(/\s+/);
  const shown = list.runs.filter((run) => words.every((word) => textOf(run).includes(word)));
  counted.textContent = shown.length === list.runs.length ? "" : `${count(shown.length)} of ${count(list.runs.length)} runs`;
  pages.replaceChildren(...list.pages.map((page) => el("a", { href: linkTo(page) }, page)));
  const headings = ["", "Run", "State", "Task", "Model and spans", "Lengths", "Score", "Started", "Files"];
  const caption = `${count(list.runs.length)} run${list.runs.length === 1 ? "" : "s"}, the newest first`;
  const none = el("p", { class: "note" }, "No folder in it or below holds a run.json yet. Runs show up here when they begin.");
  listed.replaceChildren(
    list.runs.length ? table(caption, headings.map((name) => [name]), shown.map(runRow)) : none,
  );
}

// ---- One run

const open = new Set();

function showRun({ name, progress, problem }) {
  document.getElementById("title").textContent = name;
  document.title = `${name}: answers so far`;
  const subtitle = document.getElementById("subtitle");
  if (!progress) {
    subtitle.textContent = "";
    main.replaceChildren(el("p", { class: "warning" }, problem));
    return;
  }
  subtitle.replaceChildren(pill(progress.state), ` ${progress.state === "running" ? "since" : "started"} ${when(progress.started)}`);
  main.replaceChildren(...aheadOf(progress), ...lengthsOf(progress), ...answersOf(progress));
}

function timeLeft({ share, seconds_left: left }) {
  if (share === null) return "time left not known yet";
  const time = left === null ? "" : left < 1 ? ", about done" : `, about ${duration(left)} left`;
  return `${Math.round(100 * share)}%${time}`;
}

function aheadOf({ state, ahead, remark, command }) {
  const { num_answered: answered, num_wanted: wanted, doing } = ahead;
  const part = state === "running" ? ahead.share : answered / (wanted || 1);
  const bar = el("progress", { max: 1, value: part, "aria-label": "Done" });
  const title = state === "running" ? timeLeft(ahead) : `${count(answered)} of ${count(wanted)} answers`;
  const onDisk = `${count(answered)} of ${count(wanted)} answers are on the disk`;
  const about = [state === "running" ? onDisk : "", doing ? `the last step: ${doing}` : ""].filter(Boolean).join("; ");
  const rest = remark ? [el("p", { class: "warning" }, remark)] : [];
  if (state === "interrupted" && command) rest.push(commandOf(command));
  return [el("div", { class: "ahead" }, bar, el("strong", { id: "left" }, title), el("p", {}, about)), ...rest];
}

function commandOf(command) {
  const copy = copies(button("Copy", () => null, { class: "copy" }), () => command);
  const title = el("p", {}, "This command goes on where it stopped ", copy);
  return el("div", { class: "code" }, title, el("pre", { tabindex: "0" }, el("code", {}, command)));
}

function counts(found, all) {
  return el("td", { class: `number${all && 2 * found >= all ? " warning" : ""}` }, all ? count(found) : "–");
}

function lengthsOf({ lengths }) {
  const of = (name) => new Set(lengths.map((row) => row[name])).size > 1;
  const named = ["task", "template"].filter(of);
  const headings = [...named.map((name) => [name]), ...["maxlen", "answers", "words", "seconds"].map((name) => [name, true])];
  headings.push(["ended by length", true], ["empty", true], ["loops", true]);
  const rows = lengths.map((row) => {
    const all = row.num_answered;
    const cells = [number(count(row.maxlen)), number(`${count(all)} of ${count(row.num_wanted)}`)];
    cells.push(number(fixed(row.words, 0)), number(fixed(row.seconds, 1)));
    cells.push(counts(row.num_ended_by_length, all), counts(row.num_empty, all), counts(row.num_loops, all));
    return el("tr", {}, ...named.map((name) => cell(row[name])), ...cells);
  });
  const caption = "Answers so far; words and seconds are medians. Bold: half of the answers or more.";
  return [el("div", { class: "table" }, table(caption, headings, rows))];
}

function answersOf({ answers, ahead: { num_answered: all } }) {
  const title = el("h2", {}, answers.length < all ? `The newest ${count(answers.length)} answers` : "Answers, the newest first");
  if (!answers.length) return [title, el("p", { class: "note" }, "None yet: a batch is written once it is decoded.")];
  return [title, el("div", { class: "answers" }, ...answers.map(answerOf))];
}

function answerOf(answer) {
  const key = [answer.task, answer.template, answer.id, answer.maxlen].join("/");
  const end = answer.finish_reason === "length" ? ", used up its room" : "";
  const about = `${answer.task}, ${answer.template}; ${count(answer.prompt_tokens)} tokens of prompt${end}`;
  const references = el("details", { open: open.has(key) }, el("summary", {}, "Reference"));
  references.append(...answer.references.map((text) => el("p", {}, text)));
  references.addEventListener("toggle", () => (references.open ? open.add(key) : open.delete(key)));
  return el(
    "article",
    { class: "answer" },
    el("h3", {}, `${answer.id} at ${count(answer.maxlen)}`, el("small", {}, about)),
    answer.query ? el("p", { class: "query" }, answer.query) : null,
    answer.text.trim() ? el("p", {}, answer.text.trim()) : el("p", { class: "empty" }, "Empty"),
    references,
  );
}

// ---- What is new

let shownText = "";

function show(text) {
  if (text === shownText) return;
  shownText = text;
  const content = JSON.parse(text);
  if (kind === "run") {
    showRun(content);
    return;
  }
  list = content;
  const names = new Set(list.runs.map(({ name }) => name));
  [...chosen].filter((name) => !names.has(name)).forEach((name) => chosen.delete(name));
  showList();
}

async function ask() {
  const stale = document.getElementById("stale");
  try {
    const reply = await fetch(kind === "run" ? `run.json${location.search}` : "runs.json");
    if (!reply.ok) throw new Error(await reply.text());
    show(await reply.text());
    stale.hidden = true;
  } catch {
    stale.hidden = false;
    stale.textContent = "What is shown may be old: the server does not answer, or the folder is gone.";
  }
}

async function follow() {
  if (!document.hidden) await ask();
  setTimeout(follow, EVERY_MILLISECONDS);
}

startTheme();
if (kind === "runs") startList();
show(source.textContent);
setTimeout(follow, EVERY_MILLISECONDS);
