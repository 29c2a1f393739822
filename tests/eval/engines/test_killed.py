"""Server or run killed at random moments, and gone on with: nothing is there twice, and nothing is missing."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eval.run import main
from tests.eval.engines.conftest import answers_of
from tests.eval.test_faults import num_written, wait_for_lines
from tests.helpers.engine_standin import engine_standin
from tests.helpers.forks import ROOT, start_forked

NUM_DOCUMENTS = 12
MOMENTS = [4, pytest.param(20, marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def arguments(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of 24 predictions, which takes a second."""
    file = tmp_path_factory.mktemp("killed") / "data.jsonl"
    with file.open("w") as lines:
        for index in range(NUM_DOCUMENTS):
            context = f"Report {index} says that river {index} rose. " + "Nothing else was seen. " * 30
            lines.write(json.dumps({"id": f"doc{index}", "context": context, "target": "It rose."}) + "\n")
    text = f"--engine endpoint --tokenizer {tokenizer} --task custom --data {file} --max-new-tokens 8 --no-texts"
    text += " --model tiny-instruct --concurrency 3 --max-retries 1"
    return [*text.split(), "--maxlen", "400", "600"]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with engine_standin() as server:
        assert main([*arguments, "--base-url", server.base_url, "--output", str(folder)]) == 0
    answers = answers_of(folder)
    assert len(answers) == 2 * NUM_DOCUMENTS
    return answers


def num_kept(folder: Path) -> int:
    """Return the answers that a folder has, in its journals or joined."""
    file = folder / "predictions.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else num_written(folder)


@contextmanager
def server_at(port: int) -> Iterator[subprocess.Popen[str]]:
    """Run a server in a process of its own."""
    command = [sys.executable, "-m", "tests.helpers.engine_standin", str(port), "--token-seconds", "0.01"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http")
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("count", MOMENTS)
def test_a_run_whose_server_is_killed_goes_on(
    count: int, arguments: list[str], undisturbed: dict[tuple[str, int], str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chance, kills, runs = random.Random(0), 0, 0
    while kills < count:
        folder = tmp_path / f"run-{runs}"
        command = [*arguments, "--base-url", f"http://127.0.0.1:{port}/v1", "--output", str(folder)]
        before = num_written(folder)
        with server_at(port) as server:
            process = start_forked("eval.run", command)
            wait_for_lines(folder, process, before + chance.randrange(3))
            time.sleep(chance.uniform(0, 0.2))
            server.kill()
            done = process.end()
        if done.returncode == 0:
            assert answers_of(folder) == undisturbed
            runs += 1
            continue
        kills += 1
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "no connection" in line or "cannot be read" in line
        assert "Traceback" not in done.stderr
        assert num_written(folder) >= before
    for number in range(runs + 1):
        folder = tmp_path / f"run-{number}"
        with engine_standin(port=port) as healthy:
            assert main([*arguments, "--base-url", healthy.base_url, "--output", str(folder)]) == 0
        assert answers_of(folder) == undisturbed


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("count", MOMENTS)
def test_a_run_that_is_killed_goes_on(
    count: int, arguments: list[str], undisturbed: dict[tuple[str, int], str], tmp_path: Path
) -> None:
    chance, kills, runs = random.Random(1), 0, 0
    with engine_standin(token_seconds=0.01) as server:
        command = [*arguments, "--base-url", server.base_url]
        while kills < count:
            folder = tmp_path / f"run-{runs}"
            before = num_kept(folder)
            process = start_forked("eval.run", [*command, "--output", str(folder)])
            wait_for_lines(folder, process, before)
            time.sleep(chance.uniform(0, 0.3))
            process.signal(signal.SIGKILL)
            done = process.end()
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            kills += done.returncode == -signal.SIGKILL
            if (folder / "scores.json").exists():
                runs += 1
            else:
                # A kill may fall between the last answer and the scores.
                assert num_kept(folder) > before or before == 2 * NUM_DOCUMENTS
        server.token_seconds = 0.0
        for number in range(runs + 1):
            folder = tmp_path / f"run-{number}"
            written, num_asked = num_kept(folder), len(server.asked)
            assert main([*command, "--output", str(folder)]) == 0
            assert answers_of(folder) == undisturbed
            # What is there is asked no more: one request tries the server out.
            assert len(server.asked) - num_asked == 1 + 2 * NUM_DOCUMENTS - written
