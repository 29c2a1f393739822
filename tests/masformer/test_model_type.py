"""A folder whose plan only masformer computes: refused without it, loaded with its plan beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from masformer import SpanPlan, apply_plan, save_checkpoint, stored_plan
from masformer.__main__ import main
from masformer.checkpoints.card import rename
from masformer.checkpoints.open import CheckpointError, open_checkpoint
from masformer.model_type import typed, untyped
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PLAN = SpanPlan.parse("full@1 span=16 sinks=2", LAYERS)
TOKENS = torch.arange(3, 93)[None]


def config_of(folder: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((folder / "config.json").read_text())
    return values


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits
    return logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    apply_plan(model, PLAN)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "mas")
    return tmp_path / "mas"


def run_without_masformer(program: str, folder: Path) -> str:
    """Return what a program prints that may import masformer by itself alone."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), str(folder)],
        cwd=folder,
        env={"PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_plain_transformers_refuses_the_folder_and_names_masformer(saved: Path) -> None:
    program = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "print(AutoTokenizer.from_pretrained(sys.argv[2])('a b').input_ids)\n"
        "try: AutoModelForCausalLM.from_pretrained(sys.argv[2])\n"
        "except ValueError as error: print(error)\n"
        "print('masformer' in sys.modules)"
    )
    told = run_without_masformer(program, saved)
    assert "has model type `masformer` but Transformers does not recognize" in told
    assert told.startswith(f"{tiny_tokenizer()('a b').input_ids}\n")
    assert told.endswith("False\n")


def test_after_importing_masformer_first_which_waits_for_no_torch_the_plan_is_on_the_model(saved: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import masformer\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "print(AutoConfig.from_pretrained(sys.argv[2]).num_hidden_layers)\n"
        "print(AutoModelForCausalLM.from_pretrained(sys.argv[2]).span_plan)"
    )
    assert run_without_masformer(program, saved) == f"False\n{LAYERS}\n{PLAN}\n"


@torch.no_grad()
def test_the_auto_classes_give_the_architectures_own_model_with_the_plan(saved: Path, base: Path) -> None:
    direct = AutoModelForCausalLM.from_pretrained(base)
    apply_plan(direct, PLAN)
    model, info = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float64, output_loading_info=True)
    assert (type(model), type(model.config)) == (LlamaForCausalLM, LlamaConfig)
    assert model.dtype == torch.float64
    assert not info["missing_keys"]
    assert model.span_plan == PLAN
    torch.testing.assert_close(model.float()(TOKENS).logits, direct(TOKENS).logits)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved))
    assert made.span_plan == PLAN
    assert AutoTokenizer.from_pretrained(saved)("a b").input_ids == tiny_tokenizer()("a b").input_ids
    # A decoder without its head would go on with full attention.
    with pytest.raises(ValueError, match="MasformerLlamaConfig"):
        AutoModel.from_pretrained(saved)


def test_the_names_of_the_architecture_stand_beside_the_plan(saved: Path) -> None:
    values = config_of(saved)
    assert (values["model_type"], values["architectures"]) == ("masformer", ["MasformerForCausalLM"])
    beside, config = values["masformer"], open_checkpoint(str(saved)).config
    assert isinstance(beside, dict)
    assert beside["base"] == {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    # A class that is named takes no part of it for a config of its own.
    assert LlamaConfig.from_pretrained(saved).hidden_size == config.hidden_size
    assert typed(untyped(values)) == values
    assert (type(config), config.architectures) == (LlamaConfig, ["LlamaForCausalLM"])
    assert stored_plan(config) == PLAN


@pytest.mark.parametrize("plan", ["full", "local span=12 sinks=0"])
def test_a_plan_that_the_architecture_computes_itself_keeps_its_type(plan: str, tmp_path: Path) -> None:
    kind = "llama" if plan == "full" else "mistral"
    folder = save_tiny_checkpoint(tmp_path / "own", kind=kind)
    assert main(["convert", str(folder), "--plan", plan, "--output", str(tmp_path / "out"), "--no-measure"]) == 0
    assert config_of(tmp_path / "out")["model_type"] == kind
    assert "needs no masformer" in (tmp_path / "out" / "README.md").read_text()
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(folder))


def test_a_folder_of_an_earlier_version_opens_as_it_did(saved: Path) -> None:
    expected = logits_of(saved)
    (saved / "config.json").write_text(json.dumps(untyped(config_of(saved))))
    before = (saved / "config.json").read_bytes()
    checkpoint = open_checkpoint(str(saved))
    assert stored_plan(checkpoint.config) == PLAN
    model = checkpoint.load_model(torch.float32)
    assert apply_plan(model) == PLAN
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected)
    assert (saved / "config.json").read_bytes() == before


def test_a_converted_folder_is_converted_again(saved: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(saved), "--plan", "local span=8 sinks=1", "--output", str(tmp_path / "again")]
    assert main([*arguments, "--no-measure"]) == 0
    beside = config_of(tmp_path / "again")["masformer"]
    assert isinstance(beside, dict)
    assert beside["base"]["model_type"] == "llama"
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "again").span_plan) == "local span=8 sinks=1"


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (None, "has the model type 'masformer' and no other one"),
        ({"base": {"model_type": "masformer"}}, "has the model type 'masformer' and no other one"),
        ({"base": {"model_type": 3}}, "has the model type 'masformer' and no other one"),
        ({"base": {"model_type": "of-next-year"}}, "names the architecture 'of-next-year' beside its plan"),
    ],
)
def test_a_damaged_type_is_one_line(saved: Path, beside: object, message: str) -> None:
    (saved / "config.json").write_text(json.dumps(config_of(saved) | {"masformer": beside}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(saved))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_code"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own_keeps_its_plan_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_checkpoint(tmp_path / "own")
    (folder / "own.py").write_text(CODE)
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    own = {"model_type": "own_code", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config_of(folder) | own))
    arguments = ["convert", str(folder), "--plan", str(PLAN), "--output", str(tmp_path / "mas"), "--no-measure"]
    assert main([*arguments, "--trust-remote-code"]) == 0
    assert "auto_map" not in config_of(tmp_path / "mas")
    with pytest.raises(CheckpointError, match="pass --trust-remote-code, or load it"):
        open_checkpoint(str(tmp_path / "mas"))
    checkpoint = open_checkpoint(str(tmp_path / "mas"), trust_remote_code=True)
    assert (checkpoint.config.model_type, stored_plan(checkpoint.config)) == ("own_code", PLAN)
    model = checkpoint.load_model(torch.float32)
    assert (type(model).__name__, apply_plan(model)) == ("OwnForCausalLM", PLAN)
    # The lines of the card load it, whatever it is called.
    monkeypatch.chdir(tmp_path)
    lines = rename((tmp_path / "mas" / "README.md").read_text(), "./mas").split("```")[1].removeprefix("python\n")
    assert '"./mas", trust_remote_code=True)' in lines
    names_of_card: dict[str, Any] = {}
    exec(lines, names_of_card)
    assert names_of_card["model"].span_plan == PLAN
