"""A scored run as `report.md`, `report.html`, charts for papers, and what a terminal shows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from eval.metrics.agreement import headline_correlations
from eval.records.engines import describe_clock, engine_facts, name_engine
from eval.records.read_run import RunInputs
from eval.records.run_folder import RunFolder, own_plots
from eval.records.schema import ENCODED_LENGTHS, ENCODER_DECODER, ExampleScore, Result, RunRecord, Scores, TaskRecord
from eval.records.windows import beside_head
from eval.reporting.charts import Chart, cost_charts, length_chart, save_charts, titled
from eval.reporting.checks import Check, checks_of, checks_of_run
from eval.reporting.columns import (
    COMPARISON_LEGEND,
    FURTHER_LEGEND,
    LEGEND,
    NOISE,
    costs_of,
    doubt_legend,
    legend_of,
    text,
    units_of,
)
from eval.reporting.depth_chart import DEPTH_REMARK, depth_map, depth_table
from eval.reporting.finding import claimed, meanings, numbers_of, what_was_shown
from eval.reporting.finding_chart import describe_baselines, finding_chart
from eval.reporting.further_tables import further_comparisons, further_tables
from eval.reporting.page import (
    Code,
    Facts,
    Finding,
    Fold,
    Heading,
    Prose,
    Section,
    Switch,
    as_table,
    render_page,
)
from eval.reporting.position_chart import document_positions, oracle_positions
from eval.reporting.samples import gather_samples
from eval.reporting.stops import describe_stop, warn_of_stop
from eval.reporting.tables import (
    GROUPS_REMARK,
    Rows,
    as_columns,
    as_markdown,
    code,
    comparison_table,
    cost_table,
    describe_intervals,
    describe_missing,
    describe_model,
    group_table,
    markdown,
    name_settings,
    noise_table,
    quality_table,
    scrolls_table,
    select,
    table_of,
)
from eval.reporting.terminal import fill, width
from eval.reporting.useful_lengths import USEFUL
from eval.reporting.windows import WINDOWS_REMARK, window_meanings, windows_table
from eval.scoring.board import command_for_readers
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.parity import describe_parity
from eval.scoring.profiles import PROFILES, describe_profile, describe_profiles, headline, metric_name

_KEEPS = {"head": "the beginning", "middle": "both ends", "tail": "the end"}


class Block(NamedTuple):
    """A table of a report; the remark may be empty, and so may the table."""

    title: str
    remark: str
    rows: Rows


def legends(scores: Scores) -> list[str]:
    """Return what the columns of a run's tables mean, a paragraph a kind of table."""
    further = [FURTHER_LEGEND] if scores.further else []
    doubt = doubt_legend(scores.profiles.values())
    return [LEGEND, *doubt, COMPARISON_LEGEND, *further, legend_of(costs_of(scores.results))]


def title_of(record: RunRecord) -> str:
    """Return the title of the report."""
    return f"{', '.join(record.tasks)}: {record.identity.model.label}"


def facts_of(record: RunRecord, scores: Scores) -> dict[str, str]:
    """Return what produced the numbers; machine and code are those of the last session that generated any."""
    identity, session, count = record.identity, record.sessions[-1], len(record.sessions)
    is_encoded = (identity.engine or {}).get("kind") == ENCODER_DECODER
    return {
        "model": describe_model(identity.model, identity.dtype, session),
        **engine_facts(identity.engine, session),
        "spans": code(record.plan_description),
        "truncation": f"keeps {_KEEPS[identity.truncation]} of the context",
        "decoding": describe_decoding(identity.generation),
        "data": "; ".join(_data_of(name, task) for name, task in record.tasks.items()),
        **({"lengths": ENCODED_LENGTHS} if is_encoded else {}),
        "metrics": f"{describe_profiles(profiles_shown(scores))}; {describe_intervals(scores.results)}",
        "checked": describe_parity(scores.parity),
        "machine": _machine_of(record),
        "date": ", ".join([session.started[:10], *([f"the last of {count} sessions"] if count > 1 else [])]),
        "code": f"commit {(session.commit or 'unknown')[:10]}{', with uncommitted changes' if session.dirty else ''}",
    }


