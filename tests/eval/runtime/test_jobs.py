"""How a command ends: one line and a status for what a user can mend, a traceback for our own bugs."""

from __future__ import annotations

import errno
import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from eval.errors import UserError
from eval.runtime.jobs import command, run_command
from masformer import ConversionError, PlanError
from masformer.checkpoints.open import CheckpointError
from masformer.checkpoints.positions import PositionError
from tasks import DataError

ROOT = Path(__file__).parents[3]
RAN_OUT = "error: memory ran out: "
MORE = "; use a smaller dtype, shorter or fewer inputs at once, or a machine with more memory\n"


def failing(error: BaseException, *argv: str, again: str = "the same command") -> int:
    """Return the exit status of a script that fails."""

    def main(_: Sequence[str]) -> None:
        raise error

    return run_command(main, argv, again)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("maxlen 1 is\n  too short"), "error: maxlen 1 is too short\n"),
        (DataError("no row"), "error: no row\n"),
        (PlanError("no plan"), "error: no plan\n"),
        (ConversionError("no architecture"), "error: no architecture\n"),
        (CheckpointError("no weights"), "error: no weights\n"),
        (PositionError("no positions"), "error: no positions\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            f"{RAN_OUT}CUDA out of memory. Tried{MORE}",
        ),
        (
            RuntimeError("CUDA error: out of memory\nCompile"),
            f"{RAN_OUT}CUDA error: out of memory{MORE}",
        ),
        (MemoryError(), f"{RAN_OUT}MemoryError{MORE}"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/run.json"),
            "error: /x/run.json: Permission denied; check the path and permissions\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == 2
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), OSError("no file name"), RuntimeError("sizes 3, 4"), AssertionError()]
)
def test_a_bug_of_ours_is_no_message_but_a_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised:
        failing(error)
    assert raised.value is error
    assert capsys.readouterr().err == ""


def test_a_script_that_ends_well_has_status_0_and_gets_its_arguments() -> None:
    received: list[Sequence[str]] = []

    @command()
    def main(argv: Sequence[str]) -> None:
        """Note the arguments."""
        received.append(argv)

    assert main(["--task", "plos"]) == 0
    assert received == [["--task", "plos"]]
    assert (main.__name__, main.__doc__) == ("main", "Note the arguments.")


@pytest.mark.parametrize(
    ("argv", "again", "told"),
    [
        ([], "the same command", "the same command goes on"),
        ([], "the same command with --resume", "the same command with --resume goes on"),
        (["--overwrite"], "the same command", "the same command, without --overwrite, goes on"),
    ],
)
def test_an_interrupt_is_status_130_and_a_line_on_how_to_go_on(
    argv: list[str], again: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(KeyboardInterrupt(), *argv, again=again) == 130
    assert capsys.readouterr().err == f"interrupted: {told} where this one stopped\n"


def test_a_mistake_of_all_processes_is_reported_once_a_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Signals are ignored after a failure of one of several processes, so that is left out here.
    monkeypatch.setattr("tasks.command.handle_signals", lambda handler: None)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert failing(UserError("wrong")) == 2
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    alone = UserError("the disk is full")
    alone.is_of_one_process = True  # type: ignore[attr-defined]
    assert failing(alone) == 2
    assert capsys.readouterr().err == "error: process 1: the disk is full\n"


def ended(line: str, stdout: int = subprocess.PIPE, again: str = "") -> subprocess.CompletedProcess[str]:
    """Return how a script of one line ended, in a process of its own whose terminal knows ASCII alone."""
    program = f"""
import sys
from eval.runtime.jobs import command

@command({again})
def main(argv):
    {line}

sys.exit(main([]))
"""
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environ,
        text=True,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


def test_a_reader_that_closes_the_output_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = ended("print('x' * 100_000)", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_job_whose_output_was_closed_is_not_done() -> None:
    read, write = os.pipe()
    os.close(read)
    done = ended("print('x' * 100_000)", stdout=write, again="again='the same command'")
    os.close(write)
    told = "error: the output was closed; the same command goes on where this one stopped\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_full_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = ended("print('x' * 100_000)", stdout=full.fileno())
    told = "error: the output cannot be written: No space left on device; make room, or send it elsewhere\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_scheduler_s_signal_is_an_interrupt() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    done = ended(kill, again="again='the same command'")
    assert (done.returncode, done.stderr) == (
        130,
        "interrupted: the same command goes on where this one stopped\n",
    )
    done = ended(kill)
    assert (done.returncode, done.stderr) == (130, "interrupted: run the same command again\n")


def test_text_that_a_terminal_cannot_show_is_printed_escaped() -> None:
    done = ended(r"print('\xe9\ud83d')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\\ud83d\n", "")


@pytest.mark.parametrize("script", ["run", "merge", "finetune", "perplexity"])
def test_a_script_that_is_run_by_path_finds_its_checkout(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "eval"), *sys.path])
    runpy.run_path(str(ROOT / "eval" / f"{script}.py"), run_name="by_path")
    assert sys.path[0] == str(ROOT)


def test_errors_need_no_torch() -> None:
    program = (
        "import sys; from eval.errors import UserError; from eval.runtime.jobs import run_command, user_message\n"
        "assert user_message(UserError('x')) == 'x'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("eval.run", ["--task", "plos", "--maxlen", "512", "--output", ""]),
        ("eval.run", ["--config", ""]),
        ("eval.score", [""]),
        ("eval.leaderboard", [".", "--output", ""]),
        ("eval.study", ["study.yaml", "--output", ""]),
        ("eval.compare", ["a", "b", "--html", ""]),
        ("tasks.__main__", ["show", "plos", "--data", ""]),
    ],
)
def test_an_empty_path_is_not_the_folder_that_one_is_in(
    module: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = importlib.import_module(module).main(words)
    except SystemExit as end:
        status = end.code
    assert status == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "'' is no path; name a file or folder, or leave it out" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "words"),
    [("eval.score", ["runs/a", "--metrics", " , "]), ("eval.meta", ["--data", "labels.csv", "--metrics", ""])],
)
def test_a_list_that_names_nothing_is_not_the_default(
    module: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(words)
    assert end.value.code == 2
    assert "names nothing; give one name or more, or leave it out" in capsys.readouterr().err
