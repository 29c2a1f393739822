"""Linear layers that are multiplied by oneDNN instead of MKL, or with weights arranged once, where that is faster.

    num_bytes = tune(model)    # measured for each shape and number of rows; results are equal within rounding

torch leaves products of float32 to MKL, which uses little of some processors, and arranges a bfloat16 weight anew in
every call. The weights stay as they are: saving, tied embeddings and training read them as before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masformer.hardware import dtype_name, multiplies_bfloat16
from masformer.tuning import TOPICS, choose, named_way

TOPIC = "linear"
PLAIN, DIRECT, PACKED = _WAYS = TOPICS[TOPIC]
# Rows that are measured: of one token, of a batch of tokens, of a prompt.
_ROWS = (1, 16, 128)
_MOST_ROWS = (1, 64)  # that the first two stand for
_LEAST_NUMBERS = 2**16  # of a weight; smaller products take the time of their call
_MEASURED_BYTES = 2**25  # of weights of a shape: they are to come from memory, as in a model


class TunedLinear(nn.Linear):
    """What `nn.Linear` computes, within rounding, in the way that is fastest for inference on this processor.

    Gradients, autocast, compilation and other dtypes go torch's own way, and so does what a copy served once the weight
    has changed or moved. A change through `weight.data` goes unnoticed.

    Attributes:
        ways: One of `_WAYS` for each entry of `_ROWS`.
        packed: The arranged copy of the weight; None where there is none.
        origin: What tells whether the weight has changed since.
    """

    ways: tuple[str, ...]
    packed: Tensor | None
    origin: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) from (..., in_features)."""
        weight = self.weight
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or type(input) is not Tensor
            or not input.dtype == weight.dtype == self.dtype
            or weight.device.type != "cpu"
        ):
            return F.linear(input, weight, self.bias)
        way = self.ways[_place(input.numel() // self.in_features)]
        if way == PACKED:
            if self.packed is not None and _origin(weight) != self.origin:
                self.packed = None
            if self.packed is not None:
                return _multiply(input, self.packed, self.bias)
        return _multiply(input, weight, self.bias) if way == DIRECT else F.linear(input, weight, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # a copy of the model has weights of its own


def may_copy(dtype: torch.dtype) -> bool:
    """Return whether `tune` may keep copies of weights of a dtype on this machine."""
    return _is_known(dtype) and named_way(TOPIC, _WAYS) in (None, PACKED)


def tune(model: nn.Module, *, has_room: bool = True) -> int:
    """Return the bytes of copies that a model's linear layers keep from now on for inference on this processor.

    Layers of other classes, on other devices, small ones, and shapes that nothing makes faster stay as they are. The
    first call on a machine measures for some seconds.

    Args:
        model: Its layers change their class.
        has_room: Copies may take as many bytes as the weights; else there are none.

    Raises:
        OneLineError: `MASFORMER_WAYS` names an unknown way for `linear`.
    """
    named = named_way(TOPIC, _WAYS)
    if named == PLAIN or (named == PACKED and not has_room):
        return 0
    shapes: dict[tuple[Any, ...], list[nn.Linear]] = defaultdict(list)
    for layer in model.modules():
        if type(layer) is nn.Linear and _is_tunable(layer.weight):
            shapes[layer.weight.dtype, layer.weight.shape].append(layer)
    return sum(_tune_shape(layers, has_room=has_room) for layers in shapes.values())


@torch.no_grad()
def _tune_shape(layers: Sequence[nn.Linear], *, has_room: bool) -> int:
    """Return the bytes of the copies of layers of one shape and dtype, which go the ways that are fastest."""
    weight = layers[0].weight
    measured = layers[: max(1, _MEASURED_BYTES // weight.nbytes)]
    copies: list[Tensor] = []

    def arranged() -> list[Tensor]:
        # Not before they are measured: a remembered way may need none.
        copies.extend(_arrange(layer.weight) for layer in measured[len(copies) :])
        return copies

    ways = tuple(_choose(rows, measured, arranged if has_room else None) for rows in _ROWS)
    if set(ways) == {PLAIN}:
        return 0
    for index, layer in enumerate(layers):
        layer.__class__ = TunedLinear
        layer.ways, layer.dtype, layer.packed = ways, weight.dtype, None  # type: ignore[assignment]
        if PACKED in ways:
            layer.packed = copies[index] if index < len(copies) else _arrange(layer.weight)
            layer.origin = _origin(layer.weight)  # type: ignore[assignment]
    return len(layers) * weight.nbytes if PACKED in ways else 0


def _choose(rows: int, layers: Sequence[nn.Linear], copies: Callable[[], list[Tensor]] | None) -> str:
    """Return the fastest of `_WAYS` for a number of rows; without copies, of the first two."""
    weight = layers[0].weight
    inputs = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
    ways: dict[str, Callable[[], object]] = {
        PLAIN: lambda: [F.linear(inputs, layer.weight, layer.bias) for layer in layers],
        DIRECT: lambda: [_multiply(inputs, layer.weight, layer.bias) for layer in layers],
    }
    if copies:
        ways[PACKED] = lambda: [_multiply(inputs, x, layer.bias) for layer, x in zip(layers, copies(), strict=True)]
    shape = f"{weight.shape[0]}x{weight.shape[1]}, rows {rows}"
    case = f"{dtype_name(weight.dtype)} {shape}{'' if copies else ', no copies'}"
    return choose(TOPIC, case, ways, seconds=0.1)


def _is_known(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies weights of a dtype here."""
    return (dtype == torch.float32 and torch._C._has_mkldnn) or (dtype == torch.bfloat16 and multiplies_bfloat16())


def _is_tunable(weight: Tensor) -> bool:
    return (
        _is_known(weight.dtype)
        and type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.numel() >= _LEAST_NUMBERS
        and not weight.is_inference()  # nothing tells whether such a tensor was changed
    )


def _place(rows: int) -> int:
    return sum(rows > most for most in _MOST_ROWS)


def _origin(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _arrange(weight: Tensor) -> Tensor:
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return copy


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")
    return product
