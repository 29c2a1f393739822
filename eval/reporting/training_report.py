"""A training as a page for people: what it reached, what it cost, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.records.schema import Evaluation, TrainingIdentity, TrainingRecord, TrainingStep
from eval.reporting.charts import SCHEMA, Layer, Spec, direct_labels, draw_svg, layer, quantity
from eval.reporting.columns import Column
from eval.reporting.tables import as_markdown, markdown, table_of

CURVES = "curves.svg"
_LEGEND = (
    "Losses are nats a target token. Held out: whole documents, chosen by the seed, never trained on. `best` and "
    "`last` are folders for `eval/run.py --model`."
)
_EVALUATION = [
    Column(key="step", heading="step"),
    Column(key="loss", heading="held-out loss", digits=4),
    Column(key="perplexity", heading="perplexity", digits=3),
    Column(key="num_targets", heading="targets"),
]
_DIVERGENCE = Column(key="kl_divergence", heading="held-out KL", digits=4)
_WIDTH, _HEIGHT, _LOW_HEIGHT = 640, 260, 80


def render_train_report(
    record: TrainingRecord, steps: Sequence[TrainingStep], evals: Sequence[Evaluation], best: int | None
) -> str:
    """Return `report.md`; no step is the best before the first checkpoint."""
    parts = ["# " + markdown(f"Training on {', '.join(record.tasks)}: {record.identity.model.label}"), ""]
    parts += [f"- {name}: {markdown(text)}" for name, text in _facts(record, steps).items()]
    parts += ["", f"![loss, learning rate and gradient norm by step]({CURVES})", ""]
    if evals:
        mark = Column(heading="", show=lambda one: "best" if one.step == best else "")
        divergence = [] if record.identity.distill is None else [_DIVERGENCE]
        parts += [as_markdown(table_of([*_EVALUATION, *divergence, mark], evals)), ""]
    return "\n".join([*parts, _LEGEND, ""])


def describe_teacher(identity: TrainingIdentity) -> str | None:
    """Return what a training learned from besides its data, for people; None without a teacher."""
    if identity.distill is None:
        return None
    return (
        f"the model before the training, with the spans '{identity.teacher_plan}'; KL(teacher, model) is "
        f"{identity.distill:g} of the loss"
    )


def _facts(record: TrainingRecord, steps: Sequence[TrainingStep]) -> dict[str, str]:
    identity, session = record.identity, record.sessions[-1]
    tokens, seconds = sum(step.num_tokens for step in steps), sum(step.seconds for step in steps)
    weights = f"LoRA of rank {identity.lora_rank}" if identity.lora_rank else "all weights"
    short = [about.source.get("num_short", 0) for about in record.tasks.values()]
    left_out = f", {sum(short):,} left out as shorter than {identity.min_words:,} words" if any(short) else ""
    return {
        "model": f"`{identity.model.label}`, {weights}: {record.num_trainable:,} of {record.num_parameters:,} "
        "numbers trained",
        "spans": f"`{record.plan_description}`",
        **({} if (teacher := describe_teacher(identity)) is None else {"teacher": teacher}),
        "data": f"{', '.join(record.tasks)}, objective `{identity.objective}`, {record.num_train_examples} examples "
        f"trained on, {record.num_held_out_examples} held out ({record.num_held_out_rows} rows of them read){left_out}",
        "steps": f"{len(steps)} of {identity.total_steps}, {tokens:,} tokens, rows of {identity.maxlen:,}, "
        f"{identity.step_rows} row(s) a step",
        "learning rate": f"{identity.learning_rate:g}, {identity.warmup_steps} steps of warm-up, then "
        f"{identity.schedule}",
        "cost": f"{seconds:,.0f} s in steps, {tokens / seconds if seconds else 0:,.0f} tokens a second"
        + ("" if record.peak_bytes is None else f", at most {record.peak_bytes / 2**30:.2f} GiB of memory"),
        "machine": f"{session.machine.device}, {session.world_size} process(es), {session.threads} torch "
        f"thread(s) each, {identity.dtype} over float32 weights",
        "code": f"commit {session.commit or 'unknown'}{', with uncommitted changes' if session.dirty else ''}",
    }


def draw_curves(steps: Sequence[TrainingStep], evals: Sequence[Evaluation]) -> str:
    """Return `curves.svg`: loss of training steps and held-out documents, learning rate, gradient norm."""
    return draw_svg(curves(steps, evals))


def curves(steps: Sequence[TrainingStep], evals: Sequence[Evaluation]) -> Spec:
    """Return the curves of a training, one above the other over the same steps."""
    numbers = [*(step.step for step in steps), *(one.step for one in evals)] or [0]
    first, last = min(numbers), max(numbers)
    across = quantity(
        "step",
        "Step",
        scale={"domain": [first, last + (last - first or 1) / 60], "nice": False},
        axis={"format": ",d", "tickCount": min(last - first or 1, 10), "grid": False},
    )
    hidden = across | {"axis": {"labels": False, "ticks": False, "title": None, "grid": False}}
    rates = [{"step": step.step, "value": step.learning_rate} for step in steps]
    norms = [{"step": step.step, "value": step.grad_norm} for step in steps if step.grad_norm is not None]
    views = [
        {"height": _HEIGHT, "layer": _losses(steps, evals, hidden)},
        {"height": _LOW_HEIGHT, **_line(rates, hidden, "Learning rate")},
        {"height": _LOW_HEIGHT, **_line(norms, across, "Gradient norm")},
    ]
    divergences = [
        {"step": one.step, "value": one.kl_divergence} for one in evals or steps if one.kl_divergence is not None
    ]
    if divergences:
        title = "Held-out KL" if evals else "KL"
        views.insert(1, {"height": _LOW_HEIGHT, **_line(divergences, hidden, title)})
    described = "Loss of training steps and of held-out documents, learning rate and gradient norm, by step."
    return {
        "$schema": SCHEMA,
        "description": described,
        "spacing": 14,
        "vconcat": [{"width": _WIDTH, **view} for view in views],
    }


def _losses(steps: Sequence[TrainingStep], evals: Sequence[Evaluation], x: Layer) -> list[Layer]:
    training = [{"step": step.step, "mean": step.loss} for step in steps]
    held_out = [{"step": one.step, "mean": one.loss} for one in evals]
    values = [row["mean"] for row in (*training, *held_out)] or [0.0]
    room = 0.05 * (max(values) - min(values)) or 0.05
    low, high = min(values) - room, max(values) + room
    y = quantity("mean", "Loss (nats a target)", scale={"domain": [low, high], "nice": False, "zero": False})
    layers = [layer(training, _mark(training), x=x, y=y)]
    if held_out:
        marks = {"type": "line", "strokeWidth": 2.5}, {"type": "point", "filled": True, "size": 55, "opacity": 1}
        layers += [layer(held_out, mark, x=x, y=y) for mark in marks]
    ends = {name: rows for name, rows in (("training step", training), ("held out", held_out)) if rows}
    return [*layers, direct_labels(ends, low, high, y, _HEIGHT)]


def _line(rows: Sequence[dict[str, Any]], x: Layer, title: str) -> Layer:
    label = "datum.value == 0 ? '0' : abs(datum.value) < 0.01 ? format(datum.value, '.1~e') : format(datum.value, '~r')"
    y = quantity("value", title, axis={"tickCount": 3, "labelExpr": label}, scale={"zero": False})
    return layer(rows, _mark(rows), x=x, y=y)


def _mark(rows: Sequence[Any]) -> Layer:
    """Return how values of steps are drawn: as a thin line, which takes two."""
    if len(rows) == 1:
        return {"type": "point", "style": "yardstick", "opacity": 0.6}
    return {"type": "line", "style": "yardstick", "strokeWidth": 1.2, "opacity": 0.6}
