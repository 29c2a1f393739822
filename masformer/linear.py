"""Linear layers that also keep their weights as oneDNN arranges them, where that is faster on this processor.

    num_bytes = pack(model)    # measured for each shape and number of rows; results are equal within rounding

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

from masformer.tuning import choose, named_way

TOPIC = "linear"
_WAYS = ("plain", "packed")
# Rows that are measured: of one token, of a batch of tokens, of a prompt.
_ROWS = (1, 16, 128)
_MOST_ROWS = (1, 64)  # that the first two stand for
_LEAST_NUMBERS = 2**16  # of a weight; smaller products take the time of their call
_MEASURED_BYTES = 2**25  # of weights of a shape: they are to come from memory, as in a model


class PackedLinear(nn.Linear):
    """What `nn.Linear` computes, within rounding, with a second copy of the weight for inference.

    Gradients, autocast, compilation and other dtypes use the weight itself, and so does everything once the weight has
    changed or moved.

    Attributes:
        packed: The copy; None once it is of no use.
        origin: What tells whether the weight has changed since.
        uses: Whether the copy is faster, for each entry of `_ROWS`.
    """

    packed: Tensor | None
    origin: tuple[int, int]
    uses: tuple[bool, ...]

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) from (..., in_features)."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        weight, packed = self.weight, self.packed
        if packed is not None and _origin(weight) != self.origin:
            packed = self.packed = None
        if (
            packed is None
            or type(input) is not Tensor
            or input.dtype != weight.dtype
            or not self.uses[_place(input.numel() // self.in_features)]
        ):
            return F.linear(input, weight, self.bias)
        return _multiply(input, packed, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # a copy of the model has weights of its own


def pack(model: nn.Module) -> int:
    """Return the bytes of the copies that a model's linear layers now keep for inference on this processor.

    Layers of other classes, on other devices, small ones, and shapes that no copy makes faster stay as they are. The
    first call on a machine measures for about a second.

    Raises:
        OneLineError: `MASFORMER_WAYS` names an unknown way for `linear`.
    """
    if named_way(TOPIC, _WAYS) == "plain" or not torch._C._has_mkldnn:
        return 0
    shapes: dict[tuple[Any, ...], list[nn.Linear]] = defaultdict(list)
    for layer in model.modules():
        if type(layer) is nn.Linear and _is_packable(layer.weight):
            shapes[layer.weight.dtype, layer.weight.shape].append(layer)
    return sum(map(_pack_shape, shapes.values()))


@torch.no_grad()
def _pack_shape(layers: Sequence[nn.Linear]) -> int:
    """Return the bytes of the copies of layers of one shape and dtype, which get them where that is faster."""
    weight = layers[0].weight
    measured = layers[: max(1, _MEASURED_BYTES // weight.nbytes)]
    copies = [_arrange(layer.weight) for layer in measured]
    uses = tuple(_choose(rows, measured, copies) == "packed" for rows in _ROWS)
    if not any(uses):
        return 0
    copies += [_arrange(layer.weight) for layer in layers[len(measured) :]]
    for layer, copy in zip(layers, copies, strict=True):
        layer.__class__ = PackedLinear
        layer.packed, layer.origin, layer.uses = copy, _origin(layer.weight), uses  # type: ignore[assignment]
    return len(layers) * weight.nbytes


def _choose(rows: int, layers: Sequence[nn.Linear], copies: Sequence[Tensor]) -> str:
    """Return the faster of `_WAYS` for a number of rows."""
    weight = layers[0].weight
    inputs = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
    out, width = weight.shape
    ways: tuple[Callable[[], object], ...] = (
        lambda: [F.linear(inputs, layer.weight, layer.bias) for layer in layers],
        lambda: [_multiply(inputs, copy, layer.bias) for layer, copy in zip(layers, copies, strict=True)],
    )
    case = f"{str(weight.dtype).removeprefix('torch.')} {out}x{width}, rows {rows}"
    return choose(TOPIC, case, dict(zip(_WAYS, ways, strict=True)), seconds=0.03)


def _is_packable(weight: Tensor) -> bool:
    known = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return (
        known
        and type(weight) is nn.Parameter
        and weight.device.type == "cpu"
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


def _multiply(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, packed, bias, "none", [], "")
    return product
