"""A claim about a run, recorded while the run has no answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from eval.config.claim import ClaimOptions
from eval.errors import UserError
from eval.records.run_folder import RunFolder
from eval.records.schema import ClaimRecord, RunRecord
from eval.runtime.provenance import utc_now


def claim_of(config: ClaimOptions, folder: RunFolder, saved: RunRecord | None) -> ClaimRecord | None:
    """Return the claim that `run.json` records: the one that is there, or a new one of a folder without answers.

    Args:
        config: What is claimed now, if anything.
        folder: Folder of the run.
        saved: Its record; None for a run that begins anew, whatever the folder holds.

    Raises:
        UserError: The folder has answers, and another claim or none.
    """
    before, asked = saved.claim if saved else None, config.claimed()
    if asked is None:
        return before
    now = ClaimRecord(**asked, recorded=utc_now())
    if before is not None and replace(now, recorded=before.recorded) == before:
        return before
    if saved is not None and has_answers(folder.path):
        raise UserError(
            f"output folder {folder.path} has answers already, {'under another claim' if before else 'and no claim'}; "
            "a claim is recorded before the first answer: leave --claim out, or give another folder with --output"
        )
    return now


def has_answers(path: Path) -> bool:
    """Return whether a run's folder has an answer, in its journal or out of it."""
    # Lines that are damaged were answers too.
    files = [path / "predictions.jsonl", *(path / "journal").glob("*.jsonl")]
    return any(file.exists() and file.stat().st_size for file in files)


def merged_claim(records: Iterable[RunRecord]) -> ClaimRecord | None:
    """Return the claim that all shards of a run recorded, with the latest of their times; None where they differ."""
    claims = [record.claim for record in records]
    first = claims[0]
    if first is None or any(one is None or replace(one, recorded=first.recorded) != first for one in claims):
        return None
    return replace(first, recorded=max(one.recorded for one in claims if one is not None))
