"""The settings of `eval/finetune.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.config.chat import ChatOptions
from eval.config.checks import fraction, natural, path, positive, positive_number, share, switch
from eval.config.job import JobOptions, dtype_option, plan_option, trackers_option, truncation_option
from eval.config.options import REQUIRED, Group
from eval.errors import UserError
from tasks import Template

# Names that masformer knows; importing it would import torch.
EXTENSIONS = ("linear", "yarn", "copy")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobOptions, ChatOptions):
    """Fine-tune a decoder on a task's targets, or train it on with long documents, under a span plan.

    The result is a folder that eval/run.py takes with --model.
    """

    script = "eval/finetune.py"
    example = "--task aclsum --maxlen 2048 --max-steps 20 --lora-rank 8 --output trained"
    least = "--task aclsum --maxlen 2048"

    split: str | None = Group.DATA.option(None, "split that is trained on", unset="train")
    objective: str = Group.TRAINING_DATA.option(
        "target", "loss on the target alone (target), or on every token (lm)", choices=("target", "lm")
    )
    distill: float | None = Group.TRAINING_DATA.option(
        None,
        "share of the loss that is the KL divergence from what the model predicted before the training, with full "
        "attention or its own spans",
        share,
        metavar="SHARE",
        unset="none",
    )
    maxlen: int = Group.TRAINING_DATA.option(REQUIRED, "tokens of a sequence, prompt and target together", positive)
    held_out: float = Group.TRAINING_DATA.option(
        0.05, "share of the documents that measures the loss; 0 measures none", fraction, metavar="SHARE"
    )
    held_out_limit: int | None = Group.TRAINING_DATA.option(
        16, "most held-out sequences that an evaluation reads", positive
    )
    packing: bool = Group.TRAINING_DATA.option(
        True, "put several short documents in one row, unseen by each other; else group rows by length", switch
    )
    template: str | None = Group.TRAINING_DATA.option(None, "prompt around a document", unset="the task's own")
    truncation: str = truncation_option(Group.TRAINING_DATA)
    dtype: str | None = dtype_option("type of the computation; weights stay float32")
    plan: str = plan_option()
    extend_positions: str | None = Group.SPANS.option(
        None,
        "for a maxlen beyond the trained positions: rotary ones by linear or yarn, a learned table by copy",
        choices=EXTENSIONS,
    )
    lora_rank: int = Group.ADAPTERS.option(0, "rank of the adapters; 0 trains all weights", natural)
    lora_alpha: int | None = Group.ADAPTERS.option(None, "scale of the adapters", positive, unset="twice the rank")
    lora_targets: tuple[str, ...] = Group.ADAPTERS.option(
        (ALL_LINEAR,), "modules that get adapters", nargs="+", collect=tuple, unset=ALL_LINEAR
    )
    max_steps: int | None = Group.STEPS.option(None, "optimizer steps", positive, unset="from --epochs")
    epochs: float = Group.STEPS.option(1.0, "passes over the data", positive_number)
    batch_size: int = Group.STEPS.option(1, "rows of one forward pass of one process", positive)
    gradient_accumulation: int = Group.STEPS.option(1, "forward passes of one process a step", positive)
    learning_rate: float | None = Group.STEPS.option(
        None, "the highest learning rate", positive_number, unset="2e-4 for LoRA, else 5e-5"
    )
    schedule: str = Group.STEPS.option(
        "cosine", "course of the learning rate after the warm-up", choices=("cosine", "linear", "constant")
    )
    warmup_steps: int | None = Group.STEPS.option(
        None, "steps over which the learning rate rises", natural, unset="a tenth, 100 at the most"
    )
    weight_decay: float = Group.STEPS.option(0.0, "of AdamW, on matrices", fraction)
    max_grad_norm: float = Group.STEPS.option(1.0, "norm that gradients are clipped to", positive_number)
    gradient_checkpointing: bool = Group.STEPS.option(False, "less memory for more computation", switch)
    eval_every: int | None = Group.STEPS.option(
        None, "steps between evaluations, each with a checkpoint", positive, unset="a tenth of all"
    )
    resume: Path | bool = Group.OUTPUT.option(
        False,
        "go on from the last checkpoint of --output, or from the training folder or checkpoint given",
        path,
        nargs="?",
    )
    report_to: tuple[str, ...] = trackers_option()
    dry_run: bool = Group.MACHINE.option(
        False,
        "print rows, steps, attention operations saved, predicted time and memory; load no weights, write nothing",
        switch,
    )
    seed: int = Group.MACHINE.option(0, "seed of order, dropout, new weights, and what is held out", natural)

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

    @property
    def longest(self) -> int:
        return self.maxlen

    @property
    def unset_options(self) -> tuple[str, ...]:
        """Return the names of options that are not given, which records of earlier versions do not have."""
        # A dry run leaves no record.
        return (*self.unset_chat_options, "dry_run", *(["distill"] if self.distill is None else []))

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
