"""The settings of `eval/placement.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eval.config.checks import fraction, names, natural, positive, switch, two_or_more
from eval.config.job import JobOptions, extrapolation_option
from eval.config.options import REQUIRED, Group
from eval.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PlacementConfig(JobOptions):
    """Find out which layers, or which key/value heads, need full attention.

    Each is measured on calibration documents; the best placement under a budget is searched for, and judged on others.
    The same command resumes.
    """

    script = "eval/placement.py"
    example = "--task aclsum --split validation --limit 3 --maxlen 4096"
    least = "--task aclsum --maxlen 4096"

    maxlen: int = Group.MEASURED.option(REQUIRED, "tokens of a document; shorter ones are left out", positive)
    score_from: int | None = Group.MEASURED.option(
        None, "first token whose loss counts", positive, unset="half of maxlen"
    )
    local: str = Group.SPANS.option("span=1024 sinks=4", "span of what is not full", metavar="SPAN")
    allow_extrapolation: bool = extrapolation_option()
    units: str = Group.SEARCH.option(
        "layers", "what is placed: layers, or key/value heads", choices=("layers", "heads")
    )
    rank: str = Group.SEARCH.option(
        "scan",
        "how units are ranked: each measured alone (scan), the gradients of gates (gates, cheap), or none: no search",
        choices=("scan", "gates", "none"),
    )
    both_ways: bool = Group.SEARCH.option(True, "with --rank scan, measure each unit as the only local one too", switch)
    gate: float = Group.SEARCH.option(
        0.5, "where gradients are taken, from 0 (the local plan) to below 1 (full attention)", fraction, metavar="X"
    )
    budget: str = Group.SEARCH.option("layers=4", "layers=N, cache=N% or flops=N%", metavar="B")
    cost_at: int | None = Group.SEARCH.option(None, "tokens at which costs are counted", positive, unset="maxlen")
    beam: int = Group.SEARCH.option(1, "plans kept in each round; 1 is greedy", positive)
    candidates: int = Group.SEARCH.option(6, "units each of them is extended by, best ranked first", positive)
    folds: int | None = Group.SEARCH.option(
        None,
        "parts of the calibration documents that are searched one by one, to see whether they find the same",
        two_or_more,
        unset="none",
    )
    held_out_split: str | None = Group.HELD_OUT.option(
        None, "split of the documents that judge plans", unset="no plan is judged"
    )
    held_out_task: tuple[str, ...] | None = Group.HELD_OUT.option(
        None, "their tasks, separated by commas", collect=names, unset="those of --task"
    )
    held_out_limit: int | None = Group.HELD_OUT.option(None, "first N examples of each task", positive, unset="all")
    held_out_sample: int | None = Group.HELD_OUT.option(
        None, "N documents of each task, drawn by --sample-seed", positive, unset="all"
    )
    measure: tuple[str, ...] = Group.HELD_OUT.option(
        (), "further plans to judge", nargs="+", collect=tuple, metavar="PLAN"
    )
    random: int = Group.HELD_OUT.option(0, "random placements of the same size to judge", natural)
    random_within: str = Group.HELD_OUT.option(
        "model",
        "where random placements draw heads: in the whole model, or in each layer as many as were found there",
        choices=("model", "layers"),
    )
    seed: int = Group.MACHINE.option(0, "seed of the random placements", natural)

    def __post_init__(self) -> None:
        _ = self.tasks  # raises for what cannot be; an assertion would not under -O
        if not 1 <= self.first < self.maxlen:
            raise UserError(f"--score-from {self.first} must lie between 1 and maxlen {self.maxlen}; lower it")
        if self.held_out_split is None and (self.measure or self.random or self.held_out_task or self.held_out_limit):
            raise UserError(
                "--measure, --random, --held-out-task and --held-out-limit judge plans on held-out documents; name "
                "their split with --held-out-split"
            )
        if self.held_out_task == ():
            raise UserError("--held-out-task is empty; leave it out for the tasks of --task")
        if self.rank == "none" and self.random:
            raise UserError("--random N needs a placement to compare with; give --rank scan or gates")
        if self.rank == "none" and self.folds is not None:
            raise UserError(f"--folds {self.folds} searches in each of them; give --rank scan or gates")
        if self.random_within == "layers" and (self.units == "layers" or not self.random):
            raise UserError(
                "--random-within layers draws other heads of the same layers; give --units heads and --random N"
            )
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
            sample=self.held_out_sample,
            # Local data are those of the tasks to calibrate on.
            data=self.data if self.held_out_task in (None, self.task) else None,
        )

    @property
    def longest(self) -> int:
        return self.maxlen

    @property
    def plan(self) -> str:
        """Return a plan that stands for the others in the name of a folder."""
        return f"local {self.local}"

    @property
    def first(self) -> int:
        """Return the index of the first token whose loss counts."""
        return self.score_from or self.maxlen // 2