def describe_decoding(generation: Mapping[str, Any]) -> str:
    """Return how answers were chosen: greedily, by beams or by sampling, and the options that are in effect."""
    beams, temperature = generation.get("num_beams") or 1, generation.get("temperature")
    way = f"sampled at temperature {temperature:g}" if temperature else f"{beams} beams" if beams > 1 else "greedy"
    idle: dict[str, Any] = {"min_new_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "stop": []}
    if temperature:
        idle |= {"top_p": 1.0, "top_k": 0, "num_samples": 1}
    if beams > 1:
        idle["length_penalty"] = 1.0
    others = [f"{name} {generation[name]}" for name, value in idle.items() if generation.get(name, value) != value]
    return ", ".join([way, *others])


def _data_of(name: str, task: TaskRecord) -> str:
    """Return which data a task was read from, and their licence."""
    source = " ".join(str(task.source[part]) for part in ("name", "version", "revision") if task.source.get(part))
    return f"{name}: {code(source)}, licence: {task.licence or 'not stated'}"


def _machine_of(record: RunRecord) -> str:
    """Return what computed, or what asked the server that did."""
    session = record.sessions[-1]
    if name_engine(record.identity.engine) == "endpoint":
        return f"that of the server, which does not tell; asked from {session.machine.device}"
    return f"{session.machine.device}, {session.world_size} process(es), {session.threads} torch thread(s) each"


def profiles_shown(scores: Scores) -> dict[str, str]:
    """Return the profile of each task that has results."""
    return {result.task: result.profile for result in scores.results}


def describe_task(record: RunRecord, scores: Scores, task: str) -> str:
    """Return what a task requires and how its answers are scored, in sentences."""
    about, baselines = record.tasks[task], scores.yardsticks[task]
    sentences = [
        f"{about.description}. Split `{about.split}`, room for {about.max_new_tokens} new tokens.",
        f"Scores: {describe_profile(scores.profiles[task])}.",
        *_with_people(scores.profiles[task]),
    ]
    if baselines.word_budget is None:
        sentences.append(
            "Of what needs no model the common answer alone is scored: sentences of a document match no choice."
        )
    else:
        sentences.append(
            f"Lead, tail and oracle have {baselines.word_budget} words, or as many as the answer where they are at "
            f"length; the oracle aims at {baselines.objective}."
        )
    if select(scores.depths or (), task=task):
        sentences.append("Every length shows all needles: what lies between them is cut evenly.")
    return " ".join(sentences)


def _with_people(profile: str) -> Iterator[str]:
    """Yield how well each headline metric of a profile agrees with people, in a sentence, where that was measured."""
    for metric in PROFILES[profile].headline:
        if found := headline_correlations(profile, metric, SCORING_VERSION):
            shown = ", ".join(f"{r} ({where})" for where, r in found.items())
            yield f"r of {metric_name(metric)} with people, within systems: {shown}."


def blocks_of(record: RunRecord, scores: Scores, task: str) -> Iterator[Block]:
    """Yield the tables of a task in reading order."""
    of_task = select(scores.results, task=task)
    for template in record.tasks[task].templates:
        everything = select(of_task, template=template, subset="all")
        if not everything:
            continue
        where = f"{task}, template {template}"
        truncated = select(of_task, template=template, subset="always_truncated")
        longest = max(select(everything, kind="model"), key=lambda result: result.maxlen)
        cut = "Every length truncates all of them." if longest.num_truncated else "The greatest length truncates none."
        remark = "" if truncated else cut
        yield Block(f"Quality: {where}", remark, quality_table(everything))
        if truncated:
            documents = max(result.num_documents for result in truncated)
            remark = f"The {documents} document(s) that every length truncates; short ones dilute the comparison."
            yield Block(f"Quality where every length cuts: {where}", remark, quality_table(truncated))
        if useful := select(scores.useful_lengths or (), task=task, template=template):
            yield Block(f"Useful length: {where}", legend_of(USEFUL), table_of(USEFUL, useful))
        if noise := noise_table(everything):
            yield Block(f"Samples: {where}", legend_of(NOISE), noise)
        if cells := select(scores.depths or (), task=task, template=template):
            yield Block(f"Found by depth: {where}", DEPTH_REMARK, depth_table(cells))
        if groups := select(scores.groups or (), task=task, template=template):
            yield Block(f"Groups: {where}", GROUPS_REMARK, group_table(groups))
        remark = describe_clock(record.identity.engine, record.sessions[-1])
        yield Block(f"Cost: {where}", remark, cost_table(everything))
        yield from itertools.starmap(Block, further_tables(scores, task, template))
    if contrasts := windows_table(scores, task):
        yield Block(f"Windows: {task}", WINDOWS_REMARK, contrasts)
    for subset, where in (("all", ""), ("always_truncated", " where every length cuts")):
        if table := select(scores.comparisons, task=task, subset=subset):
            rows = comparison_table(table, "first to second", name_settings)
            yield Block(f"Comparisons{where}: {task}", "", rows)
        for title, rows in further_comparisons(scores, task, subset):
            yield Block(f"Comparisons{where} by {title}", "", rows)


def scrolls_blocks(scores: Scores) -> Iterator[Block]:
    """Yield the table of the SCROLLS score, where a run has one, and what is missing."""
    found = scores.scrolls_score
    if found is not None:
        names = [replace(text("template"), heading="templates")] if any(row.template for row in found.scores) else []
        table = scrolls_table(found.scores, names) if found.scores else []
        yield Block("SCROLLS score", describe_missing(found.missing, has_scores=bool(found.scores)), table)


def all_blocks(record: RunRecord, scores: Scores) -> Iterator[Block]:
    """Yield all tables of a run in reading order."""
    for task in record.tasks:
        yield from blocks_of(record, scores, task)
    yield from scrolls_blocks(scores)


def render_report(record: RunRecord, scores: Scores, notes: Sequence[str]) -> str:
    """Return `report.md`."""
    parts = [f"# {markdown(title_of(record))}", ""]
    parts += [f"- {name}: {markdown(text)}" for name, text in facts_of(record, scores).items()]
    if record.until is not None:
        said = filter(None, (describe_stop(record.until), warn_of_stop(record.until)))
        parts += [line for text in said for line in ("", markdown(text))]
    for task, about in record.tasks.items():
        blocks = list(blocks_of(record, scores, task))
        parts += ["", f"## {task}", "", markdown(describe_task(record, scores, task))] if blocks else []
        if blocks and (checks := checks_of(scores).get(task)):
            parts += ["", "Check before you trust this:", "", *(f"- {markdown(check.text)}" for check in checks)]
        windows = beside_head(about.templates)
        for template in about.templates if blocks else []:
            if template not in windows and select(scores.results, task=task, template=template):
                title = markdown(f"Scores and cost over length: {task}, template {template}")
                parts += ["", f"![{title}](plots/{quote(f'{task}-{template}-finding.svg')})"]
        for block in blocks:
            parts += ["", f"### {markdown(block.title)}", "", *_in_markdown(block)]
    for block in scrolls_blocks(scores):
        parts += ["", f"## {block.title}", "", *_in_markdown(block)]
    paragraphs = (line for legend in legends(scores) for line in ("", markdown(legend)))
    return "\n".join([*parts, "", *map(markdown, notes), *paragraphs, ""])


def _in_markdown(block: Block) -> list[str]:
    remark = [markdown(block.remark), ""] if block.remark else []
    return [*remark, *([as_markdown(block.rows)] if block.rows else [])]


def render_full(record: RunRecord, scores: Scores) -> str:
    """Return all tables for a terminal."""
    profiles = describe_profiles(profiles_shown(scores)).replace("`", "")
    parts = [fill(f"{profiles}; {describe_intervals(scores.results)}")]
    for block in all_blocks(record, scores):
        parts.append("\n".join([block.title, *([fill(block.remark)] if block.remark else [])]))
        if block.rows:
            # Tables of quality name a row by its length and its system.
            num_names = 2 if block.rows[0][1] == "system" else 1
            parts.append(as_columns(block.rows, width(), num_names))
    return "\n\n".join(parts)


def write_page(
    folder: RunFolder, inputs: RunInputs, scores: Scores, lines: Sequence[ExampleScore], *, with_texts: bool
) -> list[Path]:
    """Write `report.html` and `plots/` into a run folder, and return the PNG files.

    With texts, the page shows those of documents, references and predictions.
    """
    record = inputs.record
    charts = {
        (task, template): dict(_charts(task, template, scores, lines, inputs))
        for task in record.tasks
        for template in record.tasks[task].templates
        if select(scores.results, task=task, template=template)
    }
    sections: list[Section] = []
    findings: dict[tuple[str, str], Chart] = {}
    asked = [at for at in charts if at[1] not in beside_head(record.tasks[at[0]].templates)]
    for index, at in enumerate(asked):
        notes = [] if index else checks_of_run(inputs)
        found, switch = _finding(inputs, scores, *at, _name_of(*at, asked), notes)
        sections += [found, switch]
        findings[at] = next(iter(switch.charts.values()))
    if others := [*meanings(record, scores, has_lengths=False), *window_meanings(record, scores)]:
        sections.append(Prose(text="\n\n".join(others)))
    drawn: list[Section] = []
    for at, of_template in charts.items():
        drawn += [Heading(text=_name_of(*at, charts), level=3)] if len(charts) > 1 else []
        drawn += of_template.values()
    tables: list[Section] = []
    for task in record.tasks:
        blocks = list(blocks_of(record, scores, task))
        if blocks:
            tables += [Heading(text=task, level=3), Prose(text=describe_task(record, scores, task))]
        for block in blocks:
            tables += _in_page(block)
    for block in scrolls_blocks(scores):
        tables += [Heading(text=block.title, level=3), *_in_page(block)]
    meaning = "\n\n".join(legends(scores))
    sections += [
        Fold(title="How it was run", sections=list(_how(inputs, scores))),
        Fold(title="More charts", sections=drawn),
        Fold(title="Tables", sections=[*tables, Heading(text="What the columns mean", level=3), Prose(text=meaning)]),
    ]
    samples = gather_samples(lines, inputs, scores.profiles, with_texts=with_texts)
    about = {"subtitle": _subtitle(inputs, scores), "footer": _footer(record)}
    folder.write_text("report.html", render_page(title_of(record), [], sections, samples, **about))
    saved = {
        f"{'-'.join(at)}-{name}": titled(chart)
        for at, drawn in charts.items()
        for name, chart in {**({"finding": findings[at]} if at in findings else {}), **drawn}.items()
    }
    return save_charts(folder.path / "plots", saved, own_plots(record))


def _name_of(task: str, template: str, charts: Collection[tuple[str, str]]) -> str:
    """Return what sets a task and template apart on the page; empty where it has one alone."""
    if len(charts) == 1:
        return ""
    return task if [name for name, _ in charts].count(task) == 1 else f"{task}, template {template}"


def _subtitle(inputs: RunInputs, scores: Scores) -> str:
    """Return what a reader must know at once: lengths, documents, spans, date."""
    record = inputs.record
    lengths = sorted({length for task in record.tasks.values() for length in task.maxlen})
    documents = len({(one.task, one.document_id) for one in inputs.examples})
    over = f"{lengths[0]:,} to {lengths[-1]:,} tokens" if len(lengths) > 1 else f"{lengths[0]:,} tokens"
    parts = [over, f"{documents:,} document{'s' * (documents != 1)}", describe_profiles(profiles_shown(scores))]
    parts += [f"spans {code(record.plan_description)}", record.sessions[-1].started[:10]]
    return " \u00b7 ".join(parts)


def _footer(record: RunRecord) -> str:
    """Return which version made the numbers."""
    session = record.sessions[-1]
    version = session.versions.get("masformer", "")
    return f"Made with MASFormer evaluation {version}, {session.started[:10]}.".replace(" ,", ",")


def _finding(
    inputs: RunInputs, scores: Scores, task: str, template: str, heading: str, notes: Iterable[str]
) -> tuple[Finding, Switch]:
    """Return what was found of a task and template, with its chart; notes are what to check of the whole run."""
    results = select(scores.results, task=task, template=template, subset="all")
    comparisons = select(scores.comparisons, task=task, subset="all")
    claim, _, after = claimed(inputs.record, results, comparisons).partition(":")
    checks = [
        (one.brief, _link(one, task, template))
        for one in checks_of(scores).get(task, [])
        if one.template in ("", template)
    ]
    found = Finding(
        heading=heading,
        before=what_was_shown(results),
        claim=claim,
        after=f":{after}" if after else "",
        numbers=numbers_of(results, comparisons),
        checks=[*checks, *((note, "") for note in notes)],
    )
    return found, Switch(label="Metric of the chart", charts=_finding_charts(inputs.record, results))


def _finding_charts(record: RunRecord, results: Sequence[Result]) -> dict[str, Chart]:
    """Return the charts of a finding by the name of their metric, that of the headline first."""
    intervals = describe_intervals(results)
    first = headline(results[0].profile)
    return {
        metric_name(metric): Chart(
            title=f"{metric_name(metric)} over length, and what it costs",
            caption=f"{intervals[0].upper()}{intervals[1:]}. {describe_baselines(results, metric)}".strip(),
            spec=finding_chart(results, metric),
            source=_source(record, results),
        )
        for metric in [first, *(name for name in results[0].metrics if name != first)]
    }


def _link(check: Check, task: str, template: str) -> str:
    """Return the link to the samples of a check; empty where it is about no answers."""
    if not check.show or check.maxlen is None:
        return ""
    return "#" + urlencode({"show": check.show, "maxlen": check.maxlen, "task": task, "template": template})


def _source(record: RunRecord, results: Sequence[Result]) -> str:
    """Return what a chart of these results is of, for where it stands alone."""
    first = results[0]
    num_units, name = units_of(first)
    name = name.removesuffix("s") if num_units == 1 else name
    made = _footer(record)
    return (
        f"{first.task}, n = {num_units} {name}; {record.identity.model.label}, spans {record.plan_description}; "
        f"{made[0].lower()}{made[1:-1]}"
    )


def _how(inputs: RunInputs, scores: Scores) -> Iterator[Section]:
    """Yield what a reader needs to run the same again."""
    record = inputs.record
    yield Facts(facts=facts_of(record, scores))
    if command := command_for_readers(record.sessions[-1]):
        yield Code(caption="Command", text=command)
    for task, about in record.tasks.items():
        for name, template in about.templates.items():
            put = "inside the model's chat template" if template.chat else "as it stands"
            if about.shots:
                place = "with" if "{shots}" in template.text else "behind"
                put += f", {place} {len(about.shots['ids'])} solved examples of split {about.shots['split']}"
            if template.system:
                yield Code(caption=f"System message of {task}, template {name}", text=template.system)
            yield Code(caption=f"Prompt of {task}, template {name}, {put}", text=template.text)
        if about.stop:
            yield Code(caption=f"Texts that end an answer of {task}", text=json.dumps(about.stop, ensure_ascii=False))
    if inputs.notes:
        yield Prose(text="\n\n".join(inputs.notes))


def _in_page(block: Block) -> list[Section]:
    remark: list[Section] = [Prose(text=block.remark)] if block.remark else []
    return [*remark, as_table(block.title, block.rows)] if block.rows else remark


def _charts(
    task: str, template: str, scores: Scores, lines: Sequence[ExampleScore], inputs: RunInputs
) -> Iterator[tuple[str, Chart]]:
    """Yield the charts of a task and template, after the names of their files."""
    results = select(scores.results, task=task, template=template, subset="all")
    objective, source = scores.yardsticks[task].objective, _source(inputs.record, results)
    aim = f" (the oracle aims at {objective.split(',')[0]})" if objective else ""
    for metric in results[0].metrics:
        yield (
            f"length-{metric}",
            replace(length_chart(results, metric, describe_intervals(results), aim), source=source),
        )
    if cells := select(scores.depths or (), task=task, template=template):
        yield (
            "depth",
            Chart(title="Found by depth and length", caption=DEPTH_REMARK, spec=depth_map(cells), source=source),
        )
    caption = "Of an example, in the mean; bytes are those of the largest."
    for cost, chart in cost_charts(results, headline(scores.profiles[task]), caption).items():
        yield f"cost-{cost}", replace(chart, source=source)
    lengths = {document.document_id: len(document.text) for document in select(inputs.documents, task=task)}
    of_template = {"task": task, "template": template}
    scored, predictions = select(lines, **of_template), select(inputs.predictions, **of_template)
    shown, title = "How many examples show each position of their document.", "What each length shows"
    if objective:
        title = "Where the oracle's sentences lie"
        shown = f"Above: {shown.lower()} Below: sentences that the oracle picks at the greatest length."
    spec = oracle_positions(*document_positions(scored, predictions, lengths))
    yield "positions", Chart(title=title, caption=shown, spec=spec, source=source)
