"""Which layers need full attention: measured on calibration text, under a budget.

    meter = PlanMeter(model, texts, first=2048)                  # texts: lists of token ids
    space = Placements(model.config, LayerSpan(span=1024, sinks=4), num_tokens=4096)
    scores = scan(meter.measure, space)                          # each layer alone, both ways
    found = beam_search(meter.measure, space, Budget.parse("layers=4"), ranking(scores))
    frontier(found)                                              # plans that no other beats in loss and in cost

A unit is what a placement makes full or leaves local: a layer, or a key/value head of a layer with the query heads
that read it. `scan` measures each unit alone. `gate_gradients` estimates them all with one forward and one backward
pass a text. `beam_search` adds unit after unit from such a ranking, and measures each plan.

`PlanMeter` computes what plans share once. The hidden states below the first layer in which a plan differs from the
one measured before are those of that plan, so that a scan of L layers costs about half of L forward passes.

Shapes: T tokens, L layers, K key/value heads.

Source: heads that see everything beside heads with sinks and a window are DuoAttention's (arXiv 2410.10819, section 2,
where gates are trained by gradient descent; here their gradient is taken once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from masformer.adapters import layer_of, set_attention
from masformer.attention.kernels import ATTENTION_NAME, masformer_attention
from masformer.attention.visibility import span_mask
from masformer.convert import apply_plan, check_fits, full_plan, num_layers
from masformer.errors import ConversionError
from masformer.loss import check_head, token_losses, total_loss
from masformer.plans.budget import Budget
from masformer.plans.cost import attention_flops, cache_bytes
from masformer.plans.shapes import num_kv_heads
from masformer.plans.spans import FULL, LayerSpan, PlanError, SpanPlan, layer_of_heads
from masformer.probe import probe_tokens

Unit = tuple[int, int | None]  # a layer and a key/value head of it; None is the whole layer
# Where the gradients of gates are taken: between the plan and full attention.
GATE = 0.5

Measure = Callable[[Sequence[SpanPlan]], Sequence[float]]  # plans -> mean negative log likelihood of a token, in nats


class Placements:
    """The plans in which some units are full and all others `local`, and what they cost at `num_tokens` tokens.

    Raises:
        PlanError: `local` is full, or `heads` is set for a model whose heads cannot differ.
    """

    def __init__(self, config: PreTrainedConfig, local: LayerSpan, num_tokens: int, *, heads: bool = False) -> None:
        self.config, self.local, self.num_tokens = config, local, num_tokens
        self.num_layers, self.num_heads = num_layers(config), num_kv_heads(config)
        if local.is_full:
            raise PlanError("what is not full must be local; give it a span or a block")
        if heads and self.num_heads in (None, 1):
            raise PlanError("the model has no key/value heads that could differ; place layers")
        of_layer = range(self.num_heads or 1) if heads else [None]
        self.whole = full_plan(config)
        self.units: list[Unit] = [(layer, head) for layer in self.whole.attending for head in of_layer]
        check_fits(self.plan(self.units[:1]), config)

    def plan(self, full: Sequence[Unit]) -> SpanPlan:
        """Return the plan in which these units are full."""
        layers = list(self.whole.with_all(self.local))
        for layer, head in full:
            spans = getattr(layers[layer], "heads", (layers[layer],) * (self.num_heads or 1))
            layers[layer] = layer_of_heads([FULL if head in (None, at) else span for at, span in enumerate(spans)])
        return SpanPlan(tuple(layers))

    def cost(self, plan: SpanPlan) -> dict[str, float]:
        """Return full layers, and cache bytes and attention operations relative to full attention."""
        full = sum(
            sum(span.is_full for span in spans) / len(spans) for spans in (getattr(s, "heads", (s,)) for s in plan)
        )
        flops = [attention_flops(self.config, one, self.num_tokens) for one in (plan, self.whole)]
        held = [cache_bytes(self.config, one, self.num_tokens, 1) for one in (plan, self.whole)]
        return {"layers": full, "flops": flops[0] / flops[1], "cache": held[0] / held[1]}

    def full_units(self, plan: SpanPlan) -> list[Unit]:
        """Return the units that are full in a plan."""
        heads = [getattr(span, "heads", (span,) * (self.num_heads or 1)) for span in plan]
        return [
            (layer, head)
            for layer, head in self.units
            if all(span.is_full for span in (heads[layer] if head is None else heads[layer][head : head + 1]))
        ]

    def fits(self, plan: SpanPlan, budget: Budget) -> bool:
        """Return whether a plan keeps within a budget."""
        return self.cost(plan)[budget.kind] <= budget.limit + 1e-9


@dataclass(frozen=True, kw_only=True)
class Found:
    """A measured plan, its full units in the order of choice, and its mean loss of a token in nats."""

    plan: SpanPlan
    units: tuple[Unit, ...]
    loss: float
    cost: Mapping[str, float]


def measured(measure: Measure, space: Placements, chosen: Sequence[Sequence[Unit]]) -> list[Found]:
    """Return the plans in which these units are full, measured."""
    plans = [space.plan(units) for units in chosen]
    losses = measure(plans)
    return [
        Found(plan=plan, units=tuple(units), loss=loss, cost=space.cost(plan))
        for plan, units, loss in zip(plans, chosen, losses, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class UnitScore:
    """What one unit is worth, in nats a token.

    Attributes:
        only_full: By how much the loss falls below that of the local plan when this unit alone is full.
        only_local: By how much it rises above that of full attention when this unit alone is local; None: not measured.
    """

    unit: Unit
    only_full: float
    only_local: float | None


def scan(measure: Measure, space: Placements, *, both_ways: bool = True) -> list[UnitScore]:
    """Return what each unit is worth alone: full among local ones and, if asked, local among full ones."""
    units = space.units
    alone = [space.plan([]), *(space.plan([unit]) for unit in units)]
    without = [space.plan(units), *(space.plan([u for u in units if u != unit]) for unit in units)] if both_ways else []
    losses = list(measure(alone))
    others = list(measure(without)) if both_ways else []
    return [
        UnitScore(
            unit=unit,
            only_full=losses[0] - losses[1 + index],
            only_local=others[1 + index] - others[0] if both_ways else None,
        )
        for index, unit in enumerate(units)
    ]


def ranking(scores: Sequence[UnitScore]) -> list[Unit]:
    """Return units from the one that is worth most alone to the one that is worth least."""
    return [score.unit for score in sorted(scores, key=lambda score: -score.only_full)]


def beam_search(
    measure: Measure,
    space: Placements,
    budget: Budget,
    order: Sequence[Unit],
    *,
    width: int = 1,
    candidates: int = 6,
) -> list[Found]:
    """Return every plan that was measured on the way to the budget, the local one first.

    Each round adds to each of the `width` best plans every one of the `candidates` units that stand first in the
    ranking `order` and are not in it yet, and measures those within the budget. A width of 1 is greedy selection.
    """
    found = measured(measure, space, [()])
    beam = list(found)
    while True:
        nexts: dict[frozenset[Unit], tuple[Unit, ...]] = {}
        for start in beam:
            held = start.units
            free = [unit for unit in order if unit not in held and space.fits(space.plan([*held, unit]), budget)]
            for unit in free[:candidates]:
                nexts.setdefault(frozenset((*held, unit)), (*held, unit))
        if not nexts:
            return found
        tried = measured(measure, space, list(nexts.values()))
        found += tried
        beam = sorted(tried, key=lambda one: one.loss)[:width]


def frontier(found: Sequence[Found]) -> list[Found]:
    """Return the plans that no other beats in both loss and attention operations, cheapest first."""
    best: list[Found] = []
    for one in sorted(found, key=lambda one: (one.cost["flops"], one.loss)):
        if not best or one.loss < best[-1].loss:
            best.append(one)
    return best


class PlanMeter:
    """Losses of one model under many plans on the same texts.

    The hidden states after each layer stay in memory for each text, L x T x hidden size values: those of the plan that
    was measured last. A plan begins at the first layer in which it differs from that one.

    Each text has more than `first` tokens, and losses count from that one on. The model keeps the last plan, in eval
    mode.

    Attributes:
        num_layers_run: Layers computed so far, of all texts.

    Raises:
        ConversionError: The model cannot take plans, or its layers cannot be entered in the middle.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[Sequence[int]], first: int) -> None:
        _check_lengths(texts, first)
        self.model, self.texts, self.first = model.eval(), texts, first
        self.num_layers_run = 0
        self._held: list[tuple[SpanPlan | None, list[Any]]] = [(None, []) for _ in texts]
        apply_plan(model, getattr(model, "span_plan", None) or full_plan(model.config))
        check_head(model)
        self._layers = _decoder_layers(model)
        self._check_reuse()

    def measure(self, plans: Sequence[SpanPlan]) -> list[float]:
        """Return the mean loss of a token under each plan, in nats, over the tokens of all texts."""
        totals, count = [0.0] * len(plans), 0
        for index, text in enumerate(self.texts):
            count += len(text) - self.first
            for place, loss in self.losses(index, plans):
                totals[place] += loss
        return [total / count for total in totals]

    def losses(self, text: int, plans: Sequence[SpanPlan]) -> Iterator[tuple[int, float]]:
        """Yield the index of each plan, in an order that shares most, and the total loss of a text in nats."""
        for place in _shared_order(self._held[text][0], plans):
            yield place, self._loss(text, plans[place])

    def forget(self, text: int) -> None:
        """Free the hidden states of a text."""
        self._held[text] = (None, [])

    @torch.no_grad()
    def _loss(self, text: int, plan: SpanPlan) -> float:
        apply_plan(self.model, plan)
        former, states = self._held[text]
        start = 0 if former is None else _first_difference(former, plan)
        # Were it stopped on the way, half of the states would be another plan's.
        self._held[text] = (None, [])
        ids = torch.tensor([list(self.texts[text])], device=self.model.device)
        with _entering(self._layers, start, states):
            hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        self._held[text] = (plan, states)
        self.num_layers_run += len(self._layers) - start
        losses = token_losses(self.model, hidden[self.first - 1 : -1], ids[0, self.first :])
        return float(losses.sum(dtype=torch.float64))

    def _check_reuse(self) -> None:
        """Check on random tokens that layers entered in the middle give what the whole model gives."""
        tokens = probe_tokens(self.model)[0].tolist()
        short = LayerSpan(span=2, sinks=1)
        full = full_plan(self.model.config)
        count = len(full.attending)
        plans = [full.with_all(*[FULL] * (count - n), *[short] * n) for n in (0, 1, count // 2)]
        mine = self.texts, self.first, self._held, self.num_layers_run
        try:
            self.texts, self.first, self._held = [tokens], 1, [(None, [])]
            shared = dict(self.losses(0, plans))
            for index, plan in enumerate(plans):
                self.forget(0)
                whole = self._loss(0, plan)
                if not abs(whole - shared[index]) <= 1e-3 * abs(whole):
                    raise ConversionError(
                        f"{self.model.config.model_type} models cannot be measured from a layer on: the loss of a few "
                        f"tokens is {shared[index]:.6g} where the whole model gives {whole:.6g}"
                    )
        finally:
            self.texts, self.first, self._held, self.num_layers_run = mine


def _check_lengths(texts: Sequence[Sequence[int]], first: int) -> None:
    if first < 1:
        raise ValueError(f"losses count from token {first}; the first that is predicted is 1")
    if not texts:
        raise ValueError("there is no text to measure on")
    if (short := min(len(text) for text in texts)) <= first:
        raise ValueError(f"losses count from token {first}, which a text of {short} tokens lacks")


def _shared_order(former: SpanPlan | None, plans: Sequence[SpanPlan]) -> list[int]:
    """Return the indices of plans so that those with a common beginning stand together, nearest to `former` first."""
    if not plans:
        return []
    ranks: list[dict[Any, int]] = [{} for _ in plans[0]]
    for plan in ([former] if former else []) + list(plans):
        for layer, span in enumerate(plan):
            ranks[layer].setdefault(span, len(ranks[layer]))
    return sorted(range(len(plans)), key=lambda i: [ranks[layer][span] for layer, span in enumerate(plans[i])])


def _first_difference(one: SpanPlan, other: SpanPlan) -> int:
    """Return the first layer in which two plans differ; the number of layers where they are equal."""
    return next((layer for layer, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a decoder, in order. Raises `ConversionError` if they are not in one list."""
    count = num_layers(model.config)
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            found = [{layer_of(part) for part in layer.modules()} - {None} for layer in module]
            if found == [{index} for index in range(count)]:
                return module
    raise ConversionError(f"{model.config.model_type} models keep their layers where they are not known to be")


@contextmanager
def _entering(layers: nn.ModuleList, start: int, states: list[Any]) -> Iterator[None]:
    """Let layers before `start` give back what they gave before, and keep in `states` what the others give."""
    del states[start:]

    def kept(index: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: states[index]

    def keeping(layer: nn.Module) -> Callable[..., Any]:
        forward = layer.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            states.append(forward(*args, **kwargs))
            return states[-1]

        return run

    # What others have put in the place of the class's method, as hooks of accelerate do.
    former = [vars(layer).get("forward") for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer.forward = kept(index) if index < start else keeping(layer)
        yield
    finally:
        for layer, forward in zip(layers, former, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


_GATES_NAME = "masformer_gates"


def gate_gradients(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], first: int, plan: SpanPlan, gate: float = GATE
) -> Tensor:
    """Return (L, K) derivatives of the mean loss of a token by the gates of all key/value heads, in nats.

    With a gate g, a head's output is (1 - g) x what the plan lets it see + g x full attention. A head with a negative
    derivative lowers the loss by seeing more, the more so the lower it is. At g = 0 the others are the plan's; halfway,
    heads that help only together, one in an early layer and one in a late one, are seen to help. The derivative of a
    head that is full already is 0. The model keeps the plan afterwards.
    """
    _check_lengths(texts, first)
    apply_plan(model.eval(), plan)
    count, heads = num_layers(model.config), num_kv_heads(model.config) or 1
    gates = torch.full((count, heads), gate, device=model.device, requires_grad=True)
    wanted = {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.requires_grad_(False)
    AttentionInterface.register(_GATES_NAME, _gated(gates))
    AttentionMaskInterface.register(_GATES_NAME, span_mask)
    set_attention(model, _GATES_NAME)
    total, num_tokens = torch.zeros(count, heads, dtype=torch.float64), 0
    try:
        for text in texts:
            ids = torch.tensor([list(text)], device=model.device)
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            loss = total_loss(model, hidden[first - 1 : -1], ids[0, first:])
            # Where nothing is gated, the loss does not depend on gates at all.
            if loss.requires_grad:
                total += torch.autograd.grad(loss, gates)[0].to(total)
            num_tokens += len(text) - first
    finally:
        set_attention(model, ATTENTION_NAME)
        for name, weight in model.named_parameters():
            weight.requires_grad_(wanted[name])
    return total / num_tokens


def _gated(gates: Tensor) -> Callable[..., tuple[Tensor, None]]:
    def attention(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        near, _ = masformer_attention(module, query, *args, **kwargs)
        span = module.layer_span
        if span == FULL:
            return near, None
        try:
            module.layer_span = FULL  # type: ignore[assignment]
            far, _ = masformer_attention(module, query, *args, **kwargs)
        finally:
            module.layer_span = span
        # (B, T, H, D); the query heads of a key/value head stand side by side.
        gate = gates[layer_of(module)].repeat_interleave(query.shape[1] // gates.shape[1])
        return near + gate[:, None].to(near.dtype) * (far - near), None

    return attention


def scores_of_gates(space: Placements, gradients: Tensor) -> list[UnitScore]:
    """Return what each unit is worth by (L, K) derivatives of the loss by its gates."""
    return [
        UnitScore(
            unit=(layer, head),
            only_full=-float(gradients[layer].sum() if head is None else gradients[layer, head]),
            only_local=None,
        )
        for layer, head in space.units
    ]
