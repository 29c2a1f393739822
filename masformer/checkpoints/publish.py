"""A saved checkpoint to the hub.

push_to_hub("smollm2-mas", "owner/smollm2-mas")     # -> https://huggingface.co/owner/smollm2-mas/commit/...
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import AutoConfig

from masformer.checkpoints.card import rename, renewed
from masformer.checkpoints.hub import HUB_TIMEOUT_SECONDS, within
from masformer.checkpoints.saving import CARD, CONFIG, checkpoint_files, computes, write_config
from masformer.errors import OneLineError, first_line
from masformer.model_type import is_typed, typed
from masformer.plans.spans import SpanPlan

# Creating a repository takes the hub longer than an answer.
_CREATE_TIMEOUT_SECONDS = 30.0


class PushError(OneLineError):
    """A checkpoint that did not reach the hub; the one on the disk is whole."""


def push_to_hub(folder: Path | str, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload the converted checkpoint in a folder, and return the URL of the commit.

    Only the checkpoint's own files are uploaded, not what else lies in the folder; weights that the repository had
    under other names are taken out in the same commit. The loading lines of the card in the folder are changed to load
    `repo_id`.

    Args:
        repo_id: `OWNER/NAME`; created if the hub does not have it.
        private: Whether a new repository is private; None is the owner's default.
        token: None takes `HF_TOKEN` or that of `hf auth login`.

    Raises:
        SaveError: The folder holds no converted checkpoint.
        PushError: The hub cannot be reached or refuses.
    """
    folder = Path(folder)
    files = checkpoint_files(folder)
    check_push(repo_id, token)
    card = folder / CARD
    if CARD in files:
        former = card.read_text(encoding="utf-8")
        named = rename(former, repo_id)
        if named != former:
            partial = card.with_suffix(".partial")
            partial.write_text(named, encoding="utf-8")
            partial.replace(card)
    api = HfApi(token=token)
    try:
        within(_CREATE_TIMEOUT_SECONDS, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        with _under_its_type(folder, files, repo_id) as prepared:
            commit = api.upload_folder(
                folder_path=prepared,
                repo_id=repo_id,
                allow_patterns=[glob.escape(name) for name in files],
                # Weights of an earlier upload under other names would be loaded in place of these.
                delete_patterns=["*.safetensors", "*.safetensors.index.json"],
                commit_message="Upload a checkpoint with a MASFormer plan",
            )
    except Exception as error:  # the client's own, its transport's and OSError
        again = f"the checkpoint is in '{folder}', send it with: masformer push '{folder}' {repo_id}"
        raise PushError(f"{_reason(error, repo_id)}; {again}") from error
    return str(commit.commit_url)


@contextmanager
def _under_its_type(folder: Path, files: Sequence[str], repo_id: str) -> Iterator[Path]:
    """Give the folder, or a copy of one that an earlier version wrote under its architecture's own model type.

    The folder itself stays as it is: runs name the digests of its files.
    """
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    stored = values["masformer"].get("plan")
    plan = None if is_typed(values) or stored is None else SpanPlan.from_json(stored)
    if plan is None or ("auto_map" not in values and computes(AutoConfig.from_pretrained(folder), plan)):
        yield folder
        return
    with TemporaryDirectory() as copy:
        for name in files:
            (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(copy) / name).symlink_to((folder / name).resolve())
        (Path(copy) / CONFIG).unlink()
        write_config(Path(copy) / CONFIG, typed(values))
        card = Path(copy) / CARD
        if card.exists():
            text = card.read_text(encoding="utf-8")
            card.unlink()
            card.write_text(renewed(text, repo_id, plan, has_code="auto_map" in values), encoding="utf-8")
        yield Path(copy)


def check_push(repo_id: str, token: str | None = None) -> None:
    """Raise `PushError` unless the name is valid and the hub answers and knows the token."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushError(f"'{repo_id}' is no name for a repository: {first_line(error)}") from None
    if "/" not in repo_id:
        raise PushError(f"'{repo_id}' names no owner; give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be sent to the hub; unset it")
    if not (token or get_token()):
        raise PushError("there is no hub token; set HF_TOKEN or run: hf auth login")
    try:
        within(HUB_TIMEOUT_SECONDS, lambda: HfApi(token=token).whoami())
    except Exception as error:  # the client's own, its transport's and OSError
        raise PushError(_reason(error, repo_id)) from error


def _reason(error: BaseException, repo_id: str) -> str:
    """Return why an upload failed, and what to do."""
    causes = list(_causes(error))
    statuses = (getattr(getattr(cause, "response", None), "status_code", None) for cause in causes)
    status = next(filter(None, statuses), None)
    if status == 401:
        return "the hub does not accept the token (HTTP 401); set HF_TOKEN to a valid one or run: hf auth login"
    if status == 403:
        return (
            f"the token may not write to {repo_id} (HTTP 403); use one with write access to "
            f"'{repo_id.split('/')[0]}', or another owner"
        )
    if status:
        return f"the hub refuses {repo_id} (HTTP {status}: {first_line(error)}); try again later"
    return f"the hub at {constants.ENDPOINT} cannot be reached or failed ({first_line(causes[-1])}); try again later"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
