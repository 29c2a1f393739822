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

from transformers import PreTrainedConfig

# Kinds of layers in `layer_types` that have no attention over keys.
_NO_ATTENTION = frozenset({"linear_attention", "conv", "mamba", "moe", "mlp", "recurrent"})
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
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * count)
    producers = shared_layers(config)
    shapes = []
    for index in range(count):
        if kinds[index] in _NO_ATTENTION or not _num_heads(layers[index]):
            shapes.append(_NOTHING)
            continue
        factor = _HEADS_OF_WINDOWS.get(config.model_type, 1) if kinds[index] == "sliding_attention" else 1
        shapes.append(_shape_of(layers[index], factor, producers.get(index)))
    return tuple(shapes)


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
