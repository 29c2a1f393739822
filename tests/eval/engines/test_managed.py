"""Runs whose server is started: here a stand-in that is called as vLLM is, from the command line to the report."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from eval.run import main
from tests.eval.engines.conftest import Outcome, answers_of, read
from tests.helpers.tiny_models import save_encoder_decoder, save_tiny_checkpoint

ROOT = Path(__file__).parents[3]
KEY = "0123456789abcdef" * 2
MIXED = "full@1 span=64 sinks=0"
# What an environment with vLLM has in the place of its server.
SERVER = """
import argparse, os, signal, threading, time
from tests.helpers.engine_standin import engine_standin

parser = argparse.ArgumentParser()
for name in ("--model", "--served-model-name"):
    parser.add_argument(name)
for name in ("--port", "--max-model-len"):
    parser.add_argument(name, type=int)
told, _ = parser.parse_known_args()
key = os.environ["VLLM_API_KEY"]
print("serving", told.model, "with", key, flush=True)
about = {"models": [told.served_model_name], "max_model_len": told.max_model_len, "key": key, "token_seconds": 0.002}
with engine_standin(port=told.port, **about) as server:
    while len(server.asked) < int(os.environ.get("DIES_AT", 1000)):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="servers are started on Linux and macOS alone")]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment whose vLLM is the stand-in."""
    folder = tmp_path_factory.mktemp("environment")
    files = {
        "site/vllm-0.32.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n",
        "site/vllm/entrypoints/openai/api_server.py": SERVER,
        "bin/python": f'#!/bin/sh\nPYTHONPATH="{folder}/site:{ROOT}" exec {shlex.quote(sys.executable)} "$@"\n',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin" / "python").chmod(0o755)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", chat=False)


@pytest.fixture
def started(
    python: Path,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_page: None,
) -> Started:
    monkeypatch.setattr("secrets.token_hex", lambda _: KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = f"--engine vllm --engine-python {python} --task custom --data {data} --max-new-tokens 8 --no-texts"
    text += f" --maxlen 200 400 --dtype float32 --model {model} --output {tmp_path / 'run'}"
    return Started(text.split(), capsys)


class Started:
    """A command line with a server of its own, run again and again."""

    def __init__(self, common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self.common = common
        self.capsys = capsys

    def __call__(self, *more: str) -> Outcome:
        status = main([*self.common, *more])
        printed = self.capsys.readouterr()
        return Outcome(status, printed.out, printed.err)


def test_a_run_starts_its_server_with_the_plan_in_native_form_and_ends_it(started: Started, tmp_path: Path) -> None:
    done = started("--plan", MIXED)
    assert done.status == 0, done.err
    assert len(answers_of(tmp_path / "run")) == 8
    record = read(tmp_path / "run", "run.json")
    assert record["identity"]["engine"]["name"] == "vllm"
    engine = record["sessions"][0]["engine"]
    assert (engine["name"], engine["version"], engine["concurrency"]) == ("vllm", "0.32.0", 16)
    log = (tmp_path / "run" / "engine.log").read_text()
    found = re.search(r"^serving (\S+) with \*\*\*$", log, re.MULTILINE)
    assert found is not None, log
    config = json.loads((Path(found[1]) / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert config["sliding_window"] == 64
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in done.out + done.err
    port = int(re.findall(r"--port (\d+)", engine["command"])[0])
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0


def test_a_run_that_looks_after_every_group_starts_one_server(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.generation.looks._LEAST_ROWS", 4)
    done = started("--until", "rouge1: 400 differs from 200")
    assert done.status == 0, done.err
    assert "after 2 of 4 documents" in done.out
    assert len(answers_of(tmp_path / "run")) == 8
    assert read(tmp_path / "run", "run.json")["until"]["stopped"] == "all documents"
    assert (tmp_path / "run" / "engine.log").read_text().count("serving ") == 1


def test_a_run_whose_server_is_killed_says_so_and_goes_on(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES_AT", "4")
    done = started("--concurrency", "1")
    assert done.status == 2
    assert "the engine's server ended by signal 9" in done.error
    assert "engine.log" in done.error
    monkeypatch.delenv("DIES_AT")
    done = started("--concurrency", "1")
    assert done.status == 0, done.err
    kept = int(done.out.split(" of 8 predictions are there")[0].split()[-1])
    assert 2 <= kept <= 4
    assert len(answers_of(tmp_path / "run")) == 8
    assert [one["num_to_generate"] for one in read(tmp_path / "run", "run.json")["sessions"]] == [8, 8 - kept]
    # Nothing is missing, so no server is started.
    starts = (tmp_path / "run" / "engine.log").read_text().count("serving ")
    assert started("--concurrency", "1").status == 0
    assert (tmp_path / "run" / "engine.log").read_text().count("serving ") == starts == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--plan full@1_span=64_sinks=4", "--engine vllm: transformers has no form for the plan"),
        ("--plan full@1_block=64_previous=1_sinks=0", "has blocks that see the one before"),
        ("--engine-args --port=1", "--engine-args --port: --port is set by this suite"),
        ("--engine-args --max-model-len=300", "prompts with answers take up to 416 tokens"),
        ("--num-beams 2", "--num-beams 2 cannot be told to --engine vllm"),
        ("--batch-size 4", "--batch-size 4 is of a model that is loaded here"),
        ("--engine llamacpp", "--engine llamacpp: "),
        ("--engine sglang", "has no package sglang"),
        ("--base-url http://localhost:1/v1", "is of --engine endpoint, and this is --engine vllm"),
    ],
)
def test_what_a_started_server_cannot_do_is_one_line_before_it_starts(
    flags: str, said: str, started: Started, tmp_path: Path, no_weights: None
) -> None:
    name, value = flags.split()
    done = started(f"{name}={value.replace('_', ' ')}")
    assert done.status == 2
    assert said in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_under_the_native_form_is_one_line(
    error: Exception, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("eval.engines.served_folder.save_checkpoint", fail)
    done = started("--plan", MIXED)
    assert done.status == 2
    assert "cannot be written: No space left on device; name another XDG_CACHE_HOME" in done.error
    assert str(tmp_path / "cache") in done.error


def test_a_way_that_this_machine_lacks_is_told_before_the_native_form_is_written(
    started: Started, tmp_path: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASFORMER_WAYS", "attention=simd")
    monkeypatch.setattr("masformer.compiled.why_not", lambda source: "no C++ compiler")
    done = started("--plan", MIXED)
    assert done.status == 2
    assert "MASFORMER_WAYS names 'simd', which this machine does not have: no C++ compiler; leave it out" in done.error


def test_an_encoder_decoder_is_refused_by_name(started: Started, tmp_path: Path, no_weights: None) -> None:
    folder = save_encoder_decoder(tmp_path / "t5", "t5")
    done = started("--model", str(folder))
    assert done.status == 2
    assert "an encoder-decoder, not a decoder" in done.error
