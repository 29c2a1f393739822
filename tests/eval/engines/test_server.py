"""Servers under a guard: whatever ends, no process is left, and the reason is one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from eval.engines import server
from eval.engines.guard import Redacted
from eval.engines.server import ServerCommand, free_port, running, telling_line
from eval.errors import UserError
from tests.helpers.hangups import hear_hangups

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "tests" / "helpers" / "small_server.py"
KEY = "0123456789abcdef" * 2
DEADLINE = 20.0
# A command of ours with a server, in a process that can be killed.
OURS = """
import os, sys, time
from pathlib import Path
from eval.engines.server import ServerCommand, free_port, running
from tasks.command import run_command
from urllib.request import urlopen

small, log, how = sys.argv[1:]
port = free_port()
def is_ready():
    try:
        return urlopen(f"http://127.0.0.1:{port}").status == 204
    except OSError:
        return False

def main():
    command = ServerCommand(argv=[sys.executable, small, str(port), *how.split()], environment={}, key="k" * 32)
    with running(command, base_url="there", log=Path(log), wait=60, is_ready=is_ready, say=lambda line: None):
        if how == "forks" and not os.fork():
            time.sleep(5)  # keeps the pipe to the guard open
            os._exit(0)
        print("ready", flush=True)
        time.sleep(60)

