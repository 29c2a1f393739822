"""Search for placements, on tiny random models: reuse against whole passes, gates against differences, known optima."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from masformer import ConversionError, LayerSpan, PlanError, SpanPlan, apply_plan
from masformer.placement import (
    Found,
    Placements,
    PlanMeter,
    beam_search,
    frontier,
    gate_gradients,
    ranking,
    scan,
    scores_of_gates,
)
from masformer.plans.budget import Budget
from tests.helpers.tiny_models import SUPPORTED, VOCAB, tiny_model

LOCAL = LayerSpan(span=4, sinks=1)
FIRST = 8


def texts(count: int = 2, length: int = 24) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (length,), generator=random).tolist() for _ in range(count)]


@torch.no_grad()
def whole_loss(model: PreTrainedModel, plan: SpanPlan, some: Sequence[Sequence[int]]) -> float:
    apply_plan(model, plan)
    losses = []
    for text in some:
        ids = torch.tensor([text])
        logits = model(ids, use_cache=False).logits[0]
        losses.append(F.cross_entropy(logits[FIRST - 1 : -1].double(), ids[0, FIRST:], reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
def test_reused_states_give_the_losses_of_whole_passes(kind: str) -> None:
    model = tiny_model(kind)
    space = Placements(model.config, LOCAL, 24)
    plans = [space.plan([(layer, None) for layer in layers]) for layers in ((), (2,), (1,), (0, 2), (0, 1, 2), (1,))]
    meter = PlanMeter(model, texts(), FIRST)
    measured = meter.measure(plans)
    # Asked again in another order, beginning where the last one ended.
    again = meter.measure(plans[::-1])[::-1]
    for plan, loss, other in zip(plans, measured, again, strict=True):
        assert loss == pytest.approx(whole_loss(model, plan, texts()), rel=1e-5)
        assert other == pytest.approx(loss, rel=1e-5)


def test_a_scan_computes_each_layer_as_often_as_plans_differ_there() -> None:
    model = tiny_model("llama")
    meter = PlanMeter(model, texts(1), FIRST)
    space = Placements(model.config, LOCAL, 24)
    scan(meter.measure, space, both_ways=False)
    # The local plan in 3 layers, then full in layer 2 alone (1 layer more), in layer 1 (2), in layer 0 (3).
    assert meter.num_layers_run == 3 + 1 + 2 + 3


def test_a_layer_list_that_cannot_be_entered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr("masformer.placement.layer_of", lambda module: None)
    with pytest.raises(ConversionError, match="llama models keep their layers where they are not known to be"):
        PlanMeter(model, texts(), FIRST)


def test_reuse_that_changes_losses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr("masformer.placement._first_difference", lambda one, other: len(one))
    with pytest.raises(ConversionError, match="llama models cannot be measured from a layer on"):
        PlanMeter(model, texts(), FIRST)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "phi3"])
@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_gradients_of_gates_are_those_of_small_differences(kind: str, gate: float) -> None:
    model = tiny_model(kind).double()
    space = Placements(model.config, LOCAL, 24, heads=True)
    wanted = [weight.requires_grad for weight in model.parameters()]
    found = gate_gradients(model, texts(), FIRST, space.plan([]), gate)
    assert found.shape == (space.num_layers, space.num_heads)
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert whole_loss(model, space.plan([]), texts()) == pytest.approx(_gated_loss(model, space, {}, 0.0), rel=1e-9)
    # Norms compute in fp32, so that smaller steps drown in rounding.
    step = 2e-2
    for unit in ((0, 0), (1, 1), (2, 0)):
        high, low = (_gated_loss(model, space, {unit: change}, gate) for change in (step, -step))
        assert float(found[unit]) == pytest.approx((high - low) / (2 * step), rel=1e-2, abs=1e-6)


@torch.no_grad()
def _gated_loss(model: PreTrainedModel, space: Placements, changes: dict[tuple[int, int], float], gate: float) -> float:
    """Return the loss with gates at `gate`, some of them changed, computed from whole outputs of both kinds."""
    from transformers import AttentionInterface

    from masformer.adapters import layer_of, set_attention
    from masformer.attention.kernels import ATTENTION_NAME, masformer_attention
    from masformer.plans.spans import FULL

    def mixed(module, query, *args, **kwargs):  # type: ignore[no-untyped-def]
        outs = []
        for span in (LOCAL, FULL):
            module.layer_span = span
            outs.append(masformer_attention(module, query, *args, **kwargs)[0])
        share = torch.full((query.shape[1],), gate, dtype=query.dtype)
        for (layer, head), change in changes.items():
            if layer == layer_of(module):
                group = query.shape[1] // space.num_heads
                share[head * group : (head + 1) * group] += change
        return outs[0] + share[:, None] * (outs[1] - outs[0]), None

    apply_plan(model, space.plan([]))
    AttentionInterface.register(ATTENTION_NAME, mixed)
    try:
        set_attention(model, ATTENTION_NAME)
        losses = []
        for text in texts():
            ids = torch.tensor([text])
            logits = model(ids, use_cache=False).logits[0]
            losses.append(F.cross_entropy(logits[FIRST - 1 : -1], ids[0, FIRST:], reduction="none"))
        return float(torch.cat(losses).mean())
    finally:
        AttentionInterface.register(ATTENTION_NAME, masformer_attention)


def test_scores_of_layers_are_sums_over_their_heads() -> None:
    config = tiny_model("llama").config
    gradients = torch.tensor([[1.0, -2.0], [3.0, 4.0], [-5.0, -6.0]])
    layers = scores_of_gates(Placements(config, LOCAL, 24), gradients)
    assert [score.only_full for score in layers] == [1.0, -7.0, 11.0]
    assert [unit for unit, _ in ranking(layers)] == [2, 0, 1]
    heads = scores_of_gates(Placements(config, LOCAL, 24, heads=True), gradients)
    assert ranking(heads)[:3] == [(2, 1), (2, 0), (0, 1)]


class Made:
    """Losses of placements that are made up: each unit is worth something, and a pair something together."""

    def __init__(self, space: Placements, worth: Sequence[float], pair: tuple[int, int], together: float) -> None:
        self.space, self.worth, self.pair, self.together, self.asked = space, worth, pair, together, 0

    def measure(self, plans: Sequence[SpanPlan]) -> list[float]:
        self.asked += len(plans)
        return [self.loss([layer for layer, span in enumerate(plan) if span.is_full]) for plan in plans]

    def loss(self, full: Sequence[int]) -> float:
        return 5 - sum(self.worth[layer] for layer in full) - self.together * (set(self.pair) <= set(full))


def test_scan_measures_each_layer_both_ways() -> None:
    made = Made(Placements(tiny_model("llama").config, LOCAL, 24), (0.3, 0.1, 0.2), (1, 2), 0.5)
    scores = scan(made.measure, made.space)
    assert [score.only_full for score in scores] == pytest.approx([0.3, 0.1, 0.2])
    # Without one of the pair, what both are worth together is lost too.
    assert [score.only_local for score in scores] == pytest.approx([0.3, 0.6, 0.7])
    assert made.asked == 8


def test_greedy_search_follows_the_best_and_a_beam_finds_the_pair() -> None:
    made = Made(Placements(tiny_model("llama").config, LOCAL, 24), (0.3, 0.1, 0.2), (1, 2), 0.5)
    order = [(layer, None) for layer in (0, 2, 1)]
    greedy = beam_search(made.measure, made.space, Budget.parse("layers=2"), order)
    assert min(greedy, key=lambda one: one.loss).units == ((0, None), (2, None))
    beam = beam_search(made.measure, made.space, Budget.parse("layers=2"), order, width=2)
    assert set(min(beam, key=lambda one: one.loss).units or ()) == {(1, None), (2, None)}
    assert greedy[0].units == ()
    only = beam_search(made.measure, made.space, Budget.parse("layers=2"), order, candidates=1)
    assert [one.units for one in only] == [(), ((0, None),), ((0, None), (2, None))]


def test_budgets_bound_what_a_plan_costs() -> None:
    space = Placements(tiny_model("llama").config, LOCAL, 24, heads=True)
    one_head, full = space.plan([(1, 0)]), space.plan(space.units)
    assert space.cost(full) == {"layers": 3, "flops": 1, "cache": 1}
    cost = space.cost(one_head)
    assert cost["layers"] == 0.5
    # 24 tokens: full 300 pairs; span 4 and 1 sink: 10 + 20 * 4 + 20 = 110 pairs, 5 of 24 entries.
    assert cost["flops"] == pytest.approx((300 + 5 * 110) / (6 * 300))
    assert cost["cache"] == pytest.approx((24 + 5 * 5) / (6 * 24))
    assert space.fits(one_head, Budget.parse("layers=0.5"))
    assert not space.fits(one_head, Budget.parse("flops=47%"))
    assert space.fits(one_head, Budget.parse("flops=47.3%"))
    assert not space.fits(one_head, Budget.parse("cache=34%"))
    assert space.full_units(space.plan([(0, 1), (2, 0)])) == [(0, 1), (2, 0)]


@pytest.mark.parametrize("text", ["layers", "layers=0", "flops=25", "cache=120%", "heads=3", "flops=0%", "layers=-1"])
def test_budgets_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=f"budget '{text}'"):
        Budget.parse(text)


def test_the_frontier_holds_plans_that_no_other_beats() -> None:
    plan = SpanPlan.full(3)
    found = [
        Found(plan=plan, units=None, loss=loss, cost={"flops": flops})
        for flops, loss in ((0.2, 5.0), (0.3, 4.0), (0.4, 4.5), (0.5, 3.0), (0.5, 3.5))
    ]
    assert [(one.cost["flops"], one.loss) for one in frontier(found)] == [(0.2, 5.0), (0.3, 4.0), (0.5, 3.0)]


def test_what_cannot_be_placed_is_refused() -> None:
    config = tiny_model("llama").config
    with pytest.raises(PlanError, match="what is not full must be local"):
        Placements(config, LayerSpan(), 24)
    config.num_key_value_heads = 1
    with pytest.raises(PlanError, match="no key/value heads that could differ"):
        Placements(config, LOCAL, 24, heads=True)
    with pytest.raises(ValueError, match="losses count from token 24, which a text of 24 tokens lacks"):
        PlanMeter(tiny_model("llama"), texts(), 24)
    with pytest.raises(ValueError, match="losses count from token 0; the first that is predicted is 1"):
        PlanMeter(tiny_model("llama"), texts(), 0)
    with pytest.raises(ValueError, match="no text to measure on"):
        gate_gradients(tiny_model("llama"), [], FIRST, SpanPlan.full(3))


def test_where_there_is_nothing_to_measure_nothing_comes_back() -> None:
    model = tiny_model("llama")
    full = SpanPlan.full(len(Placements(model.config, LOCAL, 24).units))
    assert not gate_gradients(model, texts(), FIRST, full).any()
    meter = PlanMeter(model, texts(), FIRST)
    meter.measure([full])
    assert meter.measure([]) == []
