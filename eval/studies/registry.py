"""Claims of a study, written down with their time before the first part begins, and what became of their wording.

`claims.json` keeps every wording that was claimed while a part had begun, and the first ones. A claim that is changed,
added or taken away after that is known as such: by its times, and by the parts that had begun. So are parts that got
other settings, such as more documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.run_folder import RunFolder
from eval.records.schema import ClaimsRecord, RegisteredClaim, StudyClaim
from eval.records.typed import from_json, to_json
from eval.runtime.provenance import utc_now
from eval.studies.folder import StudyFolder
from eval.studies.parts import Study

FILE = "claims.json"
Wording: TypeAlias = tuple[StudyClaim, dict[str, str]]  # with the settings of its parts


def digest_of(claim: StudyClaim, settings: Mapping[str, str]) -> str:
    """Return a hash of all that a claim says, and of the settings of its parts."""
    # Without what is not said, so that digests outlive later fields.
    said = {name: value for name, value in to_json(claim).items() if value not in (None, "")}
    content = [said, dict(settings)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def settings_of(study: Study, claim: StudyClaim) -> dict[str, str]:
    """Return digests of the settings of a claim's parts, of those that the study has."""
    return {name: study.digest(name) for name in (claim.part, claim.against) if name in study.parts}


def registered(folder: StudyFolder) -> list[RegisteredClaim]:
    """Return every wording of the study's claims, with those of the file as it is now.

    Raises:
        UserError: `claims.json` cannot be read, or was edited.
    """
    before = _read(folder.path)
    # What had begun before stays so, even where its folder is gone.
    begun = list(dict.fromkeys([*folder.begun(), *(name for one in before for name in one.begun)]))
    claims = [(claim, settings_of(folder.study, claim)) for claim in folder.study.claims]
    return updated(before, claims, begun, utc_now())


def register(folder: StudyFolder) -> list[RegisteredClaim]:
    """Write down the claims of the study's file, if it has or had any, and return every wording."""
    before, now = _read(folder.path), registered(folder)
    if now != before:
        RunFolder(folder.path).write_json(FILE, ClaimsRecord(claims=now))
    return now


def describe_registered(folder: StudyFolder, wordings: Sequence[RegisteredClaim]) -> str:
    """Return a line on what is written down; empty where nothing is claimed."""
    claims = latest(wordings)
    late = [name for name, one in claims.items() if one.begun or one.withdrawn]
    if not claims:
        return ""
    remark = f"; not as before the first part began: {', '.join(late)}" if late else ""
    return f"claims: {len(claims)} in {folder.path / FILE}{remark}\n"


def latest(wordings: Sequence[RegisteredClaim]) -> dict[str, RegisteredClaim]:
    """Return the last wording of each claim, by name."""
    return {one.claim.name: one for one in wordings}


def updated(
    before: Sequence[RegisteredClaim], claims: Sequence[Wording], begun: Sequence[str], now: str
) -> list[RegisteredClaim]:
    """Return every wording, in order, after another look at the file of the study.

    Args:
        before: What was written down.
        claims: What the file claims, and the settings of the parts.
        begun: Parts that have begun. While there is none, claims and settings may become others.
        now: The time, UTC.
    """
    named = [claim for claim, _ in claims]
    kept = [one for one in before if begun or (one.claim, one.settings) in claims]
    kept = [one if one.withdrawn or one.claim in named else replace(one, withdrawn=now) for one in kept]
    known = [one.claim for one in kept if one.withdrawn is None]
    return kept + [
        RegisteredClaim(
            claim=claim, settings=settings, sha256=digest_of(claim, settings), recorded=now, begun=list(begun)
        )
        for claim, settings in claims
        if claim not in known
    ]


def _read(path: Path) -> list[RegisteredClaim]:
    file = path / FILE
    remedy = "restore the file; without it, claims count as made after the parts that have begun"
    if not file.exists():
        return []
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; {remedy}") from error
    record = from_json(ClaimsRecord, content, str(file), remedy=remedy)
    for one in record.claims:
        if one.sha256 != digest_of(one.claim, one.settings):
            raise UserError(f"{file}: claim '{one.claim.name}' is not the one that was registered; {remedy}")
    return record.claims
