"""The profiles as a metric of Hugging Face `evaluate`: ROUGE, F1 of answers, exact match; nothing is fetched.

    rouge = evaluate.load("eval/rouge_metric.py", "scrolls")
    rouge.compute(predictions=["a cat sat"], references=[["the cat sat", "a cat was sitting"]])
    -> {"rouge1": 0.66, "rouge2": ..., "rougeL": ..., "rougeLsum": ..., "geometric": ...}

`evaluate` copies this file and runs the copy, so it finds the rest by the name of its package: the checkout must be
installed (`pip install -e .`) or be the folder that Python starts in.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import datasets
import evaluate

_INPUTS = """
Args:
    predictions: The texts to score.
    references: For each a text, or a list of texts, of which the best counts, metric by metric.
    use_aggregator: True for means over the examples, False for a list with the score of each.
    use_stemmer: For scripts that say so: an error where the profile does otherwise.
Returns:
    Each metric as a fraction; where the profile ranks by several, also their geometric mean.
"""


def _profiles() -> ModuleType:
    # Looked up by name: `evaluate` takes an import statement for a package of that name that pip could fetch.
    try:
        return importlib.import_module("eval.scoring.profiles")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; run `pip install -e .` in the checkout that holds eval/rouge_metric.py, or start Python there"
        ) from error


class Profiles(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Scores by the profile that `config_name` names; `hf` without one."""

    config_name: str

    def _info(self) -> evaluate.MetricInfo:
        profiles = _profiles().PROFILES
        if self.config_name == "default":
            self.config_name = next(iter(profiles))
        if self.config_name not in profiles:
            raise ValueError(f"no profile '{self.config_name}'; choose from: {', '.join(profiles)}")
        profile = profiles[self.config_name]
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{', '.join(profile.metrics)} as in {profile.source}"
            + (f"; sentences: {profile.sentences}" if profile.sentences else ""),
            citation="",
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _warn(self, name: str, references: Sequence[str | Sequence[str]]) -> None:
        """Warn where the profile loses letters: a script that calls it sees the scores alone."""
        letters = importlib.import_module("eval.scoring.letters")
        texts = [text for one in references for text in ([one] if isinstance(one, str) else one)]
        for note in letters.describe_letters("the references", name, letters.count_letters(name, texts)):
            warnings.warn(note, stacklevel=3)

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        use_aggregator: bool = True,
        use_stemmer: bool | None = None,
    ) -> dict[str, Any]:
        known = _profiles()
        name = self.config_name
        profile = known.PROFILES[name]
        if use_stemmer not in (None, profile.use_stemmer):
            setting = "on" if profile.use_stemmer else "off"
            raise ValueError(f"use_stemmer is {use_stemmer}, and profile {name} has it {setting}; leave it out")
        self._warn(name, references)
        scores = []
        for number, (prediction, texts) in enumerate(zip(predictions, references, strict=True), start=1):
            if not texts and not isinstance(texts, str):
                raise ValueError(f"example {number} has no reference; give each at least one")
            scores.append(known.score_prediction(name, prediction, [texts] if isinstance(texts, str) else texts))
        if not use_aggregator:
            return {metric: [score[metric] for score in scores] for metric in profile.metrics}
        means = {metric: sum(score[metric] for score in scores) / len(scores) for metric in profile.metrics}
        if len(profile.headline) > 1:
            means["geometric"] = known.headline_score(name, means)
        return means
