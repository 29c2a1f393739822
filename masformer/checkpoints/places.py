"""A reference -> where its files are: a package, a GGUF file, a folder, or a commit on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from masformer.checkpoints.files import Listing, list_folder
from masformer.checkpoints.hub import find_on_hub
from masformer.checkpoints.references import SHORT_NAMES, check_reference, package_folder
from masformer.errors import CheckpointError

# Entry points of installed packages that name models.
GROUP = "masformer.models"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a reference leads to.

    Attributes:
        location: Folder (the hub's cache included) or hub id that transformers loads from.
        gguf_file: File name inside the folder; None for safetensors.
        revision: Commit of the hub; None for local files.
        listing: Its files; None for a GGUF file.
        provenance: JSON-ready: `reference`, `source` (`package`, `gguf`, `folder` or `hub`), `files` with their
            `sha256`, or the hub's `revision`.
    """

    location: str
    gguf_file: str | None
    revision: str | None
    listing: Listing | None = None
    provenance: dict[str, Any]

    @property
    def is_adapter(self) -> bool:
        return self.listing is not None and self.listing.is_adapter


def _installed(reference: str) -> str:
    """Return what an installed package calls so, a path or hub id, or the reference itself.

    An entry point is a text, a path, or a function that returns one.
    """
    if reference in SHORT_NAMES or Path(reference).exists():
        return reference
    if not (found := entry_points(group=GROUP, name=reference)):
        return reference
    [*_, point] = found
    try:
        made = point.load()
        made = made() if callable(made) else made
    except Exception as error:  # code of others, which may fail in any way
        raise CheckpointError(
            f"model '{reference}' of the entry point {point.value} cannot be loaded: "
            f"{str(error) or type(error).__name__}; install its package again"
        ) from error
    if not isinstance(made, (str, Path)):
        raise CheckpointError(
            f"model '{reference}' of the entry point {point.value} is a {type(made).__name__}; it must be a path or a "
            "hub id, or return one"
        )
    return str(made)


def locate(reference: str, revision: str | None, *, is_adapter: bool = False) -> Place:
    """Return where a reference leads to. Raises `CheckpointError` where nothing is there."""
    what = "adapter" if is_adapter else "model"
    check_reference(reference, is_adapter=is_adapter)
    if (made := _installed(reference)) != reference:
        check_reference(reference := made, is_adapter=is_adapter)
    location, gguf_file, source = reference, None, "hub"
    if reference in SHORT_NAMES and not is_adapter:
        short = SHORT_NAMES[reference]
        if folder := package_folder(short.package):
            file = short.find(folder)
            location, gguf_file, source = str(file.parent), file.name, "package"
        else:
            location = short.hub_id
    elif reference.endswith(".gguf"):
        file = Path(reference)
        location, gguf_file, source = str(file.parent), file.name, "gguf"
    elif Path(reference).is_dir():
        source = "folder"

    provenance: dict[str, Any] = {"reference": reference, "source": source}
    if revision is not None and source != "hub":
        raise CheckpointError(
            f"{what} '{reference}' is on this machine and has no revision '{revision}'; leave that out"
        )
    listing = None
    if source == "hub":
        provenance["hub_id"] = location
        revision, location, listing = find_on_hub(location, reference, revision, _hint(reference))
        provenance["revision"] = revision
    elif source == "folder":
        listing = list_folder(Path(reference), f"{what} folder '{reference}'")
    return Place(location=location, gguf_file=gguf_file, revision=revision, listing=listing, provenance=provenance)


def _hint(reference: str) -> str:
    if reference in SHORT_NAMES:
        return f"; install its weights with: {SHORT_NAMES[reference].install}"
    return f"; give a folder, a .gguf file, or one of {', '.join(SHORT_NAMES)}"
