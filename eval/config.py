"""The settings of one run of `eval/run.py`: defaults and checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.rouge_profiles import PROFILES
from eval.settings import (
    ConfigError,
    Parser,
    add_data_flags,
    add_extrapolation_flag,
    add_machine_flags,
    add_model_flags,
    add_truncation_flag,
    check_tasks,
    positive,
    read_settings,
)
from tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What one run does. Every attribute is a flag of `eval/run.py` with the same name.

    Attributes:
        task: Names of tasks.
        maxlen: Lengths in tokens, each counting all the model sees: prompt, template, and room for the answer.
        data: Local file or folder that is read instead of the hub or the package.
        split: None takes the task's default.
        limit: First examples of each task; None takes all.
        truncation: Which part of the context is kept.
        max_new_tokens: Room for the answer; None takes the task's default.
        model: Short name, `.gguf` file, folder or hub id.
        plan: Text form of a span plan, or `auto`: the plan the checkpoint carries, else the untouched model.
        dtype: None takes bfloat16 on a GPU and float32 on a CPU.
        allow_extrapolation: Run beyond the positions that the model was trained on.
        trust_remote_code: Run code that comes with the checkpoint.
        profile: ROUGE profile.
        output: Run folder; None makes a name under `runs/` from the settings.
        threads: Torch threads of each process; None shares the cores among the local processes.
        seed: Of torch.
    """

    task: tuple[str, ...]
    maxlen: tuple[int, ...]
    data: Path | None = None
    split: str | None = None
    limit: int | None = None
    truncation: str = "head"
    max_new_tokens: int | None = None
    model: str = "smollm2-135m"
    plan: str = "auto"
    dtype: str | None = None
    allow_extrapolation: bool = False
    trust_remote_code: bool = False
    profile: str = "hf"
    output: Path | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_tasks(self.task, self.data, self.split)
        for name in self.task:
            if not TASKS[name].has_references:
                raise ConfigError(f"task '{name}' has nothing to be scored against; measure it with eval/perplexity.py")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `eval/run.py`; absent flags leave no attribute, so that defaults live in `RunConfig`."""
    parser = Parser(
        "eval/run.py",
        "Generate from long documents at several truncation lengths, score with ROUGE, report quality beside cost. The "
        "same command on an existing folder resumes it; lengths, limit and tasks may be added.",
        "accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4",
    )
    add_data_flags(parser, "the split that the task is scored on")
    how = parser.add_argument_group("how long, and how it is cut")
    how.add_argument(
        "--maxlen",
        metavar="N",
        type=positive,
        nargs="+",
        help="lengths in tokens; each counts template, instruction, query, context and the room kept for the answer",
    )
    how.add_argument("--max-new-tokens", metavar="N", type=positive, help="room for the answer; default: the task's")
    add_truncation_flag(how)
    add_extrapolation_flag(how)
    add_model_flags(parser, RunConfig.model, "default: bfloat16 on a GPU, float32 on a CPU")
    out = parser.add_argument_group("scores and output")
    out.add_argument("--profile", choices=list(PROFILES), help=f"ROUGE profile (default: {RunConfig.profile})")
    out.add_argument("--output", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    add_machine_flags(parser, f"of torch (default: {RunConfig.seed})")
    return parser


def load_config(arguments: Sequence[str]) -> RunConfig:
    """Return the settings of a command line and the YAML file that it names.

    Raises:
        ConfigError: A value, a key or a combination that cannot be.
    """
    return RunConfig(**read_settings(build_parser(), arguments, "1024 2048"))
