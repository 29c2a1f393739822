"""The folder that an engine of its own serves: the checkpoint as it is, or its plan in the library's own settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError

from eval.errors import UserError
from eval.runtime.model import TORCH_DTYPES
from masformer.attention.ways import check_attention_ways
from masformer.checkpoints.native import native_config
from masformer.checkpoints.open import Checkpoint
from masformer.checkpoints.saving import check_space, save_checkpoint
from masformer.convert import apply_plan, native_plan, stored_plan
from masformer.errors import ConversionError
from masformer.plans.spans import PlanError, SpanPlan


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server loads.

    Attributes:
        location: Folder, or hub id.
        revision: Commit of the hub; None for a folder.
    """

    location: str
    revision: str | None = None


class ServedFolder:
    """Says what a server loads, and writes it where it is not there yet.

    Args:
        engine: Name of the engine, for errors.
        checkpoint: Model, without weights.
        plan: Spans that it is to have; None leaves it untouched.
        dtype: Key of `TORCH_DTYPES` for weights that are written.

    Raises:
        UserError: The plan has no form that the engine reads.
    """

    def __init__(self, engine: str, checkpoint: Checkpoint, plan: SpanPlan | None, dtype: str) -> None:
        self.checkpoint = checkpoint
        self.plan = plan
        self.dtype = dtype
        self.is_written = not _is_served_as_it_is(checkpoint, plan)
        if not self.is_written:
            return
        if plan is None:
            raise UserError(
                f"--engine {engine} reads no {'GGUF file' if checkpoint.gguf_file else 'such checkpoint'} as "
                f"'{checkpoint.name}' is, and no plan describes its attention; give its folder"
            )
        try:
            native_config(checkpoint.config, plan)
        except ConversionError as error:
            raise UserError(f"--engine {engine}: {error}, or use --engine local") from error

    @property
    def place(self) -> Served:
        """Return what is loaded, once it is there."""
        if not self.is_written:
            return Served(location=self.checkpoint.location, revision=self.checkpoint.revision)
        return Served(location=str(self._folder()))

    def prepare(self, say: Callable[[str], None]) -> None:
        """Write the native form to the cache folder where it is needed and not there yet.

        Raises:
            CheckpointError: The weights do not load.
            UserError: The disk refuses.
        """
        if not self.is_written:
            return
        folder = self._folder()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "config.json").exists():
                    say(f"writing '{self.checkpoint.name}' with the plan '{self.plan}' for the engine, to {folder}")
                    self._write(folder)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{folder} cannot be written: {reason}; name another XDG_CACHE_HOME") from error

    def _folder(self) -> Path:
        """Return a folder whose name other weights, plans and dtypes do not share."""
        pins = [self.checkpoint.provenance, str(self.plan), self.dtype]
        digest = hashlib.sha256(json.dumps(pins, sort_keys=True).encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        return cache / "masformer" / "served" / f"{Path(self.checkpoint.name).name}-{digest}"

    @torch.no_grad()
    def _write(self, folder: Path) -> None:
        assert self.plan is not None
        check_attention_ways(torch.device("cpu"))
        model = self.checkpoint.load_model(TORCH_DTYPES[self.dtype])
        check_space(folder, sum(weight.nbytes for weight in model.parameters()))
        apply_plan(model, self.plan)
        save_checkpoint(model, self.checkpoint.tokenizer, folder, native=True)


def _is_served_as_it_is(checkpoint: Checkpoint, plan: SpanPlan | None) -> bool:
    """Return whether what lies at the place of a checkpoint computes the plan without masformer."""
    if checkpoint.gguf_file or checkpoint.adapter is not None or stored_plan(checkpoint.config) is not None:
        return False
    try:
        return plan is None or native_plan(checkpoint.config) == plan
    except PlanError:
        return False
