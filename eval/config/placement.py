"""The settings of one run of `eval/placement.py`: defaults and checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.config.data import DataOptions, add_data_flags
from eval.config.parser import (
    Parser,
    add_extrapolation_flag,
    add_machine_flags,
    add_model_flags,
    fraction,
    natural,
    positive,
    read_settings,
)
from eval.errors import UserError
from masformer.placement import GATE

UNITS = ("layers", "heads")
RANKS = ("scan", "gates", "none")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig(DataOptions):
    """What one search measures. Every attribute is a flag of `eval/placement.py`.

    Attributes:
        maxlen: Tokens of each document that are read; shorter documents are left out.
        score_from: First token whose loss counts; None is half of `maxlen`.
        local: Span of what is not full, as in a plan.
        units: What is placed: layers, or key/value heads.
        rank: How units are ranked: each measured alone, by the gradients of gates, or not (no search).
        gate: Where the gradients of gates are taken: 0 is the local plan, 1 full attention.
        both_ways: With `scan`, also measure each unit as the only local one.
        budget: `layers=N`, `cache=N%` or `flops=N%`.
        cost_at: Length in tokens at which costs are counted; None is `maxlen`.
        beam: Plans that each round of the search goes on from; 1 is greedy selection.
        candidates: Units of the ranking that each of them is extended by; 1 follows the ranking as it is.
        held_out_task: Tasks whose documents judge the plans; None is those calibrated on.
        held_out_split: Their split; None judges no plan.
        held_out_limit: First examples of each; None is all.
        measure: Further plans to judge on the held-out documents.
        random: Random placements of as many units as the one found, to judge beside it, each another.
        model: Short name, `.gguf` file, folder or hub id.
        dtype: None takes bfloat16 on a GPU and float32 on a CPU.
        allow_extrapolation: Run beyond the positions that the model was trained on.
        trust_remote_code: Run code that comes with the checkpoint.
        output: Run folder; None makes a name under `runs/` from the settings.
        threads: Torch threads of each process.
        seed: Of the random placements.
    """

    maxlen: int
    score_from: int | None = None
    local: str = "span=1024 sinks=4"
    units: str = "layers"
    rank: str = "scan"
    gate: float = GATE
    both_ways: bool = True
    budget: str = "layers=4"
    cost_at: int | None = None
    beam: int = 1
    candidates: int = 6
    held_out_task: tuple[str, ...] | None = None
    held_out_split: str | None = None
    held_out_limit: int | None = None
    measure: tuple[str, ...] = ()
    random: int = 0
    model: str = "smollm2-135m"
    dtype: str | None = None
    allow_extrapolation: bool = False
    trust_remote_code: bool = False
    output: Path | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.tasks  # raises for what cannot be; an assertion would not under -O
        if not 1 <= self.first < self.maxlen:
            raise UserError(f"--score-from {self.first} must lie between 1 and maxlen {self.maxlen}; lower it")
        if self.held_out_split is None and (self.measure or self.random or self.held_out_task or self.held_out_limit):
            raise UserError(
                "--measure, --random, --held-out-task and --held-out-limit judge plans on held-out documents; name "
                "their split with --held-out-split"
            )
        if self.rank == "none" and self.random:
            raise UserError("--random N needs a placement to compare with; give --rank scan or gates")
        if self.rank == "none" and not self.measure:
            raise UserError("--rank none searches nothing; name the plans to judge with --measure")

    @property
    def judging(self) -> PlacementConfig:
        """Return these settings with the held-out documents in the place of those to calibrate on."""
        return replace(
            self,
            task=self.held_out_task or self.task,
            split=self.held_out_split,
            limit=self.held_out_limit,
            # Local data are those of the tasks to calibrate on.
            data=self.data if self.held_out_task in (None, self.task) else None,
        )

    @property
    def plan(self) -> str:
        """Return a plan that stands for the others in the name of a folder."""
        return f"local {self.local}"

    @property
    def first(self) -> int:
        """Return the index of the first token whose loss counts."""
        return self.score_from or self.maxlen // 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `eval/placement.py`; absent flags leave no attribute."""
    default = PlacementConfig
    parser = Parser(
        "eval/placement.py",
        "Find out which layers, or which key/value heads, need full attention: measure each on calibration documents, "
        "search for the best placement under a budget, and judge it on others. The same command resumes.",
        "accelerate launch eval/placement.py --task aclsum --split validation --limit 3 --maxlen 4096",
    )
    add_data_flags(parser, "the split that the task is scored on")
    how = parser.add_argument_group("what is measured")
    how.add_argument("--maxlen", metavar="N", type=positive, help="tokens of a document; shorter ones are left out")
    how.add_argument(
        "--score-from", metavar="N", type=positive, help="first token whose loss counts (default: half of maxlen)"
    )
    how.add_argument("--local", metavar="SPAN", help=f"span of what is not full (default: {default.local})")
    add_extrapolation_flag(how)
    search = parser.add_argument_group("search")
    search.add_argument("--units", choices=UNITS, help=f"what is placed (default: {default.units})")
    search.add_argument(
        "--rank",
        choices=RANKS,
        help="each unit measured alone (default), the gradients of gates (cheap), or none: no search",
    )
    search.add_argument(
        "--both-ways",
        action=argparse.BooleanOptionalAction,
        help="with scan, measure each unit as the only local one too (default: on)",
    )
    search.add_argument(
        "--gate",
        metavar="X",
        type=fraction,
        help=f"where gradients are taken, from 0 to below 1 (default: {default.gate})",
    )
    search.add_argument(
        "--cost-at", metavar="N", type=positive, help="tokens at which costs are counted (default: maxlen)"
    )
    search.add_argument("--budget", metavar="B", help=f"layers=N, cache=N%% or flops=N%% (default: {default.budget})")
    search.add_argument("--beam", metavar="N", type=positive, help="plans kept in each round (default: 1, greedy)")
    search.add_argument(
        "--candidates",
        metavar="N",
        type=positive,
        help=f"units each of them is extended by, best ranked first (default: {default.candidates})",
    )
    held = parser.add_argument_group("held-out documents")
    held.add_argument("--held-out-split", metavar="NAME", help="split of the documents that judge plans")
    held.add_argument("--held-out-task", metavar="NAME", help="their tasks (default: those of --task)")
    held.add_argument("--held-out-limit", metavar="N", type=positive, help="first N examples of each task")
    held.add_argument("--measure", metavar="PLAN", nargs="+", help="further plans to judge")
    held.add_argument("--random", metavar="N", type=natural, help="random placements of the same size to judge")
    add_model_flags(parser, default.model, "default: bfloat16 on a GPU, float32 on a CPU", with_plan=False)
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    add_machine_flags(parser, f"of random placements (default: {default.seed})")
    return parser


def load_placement_config(arguments: Sequence[str]) -> PlacementConfig:
    """Return the settings of a command line and the YAML file that it names.

    Raises:
        UserError: A value, a key or a combination that cannot be.
    """
    values = read_settings(build_parser(), arguments, "4096")
    if isinstance(values.get("held_out_task"), str):
        values["held_out_task"] = tuple(values["held_out_task"].split(","))
    if "measure" in values:
        values["measure"] = tuple(values["measure"])
    return PlacementConfig(**values)
