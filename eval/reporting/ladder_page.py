"""The context ladder of a run in words, as a picture and as a page: where the extra tokens are lost."""

from __future__ import annotations

from collections.abc import Sequence

from eval.records.disk import disk_errors
from eval.records.run_folder import LADDER_PLOTS, RunFolder
from eval.records.schema import LadderRecord, LadderRung
from eval.reporting.charts import SCHEMA, Chart, Layer, Spec, layer, quantity, save_charts, titled, tooltip
from eval.reporting.columns import interval, p_value
from eval.reporting.page import Prose, Section, as_table, render_page
from eval.reporting.tables import Rows
from eval.scoring.ladder import RUNGS
from eval.scoring.profiles import metric_name

LEGEND = (
    "Gains of each length over the smallest one, paired by document, with 95% intervals. Shown: what the oracle of the "
    "window scores above one whose window goes on with another document's text, or the share of the evidence that is "
    "visible. Used: the fall of the negative log likelihood of the reference, in nats a token. Said: the share of "
    "newly shown key sentences that the answer says, less what the answer of the smallest length says of them unseen. "
    "Credited: the score. A gain is seen where its corrected p is below 0.05."
)
# Share of unseen sentences from which on an answer may know the document from elsewhere.
_BY_HEART = 0.5
_COLUMNS = 2


def is_seen(rung: LadderRung) -> bool:
    """Return whether a gain is shown, at the level of its table."""
    return rung.difference > 0 and rung.p_corrected is not None and rung.p_corrected < 0.05


def unit_of_rung(rung: LadderRung) -> tuple[float, str]:
    """Return what a rung's values are multiplied by, and the name of their unit."""
    if rung.rung == "used":
        return 1.0, "nats a token"
    return 100.0, "%" if rung.rung == "said" or rung.of == "evidence" else "points"


def interval_of(rung: LadderRung) -> str:
    """Return a gain with its interval, such as `+0.11 [0.02, 0.20]`."""
    scale, digits = unit_of_rung(rung)[0], 3 if rung.rung == "used" else 1
    return f"{scale * rung.difference:+.{digits}f}{interval(rung.low, rung.high, f'.{digits}f', scale)}"


def where_lost(rungs: Sequence[LadderRung]) -> str:
    """Return, for the rungs of a task and template, where the tokens of the greatest length are lost, in a sentence."""
    greatest = max(rung.maxlen for rung in rungs)
    last = {rung.rung: rung for rung in rungs if rung.maxlen == greatest}
    first = next(iter(last.values()))
    chain = [last[name] for name in RUNGS if name in last]
    return f"From {first.smallest:,} to {greatest:,} tokens {', '.join(map(_clause, chain))}: {_lost(chain)}."


def _clause(rung: LadderRung) -> str:
    gain = interval_of(rung)
    match rung.rung:
        case "shown" if rung.of == "evidence":
            return f"the window shows {gain} % of the evidence more"
        case "shown":
            return f"the window shows {gain} points of the reference more than another document's text would"
        case "used":
            return f"the model's likelihood uses {gain} nats a token"
        case "said":
            return f"answers say {gain} % of what is new (beside {100 * rung.before:.0f} % unseen)"
    return f"{metric_name(rung.of)} credits {gain}"


def _lost(rungs: Sequence[LadderRung]) -> str:
    """Return where gains end, and how sure that is; rungs of too few documents to show any are named and left out."""
    known, poor = ([rung for rung in rungs if bool(rung.needs_documents) is is_poor] for is_poor in (False, True))
    if not known:
        num_documents = min(rung.num_documents for rung in poor)
        needed = max(rung.needs_documents or 0 for rung in poor)
        return f"nothing is settled with so few documents (n = {num_documents} documents; {needed} could)"
    if not poor:
        return _end_of(known, has_all=True)
    left_out = [f"{one.rung} (n = {one.num_documents}; {one.needs_documents} could)" for one in poor]
    return f"{_end_of(known, has_all=False)}; left out for too few documents: {', '.join(left_out)}"


def _end_of(rungs: Sequence[LadderRung], *, has_all: bool) -> str:
    """Return where the gains of rungs end.

    Whether something is lost takes the last rung, and whether there is something to lose the first.
    """
    num_documents = min(rung.num_documents for rung in rungs)
    counted, told = f"n = {num_documents} documents", f"as far as {num_documents} documents tell"
    seen = [is_seen(rung) for rung in rungs]
    if all(seen):
        if has_all and rungs[-1].rung == RUNGS[-1]:
            return f"every rung gains, so nothing is lost ({counted})"
        return f"every {'rung that is known' if has_all else 'other rung'} gains ({counted})"
    place = seen.index(False)
    rung = rungs[place]
    heart = next((one for one in rungs if one.rung == "said" and one.before >= _BY_HEART), None)
    known = "; answers say most of it unseen, so the model may know these documents" if heart else ""
    if any(seen[place:]):
        later = rungs[seen.index(True, place)].rung
        return f"{later} gains, though no gain is seen at {rung.rung}, {told}{known}"
    scale, unit = unit_of_rung(rung)
    could = "" if rung.detectable is None else f"; a gain of {scale * rung.detectable:.2g} {unit} would have been seen"
    if place == 0:
        nothing = ", so there is nothing to lose" if has_all and rung.rung == RUNGS[0] else ""
        return f"no gain is seen at {rung.rung}{nothing}, {told}{could}{known}"
    return f"lost between {rungs[place - 1].rung} and {rung.rung}, {told}{could}{known}"


