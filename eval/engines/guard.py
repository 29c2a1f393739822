"""Runs a server, and ends it and all its processes when whoever started this ends, is killed, or asks for it.

    python -I -S guard.py PARENT GRACE COMMAND...

PARENT is the number of the process that started this, GRACE the seconds between SIGTERM and SIGKILL. The end is asked
for by closing stdin, or by SIGTERM. Prints the number of the server, copies what the server says to stderr with the key
in `KEY_VARIABLE` replaced, and has the exit status of the server. It needs the standard library alone.

On Linux it also ends processes that have left the group of the server, and a killed guard takes the server along; where
guard and parent are killed at once, children that the server does not end itself may stay. macOS has the group alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KEY_VARIABLE = "MASFORMER_SERVER_KEY"
# Between looks at the parent and the server, and seconds until killed processes are gone.
_TICK, _KILLED = 0.2, 5.0
_CHUNK = 65_536
# Bytes of a key from which on a part of it is replaced too, where the output ends within the key.
_MIN_PART = 8
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Redacted:
    """Writes bytes with a key replaced by ***, also where a key comes in pieces.

    Args:
        output: Number of the open file.
        key: What is replaced; nothing where it is empty.
    """

    def __init__(self, output: int, key: bytes) -> None:
        self.output = output
        self.key = key
        self._rest = b""

    def write(self, chunk: bytes) -> None:
        """Write all but an end that may begin the key."""
        text = self._rest + chunk
        if self.key:
            text = text.replace(self.key, b"***")
        lengths = range(min(len(self.key) - 1, len(text)), 0, -1)
        num_kept = next((num for num in lengths if text.endswith(self.key[:num])), 0)
        self._put(text[: len(text) - num_kept])
        self._rest = text[len(text) - num_kept :]

    def end(self) -> None:
        """Write the rest."""
        self._put(b"***" if len(self._rest) >= _MIN_PART else self._rest)
        self._rest = b""

    def _put(self, text: bytes) -> None:
        # A full disk ends the log, and neither the server nor the guard.
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(self.output, text) :]


class Guard:
    """Watches one server.

    Args:
        server: Leader of a process group, with its output in a pipe.
        log: Where the output goes.
        parent: Number of the process whose end is the end of the server.
    """

    def __init__(self, server: subprocess.Popen[bytes], log: Redacted, parent: int) -> None:
        assert server.stdout is not None
        self.server = server
        self.log = log
        self.parent = parent
        self.is_asked = False
        self._output: int | None = server.stdout.fileno()

    def ask(self, *_: object) -> None:
        """Ask for the end, as a handler of signals."""
        self.is_asked = True

    def watch(self, grace: float) -> int:
        """Return the exit status of the server, once all its processes are gone."""
        try:
            while not self._is_over():
                self._copy(_TICK)
            self._end_group(signal.SIGTERM, grace)
        finally:
            self._end_group(signal.SIGKILL, _KILLED)
            self._end_strays(_KILLED)
            deadline = time.monotonic() + _KILLED
            while self._copy(0) and time.monotonic() < deadline:
                pass
            self.log.end()
        status = self.server.returncode
        return 1 if status is None else status if status >= 0 else 128 - status

    def _is_over(self) -> bool:
        self._reap()
        if self.server.returncode is not None or os.getppid() != self.parent:
            return True
        if not self.is_asked and select.select([0], [], [], 0)[0]:
            self.is_asked = not os.read(0, _CHUNK)
        return self.is_asked

    def _copy(self, seconds: float) -> bool:
        """Copy the output that comes within some seconds, or return at once when the parent ends; False for none."""
        watched = [0] if seconds and not self.is_asked else []
        ready = select.select([*watched, *([] if self._output is None else [self._output])], [], [], seconds)[0]
        if self._output is None or self._output not in ready:
            return False
        chunk = os.read(self._output, _CHUNK)
        if not chunk:
            self._output = None
        self.log.write(chunk)
        return bool(chunk)

    def _reap(self) -> None:
        """Reap processes that have ended, so that they no longer count."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.server.pid:
                    self.server.returncode = os.waitstatus_to_exitcode(ended[1])

    def _end_group(self, number: int, seconds: float) -> None:
        """Send a signal to the group, and wait until all of it is gone."""
        deadline = time.monotonic() + seconds
        if self._is_group(number):
            self.is_asked = True  # stdin is no longer watched
            while self._is_group(0) and time.monotonic() < deadline:
                self._copy(0.02)
                self._reap()

    def _is_group(self, number: int) -> bool:
        """Send a signal to the group, and return whether it has a process; 0 sends none."""
        try:
            os.killpg(self.server.pid, number)
        except (ProcessLookupError, PermissionError):  # on macOS the second where all have ended
            return False
        return True

    def _end_strays(self, seconds: float) -> None:
        """Kill processes that have left the group: without a parent they are children of this one."""
        deadline = time.monotonic() + seconds
        self._reap()
        while (strays := _children()) and time.monotonic() < deadline:
            for stray in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(stray, signal.SIGKILL)
            self._copy(0.02)
            self._reap()


def _children() -> list[int]:
    """Return the numbers of the children of this process, on Linux."""
    children = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a program may hold spaces and brackets.
            if int(file.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                children.append(int(file.parent.name))
    return children


def _tie_to_guard() -> Callable[[], None]:
    """Adopt processes that lose their parent, and return what ties a child to this process before it runs a program."""
    with contextlib.suppress(OSError, AttributeError):
        control = ctypes.CDLL(None).prctl
        control(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
        guard = os.getpid()

        def tie() -> None:
            # No SIGKILL: by SIGTERM the server can take its children along.
            control(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
            if os.getppid() != guard:
                os._exit(1)

        return tie
    return lambda: None


def main(arguments: list[str]) -> int:
    """Run a command as this module says."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    log = Redacted(2, os.environb.pop(KEY_VARIABLE.encode(), b""))
    for name in (signal.SIGINT, signal.SIGHUP):
        # Not SIG_IGN, which the server would inherit.
        signal.signal(name, lambda *_: None)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_tie_to_guard() if sys.platform == "linux" else None,
        )
    except OSError as error:
        log.write(f"error: {command[0]} does not start: {error.strerror}\n".encode())
        log.end()
        return 127
    guard = Guard(server, log, parent)
    signal.signal(signal.SIGTERM, guard.ask)
    with contextlib.suppress(OSError):  # the parent may be gone
        os.write(1, f"{server.pid}\n".encode())
    return guard.watch(grace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
