"""Metrics by name.

    open_metric("diagnostics")
    open_metric("embed")                     # or embed:PATH, an encoder of your own
    open_metric("support")                   # or support:MODEL, a classifier of your own
    open_metric("evaluate:rouge")            # a module of Hugging Face `evaluate`: NAME, NAME/CONFIG, or a path
    open_metric("my_metric.py:NumWords")     # a class or function in a file, called without arguments
    open_metric("bleurt")                    # an entry point in the group `masformer.metrics`

What stands behind the first colon of a built-in name is its argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from eval.errors import UserError
from eval.metrics.base import Metric, check_metric

GROUP = "masformer.metrics"


def _diagnostics(argument: str) -> Metric:
    from eval.metrics.diagnostics import Diagnostics

    if argument:
        raise UserError(f"diagnostics takes nothing behind its name, and got '{argument}'; leave it out")
    return Diagnostics()


def _evaluate(argument: str) -> Metric:
    from eval.metrics.from_evaluate import EvaluateModule

    return EvaluateModule(argument)


def _embed(argument: str) -> Metric:
    from eval.metrics.embed import Embed

    return Embed(argument)


def _support(argument: str) -> Metric:
    from eval.metrics.support import open_support

    return open_support(argument)


# What opens each built-in metric, given its argument. Imports are within, so that no name costs the time of others.
BUILT_IN: dict[str, Callable[[str], Metric]] = {
    "diagnostics": _diagnostics,
    "embed": _embed,
    "evaluate": _evaluate,
    "support": _support,
}


def open_metric(name: str, others: Mapping[str, Callable[[str], Metric]] = MappingProxyType({})) -> Metric:
    """Return a metric by its name.

    Args:
        name: As `--metrics` has it.
        others: What opens metrics of rooms above this one, by kind, given their argument.

    Raises:
        UserError: No metric has the name, or it cannot be opened here.
    """
    kind, _, argument = name.partition(":")
    file, _, attribute = name.rpartition(":")
    if maker := BUILT_IN.get(kind) or others.get(kind):
        metric: Any = maker(argument)
    elif file.endswith(".py") and attribute:
        metric = _made_by(_in_file(Path(file), attribute), name)
    elif found := entry_points(group=GROUP, name=name):
        [*_, point] = found
        try:
            metric = _made_by(point.load(), name)
        except ImportError as error:
            raise UserError(f"metric {name} of the entry point {point.value} cannot be imported: {error}") from error
    else:
        known = [*BUILT_IN, *others, *sorted(entry_points(group=GROUP).names)]
        raise UserError(f"there is no metric '{name}'; give {', '.join(known)}, evaluate:NAME, or FILE.py:NAME")
    check_metric(metric)
    return metric  # type: ignore[no-any-return]


def _made_by(found: Any, name: str) -> Metric:
    metric = found() if callable(found) else found
    if not isinstance(metric, Metric):
        raise UserError(f"{name} is {type(metric).__name__}, and no metric; derive it from eval.metrics.base.Metric")
    return metric


def _in_file(file: Path, attribute: str) -> Any:
    """Return what has this name in a Python file, which is run."""
    if not file.is_file():
        raise UserError(f"there is no file {file} with a metric")
    module = ModuleType(f"masformer_metric_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses of the file look their module up
    try:
        # Not by an import, whose cache takes a file that was changed within a second for the former one.
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{file} cannot be run: {error}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{file} has no {attribute}")
    return getattr(module, attribute)
