"""Checkpoints on the hub or in its cache, found by requests that end.

A limit on a request covers neither name resolution nor a list of dead addresses.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, hf_hub_download, model_info
from huggingface_hub.errors import RevisionNotFoundError

from masformer.checkpoints.files import Listing, list_folder
from masformer.errors import CheckpointError, first_line

HUB_TIMEOUT_SECONDS = 8.0
_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return or raise what `ask` does; after so many seconds, leave it to itself and raise `TimeoutError`."""
    answers: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # raised again below, in the thread that asked
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    raise failures[0] if failures else TimeoutError(f"no answer within {seconds:.0f} s")


def find_on_hub(hub_id: str, reference: str, asked: str | None, hint: str) -> tuple[str, str, Listing]:
    """Return the commit of a revision, where to load it from (hub id or a folder of the cache), and its files.

    Args:
        reference: What the user calls it.
        asked: Revision; None is the main branch.
        hint: End of the error for a repository that is not there: what else to give.

    Raises:
        CheckpointError: Neither the hub nor its cache has it.
    """
    name = f"model '{reference}' on the hub"
    answer: Exception
    if constants.HF_HUB_OFFLINE:
        answer = OSError("HF_HUB_OFFLINE is set")
    else:
        try:
            info = within(HUB_TIMEOUT_SECONDS, lambda: model_info(hub_id, revision=asked, timeout=HUB_TIMEOUT_SECONDS))
            revision = str(info.sha)
            if not _COMMIT.fullmatch(revision):
                raise OSError(f"it names {revision[:60]!r} in the place of a commit")
            listing = Listing(
                name=name,
                names={file.rfilename for file in info.siblings or () if "/" not in file.rfilename},
                path=lambda file: Path(hf_hub_download(hub_id, file, revision=revision)),
                reference=hub_id,
            )
            return revision, hub_id, listing
        except Exception as error:  # the client raises its own, httpx's and OSError; judged below
            answer = error
    if isinstance(answer, RevisionNotFoundError):
        raise CheckpointError(f"model '{reference}' on the hub has no revision '{asked}'; give another") from answer
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if status in (401, 403, 404):
        raise CheckpointError(
            f"model '{reference}' is neither a local folder nor open to this user on the hub (HTTP {status}){hint}"
        ) from answer
    # Loading by commit leaves no name behind, so the newest of the cache's snapshots is taken.
    cached = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    snapshots = {file.parent for file in cached.glob("snapshots/*/*.safetensors")}
    if asked is not None and snapshots:
        snapshots = {folder for folder in snapshots if folder.name == _named(cached, asked)}
        if not snapshots:
            raise CheckpointError(
                f"the hub cannot be reached, and its cache holds no revision '{asked}' of model '{reference}'; give a "
                "commit that it holds"
            ) from answer
    if snapshots:
        newest = max(snapshots, key=lambda folder: folder.stat().st_mtime)
        return newest.name, str(newest), list_folder(newest, f"model '{reference}' in the hub's cache")
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({first_line(answer)})"
    raise CheckpointError(
        f"model '{reference}' is no local folder, {why} and its cache does not hold it{hint}"
    ) from answer


def _named(cached: Path, revision: str) -> str:
    """Return the commit that the hub's cache knows a revision by, else the revision, which may be one."""
    file = cached / "refs" / revision
    try:
        return file.read_text().strip() if file.resolve().is_relative_to(cached.resolve()) else revision
    except (OSError, ValueError):
        return revision
