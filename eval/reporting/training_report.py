"""A training as a page for people: what it reached, what it cost, and its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from eval.reporting.tables import as_markdown

CURVES = "curves.svg"
_LEGEND = (
    "Losses are nats a target token. Held out: whole documents, chosen by the seed, never trained on. `best` and "
    "`last` are folders for `eval/run.py --model`."
)


def render_train_report(
    run: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]], best: int | None
) -> str:
    """Return `report.md`.

    Args:
        run: `run.json`.
        steps: Lines of `steps.jsonl`.
        evals: Lines of `evals.jsonl`.
        best: Step of the best checkpoint; None before the first.
    """
    identity, session = run["identity"], run["sessions"][-1]
    tokens, seconds = sum(line["num_tokens"] for line in steps), sum(line["seconds"] for line in steps)
    rank = identity["lora_rank"]
    weights = f"LoRA of rank {rank}" if rank else "all weights"
    trained, total = run["num_trainable"], run["num_parameters"]
    short = [about["source"].get("num_short", 0) for about in run["tasks"].values()]
    left_out = f", {sum(short):,} left out as shorter than {identity['min_words']:,} words" if any(short) else ""
    facts = {
        "model": f"`{identity['model']['reference']}`, {weights}: {trained:,} of {total:,} numbers trained",
        "spans": f"`{run['plan_description']}`",
        "data": f"{', '.join(run['tasks'])}, objective `{identity['objective']}`, {run['num_train_examples']} examples "
        f"trained on, {run['num_held_out_examples']} held out ({run['num_held_out_rows']} rows of them read){left_out}",
        "steps": f"{len(steps)} of {identity['total_steps']}, {tokens:,} tokens, rows of {identity['maxlen']:,}, "
        f"{identity['step_rows']} row(s) a step",
        "learning rate": f"{identity['learning_rate']:g}, {identity['warmup_steps']} steps of warm-up, then "
        f"{identity['schedule']}",
        "cost": f"{seconds:,.0f} s in steps, {tokens / seconds if seconds else 0:,.0f} tokens a second"
        + ("" if run["peak_bytes"] is None else f", at most {run['peak_bytes'] / 2**30:.2f} GiB of memory"),
        "machine": f"{session['machine']['device']}, {session['world_size']} process(es), {session['threads']} torch "
        f"thread(s) each, {identity['dtype']} over float32 weights",
        "code": f"commit {session['commit'] or 'unknown'}{', with uncommitted changes' if session['dirty'] else ''}",
    }
    parts = [f"# Training on {', '.join(run['tasks'])}: {identity['model']['reference']}", ""]
    parts += [f"- {name}: {text}" for name, text in facts.items()]
    parts += ["", f"![loss, learning rate and gradient norm by step]({CURVES})", ""]
    if evals:
        rows = [["step", "held-out loss", "perplexity", "targets", ""]]
        for line in evals:
            perplexity = "-" if line["perplexity"] is None else f"{line['perplexity']:,.3f}"
            mark = "best" if line["step"] == best else ""
            rows.append([f"{line['step']:,}", f"{line['loss']:.4f}", perplexity, f"{line['num_targets']:,}", mark])
        parts += [as_markdown(rows), ""]
    parts += [
        _LEGEND,
        "",
    ]
    return "\n".join(parts)


def draw_curves(steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> str:
    """Return `curves.svg`: loss of steps and of what is held out, learning rate, gradient norm."""
    # Imported here, and drawn without a screen: only the process that writes the report needs it.
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    numbers = [line["step"] for line in steps]
    loss.plot(numbers, [line["loss"] for line in steps], color="0.6", linewidth=1, label="training step")
    if evals:
        held = [line["loss"] for line in evals]
        loss.plot([line["step"] for line in evals], held, color="tab:blue", marker="o", markersize=4, label="held out")
    loss.set_ylabel("loss (nats a target)")
    loss.legend(frameon=False)
    rate.plot(numbers, [line["learning_rate"] for line in steps], color="tab:green")
    rate.set_ylabel("learning rate")
    known = [(line["step"], line["grad_norm"]) for line in steps if line["grad_norm"] is not None]
    norm.plot([step for step, _ in known], [value for _, value in known], color="tab:orange")
    norm.set_ylabel("gradient norm")
    norm.set_xlabel("step")
    norm.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, rate, norm):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    drawn = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
