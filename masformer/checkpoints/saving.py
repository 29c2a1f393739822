"""A checkpoint on the disk: written aside, then moved into place with `config.json` last.

    save_checkpoint(model, tokenizer, "smollm2-mas")

While the folder holds no `config.json`, nothing takes it for a checkpoint. So a kill or a full disk leaves the former
checkpoint, or none, and never half of one. `config.json` names the files of the checkpoint (`masformer.files`), so that
a later one replaces these and no other.

A plan that the architecture's own code does not compute gets masformer's own model type (`masformer.model_type`), so
that nothing loads the folder as full attention without a word.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from masformer.checkpoints.card import Origin, model_card
from masformer.checkpoints.native import native_config, prove
from masformer.convert import native_plan, stored_plan
from masformer.errors import OneLineError
from masformer.hardware import dtype_name
from masformer.model_type import typed
from masformer.plans.spans import PlanError, SpanPlan

CONFIG = "config.json"
CARD = "README.md"
COST = "masformer_cost.json"
# Folders in which a checkpoint is prepared, and in them the config of the one that is being replaced.
_STAGE = ".masformer-partial-"
_FORMER = "former-config.json"
# Of any checkpoint: left behind, they would be loaded in place of the new ones.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


class SaveError(OneLineError):
    """A folder that a checkpoint cannot be written to."""


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    state: Mapping[str, Tensor] | None = None,
    *,
    name: str | None = None,
    origin: Origin | None = None,
    cost: Mapping[str, Any] | None = None,
    native: bool = False,
) -> None:
    """Write weights (safetensors), config with the plan, tokenizer and a model card to a folder.

    Files of a checkpoint that is already there are replaced; other files stay.

    Args:
        state: Weights to write; None is the model's.
        name: What the card calls it: a hub id; None is the name of the folder.
        cost: Goes to the card and to `masformer_cost.json`.
        native: Say the plan in transformers' own settings; the weights are the model's.

    Raises:
        ConversionError: There is no native form, or it does not compute the same; what was there before is whole.
        OSError, safetensors.SafetensorError: The disk is full, or refuses.
    """
    folder = Path(folder)
    plan = stored_plan(model.config)
    form = native_config(model.config, plan) if native and plan is not None else None
    is_own = plan is None or form is not None or computes(model.config, plan)
    with _staged(folder) as stage:
        model.save_pretrained(stage, state_dict=None if state is None else dict(state))
        tokenizer.save_pretrained(stage)
        called, dtype = name or folder.resolve().name, dtype_name(model.dtype)
        has_code = bool(getattr(model.config, "auto_map", None))
        card = model_card(called, plan, origin, cost, dtype, needs_masformer=not is_own, has_code=has_code)
        (stage / CARD).write_text(card, encoding="utf-8")
        if cost is not None:
            (stage / COST).write_text(json.dumps(cost, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if form is not None:
            form.masformer = {}
            form.save_pretrained(stage)
        config = json.loads((stage / CONFIG).read_text(encoding="utf-8"))
        if "masformer" in config:
            config["masformer"]["files"] = _names(stage)
            write_config(stage / CONFIG, config if is_own else typed(config))
        if form is not None and plan is not None:
            prove(stage, model, tokenizer, plan)


def write_config(file: Path, config: Mapping[str, Any]) -> None:
    """Write a config.json."""
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def computes(config: PreTrainedConfig, plan: SpanPlan) -> bool:
    """Return whether the architecture's own code, without masformer, computes what a plan says."""
    try:
        return native_plan(config) == plan
    except PlanError:
        return False


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise `SaveError` for a folder that holds other things, cannot be made, or may not be written to."""
    if folder.exists() and not folder.is_dir():
        raise SaveError(f"--output {folder} is a file; give a folder")
    above = _nearest(folder)
    if not above.is_dir():
        raise SaveError(f"--output {folder} cannot be made: '{above}' is a file; choose another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise SaveError(f"--output {folder} cannot be written: '{above}' gives no permission; choose another folder")
    try:
        existing = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except PermissionError:
        raise SaveError(f"--output {folder} cannot be read; choose another folder") from None
    if all(name.startswith(_STAGE) for name in existing):
        return
    if not overwrite:
        raise SaveError(
            f"--output {folder} is not empty; choose another folder, or pass --overwrite to replace the converted "
            "checkpoint in it"
        )
    if not _owned(folder):
        raise SaveError(
            f"--output {folder} holds no converted checkpoint ({existing[0]} is there), and --overwrite replaces "
            "nothing else; choose another folder"
        )


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise `SaveError` unless the disk of a folder has room for that many bytes."""
    free = shutil.disk_usage(_nearest(folder)).free
    if free < num_bytes:
        raise SaveError(
            f"--output {folder} needs {num_bytes / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB left; make "
            "room, or choose another folder"
        )


def checkpoint_files(folder: Path) -> list[str]:
    """Return the files of the converted checkpoint in a folder. Raises `SaveError` if it is absent or incomplete."""
    files = _listed(folder, folder / CONFIG)
    if not files:
        raise SaveError(f"folder '{folder}' holds no converted checkpoint; make one with: masformer convert")
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise SaveError(f"the checkpoint in '{folder}' lacks {', '.join(absent)}; convert it again")
    return files


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write to, and move what it then holds into `folder`."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    # Inside, so that moving is renaming, and so that what a kill leaves behind is found and known to be ours.
    stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=folder))
    try:
        yield stage
        follow_umask(stage)
        for name in _names(stage):
            with (stage / name).open("rb") as stream:
                os.fsync(stream.fileno())
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
    _move(stage, folder)


def follow_umask(folder: Path) -> None:
    """Give the files of a folder the mode of new files: safetensors writes them for their owner alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode & 0o777)


def _move(stage: Path, folder: Path) -> None:
    names = [name for name in _names(stage) if name != CONFIG]
    former = _owned(folder) | {path.name for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)}
    if (folder / CONFIG).exists():
        (folder / CONFIG).replace(stage / _FORMER)
    for name in former.difference(names, [CONFIG]):
        (folder / name).unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (stage / name).replace(folder / name)
    _sync_names(folder)  # before a config says that they are there
    (stage / CONFIG).replace(folder / CONFIG)
    _sync_names(folder)
    for left in folder.glob(f"{_STAGE}*"):
        shutil.rmtree(left, ignore_errors=True)


def _sync_names(folder: Path) -> None:
    """Wait until the names in a folder, and in those within it, are on the disk, where its file system can say so."""
    for path in (folder, *(one for one in folder.rglob("*") if one.is_dir())):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _owned(folder: Path) -> set[str]:
    """Return the names of files in a folder that belong to its converted checkpoint, or to one that a kill cut off."""
    stages = [path for path in folder.glob(f"{_STAGE}*") if path.is_dir()]
    configs = [folder / CONFIG, *(stage / name for stage in stages for name in (CONFIG, _FORMER))]
    return {name for config in configs for name in _listed(folder, config)}


def _listed(folder: Path, config: Path) -> list[str]:
    """Return the files that a config names, those left out that are not inside the folder."""
    try:
        files = json.loads(config.read_text(encoding="utf-8"))["masformer"]["files"]
        inside = folder.resolve()
        return [name for name in files if (folder / name).resolve().is_relative_to(inside)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _names(stage: Path) -> list[str]:
    return sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
