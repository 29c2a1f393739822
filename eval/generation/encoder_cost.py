"""What tokens cost an encoder-decoder: operations, keys and values; from its own configuration.

    size = EncoderDecoderSize(config, bytes_per_value)
    size.attention_flops(num_prompt, num_new)    # None for a kind whose pairs are not known

Counted are the two matrix products of attention for the pairs that a query sees: in the encoder, in the decoder, and
from the decoder to the encoder. Padding inside a model (LED's windows, blocks) is left out, as are spans it computes
and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from transformers import PreTrainedConfig

from eval.generation.groups import Size
from eval.generation.prompt_tree import Node, PromptTree, Tokens
from masformer.checkpoints.encoder_decoders import auto_class


class SeparatePrompts(PromptTree):
    """Prompts that share nothing: what an encoder makes of a token depends on those after it too."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts = prompts
        self.roots = [
            Node(start=0, tokens=_tokens(prompt[:-1]), parent=None, leaves=[leaf])
            for leaf, prompt in enumerate(prompts)
        ]
        self.ends = self.roots

    @property
    def order(self) -> list[int]:
        """Return the prompts by length, the longest first: what does not fit into memory fails at once."""
        return sorted(range(len(self.prompts)), key=lambda leaf: -len(self.prompts[leaf]))


class EncoderDecoderSize(Size):
    """What tokens cost an encoder-decoder.

    Args:
        config: Config of the model.
        bytes_per_value: Bytes of a key or value.
    """

    def __init__(self, config: PreTrainedConfig, bytes_per_value: int) -> None:
        self.config = config
        self.bytes_per_value = bytes_per_value
        with torch.device("meta"):
            model = auto_class(config).from_config(deepcopy(config))
        embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
        outer = {id(layer.weight) for layer in embeddings if layer is not None}
        parts = (model.get_encoder(), model.get_decoder())
        self.encoder: int
        self.decoder: int
        self.encoder, self.decoder = (
            sum(weight.numel() for weight in part.parameters() if weight.ndim > 1 and id(weight) not in outer)
            for part in parts
        )
        self.head = int(config.hidden_size) * int(config.vocab_size)
        self.num_weights = sum(weight.numel() for weight in model.parameters())
        self.values_a_token = 2 * _heads(config)[1] * _layers(config)[1]

    def kind(self, num_tokens: int) -> int:
        """Return a class of lengths: rows of a batch are padded to the longest, to twice their own length at most."""
        return (num_tokens - 1).bit_length()

    def tree(self, prompts: Sequence[Sequence[int]]) -> PromptTree:
        return SeparatePrompts(prompts)

    def prefill(self, start: int, stop: int) -> int:
        return 2 * self.encoder * (stop - start) + self._encoded(stop) - self._encoded(start)

    def decode(self, start: int, num_new: int) -> int:
        return 2 * (self.decoder + self.head) * num_new + self._answered(start, num_new)

    def num_bytes(self, ends: Sequence[Node], num_new: int, copies: int) -> int:
        """Return the bytes of keys and values, those of the encoder's output included, padded to their class."""
        padded = sum(1 << self.kind(end.stop + 1) for end in ends)
        return self.cache_bytes(padded + num_new * len(ends), copies)

    def cache_bytes(self, num_tokens: int, copies: int) -> int:
        """Return the bytes of keys and values of so many tokens of encoder and decoder, in so many rows each."""
        return copies * self.values_a_token * self.bytes_per_value * num_tokens

    def attention_flops(self, num_prompt: int, num_new: Sequence[int]) -> int | None:
        """Return the operations of attention for a prompt and samples of so many tokens; None if pairs are unknown."""
        if encoder_pairs(self.config, num_prompt) is None:
            return None
        return self._encoded(num_prompt) + sum(self._answered(num_prompt, each) for each in num_new)

    def _encoded(self, num_tokens: int) -> int:
        """Return the operations of the encoder's attention; as if it were full where its pairs are not known."""
        pairs = encoder_pairs(self.config, num_tokens)
        return 4 * _heads(self.config)[0] * (_layers(self.config)[0] * num_tokens**2 if pairs is None else pairs)

    def _answered(self, num_prompt: int, num_new: int) -> int:
        """Return the operations of the decoder's attention, to itself and to the encoder."""
        pairs = num_new * (num_new + 1) // 2 + num_new * num_prompt
        return 4 * _heads(self.config)[1] * _layers(self.config)[1] * pairs


def encoder_pairs(config: PreTrainedConfig, num_tokens: int) -> int | None:
    """Return the pairs of a query and a key that it sees, in all layers of an encoder; None for unknown ones.

    Source: the masks of `modeling_led.py`, `modeling_longt5.py` and `modeling_pegasus_x.py` of transformers 5.23.
    """
    layers, n, kind = _layers(config)[0], num_tokens, str(config.model_type)
    if kind == "led":
        windows: int | list[int] = config.attention_window
        each = windows if isinstance(windows, list) else [windows] * layers
        # The first token sees all and is seen by all.
        return sum(_near(n, window // 2) + 2 * max(n - 1 - window // 2, 0) for window in each)
    if kind == "longt5":
        is_global = config.encoder_attention_type == "transient-global"
        num_global = n // int(config.global_block_size) if is_global else 0
        return layers * (_near(n, int(config.local_radius)) + n * num_global)
    if kind == "pegasus_x":
        block, own = int(config.block_size), int(config.num_global_tokens)
        # Blocks of every other layer begin half a block earlier.
        shifts = [block // 2 * (layer % 2) if config.stagger_local_blocks else 0 for layer in range(layers)]
        return sum(_in_blocks(n, block, shift) + n * own + own * (n + own) for shift in shifts)
    if kind == "bigbird_pegasus" and config.attention_type != "original_full":
        return None
    return layers * n * n


def _near(num_tokens: int, radius: int) -> int:
    """Return the pairs at most `radius` apart, on both sides."""
    reach = min(radius, num_tokens - 1)
    return num_tokens * (2 * reach + 1) - reach * (reach + 1)


def _in_blocks(num_tokens: int, block: int, shift: int) -> int:
    """Return the pairs within blocks, the first of which lacks its first `shift` tokens."""
    first = min(block - shift, num_tokens) if shift else 0
    whole, last = divmod(num_tokens - first, block)
    return first**2 + whole * block**2 + last**2


def _layers(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the layers of encoder and decoder."""
    if hasattr(config, "encoder_layers"):
        return int(config.encoder_layers), int(config.decoder_layers)
    return int(config.num_layers), int(config.num_decoder_layers)


def _heads(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the values of a token in all heads of a layer, in encoder and decoder."""
    if hasattr(config, "d_kv"):
        return int(config.num_heads) * int(config.d_kv), int(config.num_heads) * int(config.d_kv)
    return int(config.d_model), int(config.d_model)


def _tokens(prompt: Sequence[int]) -> Tokens:
    return np.asarray(prompt, dtype=np.int32)
