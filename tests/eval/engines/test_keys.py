"""The key of a server goes to it and nowhere else: no file, no line of output, no traceback."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from eval.config.engine import EngineOptions
from eval.errors import UserError
from tests.eval.engines.conftest import Runs
from tests.helpers.engine_faults import BROKEN, HEALTHY, Fault, from_number, numbered
from tests.helpers.engine_standin import engine_standin
from tests.helpers.forks import run_forked

KEY = "sk-standin-4f9a1c77e2"
ECHO = {"error": {"message": "Not with key {key}", "type": "x", "code": None}}
IN_STREAM = {"error": {"message": f"Not with key {KEY}", "type": "x", "code": 500}}


def texts_of(folder: Path) -> dict[str, str]:
    """Return what all files of a folder hold, compressed ones too."""
    found = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {
        name: (gzip.decompress(content) if name.endswith(".gz") else content).decode("latin-1")
        for name, content in found.items()
    }


FAULTS = {
    "healthy": HEALTHY,
    "500": Fault(status=500, body=ECHO),
    "400": Fault(status=400, body=ECHO),
    "429": Fault(status=429, body="<html>{key}</html>", headers={"X-Your-Key": KEY}),
    "in stream": Fault(told_after=1, body=IN_STREAM),
    "no JSON": Fault(garble_after=1),
    "model": Fault(model=KEY),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_key_is_in_no_file_no_line_and_no_log(
    case: str, run: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    for name in ("openai", "httpx2", "httpx"):
        caplog.set_level(logging.DEBUG, logger=name)
    with engine_standin(key=KEY) as server:
        server.fail(FAULTS[case], from_number(3))
        done = run(server, "--api-key-env", "KEY_OF_TEST", "--max-retries", "1", "--concurrency", "2")
    assert done.status == (0 if case == "healthy" else 2), done.err
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert "POST" in caplog.text  # it did log
    files = texts_of(run.folder)
    assert len(files) > 2
    said = files | {"stdout": done.out, "stderr": done.err, "log": caplog.text}
    assert [name for name, text in said.items() if KEY in text] == []
    assert case == "healthy" or done.error


def test_the_client_s_own_log_of_all_requests_has_no_key(run: Runs) -> None:
    with engine_standin(key=KEY) as server:
        server.fail(FAULTS["500"], from_number(3))
        arguments = run.arguments(server, "--api-key-env", "KEY_OF_TEST", "--max-retries", "1", "--concurrency", "2")
        # The package of the client reads this variable when it is imported, so the run is a process of its own.
        done = run_forked("eval.run", arguments, KEY_OF_TEST=KEY, OPENAI_LOG="debug")
    assert done.returncode == 2
    assert "HTTP Request: POST" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert [name for name, text in texts_of(run.folder).items() if KEY in text] == []


def test_a_key_is_taken_from_the_usual_variable(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with engine_standin(key=KEY) as server:
        assert run(server, "--limit", "1").status == 0
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(run.read("run.json"))


def test_a_wrong_key_is_one_line_without_it(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "sk-wrong-1234567890")
    with engine_standin(key=KEY) as server:
        done = run(server, "--api-key-env", "KEY_OF_TEST")
    assert done.status == 2
    assert "401: Incorrect API key provided: ***." in done.error
    assert "--api-key-env" in done.error
    assert "sk-wrong" not in done.err + done.out
    assert len(server.calls) == 1
    assert not run.folder.exists()


def test_a_missing_key_is_one_line(run: Runs) -> None:
    with engine_standin(key=KEY) as server:
        done = run(server)
    assert done.status == 2
    assert "401" in done.error
    assert "--api-key-env" in done.error


def test_a_key_in_the_place_of_its_variable_is_not_repeated(run: Runs) -> None:
    with engine_standin(key=KEY) as server:
        done = run(server, "--api-key-env", KEY)
    assert done.status == 2
    assert "environment variable" in done.error
    assert KEY not in done.err + done.out
    assert not server.calls


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}\r\n"])
def test_space_around_a_key_is_none_of_it(key: str, run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", key)
    with engine_standin(key=KEY) as server:
        assert run(server, "--api-key-env", "KEY_OF_TEST", "--limit", "1").status == 0


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY}\x00", f"{KEY}é", f"{KEY}‑"])
def test_a_key_that_no_request_can_carry_is_one_line_without_it(
    key: str, run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" in key:
        key = key.replace("\x00", "\x7f")  # an environment takes no zero
    monkeypatch.setenv("KEY_OF_TEST", key)
    with engine_standin(key=KEY) as server:
        done = run(server, "--api-key-env", "KEY_OF_TEST")
    assert done.status == 2
    assert "KEY_OF_TEST" in done.error
    assert KEY not in done.err + done.out
    assert not server.calls


@pytest.mark.parametrize("address", ["http://me:{key}@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?api_key={key}"])
def test_a_key_in_the_address_is_refused_and_not_repeated(address: str, run: Runs) -> None:
    with engine_standin() as server:
        done = run(server, "--base-url", address.format(key=KEY))
    assert done.status == 2
    assert "--api-key-env" in done.error
    assert KEY not in done.err + done.out


@pytest.mark.parametrize("address", ["me:{key}@host/v1", "http://me:{key}/1@host/v1", "http://host/v1#key={key}"])
def test_a_key_in_what_is_no_address_is_not_repeated(address: str) -> None:
    with pytest.raises(UserError, match=r"^--base-url (is no address; write|holds a name, a password or a query)"):
        EngineOptions(engine="endpoint", base_url=address.format(key=KEY)).check_engine()


@pytest.mark.parametrize("address", ["localhost:8000/v1", "http://:80/v1", "http://host:99999/v1", "ftp://host/v1"])
def test_what_is_no_address_is_shown(address: str) -> None:
    with pytest.raises(UserError, match=f"^--base-url {address} is no address; write it as http://localhost:8000/v1$"):
        EngineOptions(engine="endpoint", base_url=address).check_engine()


@pytest.mark.parametrize("engine", ["local", "vllm"])
@pytest.mark.parametrize("option", [{"base_url": f"http://me:{KEY}@127.0.0.1:1/v1"}, {"api_key_env": KEY}])
def test_a_key_beside_another_engine_is_not_repeated(option: dict[str, Any], engine: str) -> None:
    line = f"^--[a-z-]+ is of --engine endpoint, and this is --engine {engine}; leave it out, or choose the engine$"
    with pytest.raises(UserError, match=line):
        EngineOptions(engine=engine, **option).check_engine()


def test_a_failed_try_that_repeats_the_key_is_said_without_it(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    with engine_standin(key=KEY) as server:
        server.fail(Fault(status=503, body=ECHO), numbered(1))
        done = run(server, "--api-key-env", "KEY_OF_TEST", "--limit", "1", "--concurrency", "1")
    assert done.status == 0, done.err
    assert "503: Not with key ***" in done.err
    assert KEY not in done.err + done.out


def test_a_proxy_of_the_machine_is_not_asked_for_an_address_on_it(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with engine_standin() as server:
        server.fail(BROKEN, numbered())
        done = run(server, "--limit", "1", "--max-retries", "0")
    assert done.status == 0, done.err