def ladder_table(rungs: Sequence[LadderRung]) -> Rows:
    """Return a row a length and rung."""
    header = ["length", "rung", "by", "before", "after", "gain [95%]", "p corrected", "examples", "documents"]
    return [header, *(_row(rung) for rung in rungs)]


def _row(rung: LadderRung) -> list[str]:
    scale, digits = unit_of_rung(rung)[0], 3 if rung.rung == "used" else 1
    by = metric_name(rung.of) if rung.rung == "credited" else rung.of
    values = [f"{scale * value:.{digits}f}" for value in (rung.before, rung.after)]
    counts = [str(rung.num_examples), str(rung.num_documents)]
    return [f"{rung.maxlen:,}", rung.rung, by, *values, interval_of(rung), p_value(rung.p_corrected), *counts]


def ladder_chart(rungs: Sequence[LadderRung]) -> Spec:
    """Return a panel a rung: gains over the smallest length, with intervals, against length."""
    lengths = sorted({rung.maxlen for rung in rungs})
    panels = [
        _panel([one for one in rungs if one.rung == name], lengths)
        for name in RUNGS
        if any(one.rung == name for one in rungs)
    ]
    described = "Gains of each length over the smallest one: " + ", ".join(
        name for name in RUNGS if any(one.rung == name for one in rungs)
    )
    return {
        "$schema": SCHEMA,
        "description": f"{described}.",
        "concat": panels,
        "columns": _COLUMNS,
        "spacing": 28,
        "usermeta": {"panels": len(panels)},
    }


def _panel(rungs: Sequence[LadderRung], lengths: Sequence[int]) -> Layer:
    scale, unit = unit_of_rung(rungs[0])
    rows = [
        {
            "maxlen": rung.maxlen,
            "gain": scale * rung.difference,
            "low": None if rung.low is None else scale * rung.low,
            "high": None if rung.high is None else scale * rung.high,
            "n": rung.num_documents,
        }
        for rung in rungs
    ]
    ends = {"type": "log", "base": 2, "nice": False, "domain": [lengths[0] / 2**0.3, lengths[-1] * 2**0.3]}
    x = quantity(
        "maxlen", "Maximum length (tokens)", scale=ends, axis={"values": lengths, "format": ",d", "grid": False}
    )
    y = quantity("gain", f"{rungs[0].rung} ({unit})", scale={"zero": True})
    tips = tooltip(
        maxlen=("maximum length", ","), gain=("gain", ".3f"), low=("95% from", ".3f"), high=("95% to", ".3f")
    )
    with_interval = [row for row in rows if row["low"] is not None]
    zero = layer([{"gain": 0}], {"type": "rule", "style": "context"}, y=quantity("gain", f"{rungs[0].rung} ({unit})"))
    rule = layer(with_interval, {"type": "rule", "style": "own"}, x=x, y=y | {"field": "low"}, y2={"field": "high"})
    return {
        "title": {"text": rungs[0].rung.capitalize(), "fontSize": 13},
        "width": 200,
        "height": 140,
        "layer": [
            zero,
            *([rule] if with_interval else []),
            layer(rows, {"type": "line", "style": "own"}, x=x, y=y),
            layer(
                rows,
                {"type": "point", "style": "model", "filled": True, "size": 60, "opacity": 1},
                x=x,
                y=y,
                tooltip=tips,
            ),
        ],
    }


def write_ladder(folder: RunFolder, record: LadderRecord) -> None:
    """Write `ladder.json` into a run folder, and with rungs `ladder.html` and a picture of each task and template."""
    if not record.rungs:
        _remove_pages(folder)
        folder.write_json("ladder.json", record)
        return
    tables = tables_of(record.rungs)
    source = f"{record.model}, spans {record.plan}"
    charts = {
        at: Chart(title=f"Context ladder: {', '.join(at)}", caption="", spec=ladder_chart(rungs), source=source)
        for at, rungs in tables.items()
    }
    names = {at: "ladder" if len(tables) == 1 else f"ladder-{'-'.join(at)}" for at in tables}
    save_charts(folder.path / "plots", {names[at]: titled(chart) for at, chart in charts.items()}, LADDER_PLOTS)
    sections: list[Section] = []
    for at, rungs in tables.items():
        sections += [Prose(text=record.words["/".join(at)], is_lead=True), charts[at]]
        sections += [as_table(", ".join(at), ladder_table(rungs))]
    sections += [Prose(text=LEGEND)]
    folder.write_text(
        "ladder.html", render_page("Context ladder", [("model", record.model), ("spans", record.plan)], sections)
    )
    folder.write_json("ladder.json", record)


def _remove_pages(folder: RunFolder) -> None:
    """Delete the pictures and the page of an earlier ladder."""
    if (folder.path / "plots").is_dir():
        save_charts(folder.path / "plots", {}, LADDER_PLOTS)
    with disk_errors(folder.path):
        (folder.path / "ladder.html").unlink(missing_ok=True)


def tables_of(rungs: Sequence[LadderRung]) -> dict[tuple[str, str], list[LadderRung]]:
    """Return the rungs of each task and template."""
    tables: dict[tuple[str, str], list[LadderRung]] = {}
    for rung in rungs:
        tables.setdefault((rung.task, rung.template), []).append(rung)
    return tables
