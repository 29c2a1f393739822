"""Tuned layers compute what the layer computes, step aside where they cannot, and leave the weights as they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from masformer import compiled, linear
from masformer.errors import OneLineError
from masformer.hardware import multiplies_bfloat16
from masformer.linear import TunedLinear, tune
from masformer.loss import token_losses
from tests.helpers.properties import tries
from tests.helpers.tiny_models import LLAMA_LIKE, tiny_model

DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not multiplies_bfloat16(), reason="oneDNN multiplies no bfloat16 on this processor"),
    ),
]
# Of outputs around 1: rounding of sums of some hundred products.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
WIDE = LLAMA_LIKE | {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "vocab_size": 512}

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch was built without oneDNN")


MISSING = compiled.why_not(linear._SOURCE)
with_compiler = pytest.mark.skipif(bool(MISSING), reason=f"no kernel: {MISSING}")


COPIED = ["packed", pytest.param("simd", marks=with_compiler)]


@pytest.fixture(params=["direct", *COPIED])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose either way of oneDNN, or our kernel."""
    monkeypatch.setenv("MASFORMER_WAYS", f"linear={request.param}")
    return str(request.param)


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the packed way without timing."""
    monkeypatch.setenv("MASFORMER_WAYS", "linear=packed")
    monkeypatch.setattr("masformer.tuning._used", {})  # it is written into the records of runs


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes that oneDNN or our kernel has multiplied."""
    shapes: list[tuple[int, ...]] = []

    def counted(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(inputs: Tensor, *arguments: Any) -> Tensor:
            shapes.append(tuple(inputs.shape))
            return multiply(inputs, *arguments)

        return run

    for name in ("_multiply", "_multiply_panels"):
        monkeypatch.setattr(linear, name, counted(getattr(linear, name)))
    return shapes


def bytes_of_copy(way: str, weight: Tensor) -> int:
    """Return what the copy of a weight takes."""
    if way != "simd":
        return weight.nbytes if way == "packed" else 0
    width = linear._library().masformer_panel()
    return -(-len(weight) // width) * width * weight[0].nbytes


def is_taken(way: str, weight: Tensor) -> bool:
    """Return whether a way multiplies a weight on this machine: our kernel two numbers of bfloat16 at once."""
    return way != "simd" or (linear.has_simd(weight.dtype) and weight.shape[1] * weight.itemsize % 4 == 0)


def layer_of(dtype: torch.dtype = torch.float32, width: int = 384, out: int = 256, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).to(dtype).requires_grad_(False)


def wide_model() -> PreTrainedModel:
    return tiny_model("llama", **WIDE).eval()


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "out"), [(576, 576), (576, 192), (576, 1536), (1536, 576), (321, 205)])
def test_products_are_those_of_the_layer(
    dtype: torch.dtype, width: int, out: int, way: str, multiplied: list[tuple[int, ...]]
) -> None:
    if not is_taken(way, layer_of(dtype, width, out).weight):
        assert tune(layer_of(dtype, width, out)) == 0
        return
    for bias in (False, True):
        layer = layer_of(dtype, width, out, bias=bias)
        assert tune(layer) == bytes_of_copy(way, layer.weight)
        for shape in [(1,), (1, 1), (4, 1), (1, 17), (2, 33), (3, 1, 5), (0, 2)]:
            inputs = torch.randn(*shape, width).to(dtype)
            exact = F.linear(inputs.double(), layer.weight.double(), layer.bias.double() if bias else None)
            ours = layer(inputs)
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert len(multiplied) == 14


