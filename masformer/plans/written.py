"""A plan as a person gives it, before there is a model that it must fit."""

from __future__ import annotations

import json
from pathlib import Path

from masformer.plans.spans import PlanError, SpanPlan
from masformer.plans.text import check_form


def check_written(text: str) -> None:
    """Raise `PlanError` for a text that is a plan of no model, and for a .json file that holds none."""
    if text.endswith(".json"):
        plan_in_file(text)
    else:
        check_form(text)


def plan_in_file(name: str) -> SpanPlan:
    """Return the plan of a file with what `SpanPlan.to_json` returns, alone or as `plan` of an object.

    Raises:
        PlanError: The file cannot be read, or holds no plan.
    """
    try:
        stored = json.loads(Path(name).read_text(encoding="utf-8"))
        if isinstance(stored, dict):
            if "plan" not in stored:
                raise PlanError("it holds an object without 'plan'")
            stored = stored["plan"]
        return SpanPlan.from_json(stored)
    except OSError as error:
        raise PlanError(f"plan file '{name}' cannot be read: {error.strerror or error}; give another") from None
    except PlanError as error:
        raise PlanError(f"plan file '{name}': {error}") from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan file '{name}' is no JSON: {error}") from None
