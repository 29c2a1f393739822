"""Run any task of lm-evaluation-harness on a conversion: its own command line, with one more model, `masformer`.

    python -m eval.harness --model masformer --model_args pretrained=MODEL,plan="middle:8 span=1024" --tasks TASK,TASK

`pretrained` takes what `--model` takes in this suite, and `plan` what `--plan` takes. All else is its own; see
docs/harness.md.

From its release 0.4.14 on, its own command `lm_eval` finds the model too, by an entry point. Here a plan needs no
quotes, and a mistake ends in one line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from eval.errors import UserError
from eval.runtime.jobs import command
from eval.runtime.processes import check_launch, set_threads

MODEL_NAME = "masformer"
# A plan that is not quoted, up to the next argument: in a plan, what follows a comma is a number.
_BARE_PLAN = re.compile(r"(?<![^,=])plan=(?![\"'])(.*?)(?=,\s*[A-Za-z_]+=|$)")


def register() -> None:
    """Make `masformer` a model of lm-evaluation-harness of this process, for `simple_evaluate` too."""
    import lm_eval.models  # noqa: F401  its own models, which it only registers where no other is registered yet
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target="eval.interop.lm_eval_model:MasformerLM")


def quote_plan(argument: str) -> str:
    """Return an argument of `--model_args` with quotes around its plan, whose commas would part it otherwise."""
    return _BARE_PLAN.sub(r'plan="\1"', argument)


@command()
def main(argv: Sequence[str]) -> None:
    """Run its command line; what is wrong with the model is an error of one line."""
    if find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; pip install 'masformer[harness]'")
    from lm_eval.__main__ import cli_evaluate

    check_launch(os.environ)
    register()
    if not {"-h", "--help"} & set(argv):
        set_threads(None, os.environ)  # imports torch
    sys.argv = ["lm_eval", *map(quote_plan, argv)]
    try:
        cli_evaluate()
    except ValueError as error:
        # lm-evaluation-harness has no class for it.
        if not str(error).startswith("Tasks not found"):
            raise
        raise UserError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
