"""A scored run as `report.md`, `report.html`, charts for papers, and what a terminal shows."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from eval.metrics.agreement import headline_correlations
from eval.records.engines import describe_clock, engine_facts, name_engine
from eval.records.read_run import RunInputs
from eval.records.run_folder import RunFolder, own_plots
from eval.records.schema import ENCODED_LENGTHS, ENCODER_DECODER, ExampleScore, RunRecord, Scores
from eval.reporting.charts import Chart, cost_charts, length_chart, save_charts
from eval.reporting.columns import (
    COMPARISON_LEGEND,
    FURTHER_LEGEND,
    LEGEND,
    NOISE,
    costs_of,
    doubt_legend,
    legend_of,
    text,
)
from eval.reporting.depth_chart import DEPTH_REMARK, depth_map, depth_table
from eval.reporting.further_tables import further_comparisons, further_tables
from eval.reporting.lengths import warnings_on_lengths, warnings_on_letters
from eval.reporting.page import Heading, Prose, Section, as_table, render_page
from eval.reporting.position_chart import document_positions, oracle_positions
from eval.reporting.samples import gather_samples
from eval.reporting.tables import (
    WIDTH,
    Rows,
    as_columns,
    as_markdown,
    code,
    comparison_table,
    cost_table,
    describe_intervals,
    describe_missing,
    describe_model,
    markdown,
    name_settings,
    noise_table,
    quality_table,
    scrolls_table,
    select,
)
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
    identity, session = record.identity, record.sessions[-1]
    is_encoded = (identity.engine or {}).get("kind") == ENCODER_DECODER
    return {
        "model": describe_model(identity.model, identity.dtype, session),
        **engine_facts(identity.engine, session),
        "spans": code(record.plan_description),
        "truncation": f"keeps {_KEEPS[identity.truncation]} of the context",
        **({"lengths": ENCODED_LENGTHS} if is_encoded else {}),
        "metrics": f"{describe_profiles(profiles_shown(scores))}; {describe_intervals(scores.results)}",
        "checked": describe_parity(scores.parity),
        "machine": _machine_of(record),
        "sessions": f"{len(record.sessions)}, all in run.json",
        "code": f"commit {session.commit or 'unknown'}{', with uncommitted changes' if session.dirty else ''}",
    }


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
    sentences += warnings_on_lengths(scores).get(task, [])
    sentences += warnings_on_letters(scores).get(task, [])
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
        if noise := noise_table(everything):
            yield Block(f"Samples: {where}", legend_of(NOISE), noise)
        if cells := select(scores.depths or (), task=task, template=template):
            yield Block(f"Found by depth: {where}", DEPTH_REMARK, depth_table(cells))
        remark = describe_clock(record.identity.engine, record.sessions[-1])
        yield Block(f"Cost: {where}", remark, cost_table(everything))
        yield from itertools.starmap(Block, further_tables(scores, task, template))
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
    for task in record.tasks:
        blocks = list(blocks_of(record, scores, task))
        parts += ["", f"## {task}", "", markdown(describe_task(record, scores, task))] if blocks else []
        for block in blocks:
            parts += ["", f"### {markdown(block.title)}", "", *_in_markdown(block)]
    for block in scrolls_blocks(scores):
        parts += ["", f"## {block.title}", "", *_in_markdown(block)]
    paragraphs = (line for legend in legends(scores) for line in ("", markdown(legend)))
    return "\n".join([*parts, "", *map(markdown, notes), *paragraphs, ""])


def _in_markdown(block: Block) -> list[str]:
    remark = [markdown(block.remark), ""] if block.remark else []
    return [*remark, *([as_markdown(block.rows)] if block.rows else [])]


def render_full(record: RunRecord, scores: Scores, notes: Sequence[str]) -> str:
    """Return all tables and legends for a terminal."""
    profiles = describe_profiles(profiles_shown(scores)).replace("`", "")
    parts = [textwrap.fill(f"{profiles}; {describe_intervals(scores.results)}", WIDTH)]
    for block in all_blocks(record, scores):
        parts.append("\n".join([block.title, *([textwrap.fill(block.remark, WIDTH)] if block.remark else [])]))
        parts += [as_columns(block.rows)] if block.rows else []
    return "\n\n".join([*parts, "\n".join([*notes, *(textwrap.fill(legend, WIDTH) for legend in legends(scores))])])


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
    for task in record.tasks:
        blocks = list(blocks_of(record, scores, task))
        if blocks:
            sections += [Heading(text=task), Prose(text=describe_task(record, scores, task))]
        for (of_task, template), drawn in charts.items():
            if of_task == task:
                sections += [Heading(text=f"Template {template}", level=3), *drawn.values()]
        for block in blocks:
            sections += _in_page(block)
    for block in scrolls_blocks(scores):
        sections += [Heading(text=block.title), *_in_page(block)]
    meaning = "\n\n".join([*inputs.notes, *legends(scores)])
    sections += [Heading(text="What the columns mean"), Prose(text=meaning)]
    samples = gather_samples(lines, inputs, scores.profiles, with_texts=with_texts)
    facts = list(facts_of(record, scores).items())
    folder.write_text("report.html", render_page(title_of(record), facts, sections, samples))
    specs = {f"{'-'.join(at)}-{name}": chart.spec for at, drawn in charts.items() for name, chart in drawn.items()}
    return save_charts(folder.path / "plots", specs, own_plots(record))


def _in_page(block: Block) -> list[Section]:
    remark: list[Section] = [Prose(text=block.remark)] if block.remark else []
    return [*remark, as_table(block.title, block.rows)] if block.rows else remark


def _charts(
    task: str, template: str, scores: Scores, lines: Sequence[ExampleScore], inputs: RunInputs
) -> Iterator[tuple[str, Chart]]:
    """Yield the charts of a task and template, after the names of their files."""
    results = select(scores.results, task=task, template=template, subset="all")
    objective = scores.yardsticks[task].objective
    aim = f" (the oracle aims at {objective.split(',')[0]})" if objective else ""
    for metric in results[0].metrics:
        yield f"length-{metric}", length_chart(results, metric, describe_intervals(results), aim)
    if cells := select(scores.depths or (), task=task, template=template):
        yield "depth", Chart(title="Found by depth and length", caption=DEPTH_REMARK, spec=depth_map(cells))
    caption = "Of an example, in the mean; bytes are those of the largest."
    for cost, chart in cost_charts(results, headline(scores.profiles[task]), caption).items():
        yield f"cost-{cost}", chart
    lengths = {document.document_id: len(document.text) for document in select(inputs.documents, task=task)}
    of_template = {"task": task, "template": template}
    scored, predictions = select(lines, **of_template), select(inputs.predictions, **of_template)
    shown, title = "How many examples show each position of their document.", "What each length shows"
    if objective:
        title = "Where the oracle's sentences lie"
        shown = f"Above: {shown.lower()} Below: sentences that the oracle picks at the greatest length."
    spec = oracle_positions(*document_positions(scored, predictions, lengths))
    yield "positions", Chart(title=title, caption=shown, spec=spec)
