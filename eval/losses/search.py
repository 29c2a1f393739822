"""The search for a placement of full attention under a budget, and the plans to compare its result with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.config.placement import PlacementConfig
from eval.errors import UserError
from eval.losses.ledger import CALIBRATION, Ledger
from eval.runtime.given import local_span
from eval.runtime.model import resolve_plan
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint
from masformer.placement import (
    Found,
    Placements,
    Unit,
    UnitScore,
    beam_search,
    ranking,
    scan,
    scores_of_gates,
)
from masformer.plans.budget import Budget

# Draws for each random placement; of few units there may be no other.
_DRAWS_A_PLAN = 50


class Space(Placements):
    """The placements of a search, with the budget that they must keep.

    Args:
        config: Settings of the search.
        model: Config of the model.

    Raises:
        UserError: Nothing can be searched.
        PlanError: `--local` is no span.
    """

    def __init__(self, config: PlacementConfig, model: Any) -> None:
        self.budget = Budget.parse(config.budget)
        super().__init__(
            model, local_span(config.local), config.cost_at or config.maxlen, heads=config.units == "heads"
        )
        if config.rank == "none":
            return
        if not any(self.fits(self.plan([unit]), self.budget) for unit in self.units):
            raise UserError(f"--budget {self.budget} leaves room for no {config.units[:-1]}; raise it")
        if config.maxlen <= (self.local.num_recent or 0):
            raise UserError(f"--local '{config.local}' hides nothing of {config.maxlen} tokens; shorten it")


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search came to.

    Attributes:
        scores: What each unit is worth alone.
        found: All plans measured on the calibration documents.
        chosen: The best within the budget.
    """

    scores: Sequence[UnitScore]
    found: Sequence[Found]
    chosen: Found


def search(config: PlacementConfig, space: Space, ledger: Ledger, fold: int | None = None) -> SearchResult:
    """Rank the units, and extend plans by them up to the budget, on all calibration documents or those of a fold."""
    found: dict[SpanPlan, Found] = {}

    def measure(plans: Sequence[SpanPlan]) -> list[float]:
        losses = ledger.measure(CALIBRATION, plans, fold)
        for plan, loss in zip(plans, losses, strict=True):
            units = tuple(space.full_units(plan))
            found.setdefault(plan, Found(plan=plan, units=units, loss=loss, cost=space.cost(plan)))
        return losses

    if config.rank == "scan":
        scores = scan(measure, space, both_ways=config.both_ways)
    else:
        scores = scores_of_gates(space, ledger.gate_gradients(space.plan([]), config.gate, fold))
    tried = beam_search(measure, space, space.budget, ranking(scores), width=config.beam, candidates=config.candidates)
    return SearchResult(scores=scores, found=list(found.values()), chosen=min(tried, key=lambda one: one.loss))


def plans_to_judge(
    config: PlacementConfig,
    space: Space,
    checkpoint: Checkpoint,
    requested: Mapping[str, SpanPlan],
    chosen: Found | None,
    majority: Found | None = None,
) -> dict[str, SpanPlan]:
    """Return plans by name: the requested ones, and after a search its result and the plans to compare it with."""
    if chosen is None:
        return dict(requested)
    own = resolve_plan("auto", checkpoint, keeps_full=True)
    judged = {"full": space.plan(space.units), "local": space.plan([])}
    judged |= {} if own is None or own.is_full else {"own": own}
    judged |= {**requested, "found": chosen.plan} | ({} if majority is None else {"majority": majority.plan})
    groups: list[tuple[list[Unit], int]] = [(space.units, len(chosen.units))]
    if config.random_within == "layers":
        in_layers = Counter(layer for layer, _ in chosen.units)
        groups = [([unit for unit in space.units if unit[0] == layer], count) for layer, count in in_layers.items()]
    draw = random.Random(config.seed)
    drawn = {chosen.plan}
    # Of few placements there may be no more.
    for _ in range(_DRAWS_A_PLAN * config.random):
        plan = space.plan([unit for units, size in groups for unit in draw.sample(units, size)])
        if len(drawn) <= config.random and plan not in drawn:
            judged[f"random {len(drawn)}"] = plan
            drawn.add(plan)
    return judged
