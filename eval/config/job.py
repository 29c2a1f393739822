"""Options that several scripts share: model, attention spans, machine and output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config.checks import path, positive, switch
from eval.config.data import DataOptions
from eval.config.options import Group
from eval.errors import UserError
from eval.prompting.truncation import POLICIES

# Names that masformer knows; importing it would import torch.
SHORT_NAMES = ("smollm2-135m", "gemma3-270m")
DTYPES = ("float32", "bfloat16", "float16", "float64")
QUANTIZERS = ("4bit", "8bit")


def dtype_option(help: str = "type of weights and computation") -> Any:
    return Group.MODEL.option(None, help, choices=DTYPES, unset="bfloat16 on a GPU, float32 on a CPU")


def plan_option() -> Any:
    return Group.SPANS.option(
        "auto",
        "auto (the plan that the checkpoint carries, else its architecture's own), a .json file, or full, local, "
        "bottom:N, middle:N, top:N, every:N or full@LAYERS, then span=N sinks=N or block=N previous=N sinks=N",
        metavar="PLAN",
    )


def extrapolation_option() -> Any:
    return Group.SPANS.option(False, "allow a maxlen beyond the positions that the model was trained on", switch)


def truncation_option(group: Group) -> Any:
    return group.option(
        "head",
        "what is kept of a context that is too long: its beginning (head), both ends (middle: the middle is dropped), "
        "its end (tail)",
        choices=tuple(POLICIES),
    )


def trackers_option() -> Any:
    return Group.OUTPUT.option((), "trackers of accelerate: tensorboard, wandb, trackio, ...", nargs="+", collect=tuple)


@dataclass(frozen=True, kw_only=True)
class JobOptions(DataOptions):
    """What is read, by which model, and where the results go."""

    model: str = Group.MODEL.option(
        "smollm2-135m",
        f"hub id, folder, .gguf file, or {', '.join(SHORT_NAMES)}",
        metavar="REF",
        unset="smollm2-135m, or the base of --adapter",
    )
    model_revision: str | None = Group.MODEL.option(
        None, "branch, tag or commit of a model on the hub", metavar="REV", unset="its main branch"
    )
    adapter: str | None = Group.MODEL.option(
        None, "LoRA adapter of the model: a folder, or a hub id; it is added to the weights", metavar="REF"
    )
    adapter_revision: str | None = Group.MODEL.option(
        None, "branch, tag or commit of an adapter on the hub", metavar="REV", unset="its main branch"
    )
    quantize: str | None = Group.MODEL.option(
        None, "round weights to 4 or 8 bits as they load, by bitsandbytes", choices=QUANTIZERS, unset="as stored"
    )
    dtype: str | None = dtype_option()
    trust_remote_code: bool = Group.MODEL.option(False, "run code that comes with the checkpoint", switch)
    output: Path | None = Group.OUTPUT.option(None, "folder that is written", path, unset="a name under runs/")
    threads: int | None = Group.MACHINE.option(
        None, "torch threads of each process", positive, unset="the cores, shared among local processes"
    )

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let an adapter without a model stand for both: it names its base."""
        if values.get("adapter_revision") is not None and values.get("adapter") is None:
            revision = values["adapter_revision"]
            raise UserError(f"--adapter-revision {revision} is that of --adapter, which is not given; leave it out")
        if values.get("adapter") is None or "model" in values:
            return values
        if values.get("model_revision") is not None:
            raise UserError(
                f"--model-revision {values['model_revision']} is that of --model, which is not given; give it, or "
                "--adapter-revision for the adapter"
            )
        alone = {"model": values["adapter"], "model_revision": values.get("adapter_revision")}
        return values | alone | {"adapter": None, "adapter_revision": None}
