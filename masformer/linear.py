"""Linear layers that oneDNN or our own kernel multiplies, or whose weights are arranged once, where that is faster.

    num_bytes = tune(model)    # measured for each shape and number of rows; results are equal within rounding

torch leaves products of float32 to MKL, which uses little of some processors, and arranges a bfloat16 weight anew in
every call. Our kernel (`linear.cpp`; bfloat16 needs AVX512-BF16) fetches a part of the weight while it multiplies the
one before, which pays for few rows, as in decoding; with AVX-512 it takes about as long as oneDNN for many, from the
same copy. The weights stay as they are: saving, tied embeddings and training read them as before.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from masformer import compiled
from masformer.hardware import dtype_name, multiplies_bfloat16
from masformer.tuning import TOPICS, choose, named_way

TOPIC = "linear"
PLAIN, DIRECT, PACKED, SIMD = _WAYS = TOPICS[TOPIC]
_COPIED = (PACKED, SIMD)  # ways that read a copy of the weight
# Rows that are measured: of one token, of a batch of tokens, of a prompt.
_BATCH = 16
_ROWS = (1, _BATCH, 128)
_MOST_ROWS = (1, 64)  # that the first two stand for
_WORD_BYTES = 4  # bytes that our kernel multiplies together
_SOURCE = Path(__file__).with_suffix(".cpp")
_CLASSES = (Tensor, nn.Parameter)
_LEAST_NUMBERS = 2**16  # of a weight; smaller products take the time of their call
_MEASURED_BYTES = 2**25  # of weights of a shape: they are to come from memory, as in a model


class TunedLinear(nn.Linear):
    """What `nn.Linear` computes, within rounding, in the way that is fastest for inference on this processor.

    Gradients, autocast, compilation and other dtypes go torch's own way, and so does what a copy served once the weight
    has changed or moved. A change through `weight.data` goes unnoticed.

    Attributes:
        dtype: That of the weight when it was tuned.
        ways: A way for each entry of `_ROWS`, of `_COPIED` at most one.
        arranged: The copy of the weight that a way reads; None where there is none.
        origin: Identity and version of the weight that was copied (`_origin`).
        storage: Weak reference to its storage; while it is held, no other storage takes that address.
    """

    dtype: torch.dtype
    ways: tuple[str, ...]
    arranged: Tensor | None
    origin: tuple[Any, ...]
    storage: StorageWeakRef | None

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) from (..., in_features)."""
        weight, bias = self.weight, self.bias
        if (
            compiled.is_watched()
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or not _is_dense(input, self.dtype)
            or not _is_dense(weight, self.dtype)
            or input.shape[-1:] != weight.shape[1:]
            or (bias is not None and not (_is_dense(bias, self.dtype) and bias.shape == weight.shape[:1]))
        ):
            return F.linear(input, weight, bias)
        way, source = self.ways[_place(input.numel() // self.in_features)], weight
        if way in _COPIED:
            arranged = self.arranged
            if arranged is not None and _origin(weight) != self.origin:
                self.arranged = self.storage = arranged = None
            way, source = (PLAIN, weight) if arranged is None else (way, arranged)
        return _product(way, input, source, bias, weight.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"arranged": None, "storage": None}  # a copy of the model has weights of its own


def arrange(way: str, weight: Tensor) -> Tensor:
    """Return the copy of an (outputs, inputs) weight that a way reads.

    That of `SIMD` is int32 (panels, words, width): a word has the bits of an input in float32, of two in bfloat16.
    """
    weight = weight.detach()
    if way == PACKED:
        copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return copy
    if weight.storage_offset() * weight.itemsize % _WORD_BYTES:
        weight = weight.clone()
    weight = weight.view(torch.int32)
    width, (outputs, words) = _library().masformer_panel(), weight.shape
    whole, rest = divmod(outputs, width)
    panels = weight.new_empty(whole + bool(rest), words, width)
    panels[:whole] = weight[: outputs - rest].view(whole, width, words).transpose(1, 2)
    if rest:
        panels[whole, :, :rest] = weight[outputs - rest :].T
        panels[whole, :, rest:] = 0
    return panels


def has_simd(dtype: torch.dtype) -> bool:
    """Return whether our kernel is available for a dtype on this machine."""
    return not compiled.why_not(_SOURCE) and hasattr(_library(), _symbol(dtype))


def may_copy(dtype: torch.dtype) -> bool:
    """Return whether `tune` may keep copies of weights of a dtype on this machine."""
    named = named_way(TOPIC, _WAYS)
    return _is_known(dtype) and (named in (None, PACKED) or (named == SIMD and has_simd(dtype)))


def check_linear_way(device: torch.device) -> None:
    """Check the way that `MASFORMER_WAYS` names for linear layers on a processor; call it before weights load.

    Raises:
        OneLineError: It names an unknown way, or our kernel where it cannot be compiled.
    """
    if device.type == "cpu" and named_way(TOPIC, _WAYS) == SIMD:
        compiled.require(_SOURCE, SIMD)


def tune(model: nn.Module, *, has_room: bool = True) -> int:
    """Return the bytes of copies that a model's linear layers keep from now on for inference on this processor.

    Layers of other classes, on other devices, small ones, and shapes that nothing makes faster stay as they are, and so
    do those that a way of `MASFORMER_WAYS` does not take (their dtype, an odd number of inputs in bfloat16). The first
    call on a machine measures for some seconds.

    Args:
        model: Its layers change their class.
        has_room: Copies may take about as many bytes as the weights; else there are none.

    Raises:
        OneLineError: As `check_linear_way`.
    """
    named = named_way(TOPIC, _WAYS)
    if named == PLAIN or (named in _COPIED and not has_room):
        return 0
    shapes: dict[tuple[Any, ...], list[nn.Linear]] = defaultdict(list)
    for layer in model.modules():
        if type(layer) is nn.Linear and _is_tunable(layer.weight):
            shapes[layer.weight.dtype, layer.weight.shape].append(layer)
    if shapes:
        check_linear_way(torch.device("cpu"))
    return sum(_tune_shape(layers, has_room=has_room) for layers in shapes.values())


@torch.no_grad()
def _tune_shape(layers: Sequence[nn.Linear], *, has_room: bool) -> int:
    """Return the bytes of the copies of layers of one shape and dtype, which go the ways that are fastest."""
    weight = layers[0].weight
    measured = layers[: max(1, _MEASURED_BYTES // weight.nbytes)]
    copies: dict[str, list[Tensor]] = {way: [] for way in _COPIED}

    def sources(way: str) -> Sequence[Tensor]:
        if way not in _COPIED:
            return [layer.weight for layer in measured]
        # Not before they are measured: a remembered way may need none.
        copies[way].extend(arrange(way, layer.weight) for layer in measured[len(copies[way]) :])
        return copies[way]

    has_whole_words = weight.shape[1] * weight.itemsize % _WORD_BYTES == 0
    chosen, shape = dict[int, str](), f"{dtype_name(weight.dtype)} {weight.shape[0]}x{weight.shape[1]}"
    # One kind of copy is kept. Batches decode most answers, so their way is chosen first.
    for rows in (_BATCH, *(rows for rows in _ROWS if rows != _BATCH)):
        kept = [way for way in chosen.values() if way in _COPIED] or _COPIED
        copying = [PACKED, *([SIMD] if has_whole_words and has_simd(weight.dtype) else [])] if has_room else []
        offered = [PLAIN, DIRECT, *(way for way in copying if way in kept)]
        case = f"{shape}, rows {rows}{'' if has_room else ', no copies'}"
        chosen[rows] = _choose(case, rows, measured, offered, sources)
        if chosen[rows] in _COPIED:
            copies = {chosen[rows]: copies[chosen[rows]]}
    ways = tuple(chosen[rows] for rows in _ROWS)
    if set(ways) == {PLAIN}:
        return 0
    copied = next((way for way in ways if way in _COPIED), None)
    num_bytes = 0
    for index, layer in enumerate(layers):
        layer.__class__ = TunedLinear
        layer.ways, layer.dtype, layer.arranged = ways, weight.dtype, None  # type: ignore[assignment]
        if copied:
            made = copies[copied]
            layer.arranged = made[index] if index < len(made) else arrange(copied, layer.weight)
            layer.origin = _origin(layer.weight)  # type: ignore[assignment]
            layer.storage = StorageWeakRef(layer.weight.untyped_storage())  # type: ignore[assignment, no-untyped-call]
            num_bytes += layer.arranged.numel() * layer.arranged.itemsize
    return num_bytes


def _choose(
    case: str, rows: int, layers: Sequence[nn.Linear], ways: Sequence[str], sources: Callable[[str], Sequence[Tensor]]
) -> str:
    """Return the fastest of some ways for a number of rows; `sources` are the weights that a way reads."""
    named = named_way(TOPIC, _WAYS)
    if named is not None and named not in ways:
        return PLAIN
    weight = layers[0].weight
    inputs = torch.ones(rows, weight.shape[1], dtype=weight.dtype)

    def compute(way: str) -> object:
        return [
            _product(way, inputs, source, layer.bias, weight.shape[0])
            for layer, source in zip(layers, sources(way), strict=True)
        ]

    return choose(TOPIC, case, {way: partial(compute, way) for way in ways}, seconds=0.1)


def _is_known(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies weights of a dtype here."""
    return (dtype == torch.float32 and torch._C._has_mkldnn) or (dtype == torch.bfloat16 and multiplies_bfloat16())


def _is_tunable(weight: Tensor) -> bool:
    return (
        _is_known(weight.dtype)
        and type(weight) is nn.Parameter
        and _is_dense(weight, weight.dtype)
        and weight.is_contiguous()
        and weight.numel() >= _LEAST_NUMBERS
        and not weight.is_inference()  # nothing tells whether such a tensor was changed
    )


def _is_dense(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor's numbers lie in memory: no subclass, no other layout, no negation that is put off."""
    return (
        type(tensor) in _CLASSES
        and tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_neg() or tensor._is_zerotensor())
    )


def _place(rows: int) -> int:
    return sum(rows > most for most in _MOST_ROWS)


def _origin(weight: Tensor) -> tuple[Any, ...] | None:
    """Return the identity and version of a weight; None for an inference tensor, which has no version."""
    if weight.is_inference():
        return None
    return weight.untyped_storage()._cdata, weight.data_ptr(), weight._version, weight.shape, weight.stride()


def _product(way: str, inputs: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Return (..., outputs) in a way, from (..., inputs) and the weight that it reads."""
    if way == PLAIN:
        return F.linear(inputs, weight, bias)
    return _multiply_panels(inputs, weight, bias, outputs) if way == SIMD else _multiply(inputs, weight, bias)


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")
    return product


def _multiply_panels(inputs: Tensor, panels: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    # Named, so that they stay until the call has ended.
    inputs, bias = inputs.contiguous(), None if bias is None else bias.contiguous()
    product = inputs.new_empty((*inputs.shape[:-1], outputs))
    _kernel(inputs.dtype)(
        inputs.data_ptr(),
        panels.data_ptr(),
        None if bias is None else bias.data_ptr(),
        product.data_ptr(),
        inputs.numel() // inputs.shape[-1],
        panels.shape[1],
        outputs,
        torch.get_num_threads(),
    )
    return product


def _symbol(dtype: torch.dtype) -> str:
    return f"masformer_multiply_{dtype_name(dtype)}"


@cache
def _kernel(dtype: torch.dtype) -> Callable[..., None]:
    function = _library()[_symbol(dtype)]
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int32]
    function.restype = None
    return function


def _library() -> ctypes.CDLL:
    library = compiled.library(_SOURCE)
    assert library is not None
    return library