sys.exit(run_command(main))
"""


def test_a_server_runs_as_long_as_the_block_and_no_longer(tmp_path: Path) -> None:
    said: list[str] = []
    with serve(tmp_path, say=said.append) as is_alive:
        pids = pids_in(tmp_path)
        assert is_alive()
        assert not any(is_gone(pid) for pid in pids)
    assert not is_alive()
    assert all(is_gone(pid) for pid in pids)
    assert len(said) == 1
    assert re.search(r"starts at http://127\.0\.0\.1:\d+, 60 s left; its log is .*engine\.log", said[0])


def test_the_log_has_time_and_command_of_each_start_and_no_key(tmp_path: Path) -> None:
    for _ in range(2):
        with serve(tmp_path):
            pids_in(tmp_path)
            # Only the environment of the server has it, which other users cannot read.
            assert KEY not in subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    log = (tmp_path / "engine.log").read_text()
    assert len(re.findall(r"^20\d\d-\d\d-\d\dT[\d:]+\+00:00 .*small_server\.py \d+$", log, re.MULTILINE)) == 2
    assert log.count("key ***\n") == 2
    assert KEY not in log


def test_a_key_among_the_arguments_is_our_bug(tmp_path: Path) -> None:
    command = ServerCommand(argv=["serve", f"--api-key={KEY}"], environment={}, key=KEY)
    with pytest.raises(AssertionError), started(command, tmp_path):
        pass
    assert not (tmp_path / "engine.log").exists()


def test_a_server_that_does_not_listen_to_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.3)
    with serve(tmp_path, "deaf"):
        pids = pids_in(tmp_path)
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans of another group back to the guard")
def test_a_child_that_leaves_the_group_ends_too(tmp_path: Path) -> None:
    with serve(tmp_path, "stray"):
        pids = pids_in(tmp_path)
        assert os.getpgid(pids[1]) != os.getpgid(pids[0])
    assert all(is_gone(pid) for pid in pids)


def test_a_server_that_ends_early_is_one_line_with_what_it_said_last(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error, serve(tmp_path, "dies"):
        pytest.fail("it never answered")
    assert str(error.value) == (
        "the engine's server ended with status 1 before it answered: RuntimeError: no such model; its log is "
        f"{tmp_path / 'engine.log'}"
    )
    assert all(is_gone(pid) for pid in pids_in(tmp_path))


def test_a_port_that_was_taken_meanwhile_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        command = small(other.getsockname()[1])
        line = r"before it answered: OSError: .*in use; its log is .*engine\.log$"
        with pytest.raises(UserError, match=line), started(command, tmp_path, is_ready=lambda: False):
            pass


def test_a_command_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = ServerCommand(argv=["/nowhere/serve"], environment={}, key=KEY)
    line = r"/nowhere/serve does not start: No such file or directory; its log is .*log$"
    with pytest.raises(UserError, match=line), started(command, tmp_path, is_ready=lambda: False):
        pass


def test_a_server_that_never_answers_is_ended_and_one_line(tmp_path: Path) -> None:
    command = small(free_port(), "silent")
    line = r"did not answer at there within 1\.5 s, which --engine-wait raises: key \*\*\*; "
    with pytest.raises(UserError, match=line), started(command, tmp_path, wait=1.5, is_ready=lambda: False):
        pass
    assert all(is_gone(pid) for pid in pids_in(tmp_path))


def test_the_time_left_is_said_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SAY_SECONDS", 0.1)
    monkeypatch.setattr(server, "_ASK_SECONDS", 0.1)
    said: list[str] = []
    answers = iter([False, False, False, True])
    with started(small(free_port()), tmp_path, is_ready=lambda: next(answers), say=said.append):
        pass
    left = [int(found[1]) for line in said if (found := re.search(r"(\d+) s left", line))]
    assert len(left) == len(said) >= 2
    assert left == sorted(left, reverse=True)


def test_an_error_of_the_block_stays_and_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), serve(tmp_path):
        raise ZeroDivisionError
    assert all(is_gone(pid) for pid in pids_in(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_error_after_the_end_of_the_server_says_how_it_ended(tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(UserError) as error, serve(tmp_path) as is_alive:
        fail_after(lambda: os.kill(pids_in(tmp_path)[0], number), is_alive)
    memory = ", as where memory runs out" if number == signal.SIGKILL else ""
    assert str(error.value) == (
        f"no answer; the engine's server ended by signal {int(number)}{memory}; its log is {tmp_path / 'engine.log'}"
    )
    assert all(is_gone(pid) for pid in pids_in(tmp_path))


def test_an_error_at_the_moment_of_the_end_says_so_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no answer; the engine's server ended by signal 11"), serve(tmp_path):
        fail_after(lambda: os.kill(pids_in(tmp_path)[0], signal.SIGSEGV), lambda: False)


def test_an_error_with_a_server_that_runs_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no answer$"), serve(tmp_path):
        raise UserError("no answer")


@pytest.mark.parametrize("how", ["", "deaf"])
def test_a_killed_guard_leaves_no_server(tmp_path: Path, how: str) -> None:
    line = r"^no answer; the engine's server ended when its guard was killed by signal 9; its log is .*engine\.log$"
    with pytest.raises(UserError, match=line), serve(tmp_path, how) as is_alive:
        fail_after(lambda: os.kill(parent_of(pids_in(tmp_path)[0]), signal.SIGKILL), is_alive)
    assert all(is_gone(pid) for pid in pids_in(tmp_path))


def test_a_guard_that_is_killed_at_the_start_leaves_no_server(tmp_path: Path) -> None:
    def is_ready() -> bool:
        os.kill(parent_of(pids_in(tmp_path)[0]), signal.SIGKILL)
        return False

    line = r"^the engine's server ended when its guard was killed by signal 9 before it answered; its log is"
    with pytest.raises(UserError, match=line), started(small(free_port(), "deaf"), tmp_path, is_ready=is_ready):
        pass
    assert all(is_gone(pid) for pid in pids_in(tmp_path))


@pytest.mark.parametrize(
    ("name", "when"),
    [
        *(("SIGINT", "ready"), ("SIGTERM", "starting"), ("SIGHUP", "ready")),
        *(("SIGKILL", "ready"), ("SIGKILL", "starting")),
    ],
)
def test_a_command_that_is_ended_leaves_no_server(tmp_path: Path, name: str, when: str) -> None:
    process = start_ours(tmp_path, "silent" if when == "starting" else "")
    pids = pids_in(tmp_path)
    if when == "ready":
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=DEADLINE)
    if name == "SIGKILL":
        wait_until(lambda: all(is_gone(pid) for pid in pids))
    else:
        assert told == "interrupted: run the same command again\n"
        assert process.returncode == 130
        assert all(is_gone(pid) for pid in pids)


def test_a_killed_command_leaves_no_server_though_a_child_of_it_lives_on(tmp_path: Path) -> None:
    process = start_ours(tmp_path, "forks")
    pids = pids_in(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    wait_until(lambda: all(is_gone(pid) for pid in pids), 4)
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a server that its guard was killed")
def test_a_server_ends_where_the_command_and_its_guard_are_killed_at_once(tmp_path: Path) -> None:
    process = start_ours(tmp_path, "")
    leader, child = pids_in(tmp_path)
    guard = parent_of(leader)
    process.send_signal(signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.communicate()
    wait_until(lambda: is_gone(leader))
    # What the guard alone would have ended.
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def test_the_line_that_tells_something_is_the_cause() -> None:
    place = "(Worker pid=10) ERROR 11-29 16:03:05 [multiproc_executor.py:953]"
    # As vLLM 0.32 prints them for a folder without weights.
    lines = [
        "(APIServer pid=7) WARNING 11-29 15:58:58 [utils.py:255] errors like `OSError: [Errno 24] Too many files`",
        f"{place}     raise RuntimeError(",
        f"{place} RuntimeError: Cannot find any model weights with `/models/m`",
        "Exception: WorkerProc initialization failed due to an exception. See stack trace for root cause.",
        f"{place}     raise e from None",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    assert telling_line("\n".join(lines)) == "RuntimeError: Cannot find any model weights with `/models/m`"
    assert telling_line("\n".join(lines[:1])) == ""
    assert telling_line("usage: x\nserve: error: unrecognized --y\n") == "serve: error: unrecognized --y"
    assert telling_line("ERROR:    [Errno 98] address in use\nINFO: shut down") == "ERROR: [Errno 98] address in use"
    assert telling_line("llama_model_load: failed to load\nloading\r10%\r") == "llama_model_load: failed to load"
    assert telling_line("loading\r10%\rdone 20%") == "done 20%"
    assert telling_line("loading", failures_alone=True) == ""
    assert len(telling_line("x" * 5000)) < 400


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_key_is_replaced_wherever_a_chunk_ends(tmp_path: Path, size: int) -> None:
    key = b"aab-aac"
    text = b"\xff\x00aab-aab-aac\naab-aaaab-aac\r" + key * 2 + b" aab-aa"
    assert redacted(tmp_path, text, key, size) == b"\xff\x00aab-***\naab-aa***\r****** aab-aa"


def test_a_part_of_a_key_at_the_end_is_replaced_too(tmp_path: Path) -> None:
    assert redacted(tmp_path, b"key " + KEY[:-1].encode(), KEY.encode(), 5) == b"key ***"


def test_without_a_key_the_text_stays(tmp_path: Path) -> None:
    assert redacted(tmp_path, b"all of it", b"", 2) == b"all of it"


def redacted(folder: Path, text: bytes, key: bytes, size: int) -> bytes:
    """Return a text that was written in chunks of some bytes."""
    with (folder / "log").open("wb") as file:
        output = Redacted(file.fileno(), key)
        for place in range(0, len(text), size):
            output.write(text[place : place + size])
        output.end()
    return (folder / "log").read_bytes()


def small(port: int, *how: str) -> ServerCommand:
    """Return the command of the small server."""
    argv = [sys.executable, str(SMALL), str(port), *filter(None, how)]
    return ServerCommand(argv=argv, environment={"SMALL_KEY": KEY}, key=KEY)


def started(
    command: ServerCommand,
    folder: Path,
    *,
    base_url: str = "there",
    wait: float = 60,
    is_ready: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = lambda line: None,
) -> AbstractContextManager[Callable[[], bool]]:
    """Run a server with its log in a folder."""
    return running(command, base_url=base_url, log=folder / "engine.log", wait=wait, is_ready=is_ready, say=say)


def serve(
    folder: Path, *how: str, say: Callable[[str], None] = lambda line: None
) -> AbstractContextManager[Callable[[], bool]]:
    """Run the small server until it answers, and then until the block ends."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        with suppress(URLError):
            return urlopen(url).status == 204
        return False

    return started(small(port, *how), folder, base_url=url, is_ready=is_ready, say=say)


def start_ours(folder: Path, how: str) -> subprocess.Popen[str]:
    """Start a command of ours with a server."""
    arguments = [sys.executable, "-c", OURS, str(SMALL), str(folder / "engine.log"), how]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=ROOT, text=True, stdout=pipe, stderr=pipe, preexec_fn=hear_hangups)


def pids_in(folder: Path) -> list[int]:
    """Return the numbers of the server and its child, once the log has them."""
    log = folder / "engine.log"
    wait_until(lambda: log.exists() and "\nkey" in log.read_text())
    return [int(pid) for pid in re.findall(r"^pids (\d+) (\d+)$", log.read_text(), re.MULTILINE)[-1]]


def fail_after(act: Callable[[], None], is_alive: Callable[[], bool]) -> None:
    """Fail as a client does, once something has ended the server."""
    act()
    wait_until(lambda: not is_alive())
    raise UserError("no answer")


def parent_of(pid: int) -> int:
    """Return the number of the parent of a process."""
    asked = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(asked.stdout)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; one that its parent has not asked for counts as ended."""
    with suppress(FileNotFoundError):  # on macOS there is no such file
        if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z":
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(is_so: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
