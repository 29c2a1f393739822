"""Scripts in processes of their own that start at once: copies of one that has imported torch and the scripts already.

    done = run_forked("eval.run", arguments)                      # like subprocess.run
    done = run_forked("eval.run", arguments, num_processes=2)     # what a launcher starts, without the launcher
    process = start_forked("eval.run", arguments)                 # to be killed, interrupted or stopped

A new Python with torch and transformers computes for ten seconds before it begins. What a script writes at the top of
its file, and what is read from the environment at import, such as the hub's endpoint, needs a process of its own.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the scripts import late too.
_PRELOADED = ("eval.run", "eval.training.train", "eval.generation.local", "nltk.stem.porter", "scipy.stats", __name__)
_TIMEOUT_SECONDS = 300
_OF_LAUNCHERS = ("ACCELERATE_", "MASTER_")


class Forked:
    """A script in a process of its own.

    Args:
        script: Module with a `main`.
        arguments: Its command line.
        environment: Variables beside those of this process; a launcher's are left out.
        plots: Draw charts and put Vega into the page, which takes seconds.
    """

    def __init__(
        self, script: str, arguments: Sequence[str], environment: dict[str, str], *, plots: bool = False
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)}
        self._said = [Path(tempfile.mkstemp(prefix="forked-")[1]) for _ in range(2)]
        inputs = (script, list(arguments), kept | environment, list(map(str, self._said)), plots)
        self._process: ForkServerProcess = _server().Process(target=_be, args=inputs, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended gets none."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end, and return it as `subprocess` does; a process that hangs fails the test."""
        self._process.join(_TIMEOUT_SECONDS)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            self._process.join()
        out, told = (file.read_text(errors="replace") for file in self._said)
        for file in self._said:
            file.unlink()
        assert status is not None, f"no end after {_TIMEOUT_SECONDS} s: {out}\n{told}"
        return subprocess.CompletedProcess([], status, out, told)


def start_forked(script: str, arguments: Sequence[str], **environment: str) -> Forked:
    """Start a script, and return without waiting."""
    return Forked(script, arguments, environment)


def launch_variables(num_processes: int) -> list[dict[str, str]]:
    """Return the variables that a launcher gives each process of a launch on a CPU, in the order of their ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_processes))
    return [shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(num_processes)]


def start_ranks(script: str, arguments: Sequence[str], num_processes: int = 2) -> list[Forked]:
    """Start the processes of one launch on a CPU, in the order of their ranks."""
    return [Forked(script, arguments, variables) for variables in launch_variables(num_processes)]


def run_forked(
    script: str, arguments: Sequence[str], *, plots: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return Forked(script, arguments, environment, plots=plots).end()


def run_ranks(script: str, arguments: Sequence[str], num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run the processes of one launch to their end, and return what all said and the first bad status."""
    done = [one.end() for one in start_ranks(script, arguments, num_processes)]
    status = next((one.returncode for one in done if one.returncode), 0)
    return subprocess.CompletedProcess(
        [], status, "".join(one.stdout for one in done), "".join(one.stderr for one in done)
    )


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _be(script: str, arguments: list[str], environment: dict[str, str], said: list[str], plots: bool) -> None:
    """Become the script: its environment, its output, its status."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, (stream, file) in enumerate(zip((sys.stdout, sys.stderr), said, strict=True), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if not plots:
        importlib.import_module("eval.reporting.run_report").save_charts = lambda folder, specs, own: []  # type: ignore[attr-defined]
        importlib.import_module("eval.reporting.page")._vega = lambda: ""  # type: ignore[attr-defined]
    sys.exit(importlib.import_module(script).main(arguments))
