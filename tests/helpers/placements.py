"""What a search for placements found, made up."""

from __future__ import annotations

from dataclasses import replace

from eval.records.schema import FoldRecord, HeldOutRow, PlanEntry, StabilityRecord, UnitCount, UnitRecord

COST = {"flops": 0.25, "layers": 1.0, "cache": 0.2}
PLANS = [PlanEntry(text=f"plan {n}", plan=[], units=[], loss=2.0, perplexity=9.0 + n, cost=COST) for n in range(3)]
ROWS = [
    HeldOutRow(name=name, plan=name, num_documents=8, perplexity=9.0, low=None, high=None, to_full=None, cost=COST)
    for name in ("full", "random 1")
]
HEAD = UnitRecord(unit="0.1", layer=0, head=1, only_full=0.01, only_local=None)
STABILITY = StabilityRecord(
    folds=[FoldRecord(num_documents=3, chosen=plan) for plan in PLANS],
    jaccard=[0.5, 1.0, 0.25],
    median_jaccard=0.5,
    chance_jaccard=0.125,
    units=[UnitCount(unit="0.1", num_folds=3), UnitCount(unit="2.0", num_folds=1)],
    majority=replace(PLANS[0], units=["0.1"]),
    is_within_budget=True,
)