@torch.no_grad()
def test_strided_inputs_are_read_right(way: str) -> None:
    layer = layer_of()
    inputs = torch.randn(384, 2, 3).permute(2, 1, 0)
    expected = layer(inputs)
    tune(layer)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(layer(inputs), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tuned_model_gives_the_same_logits_text_and_losses(
    dtype: torch.dtype, way: str, multiplied: list[tuple[int, ...]]
) -> None:
    model = wide_model().to(dtype)
    tuned = deepcopy(model)
    num_bytes = tune(tuned)
    layers = [layer for layer in tuned.modules() if type(layer) is TunedLinear]
    assert num_bytes == sum(bytes_of_copy(way, layer.weight) for layer in layers)
    if way == "simd" and not linear.has_simd(dtype):
        assert not layers
        return
    assert len(layers) == 3 * 5 + 1  # keys and values are too small
    tokens = torch.randint(3, 512, (2, 40))
    logits = model(tokens).logits
    torch.testing.assert_close(tuned(tokens).logits, logits, atol=2 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    if dtype == torch.float32:
        texts = [each.generate(tokens, max_new_tokens=8, do_sample=False) for each in (model, tuned)]
        assert torch.equal(*texts)
    losses = [token_losses(each, each.model(tokens)[0][0, :-1], tokens[0, 1:]) for each in (model, tuned)]
    torch.testing.assert_close(*losses, atol=2 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert (39, 256) in multiplied  # the logits of the losses


def test_gradients_autocast_and_other_dtypes_go_the_plain_way(way: str, multiplied: list[tuple[int, ...]]) -> None:
    layer, twin = layer_of().requires_grad_(True), layer_of().requires_grad_(True)
    tune(layer)
    inputs = torch.randn(5, 384)
    layer(inputs).sum().backward()
    twin(inputs).sum().backward()
    assert torch.equal(layer.weight.grad, twin.weight.grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), twin(inputs))
        with pytest.raises(RuntimeError, match="dtype"):
            layer(inputs.double())
        for wrong in (inputs[:, :192], inputs.view(-1), inputs[0, 0]):
            messages = []
            for each in (layer, twin):
                with pytest.raises(RuntimeError) as error:
                    each(wrong)
                messages.append(str(error.value))
            assert messages[0] == messages[1]
        torch.testing.assert_close(torch.vmap(layer)(inputs), twin(inputs))
    assert multiplied == []


@torch.no_grad()
@pytest.mark.parametrize("way", COPIED, indirect=True)
@pytest.mark.parametrize("change", ["in place", "moved", "rounded", "loaded", "replaced", "made in inference mode"])
def test_a_changed_weight_ends_the_use_of_the_copy(change: str, way: str, multiplied: list[tuple[int, ...]]) -> None:
    layer, other = layer_of(), layer_of()
    other.weight.mul_(2)
    tune(layer)
    if change == "in place":
        layer.weight.mul_(2)
    elif change == "moved":
        layer.double().float()
        layer.weight.mul_(2)
    elif change == "rounded":
        layer.bfloat16().float()
        other.weight.copy_(layer_of().weight.bfloat16())
        other.bias.copy_(layer.bias)
    elif change == "loaded":
        layer.load_state_dict(other.state_dict())
    elif change == "replaced":
        del layer.weight
        layer.weight = nn.Parameter(other.weight.clone())
    else:
        with torch.inference_mode():
            layer.weight = nn.Parameter(other.weight.clone(), requires_grad=False)
    inputs = torch.randn(3, 384)
    assert torch.equal(layer(inputs), F.linear(inputs, other.weight, other.bias))
    assert multiplied == []
    assert layer.arranged is None


@torch.no_grad()
@pytest.mark.parametrize("way", COPIED, indirect=True)
def test_no_other_weight_gets_the_identity_of_the_copied_one(way: str) -> None:
    layer = layer_of()
    tune(layer)
    del layer.weight
    others = [torch.empty(256, 384) for _ in range(50)]
    assert layer.origin[0] not in {other.untyped_storage()._cdata for other in others}


@torch.no_grad()
def test_a_bias_of_another_shape_or_dtype_goes_the_plain_way(way: str, multiplied: list[tuple[int, ...]]) -> None:
    layer, twin = layer_of(), layer_of()
    tune(layer)
    inputs = torch.randn(3, 384)
    layer.bias = twin.bias = nn.Parameter(torch.full((1,), 2.0))
    assert torch.equal(layer(inputs), twin(inputs))
    layer.bias = nn.Parameter(torch.zeros(256, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="dtype"):
        layer(inputs)
    layer.bias = nn.Parameter(torch._neg_view(torch.ones(256)), requires_grad=False)
    twin.bias = nn.Parameter(-torch.ones(256))
    assert torch.equal(layer(inputs), twin(inputs))
    assert multiplied == []


@torch.no_grad()
def test_modes_and_other_kinds_of_tensors_see_torch_s_operations(way: str, multiplied: list[tuple[int, ...]]) -> None:
    layer, twin = layer_of(), layer_of()
    tune(layer)
    inputs = torch.randn(3, 384)
    traced = make_fx(layer)(inputs)
    assert torch.equal(traced(inputs), twin(inputs))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(inputs).shape == (3, 256)
    with FlopCounterMode(display=False) as counter:
        layer(inputs)
    assert counter.get_total_flops() == 2 * 3 * 384 * 256
    negated = torch._neg_view(inputs)
    assert torch.equal(layer(negated), twin(-inputs))
    zeros = torch._efficientzerotensor((3, 384))
    for odd in (inputs.to_sparse(), zeros, torch.nested.nested_tensor([inputs, inputs[:2]])):
        assert str(layer(odd)) == str(twin(odd))
    layer.weight = nn.Parameter(twin.weight.to_sparse_csr(), requires_grad=False)
    torch.testing.assert_close(layer(inputs), twin(inputs))
    assert multiplied == []


@torch.no_grad()
@pytest.mark.parametrize("way", COPIED, indirect=True)
def test_copies_pickles_and_saved_weights_do_without(
    tmp_path: Path, way: str, multiplied: list[tuple[int, ...]]
) -> None:
    model = wide_model()
    names = set(model.state_dict())
    tokens = torch.randint(3, 512, (1, 12))
    expected = model(tokens).logits
    tune(model)
    assert set(model.state_dict()) == names
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    multiplied.clear()
    for copy in (deepcopy(model), torch.load(stream, weights_only=False)):
        torch.testing.assert_close(copy(tokens).logits, expected)
    assert multiplied == []
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == names
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, expected)


@torch.no_grad()
def test_tied_embeddings_stay_tied() -> None:
    model = tiny_model("llama", **WIDE, tie_word_embeddings=True).eval()
    tune(model)
    assert type(model.lm_head) is TunedLinear
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_small_layers_and_layers_of_other_classes_stay() -> None:
    class Other(nn.Linear):
        pass

    model = nn.ModuleList(
        [layer_of(width=8), Other(384, 256), layer_of(torch.float64), nn.Linear(384, 256, device="meta")]
    )
    assert tune(model) == 0
    assert TunedLinear not in map(type, model)


@torch.no_grad()
def test_each_number_of_rows_goes_the_way_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch, multiplied: list[tuple[int, ...]]
) -> None:
    cases: list[str] = []

    def choose(topic: str, case: str, ways: dict[str, Any], *, seconds: float) -> str:
        cases.append(f"{topic} {case}")
        for way in ways.values():
            way()
        return "packed" if "rows 16" in case else "plain"

    monkeypatch.setattr(linear, "choose", choose)
    layer = layer_of()
    tune(layer)
    assert cases == [f"linear float32 256x384, rows {rows}" for rows in (16, 1, 128)]
    assert [shape[0] for shape in multiplied] == [16] * (2 if MISSING else 3) + [1] * 2 + [128] * 2
    multiplied.clear()
    for rows in (1, 2, 64, 65, 500):
        layer(torch.randn(rows, 384))
    assert multiplied == [(2, 384), (64, 384)]
    assert layer.ways == ("plain", "packed", "plain")


@torch.no_grad()
def test_without_room_no_copy_is_made_or_measured(
    monkeypatch: pytest.MonkeyPatch, multiplied: list[tuple[int, ...]]
) -> None:
    layer = layer_of()
    assert tune(layer, has_room=False) == 0
    assert type(layer) is nn.Linear  # what was asked for is not to be had
    offered: list[tuple[str, ...]] = []

    def choose(topic: str, case: str, ways: dict[str, Any], *, seconds: float) -> str:
        offered.append((case, *ways))
        return "direct"

    monkeypatch.setattr(linear, "choose", choose)
    monkeypatch.setattr(linear, "arrange", lambda *_: pytest.fail("a copy was made"))
    monkeypatch.delenv("MASFORMER_WAYS")
    assert tune(layer, has_room=False) == 0
    assert offered[0] == ("float32 256x384, rows 16, no copies", "plain", "direct")
    layer(torch.randn(3, 384))
    assert multiplied == [(3, 384)]


def test_no_copies_are_kept_where_none_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "choose", lambda *_, **__: "plain")
    layer = layer_of()
    assert tune(layer) == 0
    assert type(layer) is nn.Linear


