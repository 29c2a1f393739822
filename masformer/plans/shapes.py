"""What each layer of an architecture attends with and stores, from the layer's own configuration.

    [first, *_] = layer_shapes(model.config)
    first.num_kv_heads, first.values_a_token

Layers may differ: Gemma 4 has fewer and larger heads where it sees everything, the last layers of Gemma 3n read keys of
earlier ones and store none, and a hybrid has layers that do not attend at all.

Source: `per_layer_config` and `kv_sharing_modes` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Kinds of layers in `layer_types` that have no attention over keys.
_STATES = frozenset({"linear_attention", "conv", "mamba", "recurrent"})
_NO_ATTENTION = _STATES | {"moe", "mlp", "dummy"}
# Kinds that have both.
_BOTH = frozenset({"hybrid", "hybrid_sliding"})
# Heads of window layers over those of the config, where the model's code says so and the config does not.
_HEADS_OF_WINDOWS = {"mimo_v2_flash": 2}

# Models that change what their cache returns; latent attention (DeepSeek) does too.
_CHANGING = frozenset({"diffllama", "jetmoe"})


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The attention of one layer.

    Attributes:
        num_heads: Query heads; 0 in a layer without attention.
        num_kv_heads: Key/value heads; 0 in a layer without attention.
        query_size: Head size of queries and keys.
        value_size: Head size of values.
        latent_size: Values that latent attention stores of a token for all heads; None elsewhere.
        producer: Layer whose keys and values this one reads; None where it stores its own.
    """

    num_heads: int
    num_kv_heads: int
    query_size: int
    value_size: int
    latent_size: int | None = None
    producer: int | None = None

    @property
    def values_a_token(self) -> int:
        """Return how many values the layer's cache holds of a token."""
        if self.producer is not None or not self.num_heads:
            return 0
        return self.latent_size or self.num_kv_heads * (self.query_size + self.value_size)

    @property
    def flops_a_pair(self) -> int:
        """Return the operations of a query and a key that it sees: two products, a multiply and an add each."""
        return 2 * self.num_heads * (self.query_size + self.value_size)


_NOTHING = LayerShape(num_heads=0, num_kv_heads=0, query_size=0, value_size=0)


def layer_shapes(config: PreTrainedConfig) -> tuple[LayerShape, ...]:
    """Return the shape of each layer of a model's decoder, the first layer first."""
    config = config.get_text_config(decoder=True)
    count = int(config.num_hidden_layers)
    layers: Sequence[PreTrainedConfig] = getattr(config, "per_layer_config", None) or [config] * count
    without = layers_without_attention(config)
    windows = {index for index, kind in enumerate(_kinds(config)) if kind == "sliding_attention"}
    producers = shared_layers(config)
    shapes = []
    for index in range(count):
        if index in without or not _num_heads(layers[index]):
            shapes.append(_NOTHING)
            continue
        factor = _HEADS_OF_WINDOWS.get(config.model_type, 1) if index in windows else 1
        shapes.append(_shape_of(layers[index], factor, producers.get(index)))
    return tuple(shapes)


