"""Run a study, and write its report: many runs, measurements and trainings by one command.

    python -m eval.study [STUDY.yaml] [--output DIR] [--only PART ...] [--list] [--report]

Each part is a script that runs by itself; what is done is not done again, and a study that was killed goes on by the
same command. The report needs no model.
"""

from __future__ import annotations

import argparse
import codecs
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from eval.errors import UserError
from eval.records.journal import disk_errors
from eval.records.run_folder import locked
from eval.runtime.jobs import CommandParser
from eval.studies.parts import Part, read_study
from eval.studies.report import write_report
from eval.studies.state import DONE, StudyFolder, open_study_folder
from tasks import command

ROOT = Path(__file__).resolve().parents[1]
_STUDY = Path("configs/study/smollm2.yaml")
_OUTPUT = Path("runs/study")
_READ_BYTES = 1 << 16


def list_parts(folder: StudyFolder, parts: Sequence[Part]) -> str:
    """Return the state of each part and the command that runs it alone."""
    lines = []
    for part in parts:
        state = folder.state(part)
        if state != DONE and (missing := folder.missing_needs(part)):
            state = f"{state}, blocked by {', '.join(missing)}"
        lines.append(f"{part.name}: {state}\n  {part.shell(folder.path, *folder.more(part))}")
    return "\n".join(lines)


def run_parts(folder: StudyFolder, parts: Sequence[Part]) -> list[str]:
    """Run what is not done, each part after those that it needs, and return the names of those that failed."""
    failed: list[str] = []
    for part in parts:
        if folder.state(part) == DONE:
            print(f"{part.name}: done before")
        elif missing := folder.missing_needs(part):
            failed.append(part.name)
            print(f"{part.name}: not run, for it needs {', '.join(missing)}")
        elif problem := _run_part(folder, part):
            failed.append(part.name)
            print(f"error: {problem}", file=sys.stderr, flush=True)
    return failed


def _run_part(folder: StudyFolder, part: Part) -> str | None:
    """Run a part, and return what went wrong in one line; None where nothing did."""
    more, log = folder.more(part), folder.log(part)
    shell = part.shell(folder.path, *more)
    print(f"{part.name}: {shell}", flush=True)
    status = _launch(part.command(folder.path, *more), log)
    if status:
        return f"part '{part.name}' ended with status {status}; command: {shell}; log: {log}"
    if not folder.is_complete(part):
        return f"part '{part.name}' ended and left its folder unfinished; command: {shell}; log: {log}"
    folder.note_end(part, datetime.now(UTC).isoformat(timespec="seconds"))
    return None


def _launch(words: Sequence[str], log: Path) -> int:
    """Run a script as `accelerate launch` does, its output on the terminal and in a file, and return its status."""
    script, *arguments = words
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "-q"]
    with disk_errors(log), log.open("ab") as stream:
        stream.write(f"$ {' '.join(words)}\n".encode(errors="replace"))
        # A group of its own, so that an interrupt comes once, from here, and to all processes of the part.
        process = subprocess.Popen(
            [*launcher, str(ROOT / script), *arguments],
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


def _copy(process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
    """Copy what a part prints to the terminal and to a file, until all its processes have ended."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a character may come in two pieces
    while text := os.read(process.stdout.fileno(), _READ_BYTES):
        stream.write(text)
        stream.flush()
        try:
            sys.stdout.write(decoder.decode(text))
            sys.stdout.flush()
        except OSError as error:
            raise KeyboardInterrupt from error  # nobody reads on


def _stop(process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
    """End a part as a scheduler would, so that it keeps what it has; by force when it is told twice."""
    assert process.stdout is not None
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while text := os.read(process.stdout.fileno(), _READ_BYTES):
            # A terminal that was closed and a disk that is full do not keep the part from saving.
            with suppress(OSError):
                stream.write(text)
                stream.flush()
            with suppress(OSError):
                sys.stdout.write(text.decode(errors="replace"))
                sys.stdout.flush()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.study", __doc__)
    parser.add_argument(
        "study", metavar="STUDY", type=Path, nargs="?", default=_STUDY, help=f"YAML file (default: {_STUDY})"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=_OUTPUT, help=f"folder of all parts (default: {_OUTPUT})"
    )
    parser.add_argument("--only", metavar="PART", nargs="+", default=[], help="run these parts and what they need")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print each part, its state, and its command; run nothing")
    what.add_argument("--report", action="store_true", help="write the report from what is there; run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit status: 0, 1 where a part failed, 2 after one line on what is wrong."""
    asked = _parse(arguments)
    failed: list[str] = []

    def work() -> None:
        study = read_study(asked.study)
        parts = study.chosen(asked.only)
        if asked.report and not asked.output.is_dir():
            raise UserError(f"there is no folder '{asked.output}' to report on; --output names that of a study")
        folder = open_study_folder(study, asked.output)
        if asked.list:
            print(list_parts(folder, parts))
            return
        # A report may be wanted while the study runs.
        with nullcontext() if asked.report else locked(folder.path):
            if not asked.report:
                failed.extend(run_parts(folder, parts))
            print(write_report(folder))

    if threading.current_thread() is threading.main_thread():
        # What a scheduler sends before it kills, and a terminal that closes, do as Ctrl-C does.
        for name in (signal.SIGTERM, signal.SIGHUP):
            # Under nohup a terminal may close.
            if signal.getsignal(name) != signal.SIG_IGN:
                signal.signal(name, signal.default_int_handler)
    status = command.run_command(work, UserError)
    if failed:
        print(f"error: {len(failed)} part(s) not done: {', '.join(failed)}", file=sys.stderr)
    return status or (1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
