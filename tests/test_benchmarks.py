"""What the benchmarks share, and the scripts at sizes that take little time: each ends with its line of JSON.

The gate runs one and asks the others for their `--help`; each runs nightly.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks import attention, candidates, gpu, overhead, pairs
from benchmarks.pairs import Case, alternate
from masformer.attention import cuda
from masformer.plans.spans import LayerSpan
from tests.helpers import varlen_standin
from tests.helpers.tiny_models import save_tiny_checkpoint

SCRIPTS = sorted(file.stem for file in Path(pairs.__file__).parent.glob("*.py") if "def main(" in file.read_text())
needs_papers = pytest.mark.skipif(
    not (find_spec("aclsum") and find_spec("allofplos")),
    reason="needs pip install --no-deps allofplos==0.11.1 aclsum==0.1.2",
)


def run(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, object]]:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--repeats", "1"])
    module.main()
    cases: list[dict[str, object]] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(set(case) == {"case", "ratio", "target", "floor"} for case in cases)
    return cases


def test_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[int] = []
    seconds = alternate([lambda: calls.append(0), lambda: calls.append(1)], repeats=2)
    assert calls == [0, 1] * 3
    assert all(0 <= value < 1 for value in seconds)


def test_the_ratio_is_the_saving_or_the_share() -> None:
    assert Case(case="time", ours=2, peer=6, unit="s").ratio == 3
    assert Case(case="bytes", ours=2, peer=8, unit="MiB", saves=False).ratio == 0.25


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_kernel_benchmark_covers_its_cases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    span = LayerSpan(span=16, sinks=4)
    monkeypatch.setattr(attention, "AGAINST_FULL", ((64, torch.float32, span, 5.0), (64, torch.bfloat16, span, None)))
    monkeypatch.setattr(attention, "AGAINST_MASK", ((64, torch.float32, 13.0),))
    monkeypatch.setattr(attention, "BACKWARD", ((64, torch.float32),))
    cases = run(attention, monkeypatch, capsys)
    assert [case["target"] for case in cases] == [5.0, None, 13.0, None]


def test_the_benchmark_of_gpus_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="error: this measures a CUDA device and there is none"):
        gpu.main()


def test_the_benchmark_of_gpus_covers_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"HEADS": 4, "KV_HEADS": 2, "HEAD_SIZE": 8, "WINDOWS": ((40, 16),), "DECODING": ((3, 20, 5),)}
    model = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"MODEL": gpu.MODEL | model | {"num_hidden_layers": 4, "vocab_size": 64}, "STEPS": ((3, 20, 5),)}
    for name, value in (sizes | {"DTYPE": torch.float32}).items():
        monkeypatch.setattr(gpu, name, value)
    for name in ("varlen_attn", "flash_backward"):
        monkeypatch.setattr(cuda, name, getattr(varlen_standin, name))
    monkeypatch.setattr(cuda, "is_ready", lambda device: True)
    monkeypatch.setattr(cuda, "DTYPES", (torch.float32,))
    device = torch.device("cpu")
    found = [case for measure in (gpu.prefills, gpu.layers, gpu.steps) for case in measure(device, 2)]
    assert len(found) == 4 + 1 + 2
    assert all(case.ours > 0 and case.peer > 0 for case in found)


@pytest.mark.nightly
def test_the_candidates_compute_what_the_kernel_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TOKENS": 512, "WINDOW": 32, "BLOCK": 32}.items():
        monkeypatch.setattr(candidates, name, value)
    # Compiling takes longer than everything else here.
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    assert len(run(candidates, monkeypatch, capsys)) == 16


@pytest.mark.nightly
def test_the_overhead_of_a_prediction_is_measured_on_a_run_that_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead", "--examples", "20"])
    overhead.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("40 predictions of 20 examples")
    assert json.loads(printed[-1])[0]["case"] == "overhead of the last fifth to the first"


@pytest.mark.nightly
def test_killed_commands_resume_to_the_undisturbed_result() -> None:
    # A process of its own forks them: one in which torch has computed nothing yet.
    script = Path(pairs.__file__).parent / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "35"], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == 35


@pytest.mark.nightly
@needs_papers
def test_rouge_is_compared_on_real_pairs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import rouge

    monkeypatch.setattr(sys, "argv", ["rouge", "--pairs", "20"])
    rouge.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("20 pairs")
    assert sum("largest difference: 0 of a pair, 0 of a mean" in line for line in printed) == 3
    assert [case["target"] for case in json.loads(printed[-1])] == [10.0, None, None]


@pytest.mark.nightly
@needs_papers
def test_metrics_are_timed_on_real_papers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import metrics

    monkeypatch.setattr(sys, "argv", ["metrics", "--predictions", "8", "--peer", "2"])
    metrics.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("diagnostics: 8 predictions about 2 documents")
    assert len(json.loads(printed[-1])) == 1


@pytest.mark.nightly
@needs_papers
def test_the_oracle_is_timed_on_real_papers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import oracle

    papers = oracle.load_papers()[:1]
    short = [replace(paper, windows={n: [(0, n)] for n in oracle.LENGTHS}) for paper in papers]
    monkeypatch.setattr(oracle, "load_papers", lambda: short)
    monkeypatch.setattr(sys, "argv", ["oracle", "--peer-papers", "1", "--profile", "scrolls"])
    oracle.main()
    printed = capsys.readouterr().out.splitlines()
    assert any("6,440 papers in" in line for line in printed)
    assert len(json.loads(printed[-1])) == 1


@pytest.mark.nightly
@needs_papers
@pytest.mark.skipif(not find_spec("lm_eval"), reason="needs pip install 'masformer[harness]'")
def test_the_harness_runs_both_models_on_the_same_prompts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from benchmarks import harness

    monkeypatch.setattr(harness, "set_threads", lambda *_: 1)
    monkeypatch.setattr(harness, "MODEL", str(save_tiny_checkpoint(tmp_path)))
    monkeypatch.setattr(harness, "PLANS", {"full plan": "full", "4 full layers, span 512": "full@1 span=64 sinks=2"})
    monkeypatch.setattr(sys, "argv", ["harness", "--documents", "1", "--maxlen", "600", "1200", "--new-tokens", "4"])
    harness.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 prompts of 1,792 tokens, 4 new tokens each"
    assert "equal to the hf model, float32, full plan: 2 of 2 texts" in printed
    assert [case["target"] for case in json.loads(printed[-1])] == [None, None]


def test_finish_keeps_four_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pairs.finish([Case(case="a", ours=3, peer=1, unit="s", floor=1 / 3)])
    assert json.loads(capsys.readouterr().out) == [{"case": "a", "ratio": 0.3333, "target": None, "floor": 0.3333}]


def test_support_is_fitted_on_what_people_followed_and_ranked_by_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import support

    generator = np.random.default_rng(0)
    rows = []
    for index in range(120):
        features = generator.random((2, len(support.FEATURES)))
        human = float(features[:, 1].mean().round(2))  # people look at one feature alone
        name = ("frank validation bbc", "longsciverify")[index % 2]
        rows.append(
            support.Row(
                name=name,
                document_id=str(index // 6),
                system="ab"[index // 2 % 2],
                human=human,
                labels=(),
                features=features,
            )
        )
    support.write_features(iter(rows), tmp_path / "features.jsonl")
    monkeypatch.setattr(support, "COEFFICIENTS", tmp_path / "support.json")
    argv = ["support", "--frank", str(tmp_path), "--features", str(tmp_path / "features.jsonl"), "--write"]
    monkeypatch.setattr(sys, "argv", argv)
    support.main()
    weights = json.loads((tmp_path / "support.json").read_text())["weights"]
    assert max(support.FEATURES, key=weights.__getitem__) == support.FEATURES[1]
    assert min(weights[name] for name in support.FEATURES) == 0.0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["longsciverify"]
    others = [row for row in rows if row.name == "longsciverify"]
    for level, is_pair in (("auc", lambda a, b: True), ("within", lambda a, b: a.system == b.system)):
        right = [
            a.features[:, 0].mean() > b.features[:, 0].mean()
            for a in others
            for b in others
            if a.human > b.human and is_pair(a, b)
        ]
        value, low, high = found[level]["copied"]
        assert value == pytest.approx(np.mean(right))
        assert low < value < high
        assert found[level]["one_sentence"][0] > 0.98
