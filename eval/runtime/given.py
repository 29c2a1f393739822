"""What a command line shows to be wrong before torch and transformers are imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from eval.config.job import JobOptions
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.errors import UserError
from masformer.checkpoints.references import check_reference
from masformer.plans.budget import Budget
from masformer.plans.spans import LayerSpan, PlanError, SpanPlan
from masformer.plans.written import check_written
from tasks.readers.files import require_path


def check_given(config: JobOptions) -> None:
    """Check that plans are plans, and that models and data which are paths are there.

    Settings alone are not checked for this: parts of a study name what earlier parts will make.

    Raises:
        PlanError: A plan, a span or a budget is malformed, or the file of a plan cannot be read.
        CheckpointError: A model or an adapter is neither on this machine nor a name of the hub's.
        DataError: There is nothing at `--data`.
        UserError: There is no run in a folder that `--until` names.
    """
    for plan in _plans(config):
        check_written(plan)
    if getattr(config, "engine", "local") not in ("endpoint", "mock"):  # a server has names of its own
        check_reference(config.model)
        if config.adapter is not None:
            check_reference(config.adapter, is_adapter=True)
    if config.data is not None:
        require_path(config.data)
    stopping = config.stopping if isinstance(config, RunConfig) else None
    if stopping and stopping.folder and not (Path(stopping.folder) / "run.json").is_file():
        raise UserError(f"--until names '{stopping.folder}', where no run is; give the folder of one, or a length")


def _plans(config: JobOptions) -> list[str]:
    if isinstance(config, PlacementConfig):
        Budget.parse(config.budget)
        local_span(config.local)
        plans = config.measure
    else:
        plans = (config.plan,)  # type: ignore[attr-defined]  # the other commands have one
    return [plan for plan in plans if plan != "auto"]


def local_span(text: str) -> LayerSpan:
    """Return the span that `--local` describes. Raises `PlanError` where it describes none."""
    try:
        span = SpanPlan.parse(f"local {text}", 1)[0]
    except PlanError:
        raise PlanError(f"--local '{text}' is no span; write for example 'span=1024 sinks=4'") from None
    assert isinstance(span, LayerSpan)
    return span
