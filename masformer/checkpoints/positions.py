"""Positions beyond those that a model was trained on: rotary ones by scaling, a learned table by copying.

    config = extended_config(checkpoint.config, 16384, "yarn")    # written into config.json with the model
    model = extend_table(model, 16384)                            # learned positions, on the loaded model

Source: `ROPE_INIT_FUNCTIONS` in `modeling_rope_utils.py` of transformers 5.23 for `linear` and `yarn`; a table that
repeats itself as in Longformer's conversion of RoBERTa (arXiv 2004.05150, section 5).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from masformer.checkpoints.open import has_learned_positions, max_positions
from masformer.convert import text_config
from masformer.errors import OneLineError

# How to extend, and what is extended so.
EXTENSIONS = {"linear": "rotary positions", "yarn": "rotary positions", "copy": "a learned table"}
# What configs call the length of a learned table.
_TABLE_LENGTHS = ("max_position_embeddings", "n_positions")


class PositionError(OneLineError):
    """Positions that cannot be extended as asked."""


def extended_config(config: PreTrainedConfig, num_positions: int, how: str) -> PreTrainedConfig:
    """Return a config for `num_positions` positions; `how` is a key of `EXTENSIONS`.

    Raises:
        PositionError: The model's positions are of another kind, or are scaled already.
    """
    known, is_table = max_positions(config), has_learned_positions(config)
    if known is None or num_positions <= known:
        return config
    config = deepcopy(config)
    inner = text_config(config)
    if is_table != (how == "copy"):
        kind = "a learned table of positions, extended by 'copy'" if is_table else "no learned table of positions"
        raise PositionError(f"{config.model_type} models have {kind}; '{how}' does not apply to them")
    if is_table:
        for name in _TABLE_LENGTHS:
            if hasattr(inner, name):
                setattr(inner, name, num_positions)
        return config
    former = getattr(inner, "rope_parameters", None)
    if not isinstance(former, dict) or "rope_theta" not in former:
        raise PositionError(f"{config.model_type} models have rotary positions of several kinds, which are not scaled")
    if former.get("rope_type", "default") != "default":
        raise PositionError(f"the rotary positions of this model are scaled already ({former['rope_type']})")
    inner.rope_parameters = former | {
        "rope_type": how,
        "factor": num_positions / known,
        "original_max_position_embeddings": known,
    }
    inner.max_position_embeddings = num_positions
    return config


def extend_table(model: PreTrainedModel, num_positions: int) -> PreTrainedModel:
    """Return the model with `num_positions` learned positions, its own over and over. Raises `PositionError`."""
    known = max_positions(model.config)
    assert known is not None
    # OPT keeps its entries behind two others.
    tables = {
        name: module.num_embeddings - known
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and name.endswith(("wpe", "embed_positions", "position_embeddings"))
        and module.num_embeddings - known in (0, 2)
    }
    if len(tables) != 1:
        raise PositionError(f"{model.config.model_type} models have {len(tables)} tables of positions; one is expected")
    (name, behind), *_ = tables.items()
    config = extended_config(model.config, num_positions, "copy")
    longer: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    wanted = {key for key, _ in longer.named_parameters(remove_duplicate=False)}
    state: dict[str, Any] = {key: value for key, value in model.state_dict().items() if key in wanted}
    table: Tensor = state[f"{name}.weight"]
    copies = torch.arange(num_positions, device=table.device) % known + behind
    state[f"{name}.weight"] = torch.cat([table[:behind], table[copies]])
    missing = wanted.intersection(longer.load_state_dict(state, strict=False).missing_keys)
    assert not missing, missing
    longer.generation_config = model.generation_config
    return longer.to(model.device).eval()
