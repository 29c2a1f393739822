"""Libraries in C++ that are compiled when they are first wanted, for what is slow in torch.

They are kept in `~/.cache/masformer`, under names that stand for source, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from masformer.errors import OneLineError
from masformer.hardware import processor_name, vector_instructions
from masformer.tuning import WAYS, choices_file, uncounted

_NEEDED = "avx2"  # AVX-512 implies it
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-w")
_COMPILE_SECONDS = 120


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return what is compiled from a file, from the cache folder if it is there; None where it cannot be compiled."""
    if _missing():
        return None
    compiler = _compiler()
    stamp = Path(compiler[0]).stat()
    parts = [processor_name(), vector_instructions(), *compiler, str(stamp.st_mtime_ns), str(stamp.st_size), *_FLAGS]
    name = hashlib.sha256("\0".join(parts).encode() + source.read_bytes()).hexdigest()[:16]
    file = choices_file().with_name(f"{source.stem}-{name}.so")
    with suppress(OSError):
        return ctypes.CDLL(str(file))
    with uncounted():
        return _compile(compiler, source, file)


def why_not(source: Path) -> str:
    """Return why a library is unavailable; an empty string where it is there, or compiled now."""
    return "" if library(source) else _missing() or "the compiler fails on it"


def require(source: Path, name: str) -> None:
    """Raise a `OneLineError` where `MASFORMER_WAYS` names a way whose library is unavailable."""
    if reason := why_not(source):
        raise OneLineError(f"{WAYS} names '{name}', which this machine does not have: {reason}; leave it out")


def is_watched() -> bool:
    """Return whether tracing, compilation, a dispatch mode or a transform must see torch's operations."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


@functools.cache
def _missing() -> str:
    """Return the missing requirement, or an empty string."""
    if platform.system() != "Linux" or _NEEDED not in vector_instructions().split():
        return "the processor has neither AVX-512 nor AVX2"
    return "" if _compiler() else "no C++ compiler (g++, or what CXX names)"


def _compiler() -> list[str]:
    """Return the compiler's command; empty where there is none."""
    command = os.environ.get("CXX", "g++").split()
    found = shutil.which(command[0]) if command else None
    return [found, *command[1:]] if found else []


def _compile(compiler: list[str], source: Path, file: Path) -> ctypes.CDLL | None:
    """Return the library, compiled into a file that other processes may be writing too; None where that fails."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / file.name
            command = [*compiler, *_FLAGS, "-o", str(target), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
            # Without a folder to keep it in it is compiled again next time.
            return ctypes.CDLL(str(file if _keep(target, file) else target))
    except (OSError, subprocess.SubprocessError):
        return None


def _keep(target: Path, file: Path) -> bool:
    """Return whether the compiled file was put in its place, whole or not at all."""
    partial = file.with_suffix(f".{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as copy:
            copy.write(target.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
        partial.replace(file)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        return False
    return True
