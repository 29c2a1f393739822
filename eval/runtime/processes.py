"""The processes of one launch: how many there are, what they run on, and how they meet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eval.errors import UserError
from masformer.errors import first_line, is_out_of_memory
from masformer.hardware import device_name

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

# Processes meet at the start and at the end, and uneven work must not end the run in between.
_MEETING_TIMEOUT = timedelta(days=7)
Value = TypeVar("Value")


class LaunchError(UserError):
    """The processes of a launch do not fit together; as nobody knows who speaks for all, each says so."""

    is_of_one_process = True


class Process:
    """A process that is alone, and what an engine without torch needs.

    Args:
        threads: Threads that it may use.
    """

    index = 0
    count = 1
    device_type = "cpu"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    def is_main(self) -> bool:
        """Return whether this process writes the folder's records and speaks for all."""
        return self.index == 0

    @property
    def device_name(self) -> str:
        """Return the name of the device for people."""
        return device_name()

    def describe(self) -> str:
        """Return what the work runs on, for people."""
        return f"{self.device_type}, {self.count} process(es), {self.threads} thread(s) each"

    def wait(self) -> None:
        """Wait for all processes of the launch."""

    def broadcast(self, value: Value) -> Value:
        """Return the value that the main process has."""
        return value

    def print(self, *values: Any) -> None:
        """Print once for all processes."""
        if self.is_main:
            print(*values)

    def finish(self) -> None:
        """End trackers and process groups after work that went well."""


class AcceleratedProcess(Process):
    """A process of accelerate's, with a device of its own.

    Args:
        threads: Torch threads that it uses.
        accelerator: accelerate's handle of it.
    """

    def __init__(self, threads: int, accelerator: Accelerator) -> None:
        super().__init__(threads)
        self.accelerator = accelerator
        self.index = accelerator.process_index
        self.count = accelerator.num_processes
        self.device: torch.device = accelerator.device
        self.device_type = accelerator.device.type

    @property
    def device_name(self) -> str:
        return device_name(self.device)

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def broadcast(self, value: Value) -> Value:
        from accelerate.utils import broadcast_object_list

        received: Value = broadcast_object_list([value])[0]
        return received

    def finish(self) -> None:
        self.accelerator.end_training()


def start_accelerated(threads: int | None, **options: Any) -> AcceleratedProcess:
    """Return this process with its device, after checking the launch.

    Args:
        threads: Torch threads; None shares the cores among the processes of this machine.
        options: Further arguments of `Accelerator`.

    Raises:
        UserError: Each of several processes believes it is alone, or only one of them was started.
    """
    import torch
    import transformers
    from accelerate import Accelerator, InitProcessGroupKwargs

    check_launch(os.environ)
    started = num_processes(os.environ)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Evaluation computes in the dtype of its weights, whatever a saved layout says.
    options = {"mixed_precision": "no"} | options
    try:
        accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_MEETING_TIMEOUT)], **options)
        torch.empty(0, device=accelerator.device)  # a device may be named that is not there
    except (ValueError, ImportError, RuntimeError, AssertionError) as error:  # the last is torch's, of devices
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"accelerate cannot start what the launch asks for: {first_line(error)[:300]}; check the file of "
            "`accelerate config`, and variables that begin with ACCELERATE_"
        ) from error
    if accelerator.num_processes != started:
        raise UserError(
            f"{started} processes were started and each believes it is alone; on a CPU set ACCELERATE_USE_CPU=true"
        )
    return AcceleratedProcess(set_threads(threads, os.environ), accelerator)


def num_processes(environ: Mapping[str, str]) -> int:
    """Return the number of processes of the launch."""
    return _number(environ, "WORLD_SIZE", default=1, least=1)


def rank_of(environ: Mapping[str, str]) -> int | None:
    """Return the number of this process among several; None if it is alone, or the launcher left it unclear."""
    try:
        return _number(environ, "RANK", default=0, least=0) if num_processes(environ) > 1 else None
    except UserError:
        return None


def is_first_here(environ: Mapping[str, str]) -> bool:
    """Return whether this process speaks for all of this machine."""
    local_rank = environ.get("LOCAL_RANK", "0")
    return not local_rank.isdecimal() or int(local_rank) == 0


def _number(environ: Mapping[str, str], name: str, *, default: int, least: int) -> int:
    """Return a variable that launchers set.

    Raises:
        LaunchError: It is no number, or too small.
    """
    text = environ.get(name, str(default))
    # Python also takes "1_000" and Arabic digits for numbers; torch does not.
    number = int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10 else None
    if number is None or number < least:
        raise LaunchError(
            f"{name} is '{text[:40]}' in the environment; a launcher sets it to a whole number of at least {least}. "
            "Unset it, or start with accelerate launch"
        )
    return number


def check_launch(environ: Mapping[str, str]) -> None:
    """Check that the launcher started all processes, and numbered them.

    Args:
        environ: Variables of the environment.

    Raises:
        LaunchError: It started one of several, or a variable is no number or beyond another.
    """
    for name, of in {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE"}.items():
        # -1 is an old way to say that a process is alone.
        index, count = _number(environ, name, default=0, least=-1), _number(environ, of, default=1, least=1)
        if of in environ and index >= count:
            raise LaunchError(
                f"{name} is {index} and {of} {count} in the environment; processes count from 0. Unset both"
            )
    if not (epoch := environ.get("SOURCE_DATE_EPOCH", "0")).isdecimal():
        raise UserError(f"SOURCE_DATE_EPOCH is '{epoch[:40]}' in the environment, and numpy reads seconds; unset it")
    # accelerate's simple launcher names a rendezvous for several processes, and then starts one.
    simple = "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_PORT" in environ
    mpi = any(name.startswith(("OMPI_", "PMI_", "MV2_", "MPI_")) for name in environ)
    if simple and "WORLD_SIZE" not in environ and not mpi:
        raise UserError(
            "several processes were asked for and accelerate started one; on a CPU use: ACCELERATE_USE_CPU=true "
            "accelerate launch --multi_gpu --num_processes N eval/run.py ..."
        )


def set_threads(threads: int | None, environ: Mapping[str, str]) -> int:
    """Give torch its threads in this process, and return their number.

    Args:
        threads: Threads to use; None shares the cores among the processes of this machine.
        environ: Variables of the environment.
    """
    import torch

    threads = threads or num_threads(environ)
    torch.set_num_threads(threads)
    return threads


def num_threads(environ: Mapping[str, str]) -> int:
    """Return an even share of the cores for each process of this machine.

    Args:
        environ: Variables; `LOCAL_WORLD_SIZE` is the number of processes on this machine.
    """
    return max(1, _num_cores() // num_local_processes(environ))


def num_local_processes(environ: Mapping[str, str]) -> int:
    """Return the number of processes on this machine."""
    return _number(environ, "LOCAL_WORLD_SIZE", default=1, least=1)


def _num_cores() -> int:
    """Return the cores that this process may use: those of its affinity, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.exists():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
