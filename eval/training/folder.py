"""The folder of one training: settings, logs, and checkpoints that are whole or not there.

run.json                 settings, provenance of model and data, one entry a session
steps.jsonl              one line a step: loss, gradient norm, learning rate, tokens, seconds
evals.jsonl              one line an evaluation: loss and perplexity on what was held out
checkpoints/step-000040/ a model folder that `eval/run.py --model` takes; `state/` in it is what a resume needs, and
                         `state/files.json` the SHA-256 of each file of it
best, last               links to two of them; others are deleted
report.md, curves.svg    the same for people
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from eval.errors import UserError
from eval.records.disk import inside, open_append, read_json, write_whole
from eval.records.journal import append_line, read_lines
from eval.records.run_folder import RunFolder
from eval.records.schema import Evaluation, TrainingStep
from masformer.checkpoints.saving import follow_umask
from masformer.errors import first_line, is_out_of_memory
from tasks.readers.kept import sync_folder

STATE = "state"
_DIGESTS = "files.json"
_CHECKPOINTS = "checkpoints"
_STEPS, _EVALUATIONS = "steps.jsonl", "evals.jsonl"


class TrainFolder:
    """Reads and writes the files of one training.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunFolder(path)

    def step_of(self, name: str) -> int | None:
        """Return the step of the checkpoint that `best` or `last` names; None before the first.

        Raises:
            UserError: The link was replaced by a copy, or names what is not there.
        """
        link = self.path / name
        if not link.is_symlink() and not link.exists():
            return None
        if not link.is_symlink() or not link.exists():
            problem = "is a copy and not a link" if link.exists() else "names a checkpoint that is not there"
            raise UserError(f"{link} {problem}; give --resume one of {self.path / _CHECKPOINTS}/step-*")
        return step_of(link)

    def point(self, name: str, step: int) -> None:
        """Let `best` or `last` name the checkpoint of a step."""
        link = self.path / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(self.checkpoint(step).relative_to(self.path))
        link.replace(self.path / name)
        sync_folder(self.path)

    def point_again(self, step: int) -> None:
        """Let `last` name the checkpoint from which a training goes on, and `best` the best one that is there.

        A kill may have come between the two.
        """
        for name in ("best", "last"):
            (self.path / f".{name}").unlink(missing_ok=True)
        self.point("last", step)
        there = [line for line in self.evaluations() if 0 < line.step <= step and self.checkpoint(line.step).is_dir()]
        self.point("best", min(there, key=lambda line: line.trained_on).step if there else step)

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies, or would."""
        return self.path / _CHECKPOINTS / f"step-{step:06}"

    def partial(self, step: int) -> Path:
        """Return where the checkpoint of a step lies while it is written."""
        return self.path / _CHECKPOINTS / f".step-{step:06}.partial"

    def begin_checkpoint(self, step: int) -> None:
        """Make an empty folder for a checkpoint, and delete what earlier attempts left.

        Raises:
            UserError: The folder cannot be written.
        """
        self._drop_attempts()
        self.written(step, lambda: (self.partial(step) / STATE).mkdir(parents=True))

    def written(self, step: int, write: Callable[[], object]) -> None:
        """Write a part of a checkpoint; after a failure delete the part, and name the last whole checkpoint.

        Raises:
            UserError: The disk is full, or gone.
        """
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have exceptions of their own for a full disk.
            shutil.rmtree(self.partial(step), ignore_errors=True)
            if is_out_of_memory(error):
                raise
            last = self.step_of("last")
            kept = "none was written before" if last is None else f"the one before, step {last}, is whole"
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self.path}: {first_line(error)}; {kept}; make "
                "room and run the same command with --resume"
            ) from error

    def end_checkpoint(self, step: int, *, is_best: bool) -> None:
        """Give a checkpoint its name, let `last`, and perhaps `best`, point to it, and delete those that neither names.

        Raises:
            UserError: The folder cannot be written.
        """

        def publish() -> None:
            follow_umask(self.partial(step))
            _sync(self.partial(step))
            # A checkpoint of this step may be there, from before a resume; it goes when the new one has its name.
            former = self.partial(step).with_suffix(".former")
            shutil.rmtree(former, ignore_errors=True)
            if self.checkpoint(step).exists():
                self.checkpoint(step).replace(former)
            self.partial(step).replace(self.checkpoint(step))
            sync_folder(self.checkpoint(step).parent)
            for name in ("last", "best") if is_best else ("last",):
                self.point(name, step)
            shutil.rmtree(former, ignore_errors=True)

        self.written(step, publish)
        self._drop_unnamed()

    def clean(self) -> None:
        """Delete checkpoints that are not whole or not named, once nothing is left to train: a kill may leave some."""
        if self.step_of("last") is not None:
            self._drop_attempts()
            self._drop_unnamed()

    def _drop_attempts(self) -> None:
        for left in inside(self.path, _CHECKPOINTS).glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def _drop_unnamed(self) -> None:
        kept = {(self.path / name).resolve() for name in ("last", "best")}
        for folder in (self.path / _CHECKPOINTS).glob("step-*"):
            if folder.resolve() not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def note_state(self, step: int) -> None:
        """Write the digests of all files of a checkpoint's state, which a resume checks.

        Raises:
            UserError: The folder cannot be written.
        """
        state = self.partial(step) / STATE
        content = json.dumps(_digests(state), indent=1) + "\n"
        self.written(step, lambda: write_whole(state, _DIGESTS, content.encode()))

    def note_states(self) -> None:
        """Write the digests of the states that version 0.1 left, so that one without them is damaged from now on."""
        for state in (self.path / _CHECKPOINTS).glob(f"step-*/{STATE}"):
            if not (state / _DIGESTS).exists():
                write_whole(state, _DIGESTS, (json.dumps(_digests(state), indent=1) + "\n").encode())

    def check_state(self, step: int, *, has_evaluations: bool) -> None:
        """Check that a checkpoint holds the state that was saved, and that the logs hold all steps before it.

        States of version 0.1 have no digests; what of them cannot be loaded is noticed then.

        Args:
            step: Step of the checkpoint.
            has_evaluations: Whether each checkpoint comes after an evaluation.

        Raises:
            UserError: Something is missing, or damaged.
        """
        state = self.checkpoint(step) / STATE
        remedy = "give --resume another of checkpoints/step-*, or begin anew with another --output"
        if (state / _DIGESTS).is_file():
            try:
                known = read_json(state / _DIGESTS)
            except (OSError, ValueError) as error:
                raise UserError(f"{state / _DIGESTS} cannot be read ({error}); {remedy}") from error
            if not isinstance(known, dict):
                raise UserError(f"{state / _DIGESTS} holds no digests; {remedy}")
            there = _digests(state)
            if bad := next((name for name in {**known, **there} if known.get(name) != there.get(name)), None):
                what = "differs from what was saved" if bad in there else "is missing"
                raise UserError(f"{state / bad} {what}; {remedy}")
        elif self.run.needs_checksums:
            raise UserError(f"{state / _DIGESTS} is missing; {remedy}")
        remedy = f"restore it, or {remedy}"
        numbers = [line.step for line in self.steps()]
        before = [number for number in numbers if number <= step]
        if before != list(range(1, step + 1)):
            raise UserError(
                f"{self.path / _STEPS} does not hold each step to the checkpoint of step {step} once; {remedy}"
            )
        if has_evaluations and step not in [line.step for line in self.evaluations()]:
            raise UserError(f"{self.path / _EVALUATIONS} lacks the evaluation after step {step}; {remedy}")

    def steps(self) -> list[TrainingStep]:
        """Return the lines of `steps.jsonl`, without one that a kill tore.

        Raises:
            UserError: A line is damaged.
        """
        return read_lines(TrainingStep, self.path / _STEPS, needs_checksums=self.run.needs_checksums)

    def evaluations(self) -> list[Evaluation]:
        """Return the lines of `evals.jsonl`, without one that a kill tore.

        Raises:
            UserError: A line is damaged.
        """
        return read_lines(Evaluation, self.path / _EVALUATIONS, needs_checksums=self.run.needs_checksums)

    def cut_logs(self, step: int) -> None:
        """Drop lines of the logs about steps after the one from which a training goes on."""
        self.run.write_lines(_STEPS, [line for line in self.steps() if line.step <= step])
        self.run.write_lines(_EVALUATIONS, [line for line in self.evaluations() if line.step <= step])

    def log(self, line: TrainingStep | Evaluation) -> None:
        """Append a line to its log and wait until it is on the disk.

        Raises:
            UserError: The disk is full, or gone.
        """
        name = _STEPS if isinstance(line, TrainingStep) else _EVALUATIONS
        with open_append(self.path, name) as stream:
            append_line(stream, line)


def step_of(checkpoint: Path) -> int:
    """Return the step that the folder of a checkpoint, or a link to it, names.

    Raises:
        UserError: It is no checkpoint.
    """
    name = checkpoint.resolve().name
    if not name.removeprefix("step-").isdigit():
        raise UserError(f"{checkpoint} is no checkpoint of a training; give one of {_CHECKPOINTS}/step-*")
    return int(name.removeprefix("step-"))


def find_checkpoint(path: Path) -> Path:
    """Return the training folder that a path given to `--resume` is, or lies in.

    Raises:
        UserError: It is neither a training folder nor one of its checkpoints.
    """
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / "run.json").is_file() and ((folder / _CHECKPOINTS).is_dir() or folder == path):
            return folder
    raise UserError(f"--resume {path} is no training folder and no checkpoint in one; give what --output named")


def _sync(folder: Path) -> None:
    """Wait until all files of a folder, and their names, are on the disk."""
    for path in (folder, *folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(path)


def _digests(state: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a state, by its name within it."""
    digests = {}
    for file in sorted(state.rglob("*")):
        if file.is_file() and file.name != _DIGESTS and not file.name.startswith("."):
            with file.open("rb") as stream:
                digests[file.relative_to(state).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
