"""Quantized weights: by --quantize, or as a checkpoint brings them; what is not possible is one line."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from eval.errors import UserError
from eval.runtime.model import check_dtype
from masformer.checkpoints.fit import QUANTIZERS, describe_quantization
from masformer.checkpoints.open import open_checkpoint
from masformer.errors import CheckpointError
from tests.helpers.tiny_models import save_tiny_checkpoint

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
IDS = torch.arange(3, 60)[None]
HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs pip install bitsandbytes")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # bitsandbytes packs blocks of 64 numbers of a row.
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128, head_dim=16)


@pytest.fixture
def gptq(base: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(base, tmp_path / "gptq"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": GPTQ}))
    return folder


def refused(expected: str, reference: Path | str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=expected) as error:
        open_checkpoint(str(reference), **options)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_a_quantizer_that_is_not_installed_is_named(base: Path, quantize: str) -> None:
    refused(f"--quantize {quantize}: .*bitsandbytes", base, quantize=quantize)


def test_the_package_of_a_quantized_checkpoint_is_named(gptq: Path) -> None:
    if find_spec("optimum") is not None and find_spec("gptqmodel") is not None:
        pytest.skip("the packages that unpack GPTQ are installed")
    refused(r"is quantized \(gptq\): .*(optimum|gptqmodel)", gptq)


def test_what_is_quantized_is_not_quantized_again(gptq: Path) -> None:
    refused(r"is quantized already \(gptq 4-bit\); leave --quantize out", gptq, quantize="4bit")


@pytest.mark.parametrize(
    ("own", "quantize", "expected"),
    [
        (None, None, None),
        (GPTQ, None, "gptq 4-bit"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, None, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "bitsandbytes 8-bit"),
        ({}, None, "unknown"),
        (SimpleNamespace(to_dict=lambda: {"quant_method": SimpleNamespace(value="awq"), "bits": 4}), None, "awq 4-bit"),
        (None, "4bit", "bitsandbytes 4-bit"),
        (None, "8bit", "bitsandbytes 8-bit"),
    ],
)
def test_quantizations_are_described_by_method_and_bits(own: Any, quantize: str | None, expected: str | None) -> None:
    assert describe_quantization(own, quantize) == expected


def test_dtypes_that_quantized_layers_do_not_compute_in_are_refused() -> None:
    check_dtype("float64", None)
    check_dtype("float32", "4bit")
    for dtype, quantize in (("float32", "8bit"), ("float64", "4bit")):
        with pytest.raises(UserError, match=f"quantize {quantize} does not compute in {dtype}; give dtype .*bfloat16"):
            check_dtype(dtype, quantize)


@needs_bitsandbytes
@torch.no_grad()
@pytest.mark.parametrize("quantize", QUANTIZERS)
@pytest.mark.parametrize("has_adapter", [False, True])
def test_quantized_weights_and_adapters_beside_them_compute_what_transformers_and_peft_do(
    base: Path, tmp_path: Path, quantize: str, has_adapter: bool
) -> None:
    settings = QUANTIZERS[quantize](torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=settings, device_map={"": "cpu"}
    )
    adapter = None
    if has_adapter:
        adapter = str(tmp_path / "adapter")
        lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(adapter)
        theirs = PeftModel.from_pretrained(theirs, adapter)
    checkpoint = open_checkpoint(str(base), adapter=adapter, quantize=quantize)
    assert checkpoint.quantization == f"bitsandbytes {quantize[0]}-bit"
    assert checkpoint.provenance["quantize"] == quantize
    ours = checkpoint.load_model(torch.bfloat16)
    assert torch.equal(ours(IDS).logits, theirs.eval()(IDS).logits)
    plain = open_checkpoint(str(base), adapter=adapter).load_model(torch.bfloat16)
    assert not torch.equal(ours(IDS).logits, plain(IDS).logits)
