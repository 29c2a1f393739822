"""A module of Hugging Face `evaluate` as a metric: `evaluate:rouge`, `evaluate:glue/mrpc`, `evaluate:my/module.py`.

A module that is no path comes from the hub, and from its cache without network. It scores one pair at a time, so that
each prediction has scores: of several references the best counts, unless the module takes them all at once.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions, version
from numbers import Real
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.metrics.base import EXTRACTS, Item, Metric, Scores, Value

_PROBE = "one two three four five"


def _share(label: str) -> Value:
    return Value(label=label, title=label)


# What values of known modules can be. Others may be anything, and claim nothing.
_KNOWN = {name: _share(name) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "meteor", "bleu")}
_KNOWN |= {
    "google_bleu": _share("google_bleu"),
    "wer": Value(label="wer", title="Word error rate", high=math.inf, better="lower"),
    "cer": Value(label="cer", title="Character error rate", high=math.inf, better="lower"),
}


class EvaluateModule(Metric):
    """A module that scores pairs of texts."""

    version = 1
    needs = frozenset({"references"})
    reads = frozenset({"references", EXTRACTS})

    def __init__(self, argument: str) -> None:
        """Open a module.

        Args:
            argument: NAME, NAME/CONFIG, or the path of a module's file or folder, with /CONFIG behind it if it has one;
                of a module of a user of the hub USER/NAME/, with CONFIG behind the last slash.

        Raises:
            UserError: There is no such module here, or it scores no pairs of texts.
        """
        path, config = _parts_of(argument)
        # Without folders, so that the same module has the same name on every machine; its digest tells others apart.
        name = Path(path).stem if Path(path).exists() else path
        self.name = f"evaluate:{name}" + (f"/{config}" if config else "")
        try:
            import evaluate
        except ImportError as error:
            raise UserError(f"{self.name} needs the package evaluate: pip install evaluate") from error
        try:
            self._module: Any = evaluate.load(path, config)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"{self.name} cannot be opened: {error} Give the path of a module, or its name where the hub can be "
                "reached"
            ) from error
        features = self._module.features
        either = features if isinstance(features, list) else [features]
        self._takes_all = any(not _is_text(one["references"]) for one in either)
        self._options = {"use_aggregator": False} if "use_aggregator" in _arguments(self._module) else {}
        try:
            found = self._compute(_PROBE, [_PROBE])
        except Exception as error:  # a module may raise anything for what it does not expect
            raise UserError(f"{self.name} scores no pairs of texts: {type(error).__name__}: {error}") from error
        if not found:
            raise UserError(f"{self.name} gives no number for a pair of texts")
        self.values: Mapping[str, Value] = {name: _KNOWN.get(name, _unknown(name)) for name in found}

    def provenance(self) -> dict[str, Any]:
        """Return the digest of the module, and the versions of `evaluate` and of the packages that it imports."""
        source = Path(inspect.getfile(type(self._module))).read_bytes()
        return {"module_sha256": hashlib.sha256(source).hexdigest(), "packages": _versions(source)}

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        return [self._score(item) for item in batch]

    def _score(self, item: Item) -> Scores:
        groups = [list(item.references)] if self._takes_all else [[one] for one in item.references]
        try:
            rows = [self._compute(item.prediction, group) for group in groups]
        except Exception as error:  # a module may raise anything for what it does not expect
            if not item.prediction.strip():  # many divide by its length
                return dict.fromkeys(self.values)
            raise UserError(
                f"{self.name} fails at the answer {item.prediction[:40]!r}: {type(error).__name__}: {error}"
            ) from error
        scores: Scores = {}
        for name, value in self.values.items():
            found = [row[name] for row in rows if name in row]
            scores[name] = None if not found else min(found) if value.better == "lower" else max(found)
        return scores

    def _compute(self, prediction: str, references: list[str]) -> dict[str, float]:
        """Return all single numbers that the module gives for a pair."""
        given: Any = [references] if self._takes_all else references
        # `compute` writes the texts into a table on the disk first, which takes most of the time of a pair.
        result = self._module._compute(predictions=[prediction], references=given, **self._options)
        found = result if isinstance(result, Mapping) else {self._module.name: result}
        single = {
            name: value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
            for name, value in found.items()
        }
        return {name: float(value) for name, value in single.items() if isinstance(value, Real)}


def _unknown(name: str) -> Value:
    return Value(label=name, title=name, low=-math.inf, high=math.inf, better=None, is_share=False)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) == "string" and not isinstance(feature, (list, dict))


def _arguments(module: Any) -> Mapping[str, Any]:
    return inspect.signature(module._compute).parameters


def _parts_of(argument: str) -> tuple[str, str | None]:
    """Return name or path of a module, and its configuration."""
    if not argument:
        raise UserError("evaluate: names no module; give evaluate:NAME, such as evaluate:rouge")
    head, _, config = argument.rpartition("/")
    if Path(argument).exists() or not head:
        return argument, None
    return head, config or None


def _versions(source: bytes) -> dict[str, str]:
    """Return the versions of the packages that a module's source imports, by name."""
    names = {"evaluate"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    packages = packages_distributions()
    found = {package for name in names for package in packages.get(name, [])}
    return {package: version(package) for package in sorted(found)}
