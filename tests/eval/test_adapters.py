"""Every command takes a LoRA adapter: alone, or beside a base that is given; what it is shows in each record."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.finetune import main as finetune
from eval.perplexity import main as perplexity
from eval.placement import main as placement
from eval.run import main as run
from masformer import stored_plan
from masformer.__main__ import main as masformer
from masformer.checkpoints.open import open_checkpoint
from tests.helpers.run_folders import document, without_checksums
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")

PLACEMENT = ["--local", "span=16 sinks=2", "--budget", "layers=1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path) -> Path:
    """Return what peft merges and saves, as users had to do themselves."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).merge_and_unload()
    model.save_pretrained(base.parent / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(base.parent / "merged")
    return base.parent / "merged"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    rows = [{"article": document(seed) * 3, "abstract": document(seed + 50)[:60]} for seed in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def arguments(data: Path, folder: Path, *more: object) -> list[str]:
    about = ["--task", "arxiv", "--data", data, "--maxlen", 300, "--threads", 1, "--output", folder]
    return [*map(str, about), *map(str, more)]


def record(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in without_checksums((folder / "predictions.jsonl").read_text()).splitlines()]


def test_a_run_answers_as_the_model_that_peft_merges(
    base: Path, adapter: Path, merged: Path, data: Path, tmp_path: Path
) -> None:
    ways = {"alone": ["--model", adapter], "flag": ["--adapter", adapter], "by-peft": ["--model", merged]}
    ways |= {"both": ["--model", base, "--adapter", adapter], "base": ["--model", base]}
    for name, way in ways.items():
        command = arguments(data, tmp_path / name, *way, "--max-new-tokens", 12, "--dtype", "float64")
        assert run(command) == 0
    texts = {name: [line["text"] for line in lines(tmp_path / name)] for name in ways}
    assert texts["alone"] == texts["flag"] == texts["both"] == texts["by-peft"] != texts["base"]
    prints = {name: [line["fingerprint"] for line in lines(tmp_path / name)] for name in ways}
    assert prints["alone"] == prints["flag"] == prints["both"]
    assert not set(prints["alone"]) & set(prints["base"])
    model = record(tmp_path / "flag")["identity"]["model"]
    assert (model["reference"], model["adapter"]["reference"]) == (str(base), str(adapter))
    assert sorted(model["adapter"]["files"]) == ["adapter_config.json", "adapter_model.safetensors"]
    assert "adapter" not in record(tmp_path / "base")["identity"]["model"]
    assert f"`{adapter} on {base}`" in (tmp_path / "both" / "report.md").read_text()


def test_a_folder_of_a_base_takes_no_adapter_and_of_an_adapter_no_other(
    base: Path, adapter: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    command = arguments(data, tmp_path / "run", "--model", base, "--max-new-tokens", 4)
    assert run(command) == 0
    assert run([*command, "--adapter", str(other)]) == 2
    assert "holds another run: model adapter is null there" in capsys.readouterr().err
    command = arguments(data, tmp_path / "adapted", "--adapter", other, "--max-new-tokens", 4)
    assert run(command) == 0
    assert run(command) == 0
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 40}))
    capsys.readouterr()
    assert run(command) == 2
    assert "model adapter files adapter_config.json is" in capsys.readouterr().err


def test_perplexity_and_placement_are_those_of_the_merged_model(
    adapter: Path, merged: Path, data: Path, tmp_path: Path
) -> None:
    for name, main, more in (("perplexity", perplexity, []), ("placement", placement, PLACEMENT)):
        values = []
        for way, flags in (("adapter", ["--adapter", adapter]), ("merged", ["--model", merged])):
            folder = tmp_path / f"{name}-{way}"
            assert main(arguments(data, folder, *flags, "--dtype", "float64", *more)) == 0
            values.append([line["negative_log_likelihood"] for line in lines(folder)])
            assert ("adapter" in record(folder)["identity"]["model"]) == (way == "adapter")
        assert values[0] == pytest.approx(values[1], rel=1e-6)  # merged weights were saved in float32


def test_convert_merges_an_adapter_and_its_card_says_so(
    base: Path, adapter: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["--plan", "full@1 span=16 sinks=2", "--no-measure"]
    assert masformer(["convert", str(adapter), *plan, "--output", str(tmp_path / "one")]) == 0
    given = ["convert", str(base), "--adapter", str(adapter), *plan, "--output", str(tmp_path / "two")]
    assert masformer(given) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"model   adapter '{adapter}' on {base}, 3 layers") == 2
    expected = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    for name in ("one", "two"):
        found = AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in found.items())
        assert re.search(
            r"with the LoRA adapter `adapter_model.safetensors` \(SHA-256", (tmp_path / name / "README.md").read_text()
        )
    assert masformer(["show", str(adapter)]) == 0
    assert f"model   adapter '{adapter}' on {base}: llama" in capsys.readouterr().out


def test_a_training_goes_on_from_merged_weights_and_refuses_a_second_adapter(
    adapter: Path, merged: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-steps", 1, "--held-out", 0.3]
    losses = []
    for name, way in (("adapter", adapter), ("merged", merged)):
        assert finetune(arguments(data, tmp_path / name, "--model", way, *more)) == 0
        losses.append(json.loads((tmp_path / name / "evals.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert finetune(arguments(data, tmp_path / "lora", "--adapter", adapter, *more, "--lora-rank", 2)) == 2
    assert "merge and save it first, with: masformer convert" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()


def test_an_adapter_that_was_trained_here_opens_on_its_base_with_its_plan(
    base: Path, data: Path, tmp_path: Path
) -> None:
    plan = "full@1 span=16 sinks=2"
    more = ["--max-steps", 2, "--held-out", 0, "--lora-rank", 3, "--learning-rate", 1e-2, "--plan", plan]
    assert finetune(arguments(data, tmp_path / "run", "--model", base, *more)) == 0
    alone = open_checkpoint(str(tmp_path / "run" / "last" / "adapter"))
    assert alone.provenance["reference"] == str(base)
    assert str(stored_plan(alone.config)) == plan
    whole = open_checkpoint(str(tmp_path / "run" / "last")).load_model(torch.float32).state_dict()
    found = alone.load_model(torch.float32).state_dict()
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in found.items())


def test_an_adapter_trained_on_extended_positions_is_refused_alone(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-steps", 1, "--held-out", 0, "--lora-rank", 2, "--extend-positions", "linear", "--maxlen", 2100]
    assert finetune(arguments(data, tmp_path / "run", "--model", base, *more)) == 0
    assert masformer(["show", str(tmp_path / "run" / "last" / "adapter")]) == 2
    assert "positions were extended first; give the checkpoint above it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--adapter-revision", "v1"], "--adapter-revision v1 is that of --adapter, which is not given"),
        (["--adapter", "a", "--model-revision", "v1"], "--model-revision v1 is that of --model, which is not given"),
    ],
)
def test_a_revision_of_what_is_not_given_is_refused(
    flags: list[str], expected: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main in (run, perplexity):
        assert main(arguments(data, tmp_path / "run", *flags)) == 2
        assert expected in capsys.readouterr().err
