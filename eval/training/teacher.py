"""The teacher of a distillation: the model as it was before the training, which sees all, or what its own spans show.

With adapters it is the trained model without them; else a frozen copy in float32, of 4 bytes a parameter. It is
computed in the same dtype as the model, so that the divergence of equal weights under equal plans is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from transformers import PreTrainedModel

from eval.errors import UserError
from eval.runtime.model import OpenedModel, load_converted
from masformer import SpanPlan, apply_plan
from masformer.loss import Teacher


def check_teacher(share: float, plan: SpanPlan | None, teacher_plan: SpanPlan | None, *, is_extended: bool) -> None:
    """Raise `UserError` where the model as it began has nothing to teach.

    Args:
        share: `--distill`.
        plan: Spans of the model.
        teacher_plan: Spans of the teacher.
        is_extended: Sequences may be longer than what the model was trained on.
    """
    if is_extended:
        raise UserError(
            f"--distill {share:g} with --extend-positions would learn from a model on positions that it was not "
            "trained on; lower --maxlen, or leave --distill out"
        )
    if share == 1 and plan == teacher_plan:
        spans = "untouched" if plan is None else str(plan)
        raise UserError(
            f"--distill 1 leaves nothing to learn: the model and its teacher both have the spans '{spans}'; give other "
            "spans with --plan, or a share below 1"
        )


def make_teacher(
    share: float,
    opened: OpenedModel,
    plan: SpanPlan | None,
    model: PreTrainedModel,
    adapters: PeftModel | None,
) -> Teacher:
    """Return the teacher.

    Args:
        share: Share of the loss that is the divergence from it.
        opened: The model before the training.
        plan: Spans of the teacher; None leaves it untouched.
        model: The model that is trained, on any device.
        adapters: peft's view of that; None when all weights are trained.
    """
    if adapters is not None:
        return Teacher(model=model, share=share, running=lambda: _as_it_began(model, adapters, plan))
    process = opened.process
    copy = load_converted(opened.checkpoint, "float32", process.device, plan, "auto", process.print, is_served=False)
    return Teacher(model=copy.eval().requires_grad_(False), share=share)


@contextmanager
def _as_it_began(model: PreTrainedModel, adapters: PeftModel, plan: SpanPlan | None) -> Iterator[None]:
    """Let the model run without its adapters and without dropout, under another plan."""
    own: SpanPlan | None = getattr(model, "span_plan", None)
    was_training, changes = model.training, plan is not None and own is not None and plan != own
    try:
        with adapters.disable_adapter():
            model.eval()
            if changes:
                apply_plan(model, plan)
            yield
    finally:
        if changes:
            apply_plan(model, own)
        model.train(was_training)
