"""Low-rank adapters through peft: put on a model, and added to its weights for a checkpoint.

Source: LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from eval.config.finetune import ALL_LINEAR, TrainConfig
from eval.errors import UserError
from eval.records.schema import ModelRecord

ADAPTER = "default"


def check_targets(targets: Sequence[str], config: PreTrainedConfig, *, trust_remote_code: bool) -> None:
    """Raise `UserError` for a name of `--lora-targets` that no linear layer of the model has; reads no weights."""
    if tuple(targets) == (ALL_LINEAR,):
        return
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    # The loss reads the output layer's weights themselves.
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings()
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"--lora-targets names '{target}', which no linear layer of its decoder is called: {known}")


def add_adapters(model: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str], base: ModelRecord) -> PeftModel:
    """Put trainable adapters on the model in place, freeze the rest, and return peft's view of it.

    Args:
        model: Decoder.
        rank: Rank of the adapters.
        alpha: Scale of the adapters.
        targets: Modules that get adapters.
        base: What the adapters name as their base.
    """
    names: Any = ALL_LINEAR if tuple(targets) == (ALL_LINEAR,) else list(targets)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM")
    # Weights stay in their own dtype: they are float32, and so are the adapters.
    adapters = get_peft_model(model, settings, autocast_adapter_dtype=False)
    # peft would name the folder of a package or of a cache.
    about = adapters.peft_config[ADAPTER]
    about.base_model_name_or_path, about.revision = base.hub_id or base.reference, base.revision
    return adapters


def merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the adapters added to the weights.

    Args:
        model: Model with adapters; its layers give the scale, its weights are not read.
        state: Whole state dict of that model.
    """
    merged = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            low, high = (state[f"{name}.lora_{side}.{ADAPTER}.weight"].float() for side in "AB")
            added = high @ low * module.scaling[ADAPTER]
            if getattr(module, "fan_in_fan_out", False):
                added = added.T
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = (weight.float() + added).to(weight.dtype)
    return merged


def trainable_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def num_trainable(model: nn.Module) -> tuple[int, int]:
    """Return how many numbers are trained, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def num_trained(config: TrainConfig, decoder: PreTrainedConfig) -> int:
    """Return how many numbers a training with these settings trains; no weights are made."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(decoder, trust_remote_code=config.trust_remote_code)
        if config.lora_rank:
            base = ModelRecord(reference="", source="")
            add_adapters(model, config.lora_rank, config.lora_alpha or 1, config.lora_targets, base)
    return num_trainable(model)[0]
