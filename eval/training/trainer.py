"""Optimizer steps and evaluations of a training, on one process or several.

The loss of a step is the mean over all its targets, on whichever process and in whichever forward pass they are. So
processes and gradient accumulation change how a step is computed and not what it is.

Shapes: A forward passes of one process in a step, P processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eval.errors import UserError
from eval.records.schema import Evaluation, TrainingStep
from eval.training.sequences import Batch, Row, collate
from masformer.tuning import now


def learning_rate_at(step: int, highest: float, warmup: int, total: int, schedule: str) -> float:
    """Return the learning rate of a step, counted from 1: a rise, then a fall that would be at 0 one step later."""
    if step <= warmup:
        return highest * step / (warmup + 1)
    left = (total - step + 1) / (total - warmup)
    if schedule == "constant":
        return highest
    return highest * (left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over what is trained, with decay on matrices alone; its learning rate is set at each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A prepared model and its optimizer.

    Attributes:
        model: Returns a summed loss, or the (3,) sums of `masformer.loss.DistilledLoss`; prepared by the accelerator.
        optimizer: Prepared by the accelerator.
        batch_size: Rows of a forward pass of one process.
        accumulation: Forward passes of one process in a step (A).
        max_grad_norm: Norm to which gradients are clipped.
        num_losses: How many sums the model returns.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int
    accumulation: int
    max_grad_norm: float
    num_losses: int = 1

    def step(self, number: int, rows: Sequence[Row], learning_rate: float) -> TrainingStep:
        """Train on the rows of one step of all processes, and return the line of its log.

        Raises:
            UserError: The loss, or a gradient, is not a number; weights are those before the step.
        """
        started = now(self.accelerator.device)
        accelerator = self.accelerator
        passes = self._split(rows)
        num_targets = sum(piece.num_targets for row in rows for piece in row)
        self.model.train()
        losses, norm = [], None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for some in passes[accelerator.process_index]:
            with accelerator.accumulate(self.model):
                sums = self._losses(collate(some))
                # Gradients are averaged over processes and, by accelerate, over forward passes.
                accelerator.backward(sums[0] * (accelerator.num_processes * self.accumulation / num_targets))
                losses.append(sums.detach())
                if accelerator.sync_gradients:
                    self._check_losses(number, torch.stack(losses).sum(dim=1), passes)
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
                    if norm is not None and not math.isfinite(float(norm)) and accelerator.scaler is None:
                        raise UserError(
                            f"gradients are not finite at step {number} ({_names(rows)}) in {self._dtype}; the last "
                            "checkpoint is kept; lower --learning-rate or take the examples out"
                        )
                self.optimizer.step()
                self.optimizer.zero_grad()
        totals = accelerator.gather(torch.stack(losses)).sum(dim=0, dtype=torch.float64)
        return TrainingStep(
            step=number,
            **_parts(totals / num_targets),
            # Infinite while the scaler of float16 looks for its scale: such a step is skipped.
            grad_norm=None if norm is None or not math.isfinite(float(norm)) else float(norm),
            learning_rate=learning_rate,
            num_tokens=sum(len(piece) for row in rows for piece in row),
            num_targets=num_targets,
            seconds=now(self.accelerator.device) - started,
        )

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Row], step: int) -> Evaluation:
        """Return the mean loss per target over some rows, computed by all processes together.

        Raises:
            UserError: It is no number; the checkpoint of this step is not to be kept.
        """
        started = now(self.accelerator.device)
        accelerator = self.accelerator
        self.model.eval()
        totals = torch.zeros(self.num_losses, dtype=torch.float64, device=accelerator.device)
        worst = torch.tensor(len(rows), device=accelerator.device)  # first row whose loss is no number
        # As many forward passes on each process, since sharded weights are gathered by all at once.
        for first in range(0, len(rows), accelerator.num_processes):
            index = first + accelerator.process_index
            sums = self._losses(collate([rows[min(index, len(rows) - 1)]]))
            if index < len(rows):
                totals = totals + sums
                worst = torch.where(sums.isfinite().all(), worst, worst.clamp(max=index))
        num_targets = sum(piece.num_targets for row in rows for piece in row)
        means = accelerator.reduce(totals, reduction="sum") / num_targets
        mean, parts = float(means.sum()), _parts(means)
        if not math.isfinite(mean):
            where = int(accelerator.gather(worst.reshape(1)).min())
            example = _names(rows[where : where + 1]) or "their sum"
            raise UserError(
                f"the held-out loss is {mean} after step {step} ({example}) in {self._dtype}; the last checkpoint "
                f"before it is kept; {self._remedy}"
            )
        return Evaluation(
            step=step,
            **parts,
            perplexity=math.exp(parts["loss"]) if parts["loss"] < 700 else None,
            num_targets=num_targets,
            seconds=now(self.accelerator.device) - started,
        )

    @property
    def _dtype(self) -> str:
        """Return the dtype of the computation."""
        names = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
        precision = str(self.accelerator.mixed_precision)
        return names.get(precision, precision)

    @property
    def _remedy(self) -> str:
        return "take --dtype bfloat16" if self._dtype == "float16" else "lower --learning-rate"

    def _losses(self, batch: Batch) -> Tensor:
        """Return the summed loss (1,), and of a distillation its parts too (3,)."""
        device = self.accelerator.device
        losses: Tensor = self.model(
            batch.input_ids.to(device), batch.next_tokens.to(device), batch.position_ids.to(device)
        )
        return losses.reshape(-1)

    def _split(self, rows: Sequence[Row]) -> list[list[Sequence[Row]]]:
        """Return the rows of each forward pass of each process (P lists of A)."""
        processes = self.accelerator.num_processes
        assert len(rows) == processes * self.accumulation * self.batch_size
        passes = [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        return [passes[process::processes] for process in range(processes)]

    def _check_losses(self, number: int, losses: Tensor, passes: list[list[Sequence[Row]]]) -> None:
        """Stop all processes where one of them has a loss that is no number."""
        of_all = self.accelerator.gather(losses).view(len(passes), -1)
        for process, row in enumerate(of_all.tolist()):
            for index, loss in enumerate(row):
                if not math.isfinite(loss):
                    raise UserError(
                        f"the loss is {loss} at step {number} on {_names(passes[process][index])} in {self._dtype}; "
                        f"the last checkpoint is kept; {self._remedy} or take the example out"
                    )


def _parts(means: Tensor) -> dict[str, float]:
    """Return the fields of a log that the mean losses are: (1,) or (3,)."""
    names = ("loss",) if len(means) == 1 else ("mixture", "loss", "kl_divergence")
    return dict(zip(names, means.tolist(), strict=True))


def _names(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(piece.id for row in rows for piece in row))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
