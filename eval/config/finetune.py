"""The settings of one run of `eval/finetune.py`: defaults and checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.config.data import DataOptions, add_data_flags
from eval.config.parser import (
    Parser,
    add_machine_flags,
    add_model_flags,
    add_tracker_flag,
    add_truncation_flag,
    fraction,
    natural,
    positive,
    positive_number,
    read_settings,
)
from eval.errors import UserError
from masformer.checkpoints.positions import EXTENSIONS
from tasks import Template

OBJECTIVES = ("target", "lm")
SCHEDULES = ("cosine", "linear", "constant")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataOptions):
    """What one training does. Every attribute is a flag of `eval/finetune.py` with the same name.

    Attributes:
        maxlen: Tokens of a training sequence at the most, prompt and target together.
        template: Prompt around a document; None takes each task's own.
        held_out: Share of the documents that is not trained on and measures the loss; 0 measures none.
        held_out_limit: Most held-out sequences an evaluation reads; None is all.
        truncation: Which part of the context is kept (objective `target`).
        objective: `target`: loss on the reference alone. `lm`: loss on every token of the contexts.
        packing: Put several short documents in one row, unseen by each other; else rows of like length.
        model: Short name, `.gguf` file, folder or hub id.
        plan: Text form of a span plan, or `auto`.
        dtype: Of the computation; weights and optimizer are float32. None takes bfloat16 on a GPU, float32 on a CPU.
        trust_remote_code: Run code that comes with the checkpoint.
        extend_positions: How positions beyond the trained ones are made; None refuses them.
        max_steps: Optimizer steps; None follows from `epochs`.
        epochs: Passes over the training rows.
        batch_size: Rows of one forward pass of one process.
        gradient_accumulation: Forward passes of one process a step.
        learning_rate: The highest; None is 2e-4 for LoRA, 5e-5 for all weights.
        schedule: Of the learning rate after the warm-up; `cosine` and `linear` end at 0.
        warmup_steps: Steps over which the learning rate rises; None is a tenth, 100 at the most.
        weight_decay: Of AdamW, on matrices.
        max_grad_norm: To which gradients are clipped.
        gradient_checkpointing: Keep a layer's input alone for the backward pass and compute the rest again.
        lora_rank: 0 trains all weights.
        lora_alpha: Scale of the adapters; None is twice the rank.
        lora_targets: Names of the modules that get adapters, or `all-linear`.
        eval_every: Steps between evaluations, each with a checkpoint; None is a tenth of all.
        resume: Go on: from the output folder's last checkpoint, or the folder given.
        report_to: Names of accelerate's trackers.
        output: Training folder; None makes a name under `runs/` from the settings.
        threads: Torch threads of each process.
        seed: Of the order of rows, dropout, new weights, and what is held out.
    """

    maxlen: int
    template: str | None = None
    held_out: float = 0.05
    held_out_limit: int | None = 16
    truncation: str = "head"
    objective: str = "target"
    packing: bool = True
    model: str = "smollm2-135m"
    plan: str = "auto"
    dtype: str | None = None
    trust_remote_code: bool = False
    extend_positions: str | None = None
    max_steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 1
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    schedule: str = "cosine"
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: int | None = None
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    eval_every: int | None = None
    resume: Path | bool = False
    report_to: tuple[str, ...] = ()
    output: Path | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            if self.objective == "target" and not task.has_references:
                raise UserError(f"task '{name}' has no targets to train on; give --objective lm")
            if self.template is not None and self.template not in task.templates:
                raise UserError(f"task '{name}' has no template '{self.template}'; known: {', '.join(task.templates)}")
            if self.data is None and self.split is None and "train" not in task.splits:
                known = ", ".join(task.splits)
                raise UserError(
                    f"task '{name}' has no training split (it has {known}); give training data with --data, or choose "
                    "the split to train on with --split"
                )
        if self.maxlen < 2:
            raise UserError(f"maxlen {self.maxlen} leaves nothing to predict; give 2 or more")
        if self.learning_rate is not None and self.learning_rate > 1:
            raise UserError(f"--learning-rate {self.learning_rate:g} is above 1; AdamW takes 1e-6 to 1e-3")
        if not self.lora_rank and (self.lora_alpha is not None or self.lora_targets != (ALL_LINEAR,)):
            raise UserError("--lora-alpha and --lora-targets need --lora-rank N")
        if isinstance(self.resume, Path) and self.output is not None:
            raise UserError(f"--resume {self.resume} names the folder to go on in; leave --output out")

    def split_of(self, task: str) -> str:
        """Return the split of a task that is trained on; local data of a task without a training split is all one."""
        if self.split is not None:
            return self.split
        return "train" if "train" in self.tasks[task].splits else self.tasks[task].default_split

    def template_of(self, task: str) -> Template:
        """Return the prompt that a task is trained with."""
        about = self.tasks[task]
        # Texts alone have no prompt, and are trained on as they are.
        return about.templates.get(self.template or about.default_template, Template(text="{context}"))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `eval/finetune.py`; absent flags leave no attribute."""
    default = TrainConfig
    parser = Parser(
        "eval/finetune.py",
        "Fine-tune a decoder on a task's targets, or train it on with long documents, under a span plan. The result is "
        "a folder that eval/run.py takes with --model.",
        "accelerate launch eval/finetune.py --task aclsum --maxlen 2048 --max-steps 20 --lora-rank 8 --output trained",
    )
    add_data_flags(parser, "train")
    data = parser.add_argument_group("training data")
    data.add_argument("--objective", choices=OBJECTIVES, help="loss on the target alone (default), or on every token")
    data.add_argument("--maxlen", metavar="N", type=positive, help="tokens of a sequence, prompt and target together")
    data.add_argument(
        "--held-out",
        metavar="SHARE",
        type=fraction,
        help=f"of the documents, for the loss (default: {default.held_out})",
    )
    data.add_argument(
        "--held-out-limit",
        metavar="N",
        type=positive,
        help=f"most held-out sequences an evaluation reads (default: {default.held_out_limit})",
    )
    data.add_argument(
        "--packing",
        action=argparse.BooleanOptionalAction,
        help="put several short documents in one row, unseen by each other (default), or group rows by length",
    )
    data.add_argument("--template", metavar="NAME", help="prompt around a document (default: the task's own)")
    add_truncation_flag(data)
    model = add_model_flags(
        parser, default.model, "of the computation; weights stay float32. Default: bfloat16 on a GPU, float32 on a CPU"
    )
    model.add_argument(
        "--extend-positions",
        choices=list(EXTENSIONS),
        help="for a maxlen beyond the trained positions: rotary ones by linear or yarn, a learned table by copy",
    )
    model.add_argument("--lora-rank", metavar="N", type=natural, help="of LoRA; 0 trains all weights (default)")
    model.add_argument("--lora-alpha", metavar="N", type=positive, help="scale of LoRA; default: twice the rank")
    model.add_argument(
        "--lora-targets", metavar="NAME", nargs="+", help=f"modules with adapters (default: {ALL_LINEAR})"
    )
    steps = parser.add_argument_group("steps")
    steps.add_argument("--max-steps", metavar="N", type=positive, help="optimizer steps; default: from --epochs")
    steps.add_argument("--epochs", metavar="X", type=positive_number, help="passes over the data (default: 1)")
    steps.add_argument("--batch-size", metavar="N", type=positive, help="rows a process and forward pass (default: 1)")
    steps.add_argument("--gradient-accumulation", metavar="N", type=positive, help="forward passes a step (default: 1)")
    steps.add_argument(
        "--learning-rate", metavar="X", type=positive_number, help="the highest; default: 2e-4 for LoRA, else 5e-5"
    )
    steps.add_argument("--schedule", choices=SCHEDULES, help=f"after the warm-up (default: {default.schedule})")
    steps.add_argument("--warmup-steps", metavar="N", type=natural, help="default: a tenth, 100 at the most")
    steps.add_argument("--weight-decay", metavar="X", type=fraction, help="of AdamW, on matrices (default: 0)")
    steps.add_argument("--max-grad-norm", metavar="X", type=positive_number, help="clips gradients (default: 1)")
    steps.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="less memory for more computation (default: off)",
    )
    out = parser.add_argument_group("evaluation and output")
    out.add_argument("--eval-every", metavar="N", type=positive, help="steps; default: a tenth of all")
    out.add_argument("--output", metavar="DIR", type=Path, help="training folder (default: a name under runs/)")
    out.add_argument(
        "--resume",
        metavar="DIR",
        type=Path,
        nargs="?",
        const=True,
        help="go on from the last checkpoint of --output, or from the training folder or checkpoint given",
    )
    add_tracker_flag(out)
    add_machine_flags(parser, f"of order, dropout and new weights (default: {default.seed})")
    return parser


def load_train_config(arguments: Sequence[str]) -> TrainConfig:
    """Return the settings of a command line and the YAML file that it names.

    Raises:
        UserError: A value, a key or a combination that cannot be.
    """
    values = read_settings(build_parser(), arguments, "2048")
    for name in ("lora_targets", "report_to"):
        if name in values:
            values[name] = tuple(values[name])
    return TrainConfig(**values)
