"""Errors that many modules raise, and one line of what went wrong."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# As torch says it of CPUs, of mapped files, of Windows, of CUDA and of cuBLAS.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
)
# By dtype; bfloat16 has the range of float32.
_REMEDIES = {
    "float16": "float16 ends at 65,504, and this model needs more: take --dtype bfloat16 or float32",
    "bfloat16": "try --dtype float32, or restore the weights",
}


class OneLineError(ValueError):
    """A mistake that a user can mend, in one line whatever the names and values in it hold."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))


class NumbersError(ValueError):
    """Logits, losses or gradients that are NaN or infinite.

    Args:
        what: What is no number, with its document and length.

    Attributes:
        row: Index of the prompt in its batch, where there is one.
    """

    def __init__(self, what: str, dtype: str, row: int = 0) -> None:
        self.row = row
        remedy = _REMEDIES.get(dtype, "restore the weights, or give other ones")
        super().__init__(f"{what} are no numbers (NaN or infinite) in {dtype}; {remedy}")


class ConversionError(OneLineError):
    """An architecture on which spans would not do what they say, or that needs its prompts in one piece."""


class CheckpointError(OneLineError):
    """A model reference that leads to no usable decoder."""


class SpanError(OneLineError):
    """Attention, its cache or the hook met what it does not compute: a mistake of the caller, or of the probe."""

    is_named = False  # whether the message names the model

    def of(self, config: PreTrainedConfig, *, is_of_caller: bool = False) -> SpanError:
        """Return the error with the name of the model that met it.

        Args:
            is_of_caller: The caller is to change something; else the error asks for a report.
        """
        if self.is_named:
            return self
        name = getattr(config, "name_or_path", "")
        text = f"{config.model_type} model{name and f' {name}'}: {self}"
        shown = name and f" with the output of: python -m masformer show {name}"
        error = SpanError(text if is_of_caller else f"{text}; please report this{shown}")
        error.is_named = True
        return error


@contextmanager
def refusing(kind: type[OneLineError], what: str, reason: Callable[[Exception], str] | None = None) -> Iterator[None]:
    """Turn whatever a library raises, on a broken file or without a package, into one error of a kind.

    It reads `what`, and then `reason` or the first line of what was raised. Errors of that kind, about numbers, and
    of memory that ran out pass as they are.
    """
    try:
        yield
    except (kind, NumbersError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{what} {(reason or first_line)(error)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    # By name, as this module is imported without torch; on a CPU and on some devices torch has no kind for it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def user_message(error: BaseException) -> str | None:
    """Return one line for an error that a user can mend; None for our own bugs."""
    if isinstance(error, (OneLineError, NumbersError)):
        return str(error)
    if is_out_of_memory(error):
        remedy = "use a smaller dtype, shorter or fewer inputs at once, or a machine with more memory"
        return f"memory ran out: {first_line(error)}; {remedy}"
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that says something, or the exception's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
