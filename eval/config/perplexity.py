"""The settings of one run of `eval/perplexity.py`: defaults and checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.config.data import DataOptions, add_data_flags
from eval.config.parser import (
    Parser,
    add_extrapolation_flag,
    add_machine_flags,
    add_model_flags,
    positive,
    read_settings,
)
from eval.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(DataOptions):
    """What one run measures on the contexts of tasks. Every attribute is a flag of `eval/perplexity.py`.

    Attributes:
        maxlen: Lengths in tokens: a document is read in windows of that many.
        min_tokens: Documents with fewer are left out; None measures all.
        tokens: Of each document that are read at the most, the same at all lengths; None is the greatest length.
        model: Short name, `.gguf` file, folder or hub id.
        plan: Text form of a span plan, or `auto`.
        dtype: None takes bfloat16 on a GPU and float32 on a CPU.
        allow_extrapolation: Run beyond the positions that the model was trained on.
        trust_remote_code: Run code that comes with the checkpoint.
        output: Run folder; None makes a name under `runs/` from the settings.
        threads: Torch threads of each process.
        seed: Of torch.
    """

    maxlen: tuple[int, ...]
    tokens: int | None = None
    min_tokens: int | None = None
    model: str = "smollm2-135m"
    plan: str = "auto"
    dtype: str | None = None
    allow_extrapolation: bool = False
    trust_remote_code: bool = False
    output: Path | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.tasks  # raises for what cannot be; an assertion would not under -O
        if self.maxlen[0] < 2:
            raise UserError(f"maxlen {self.maxlen[0]} leaves nothing to predict; give 2 or more")
        if self.tokens is not None and self.tokens < self.maxlen[-1]:
            raise UserError(f"--tokens {self.tokens} is below maxlen {self.maxlen[-1]}; raise it, or leave it out")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `eval/perplexity.py`; absent flags leave no attribute."""
    parser = Parser(
        "eval/perplexity.py",
        "Measure the perplexity of long documents at several lengths and by position. The same command on an existing "
        "folder resumes it; lengths, limit and tasks may be added.",
        "accelerate launch eval/perplexity.py --task aclsum --maxlen 1024 2048 4096 8192 --limit 4",
    )
    add_data_flags(parser, "the split that the task is scored on")
    how = parser.add_argument_group("how long")
    how.add_argument(
        "--maxlen", metavar="N", type=positive, nargs="+", help="lengths in tokens: documents are read in windows of N"
    )
    how.add_argument(
        "--tokens", metavar="N", type=positive, help="of each document at the most; default: the greatest length"
    )
    how.add_argument("--min-tokens", metavar="N", type=positive, help="leave out documents with fewer tokens")
    add_extrapolation_flag(how)
    add_model_flags(parser, PerplexityConfig.model, "default: bfloat16 on a GPU, float32 on a CPU")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    add_machine_flags(parser, f"of torch (default: {PerplexityConfig.seed})")
    return parser


def load_perplexity_config(arguments: Sequence[str]) -> PerplexityConfig:
    """Return the settings of a command line and the YAML file that it names.

    Raises:
        UserError: A value, a key or a combination that cannot be.
    """
    return PerplexityConfig(**read_settings(build_parser(), arguments, "1024 8192"))
