"""Losses by a model that is loaded here, with its plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from eval.config.perplexity import PerplexityConfig
from eval.losses.meter import Meter
from eval.losses.readings import Reading
from eval.losses.windows import measure
from eval.records.schema import DocumentLoss, PerplexityIdentity
from eval.runtime.model import describe_weights, open_model
from eval.runtime.processes import start_accelerated
from masformer.loss import check_head


class LocalMeter(Meter):
    """Reads texts with a model of this process.

    Args:
        config: Settings of the measurement.

    Raises:
        UserError: A setting does not fit the model.
        CheckpointError: The reference leads to no usable model.
        PlanError: The plan does not fit it.
    """

    def __init__(self, config: PerplexityConfig) -> None:
        self.process = process = start_accelerated(config.threads)
        torch.manual_seed(config.seed)
        # Plan and positions are checked here; weights come later.
        self.opened = open_model(config, config.plan, process, max(config.maxlen))
        self.checkpoint = self.opened.checkpoint
        self.tokenizer = self.checkpoint.tokenizer
        self.model = self.opened.record
        self.plan = self.opened.plan_json
        self.plan_description = self.opened.plan_description
        self.dtype = self.opened.dtype
        self.threads = process.threads

    def measure(self, readings: Iterable[Reading], record: PerplexityIdentity, folder: Path) -> Iterator[DocumentLoss]:
        loaded = self.opened.load()
        check_head(loaded)
        return measure(readings, loaded, record)

    def describe_model(self) -> str:
        return describe_weights(self.opened.checkpoint)
