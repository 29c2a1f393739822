"""What measures losses: a model that is loaded here, or a server. A new one is a class and a line in `METERS`.

meter = open_meter(config)  # checks the model and its settings; loads no weights
for line in meter.measure(readings, record, folder):
    ...
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config.perplexity import PerplexityConfig
from eval.losses.readings import Reading
from eval.records.schema import DocumentLoss, ModelRecord, PerplexityIdentity
from eval.runtime.processes import Process

if TYPE_CHECKING:
    from masformer.checkpoints.open import Checkpoint

# Module of each meter and its class there, by engine; imported when it is chosen.
METERS = {
    "local": "eval.losses.local:LocalMeter",
    "endpoint": "eval.engines.losses:ServedMeter",
    "vllm": "eval.engines.losses:ServedMeter",
    "sglang": "eval.engines.losses:ServedMeter",
}


class Meter(ABC):
    """What measures losses; attributes as those of `Backend`.

    Attributes:
        checkpoint: The model, without weights; None where it is a server's own.
        threads: Torch threads, which may move the last digits; None for a server.
    """

    process: Process
    tokenizer: Any
    checkpoint: Checkpoint | None = None
    model: ModelRecord
    plan: list[Any] | None = None
    plan_description = "untouched"
    dtype: str
    threads: int | None = None
    identity: dict[str, Any] | None = None
    server: dict[str, Any] | None = None
    remarks = ""

    @abstractmethod
    def measure(self, readings: Iterable[Reading], record: PerplexityIdentity, folder: Path) -> Iterator[DocumentLoss]:
        """Return the losses of each reading, each line as soon as all of it is measured.

        Args:
            readings: Work of this process, made as it is needed.
            record: How texts are read.
            folder: The output folder.
        """

    @abstractmethod
    def describe_model(self) -> str:
        """Return what pins the weights, for people."""

    @property
    def quantization(self) -> str | None:
        return None if self.checkpoint is None else self.checkpoint.quantization

    def check_tokens(self, texts: Iterable[tuple[str, str, Sequence[int]]]) -> None:
        """Raise `CheckpointError` for a text with tokens that the model has no embedding for.

        Args:
            texts: Name, text and tokens of each; not made where the model has all embeddings.
        """
        if self.checkpoint is None or not self.checkpoint.has_tokens_beyond:
            return
        for where, text, ids in texts:
            self.checkpoint.check_text(text, where)
            self.checkpoint.check_tokens(ids, where)


def open_meter(config: PerplexityConfig) -> Meter:
    """Return what measures under the settings, with everything checked that needs no weights.

    Raises:
        UserError: The model or a setting does not fit.
    """
    module, _, name = METERS[config.engine].partition(":")
    meter: Meter = getattr(importlib.import_module(module), name)(config)
    return meter
