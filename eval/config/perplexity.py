"""The settings of `eval/perplexity.py`."""

from __future__ import annotations

from dataclasses import dataclass

from eval.config.checks import ascending, natural, positive, switch
from eval.config.engine import EngineOptions
from eval.config.job import JobOptions, extrapolation_option, plan_option
from eval.config.options import REQUIRED, Group
from eval.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(JobOptions, EngineOptions):
    """Measure the perplexity of long documents at several lengths and by position.

    The same command on an existing folder resumes it; lengths, limit and tasks may be added.
    """

    script = "eval/perplexity.py"
    example = "--task aclsum --maxlen 1024 2048 4096 8192 --limit 4"
    least = "--task aclsum --maxlen 1024 8192"

    maxlen: tuple[int, ...] = Group.MEASURED.option(
        REQUIRED, "lengths in tokens: documents are read in windows of N", positive, nargs="+", collect=ascending
    )
    of: str = Group.MEASURED.option(
        "documents",
        "texts whose losses are measured: documents, or references after the prompt that eval/run.py would send",
        choices=("documents", "references"),
    )
    tokens: int | None = Group.MEASURED.option(
        None, "tokens of each document that are read at most", positive, unset="the greatest length"
    )
    min_tokens: int | None = Group.MEASURED.option(
        None, "leave out, before --limit or --sample count, documents of fewer tokens", positive
    )
    stride: int | None = Group.MEASURED.option(
        None,
        "let windows overlap: after the first, score the last N tokens of each, which see maxlen - N tokens at least",
        positive,
        unset="windows follow each other",
    )
    token_losses: bool = Group.MEASURED.option(False, "keep the loss of each token in predictions.jsonl", switch)
    plan: str = plan_option()
    allow_extrapolation: bool = extrapolation_option()
    seed: int = Group.MACHINE.option(0, "seed of torch", natural)

    def __post_init__(self) -> None:
        _ = self.tasks  # raises for what cannot be; an assertion would not under -O
        if self.maxlen[0] < 2:
            raise UserError(f"maxlen {self.maxlen[0]} leaves nothing to predict; give 2 or more")
        if self.stride is not None and self.stride >= self.maxlen[0]:
            raise UserError(
                f"--stride {self.stride} leaves no token in common to windows of maxlen {self.maxlen[0]}; lower it"
            )
        if self.tokens is not None and self.tokens < self.maxlen[-1]:
            raise UserError(f"--tokens {self.tokens} is below maxlen {self.maxlen[-1]}; raise it, or leave it out")
        if self.of == "references":
            self._check_references()
        self._check_meter()
        self.check_engine()

    def _check_references(self) -> None:
        for name in ("tokens", "min_tokens", "stride"):
            if (value := getattr(self, name)) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} is of documents, and --of references reads prompts; leave one "
                    "out"
                )
        for name, task in self.tasks.items():
            if not task.has_references:
                raise UserError(f"--of references: task '{name}' has none; give another task, or leave --of out")

    @property
    def longest(self) -> int:
        return self.tokens or self.maxlen[-1]

    @property
    def unknown_to_0_1(self) -> tuple[str, ...]:
        """Return settings that names and records of 0.1 do not have."""
        return (*self.unset_engine_options, *(["of"] if self.of == "documents" else []))

    def _check_meter(self) -> None:
        """Raise `UserError` for an engine that tells no losses, and for prompts that are not token ids."""
        if self.engine == "mock":
            raise UserError("--engine mock has no model, and so no losses; leave it out, or name a server")
        if self.engine == "llamacpp":
            raise UserError(
                "--engine llamacpp gives no log-likelihoods of prompts; leave it out, since --engine local reads the "
                "same GGUF file"
            )
        if self.prompts_as not in (None, "ids"):
            raise UserError(
                f"--prompts-as {self.prompts_as} lets the server choose the tokens, and losses are of tokens; leave it "
                "out, and they go as ids"
            )
