"""Losses of documents under plans: measured once, remembered, and shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from eval.records.schema import Key, PlanLoss
from eval.runtime.model import TORCH_DTYPES, OpenedModel, tune_linear
from masformer import SpanPlan, num_layers
from masformer.attention.ways import check_attention_ways
from masformer.errors import NumbersError
from masformer.linear import check_linear_way
from masformer.placement import PlanMeter, gate_gradients
from masformer.plans.shapes import num_kv_heads
from masformer.tuning import now

Part = Literal["calibration", "held-out"]
CALIBRATION: Part = "calibration"
HELD_OUT: Part = "held-out"
# After the name of a task whose documents judge.
HELD_OUT_MARK = ", held out"
# In the place of a plan's text in the journal.
_GATES = "gradients of gates at"


@dataclass(frozen=True, kw_only=True)
class SearchText:
    """A document that is measured.

    Attributes:
        task: Name of its task in the folder.
        token_ids: The first `maxlen` tokens.
        fold: Part of the calibration documents that it is in; None without such parts.
    """

    part: Part
    task: str
    id: str
    token_ids: Sequence[int]
    fold: int | None = None

    def is_of(self, part: Part, fold: int | None) -> bool:
        """Return whether it is in a part, and in a fold of it; None is all of the part."""
        return self.part == part and fold in (None, self.fold)

    @property
    def where(self) -> str:
        """Return what names the document, for errors."""
        return f"document '{self.id}' of task '{self.task}', of {len(self.token_ids)} tokens"

    def key(self, plan: str) -> Key:
        """Return what names a measurement under a plan."""
        return self.task, plan, self.id, len(self.token_ids)


class Ledger:
    """Measures plans on documents, remembers what was measured, and shares the work with the other processes.

    Args:
        model: What is measured; its weights load when something is to be measured at all.
        texts: Documents of all processes.
        first: First token whose loss counts.
        lines: Measurements of earlier sessions, by key.
        write: Writes a new one to the disk.

    Attributes:
        seconds: Time that this process spent on new measurements, loading the weights left out.
        num_layers_run: Layers that this process computed for them.
    """

    def __init__(
        self,
        model: OpenedModel,
        texts: Sequence[SearchText],
        first: int,
        lines: Mapping[Key, PlanLoss],
        write: Callable[[PlanLoss], None],
    ) -> None:
        self.model, self.first, self.lines, self.write = model, first, dict(lines), write
        self.process = model.process
        self.texts = texts[self.process.index :: self.process.count]
        self.seconds, self.num_layers_run = 0.0, 0
        self._meter: PlanMeter | None = None

    @property
    def meter(self) -> PlanMeter:
        """Return what measures, with the weights."""
        if self._meter is None:
            check_attention_ways(self.process.device)
            check_linear_way(self.process.device)
            loaded = self.model.checkpoint.load_model(TORCH_DTYPES[self.model.dtype], self.process.device)
            tune_linear(loaded)
            self._meter = PlanMeter(loaded, [text.token_ids for text in self.texts], self.first)
        return self._meter

    def measure(self, part: Part, plans: Sequence[SpanPlan], fold: int | None = None) -> list[float]:
        """Return the mean loss of a token under each plan over the documents of a part, or fold, of all processes."""
        sums, count = torch.zeros(len(plans), dtype=torch.float64), 0
        names = [str(plan) for plan in plans]
        for index, text in enumerate(self.texts):
            if not text.is_of(part, fold):
                continue
            count += len(text.token_ids) - self.first
            missing = [place for place, name in enumerate(names) if text.key(name) not in self.lines]
            if missing:
                meter = self.meter
                before, started = meter.num_layers_run, now(self.process.device)
                for place, loss in meter.losses(index, [plans[place] for place in missing]):
                    # Nor may its exponential be infinite, which is what is reported.
                    if not loss / (len(text.token_ids) - self.first) < 700:
                        raise NumbersError(f"losses or perplexities on {text.where}", self.model.dtype)
                    self._note(text, names[missing[place]], negative_log_likelihood=loss)
                self.num_layers_run += meter.num_layers_run - before
                self.seconds += now(self.process.device) - started
                if part == HELD_OUT:
                    meter.forget(index)
            losses = [self.lines[text.key(name)].negative_log_likelihood for name in names]
            sums += torch.tensor(losses, dtype=torch.float64)
        return [float(x) for x in self._mean(sums, count)]

    def gate_gradients(self, plan: SpanPlan, gate: float, fold: int | None = None) -> torch.Tensor:
        """Return (L, K) derivatives of the mean loss over the calibration documents, or a fold, of all processes.

        Args:
            plan: Spans of what is not gated.
            gate: Where the derivatives are taken.
            fold: Documents that count; None is all.
        """
        name, count = f"{_GATES} {gate} {plan}", 0
        config = self.model.checkpoint.config
        shape = num_layers(config), num_kv_heads(config) or 1
        total = torch.zeros(shape, dtype=torch.float64)
        for index, text in enumerate(self.texts):
            if text.is_of(CALIBRATION, fold):
                num_scored = len(text.token_ids) - self.first
                count += num_scored
                if text.key(name) not in self.lines:
                    meter, started = self.meter, now(self.process.device)
                    gradients = gate_gradients(meter.model, [meter.texts[index]], self.first, plan, gate)
                    self.num_layers_run += shape[0]
                    self.seconds += now(self.process.device) - started
                    if not bool(gradients.isfinite().all()):
                        raise NumbersError(f"gradients on {text.where}", self.model.dtype)
                    self._note(text, name, gradients=gradients.tolist())
                total += num_scored * torch.tensor(self.lines[text.key(name)].gradients, dtype=torch.float64)
        return self._mean(total, count)

    def _mean(self, total: torch.Tensor, count: int) -> torch.Tensor:
        """Return total / count over all processes."""
        both = self.total(torch.cat([total.flatten(), torch.tensor([float(count)], dtype=torch.float64)]))
        return (both[:-1] / both[-1]).reshape(total.shape)

    def total(self, mine: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        of_all: torch.Tensor = self.process.accelerator.reduce(mine.to(self.process.device), reduction="sum").cpu()
        return of_all

    def total_layers_run(self) -> int:
        """Return the layers that all processes together computed."""
        return int(self.total(torch.tensor([float(self.num_layers_run)])))

    def _note(self, text: SearchText, plan: str, **values: Any) -> None:
        task, template, example_id, maxlen = key = text.key(plan)
        self.lines[key] = PlanLoss(task=task, template=template, id=example_id, maxlen=maxlen, **values)
        self.write(self.lines[key])
