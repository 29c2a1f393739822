"""Starts a server, waits until it answers, and ends it, whatever happens to this process.

A guard (guard.py) stands between this process and the server: a process in a session of its own, so that Ctrl-C in a
terminal reaches this process alone. Its end of a pipe closes when this process ends, and then it ends the server.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from eval.engines.guard import KEY_VARIABLE
from eval.errors import UserError

GRACE_SECONDS = 20.0
# Beyond the grace, until the guard has ended what was killed.
_SLACK_SECONDS = 20.0
_ASK_SECONDS, _SAY_SECONDS, _DYING_SECONDS = 1.0, 30.0, 1.0
_GUARD = Path(__file__).with_name("guard.py")
_TAIL_BYTES = 65_536
_SHOWN = 300
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FAILURES = re.compile(r"\w*(?:Error|Exception)\b|\b(?:error|failed|fatal|cannot)\b", re.IGNORECASE)
# What engines print last and says nothing: `Engine core initialization failed. See root cause above.`
_EMPTY = re.compile(
    r'root cause above|^[\W\d]*$|exiting due to|^During handling|resource_tracker|HTTP/1\.\d" [23]', re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """How a server is started.

    Attributes:
        argv: Command line, with the port and without the key.
        environment: Variables beside those of this process; the key may be among them.
        key: Random; replaced by *** in all that the server prints.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    key: str


@contextmanager
def running(
    command: ServerCommand,
    *,
    base_url: str,
    log: Path,
    wait: float,
    is_ready: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[Callable[[], bool]]:
    """Run a server until the block ends; all its processes are gone then.

    Gives a function that returns whether the server still runs. A `UserError` of the block after the end of the server
    gets the reason of that end.

    Args:
        command: What is started.
        base_url: Where it answers, for messages.
        log: File that its output is added to.
        wait: Seconds that it has until it answers.
        is_ready: Asks it once whether it answers.
        say: Prints a line.

    Raises:
        UserError: It ends early, or does not answer in time.
    """
    if os.name != "posix":
        raise UserError("servers are started on Linux and macOS alone; start it yourself, and use --engine endpoint")
    server = _Server(command, log)
    try:
        _wait_for(server, base_url, wait, is_ready, say)
        yield server.is_alive
    except UserError as error:
        if isinstance(error, _StartError) or not server.is_dying():
            raise
        server.stop()
        error.args = (f"{error}; {server.describe_end()}",)
        raise
    finally:
        server.stop()


def free_port() -> int:
    """Return a port of the loopback that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class _StartError(UserError):
    """A server did not start."""


class _Server:
    """A server with its guard."""

    def __init__(self, command: ServerCommand, log: Path) -> None:
        assert not command.key or command.key not in " ".join(command.argv), "lists of processes show arguments"
        self.log = log
        # None where it does not start.
        self.pid: int | None = None
        with log.open("ab") as output:
            output.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {shlex.join(command.argv)}\n".encode())
            output.flush()
            self._begin = output.tell()
            self.guard = subprocess.Popen(
                [sys.executable, "-I", "-S", _GUARD, str(os.getpid()), str(GRACE_SECONDS), *command.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **command.environment, KEY_VARIABLE: command.key},
                start_new_session=True,
            )
        assert self.guard.stdin is not None
        assert self.guard.stdout is not None
        self._pipe = self.guard.stdin
        try:
            with self.guard.stdout as told:
                number = told.readline()
        except BaseException:
            self.stop()
            raise
        self.pid = int(number) if number else None

    def is_alive(self) -> bool:
        """Return whether the server still runs; its guard goes on for some seconds."""
        return self.guard.poll() is None and self.pid is not None and _is_process(self.pid)

    def is_dying(self) -> bool:
        """Return whether the server has ended, or does within a moment: connections break before it is gone."""
        deadline = time.monotonic() + _DYING_SECONDS
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.is_alive()

    def stop(self) -> None:
        """End the server and all its processes; one that has ended stays so."""
        # From here on the guard goes on by itself, also if a further Ctrl-C ends this function.
        self._pipe.close()
        try:
            self.guard.wait(GRACE_SECONDS + _SLACK_SECONDS)
        except subprocess.TimeoutExpired:
            self.guard.kill()
            self.guard.wait()
        if self.guard.returncode < 0 and self.pid is not None:
            _kill_group(self.pid)

    def describe_end(self, when: str = "") -> str:
        """Return how a server has ended that was not stopped."""
        status = self.guard.returncode
        how, is_killed = f"with status {status}", status < 0 or status > 128
        if status < 0:
            how = f"when its guard was killed by signal {-status}"
        elif is_killed:
            how = f"by signal {status - 128}"
            how += ", as where memory runs out" if status - 128 == signal.SIGKILL else ""
        return f"the engine's server ended {how}{when}{self.last_words(failures_alone=is_killed)}"

    def last_words(self, *, failures_alone: bool = False) -> str:
        """Return the last line of the log that tells something, and where the log is."""
        with self.log.open("rb") as file:
            file.seek(max(self._begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = _STYLES.sub("", file.read().decode(errors="replace"))
        lines = [" ".join(line.split()) for line in re.split(r"[\r\n]+", text)]
        lines = [line for line in lines if line and not _EMPTY.search(line)]
        other = lines[-1] if lines and not failures_alone else ""
        last = next((line for line in reversed(lines) if _FAILURES.search(line)), other)
        shown = last if len(last) <= _SHOWN else f"{last[:_SHOWN]}..."
        return f"{f': {shown}' if shown else ''}; its log is {self.log}"


def _wait_for(
    server: _Server, base_url: str, wait: float, is_ready: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Return when a server answers. Raises `UserError` where it ends, or the time is over."""
    begin = time.monotonic()
    said = -_SAY_SECONDS
    while True:
        passed = time.monotonic() - begin
        if passed >= wait:
            raise _StartError(
                f"the engine's server did not answer at {base_url} within {wait:g} s, which --engine-wait raises"
                f"{server.last_words()}"
            )
        if passed - said >= _SAY_SECONDS:
            say(f"the engine's server starts at {base_url}, {wait - passed:.0f} s left; its log is {server.log}")
            said = passed
        if is_ready() and server.is_alive():
            return
        with suppress(subprocess.TimeoutExpired):
            server.guard.wait(min(_ASK_SECONDS, wait - passed))
        if not server.is_alive():
            server.stop()
            raise _StartError(server.describe_end(" before it answered"))


def _is_process(pid: int) -> bool:
    """Return whether a process of this user runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _kill_group(number: int) -> None:
    """Kill a process group whose guard was killed, and wait until it is gone."""
    deadline = time.monotonic() + _SLACK_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)
        while time.monotonic() < deadline:
            os.killpg(number, 0)
            time.sleep(0.02)
