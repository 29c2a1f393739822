"""Run the parts of a study as processes of their own, one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO

from eval.records.disk import disk_errors, open_append
from eval.runtime.provenance import utc_now
from eval.studies.folder import DONE, StudyFolder
from eval.studies.parts import LADDER, Part, as_shell
from eval.studies.records import copy_records

ROOT = Path(__file__).resolve().parents[2]  # of the scripts, in a checkout and in an installed copy
_READ_BYTES = 1 << 16


def list_parts(folder: StudyFolder, parts: Sequence[Part]) -> str:
    """Return the state of each part and the command that runs it alone."""
    lines = []
    for part in parts:
        state = folder.state(part)
        if state != DONE and (missing := folder.missing_needs(part)):
            state = f"{state}, blocked by {', '.join(missing)}"
        lines += [f"{part.name}: {state}", *(f"  {one}" for one in part.shells(folder.path, *folder.more(part)))]
    return "\n".join(lines)


def run_parts(folder: StudyFolder, parts: Sequence[Part], records: Path | None = None) -> list[str]:
    """Run what is not done, each part after those that it needs, and return the names of those that failed.

    Args:
        folder: Folder of the study.
        parts: Parts in order.
        records: Folder that gets a copy of what each part measured, without texts, as the part ends.
    """
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup, where a terminal may close
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    failed: list[str] = []
    for part in parts:
        if folder.state(part) == DONE:
            print(f"{part.name}: done before")
            folder.note_done(part)
        elif missing := folder.missing_needs(part):
            failed.append(part.name)
            print(f"{part.name}: not run, for it needs {', '.join(missing)}")
        elif problem := _run_part(folder, part):
            failed.append(part.name)
            print(f"error: {problem}", file=sys.stderr, flush=True)
            continue
        if records is not None:
            copy_records(folder, [part], records)
    return failed


def _run_part(folder: StudyFolder, part: Part) -> str | None:
    """Run a part, and return what went wrong in one line; None where nothing did."""
    more, log = folder.more(part), folder.log(part)
    shell = part.shell(folder.path, *more)
    print(f"{part.name}: {shell}", flush=True)
    status = launch(part.command(folder.path, *more), log)
    if not status and (then := part.then(folder.path)):
        shell = as_shell(then)
        print(f"{part.name}: {shell}", flush=True)
        status = launch(then, log)
    if status:
        return f"part '{part.name}' ended with status {status}; command: {shell}; log: {log}"
    if not folder.is_complete(part):
        return f"part '{part.name}' ended and left its folder unfinished; command: {shell}; log: {log}"
    folder.note_end(part, utc_now())
    return None


def launch(words: Sequence[str], log: Path) -> int:
    """Run a script as `accelerate launch` does, its output on the terminal and in a file, and return its status.

    `eval/ladder.py` is started as one process: a saved layout of several is not for it.
    """
    script, *arguments = words
    start = [sys.executable]
    if script != LADDER:
        start += ["-m", "accelerate.commands.accelerate_cli", "launch", "-q"]
    with disk_errors(log), open_append(log.parent, log.name) as stream:
        stream.write(f"$ {' '.join(words)}\n".encode(errors="replace"))
        # A group of its own, so that an interrupt comes once, from here, and to all processes of the part.
        process = subprocess.Popen(
            [*start, str(ROOT / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            _copy(process, stream)
            return process.wait()
        except BaseException:
            _stop(process, stream)
            raise


def _copy(process: subprocess.Popen[bytes], log: IO[bytes], *, stops: bool = False) -> None:
    """Copy what a part prints to the terminal and to its log, until all its processes have ended.

    Args:
        process: The launcher.
        log: The file.
        stops: The part was told to end; a terminal that was closed and a full disk do not keep it from saving.
    """
    assert process.stdout is not None
    for text in iter(partial(os.read, process.stdout.fileno(), _READ_BYTES), b""):
        with suppress(OSError) if stops else nullcontext():
            log.write(text)
            log.flush()
        try:
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        except OSError as error:
            if not stops:
                raise KeyboardInterrupt from error  # nobody reads on


def _stop(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """End a part as a scheduler would, so that it keeps what it has; by force when it is told twice."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        _copy(process, log, stops=True)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
