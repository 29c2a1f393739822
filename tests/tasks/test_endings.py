"""How every command ends where its output, its terminal or its launcher is odd: one line, and the right status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

import masformer.__main__ as masformer_command
from eval.harness import main as harness
from eval.score import main as score
from eval.study import main as study
from masformer.checkpoint_commands import main as checkpoint_command
from tasks.__main__ import main as tasks_command
from tests.helpers.hangups import hear_hangups

ROOT = Path(__file__).parents[2]
# `tasks.command` alone, because what every command goes through is here, and it imports in no time.
PROGRAM = """
import os, signal, sys, time
from tasks.command import end_command, run_command
def work():
    {line}
sys.exit(end_command(work, lambda error: str(error) if type(error) is ValueError else None, again={again!r}))
"""
AGAIN = "go on"


def ended(
    line: str,
    again: str | None = None,
    *,
    stdout: int | IO[Any] = subprocess.PIPE,
    stderr: int | IO[Any] = subprocess.PIPE,
    environ: Mapping[str, str] | None = None,
    before: Any = None,
) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(line=line, again=again)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "", **(environ or {})},
        stdout=stdout,
        stderr=stderr,
        preexec_fn=before or hear_hangups,
        check=False,
        timeout=60,
    )
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


def closed() -> IO[Any]:
    """Return the end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "wb")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_an_interrupt(name: str) -> None:
    kill = f"os.kill(os.getpid(), signal.{name}); time.sleep(9)"
    assert ended(kill, AGAIN) == (130, "", "interrupted: go on\n")
    assert ended(kill) == (130, "", "interrupted: run the same command again\n")


def test_a_terminal_that_closes_ends_nothing_under_nohup() -> None:
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    assert ended("os.kill(os.getpid(), signal.SIGHUP); print('done')", AGAIN, before=ignore) == (0, "done\n", "")


def test_an_interrupt_has_its_status_where_nothing_can_be_written() -> None:
    kill = "print('x' * 99999); os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)"
    with closed() as pipe:
        assert ended(kill.replace("print('x' * 99999); ", ""), AGAIN, stdout=pipe, stderr=pipe)[0] == 130
    with Path("/dev/full").open("wb") as full:
        assert ended(kill.replace("99999", "9"), AGAIN, stdout=full, stderr=full)[0] == 130


@pytest.mark.parametrize("size", [9, 99_999])
def test_output_into_head_or_a_full_disk(size: int) -> None:
    write = f"print('x' * {size})"
    full_line = "error: the output cannot be written: No space left on device; make room, or send it elsewhere\n"
    with closed() as pipe, Path("/dev/full").open("wb") as full:
        assert ended(write, stdout=pipe) == (0, "", "")
        assert ended(write, AGAIN, stdout=pipe) == (2, "", "error: the output was closed; go on\n")
        assert ended(write, AGAIN, stdout=full) == (2, "", full_line)
        assert ended(write, AGAIN, stdout=pipe, stderr=pipe)[0] == 2
        assert ended(write, AGAIN, stdout=full, stderr=full)[0] == 2
        # What is printed before a mistake, or before the end of `--help`, is lost and nothing more.
        for line, status in {"raise ValueError('no')": 2, "sys.exit(0)": 0, "sys.exit(3)": 3}.items():
            assert ended(f"print('x'); {line}", stdout=pipe)[0] == status
            assert ended(f"print('x'); {line}", stdout=full)[0] == status
            assert ended(f"print('x'); {line}", stdout=full, stderr=full)[0] == status


def test_a_disk_or_a_network_that_fails_without_a_name_is_one_line() -> None:
    line = "error: the output or the network: Input/output error; check disk and connection\n"
    assert ended("import errno; raise OSError(errno.EIO, os.strerror(errno.EIO))") == (2, "", line)


def test_outputs_that_are_not_there() -> None:
    def close() -> None:
        os.close(1)
        os.close(2)

    assert ended("print('x')", before=close)[0] == 0
    assert ended("raise ValueError('no')", before=close)[0] == 2


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_a_console_that_cannot_show_a_name_shows_it_escaped(encoding: str) -> None:
    line = r"print('\u5831\u544a'); raise ValueError('\u7ae0 \ud83d')"
    status, out, err = ended(line, environ={"PYTHONIOENCODING": encoding})
    assert (status, out, err) == (2, "\\u5831\\u544a\n", "error: \\u7ae0 \\ud83d\n")


def test_a_line_of_an_error_ends_somewhere() -> None:
    status, _, err = ended("raise ValueError('x\\\\n' * 10**6)")
    assert (status, len(err.splitlines())) == (2, 1)
    assert len(err) < 5000


COMMANDS = {
    "tasks": lambda: tasks_command(["show", "none.yaml"]),
    "score": lambda: score(["--predictions", "none.txt", "--references", "none.txt"]),
    "study": lambda: study(["none.yaml"]),
    "masformer show": lambda: checkpoint_command(["show", "./none"]),
    "masformer tasks": lambda: masformer_command.main(["tasks", "show", "none.yaml"]),
    "masformer convert": lambda: masformer_command.main(["convert", "./none", "--output", "x", "--plan", "full"]),
    "harness": lambda: harness([]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_in_the_one_way(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setenv("WORLD_SIZE", "x" if name == "harness" else "1")
    ends: list[str] = []
    monkeypatch.setattr("tasks.command._end_output", lambda stream: ends.append("ended"))
    assert COMMANDS[name]() == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert ends, "through tasks.command"