def test_the_environment_leaves_layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASFORMER_WAYS", "linear=plain")
    layer = layer_of()
    assert tune(layer) == 0
    assert type(layer) is nn.Linear
    monkeypatch.setenv("MASFORMER_WAYS", "linear=fast")
    with pytest.raises(OneLineError, match="known: plain, direct, packed, simd"):
        tune(layer)
    monkeypatch.setenv("MASFORMER_WAYS", "linear=simd")
    monkeypatch.setattr(compiled, "library", lambda _: None)
    monkeypatch.setattr(compiled, "_missing", lambda: "no C++ compiler")
    with pytest.raises(
        OneLineError, match=r"'simd', which this machine does not have: no C\+\+ compiler; leave it out"
    ):
        tune(layer)
    assert type(layer) is nn.Linear


@with_compiler
@pytest.mark.parametrize("has_room", [True, False])
def test_of_two_copies_one_is_kept(has_room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: dict[str, list[str]] = {}

    def choose(topic: str, case: str, ways: dict[str, Any], *, seconds: float) -> str:
        offered[case.removeprefix("float32 256x384, ")] = [*ways]
        return [*ways][-1]

    monkeypatch.setattr(linear, "choose", choose)
    monkeypatch.delenv("MASFORMER_WAYS")
    layer = layer_of()
    copied = tune(layer, has_room=has_room)
    rest = "" if has_room else ", no copies"
    assert offered == {
        f"rows 16{rest}": ["plain", "direct", *(["packed", "simd"] if has_room else [])],
        f"rows 1{rest}": ["plain", "direct", *(["simd"] if has_room else [])],
        f"rows 128{rest}": ["plain", "direct", *(["simd"] if has_room else [])],
    }
    assert layer.ways == (("simd" if has_room else "direct"),) * 3
    assert copied == (bytes_of_copy("simd", layer.weight) if has_room else 0)


@with_compiler
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    rows=st.integers(0, 140),
    width=st.integers(1, 400),
    out=st.integers(1, 120),
    has_bias=st.booleans(),
    spread=st.integers(1, 3),
    offset=st.integers(0, 2),
    threads=st.integers(1, 3),
)
@tries(60)
def test_our_kernel_multiplies_any_shape_and_every_row_alike(
    dtype: torch.dtype, rows: int, width: int, out: int, has_bias: bool, spread: int, offset: int, threads: int
) -> None:
    """What a row comes to does not depend on the rows beside it, to the bit, nor on where the numbers begin."""
    if not linear.has_simd(dtype):
        pytest.skip("the processor has no instructions for bfloat16")
    torch.manual_seed(rows)
    if dtype == torch.bfloat16:
        width += width % 2
    inputs = torch.randn(rows, spread * width).to(dtype)[:, :width]
    weight = torch.randn(offset + out * width).to(dtype)[offset:].view(out, width)
    bias = torch.randn(2 * out).to(dtype)[::2] if has_bias else None
    panels, before = linear.arrange("simd", weight), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        product = linear._multiply_panels(inputs, panels, bias, out)
        alone = [linear._multiply_panels(torch.cat([row[:1], row])[1:], panels, bias, out) for row in inputs]
    finally:
        torch.set_num_threads(before)
    exact = F.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(product, exact.to(dtype), atol=2e-4, rtol=2e-5 if dtype == torch.float32 else 2**-7)
    assert torch.equal(product, torch.stack([*alone, torch.empty(out, dtype=dtype)])[:-1])