def layers_without_attention(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the layers that no span applies to."""
    return tuple(layer for layer, kind in enumerate(_kinds(config)) if kind in _NO_ATTENTION)


def layers_with_states(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the layers that carry states from token to token: of convolutions, of linear attention, of recurrences."""
    return tuple(layer for layer, kind in enumerate(_kinds(config)) if kind in _STATES | _BOTH)


def _kinds(config: PreTrainedConfig) -> Sequence[str]:
    return getattr(config.get_text_config(decoder=True), "layer_types", None) or ()


def state_bytes(config: PreTrainedConfig, bytes_per_value: int) -> int:
    """Return the bytes of the states that all layers of a model carry for a row; 0 for kinds that are not known.

    Convolutions keep the last inputs in the model's dtype, the others what they have summed up in fp32.

    Source: `conv_dim` and the shapes of recurrent states in the modeling files of transformers 5.23.
    """
    config = config.get_text_config(decoder=True)
    inputs, sums = _state_values(config)
    return len(layers_with_states(config)) * (inputs * bytes_per_value + 4 * sums)


def _state_values(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the values that a layer keeps of its last inputs, and those that it has summed up."""

    def read(*names: str) -> int:
        return next((value for name in names if isinstance(value := getattr(config, name, None), int)), 0)

    if taps := read("cca_time0") + read("cca_time1"):  # Zaya: queries and keys of a convolution, and half a value
        queries, keys, size = read("num_attention_heads"), read("num_key_value_heads"), read("head_dim")
        return (queries + keys) * size * (taps - 2) + keys * size // 2, 0
    kernel = read("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel", "conv_L_cache")
    if heads := read("linear_num_value_heads"):  # gated delta rule: Qwen3-Next, Qwen3.5, OLMo hybrid
        key, value = read("linear_key_head_dim"), read("linear_value_head_dim")
        return (2 * read("linear_num_key_heads") * key + heads * value) * kernel, heads * key * value
    if heads := read("linear_num_heads"):  # Kimi Linear
        size = read("linear_head_dim")
        return 3 * heads * size * kernel, heads * size * size
    if heads := read("mamba_n_heads", "mamba_num_heads"):  # Mamba 2: Granite 4, Falcon-H1, Nemotron-H
        size, state = read("mamba_d_head", "mamba_head_dim"), read("mamba_d_state", "ssm_state_size")
        groups = read("mamba_n_groups", "n_groups")
        return (heads * size + 2 * groups * state) * kernel, heads * size * state
    if inner := read("mamba_expand") * read("hidden_size"):  # Mamba: Jamba
        return inner * kernel, inner * read("mamba_d_state")
    return read("hidden_size") * kernel if hasattr(config, "conv_L_cache") else 0, 0  # LFM2


def shared_layers(config: PreTrainedConfig) -> dict[int, int]:
    """Return the layers that read keys and values of another one, with that one."""
    config = config.get_text_config(decoder=True)
    modes, found = getattr(config, "kv_sharing_modes", None) or [], {}
    producers: dict[str, int] = {}
    for index, mode in enumerate(modes):
        if mode == "store":
            producers[config.layer_types[index]] = index
        elif mode == "reuse":
            found[index] = producers[config.layer_types[index]]
    return found


def changes_states(config: PreTrainedConfig) -> bool:
    """Return whether a model computes its keys or values from what its cache returns, at each step anew."""
    config = config.get_text_config(decoder=True)
    return config.model_type in _CHANGING or bool(getattr(config, "kv_lora_rank", None))


def num_kv_heads(config: PreTrainedConfig) -> int | None:
    """Return the number of key/value heads of a layer; None where layers differ or the config names none."""
    counts = {shape.num_kv_heads for shape in layer_shapes(config) if shape.num_heads}
    return counts.pop() if len(counts) == 1 else None


def _num_heads(layer: PreTrainedConfig) -> int:
    """Return the query heads of a layer, by any name that configs have for them; 0 where none is known."""
    names = ("num_attention_heads", "n_heads", "n_head", "num_heads")
    return next((int(value) for name in names if isinstance(value := getattr(layer, name, None), int)), 0)


def _shape_of(layer: PreTrainedConfig, kv_factor: int, producer: int | None) -> LayerShape:
    heads = _num_heads(layer)
    size = int(getattr(layer, "head_dim", None) or layer.hidden_size // heads)
    kv_heads = getattr(layer, "num_key_value_heads", None)
    if getattr(layer, "multi_query", False) and not getattr(layer, "new_decoder_architecture", False):
        kv_heads = 1  # Falcon, StarCoder
    latent = getattr(layer, "kv_lora_rank", None)
    return LayerShape(
        num_heads=heads,
        num_kv_heads=kv_factor * (kv_heads if isinstance(kv_heads, int) else heads),
        # In multi-head latent attention they differ.
        query_size=int(getattr(layer, "qk_head_dim", None) or size),
        value_size=int(getattr(layer, "v_head_dim", None) or size),
        # What all heads are computed from.
        latent_size=int(latent) + int(layer.qk_rope_head_dim) if latent else None,
        producer=producer,
    )