@with_compiler
@torch.no_grad()
def test_what_is_no_number_stays_so() -> None:
    for dtype in filter(linear.has_simd, (torch.float32, torch.bfloat16)):
        inputs, weight = torch.ones(3, 8, dtype=dtype), torch.ones(2, 8, dtype=dtype)
        inputs[0, 0], inputs[1, 0] = torch.nan, -torch.inf
        product = linear._multiply_panels(inputs, linear.arrange("simd", weight), None, 2)
        assert product[0].isnan().all()
        assert product[1:].tolist() == [[-torch.inf] * 2, [8.0] * 2]


@with_compiler
@torch.no_grad()
@pytest.mark.skipif(not linear.has_simd(torch.bfloat16), reason="the processor has no instructions for bfloat16")
def test_sums_in_bfloat16_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(400, 2).bfloat16()
    least, most = 2.0**-8, torch.finfo(torch.bfloat16).max
    weight[:5] = torch.tensor([[1, least], [1, 3 * least], [-1, -least], [most, most], [-most, -most]])
    product = linear._multiply_panels(torch.ones(2, 2, dtype=torch.bfloat16), linear.arrange("simd", weight), None, 400)
    assert product[0, :5].tolist() == [1, 1 + 4 * least, -1, torch.inf, -torch.inf]  # of two as near, the even one
    assert torch.equal(product, weight.float().sum(dim=1).bfloat16().expand(2, -1))
