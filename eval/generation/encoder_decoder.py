"""Encoder-decoders: the engine of this suite for models whose prompt goes through an encoder, such as LED.

An encoder's tokens see those after them, so prompts share no prefill. Each is encoded alone: what an encoder makes of a
padded row is not always what it makes of the row (LongT5's blocks, LED's windows). Answers decode together: the outputs
of the encoder are padded and masked, which the decoder's attention to them makes exact. Groups, claims, halves of a
batch where memory runs out, and the loop over tokens are those of decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from eval.config.generation import GenerationSettings
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.answer import Answer
from eval.generation.encoder_cost import EncoderDecoderSize, SeparatePrompts
from eval.generation.library_loop import Rows, answer_rows
from eval.generation.local import LocalBackend
from eval.generation.prompt_tree import Node, PromptTree, TreeCaches
from eval.generation.tree_decoder import Observer, TreeDecoder
from eval.records.schema import ENCODED_LENGTHS, ENCODER_DECODER
from eval.runtime.model import OpenedModel, check_answer_positions, suggested_generation
from masformer.checkpoints.encoder_decoders import ENCODER_DECODERS
from masformer.tuning import now

# What a checkpoint may suggest beside tokens; none of it slips into a measurement.
_SUGGESTED = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "length_penalty", "early_stopping"),
    *("no_repeat_ngram_size", "repetition_penalty", "encoder_no_repeat_ngram_size", "do_sample", "temperature"),
    *("top_k", "top_p", "num_beam_groups", "diversity_penalty", "forced_eos_token_id"),
)


class EncoderDecoderBackend(LocalBackend):
    """Runs an encoder-decoder in the processes of this launch.

    Args:
        config: Settings of the run.
        opened: The model, checked and without weights.

    Raises:
        UserError: The room for answers is beyond the positions of the decoder, or nothing begins an answer.
    """

    is_encoded = True

    def __init__(self, config: RunConfig, opened: OpenedModel) -> None:
        if config.handles_thoughts:
            raise UserError(
                f"'{opened.checkpoint.name}' is an encoder-decoder, which writes no thoughts; leave out --thinking and "
                "--max-thinking-tokens"
            )
        super().__init__(config, opened)
        checkpoint = opened.checkpoint
        room = max(config.max_new_tokens or task.max_new_tokens for task in config.tasks.values())
        check_answer_positions(room, checkpoint, allow_extrapolation=config.allow_extrapolation)
        suggested = suggested_generation(checkpoint)
        first = suggested.decoder_start_token_id
        first = suggested.bos_token_id if first is None else first
        if not isinstance(first, int):
            raise UserError(
                f"nothing says which token begins an answer of '{checkpoint.name}'; give its generation_config.json a "
                "decoder_start_token_id"
            )
        self.first, self.forced_first = first, suggested.forced_bos_token_id
        begins = [first] if self.forced_first is None else [first, self.forced_first]
        rows = int(checkpoint.config.vocab_size)
        for token in begins:
            if not isinstance(token, int) or not 0 <= token < rows:
                raise UserError(
                    f"an answer of '{checkpoint.name}' begins with token {token}, and it has embeddings for {rows}; "
                    "restore its generation_config.json"
                )
        names = [str(self.tokenizer.convert_ids_to_tokens(token)) for token in begins]
        unused = _unused(suggested)
        self.identity = {
            "name": "local",
            "kind": ENCODER_DECODER,
            "answers_begin": names,
            "global_attention": "first token" if checkpoint.config.model_type == "led" else None,
            "suggested_and_unused": unused,
        }
        self.remarks = [f"encoder-decoder; answers begin with {' '.join(names)}; {ENCODED_LENGTHS}"]
        if unused:
            told = ", ".join(f"{name} {value}" for name, value in unused.items())
            self.remarks.append(f"its checkpoint suggests {told}: not used, give options such as --num-beams")

    @cached_property
    def size(self) -> EncoderDecoderSize:
        """Return what tokens cost the model."""
        return EncoderDecoderSize(self.opened.checkpoint.config, self.opened.itemsize)

    def decoder(self, model: PreTrainedModel, observer: Observer, hint: str) -> TreeDecoder:
        return EncodedDecoder(model, self.tokenizer, observer, hint, self.size, (self.first, self.forced_first))


def _unused(suggested: GenerationConfig) -> dict[str, Any]:
    """Return what a checkpoint suggests for generation and is left out: options of the run say all of it."""
    known = suggested.to_diff_dict()
    return {name: known[name] for name in _SUGGESTED if known.get(name) is not None}


class EncodedDecoder(TreeDecoder):
    """Decodes answers to encoded prompts.

    Args:
        model: Encoder-decoder.
        tokenizer: Tokenizer of the model.
        observer: What to report to.
        hint: Settings that avoid a lack of memory.
        size: What tokens cost the model.
        begin: The token before each answer, and the one that the answer is made to begin with, or None.
    """

    remedy = "lower --maxlen, or take a smaller --dtype"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        observer: Observer,
        hint: str,
        size: EncoderDecoderSize,
        begin: tuple[int, int | None],
    ) -> None:
        super().__init__(model, tokenizer, observer, hint)
        self.size = size
        self.begin = begin

    def warm_up(self) -> None:
        prompt = [token % int(self.model.config.vocab_size) for token in range(3, 67)]
        states = encode(self.model, prompt)
        self._decode([prompt], [states], GenerationSettings(max_new_tokens=4), lambda steps: None)

    def rows_together(self, settings: GenerationSettings) -> int | None:
        """Return 1 for samples, whose random numbers belong to the prompt, else None."""
        return None if settings.temperature is None else 1

    def is_stream(self, settings: GenerationSettings) -> bool:
        return False

    def attention_flops(self, num_prompt: int, num_new: Sequence[int]) -> int | None:
        return self.size.attention_flops(num_prompt, num_new)

    def caches(self, tree: PromptTree, wanted: Sequence[int]) -> TreeCaches:
        return Encodings(self.model, tree, wanted, self.observer.filled)

    def _decode(
        self,
        batch: Sequence[Sequence[int]],
        filled: Sequence[Any],
        settings: GenerationSettings,
        decoded: Callable[[int], None],
    ) -> list[Answer]:
        newline = ENCODER_DECODERS[self.model.config.model_type].newline
        if newline:
            # As the model spells them.
            settings = replace(settings, stop=tuple(text.replace("\n", newline) for text in settings.stop))
        rows = _EncodedRows(filled, self.begin, settings, self.size)
        answers = answer_rows(self.model, self.tokenizer, batch, rows, settings, 0.0, decoded)
        return [replace(one, text=one.text.replace(newline, "\n")) for one in answers] if newline else answers


@torch.no_grad()
def encode(model: PreTrainedModel, prompt: Sequence[int]) -> Tensor:
    """Return the (T, D) outputs of the encoder for a prompt."""
    ids = torch.tensor([list(prompt)], device=model.device)
    encoder, more = model.get_encoder(), {}
    if model.config.model_type == "led":
        # As its authors summarize (arXiv 2004.05150, section 7).
        more["global_attention_mask"] = torch.zeros_like(ids)
        more["global_attention_mask"][:, 0] = 1
    if hasattr(encoder, "set_attention_type"):
        # BigBird: a short text would leave the model with full attention for all later ones.
        encoder.set_attention_type(model.config.attention_type)
    output = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True, **more)
    states: Tensor = output.last_hidden_state[0]
    return states


class Encodings(TreeCaches):
    """The encoder's outputs for prompts, made as they are asked for."""

    def take(self, leaf: int) -> Any:
        """Return the (T, D) outputs of the encoder for a prompt."""
        node = self.tree.ends[leaf]
        if node not in self._filled:
            self._fill(node, leaf)
        return self._filled[node]

    def _fill(self, node: Node, leaf: int) -> None:
        assert isinstance(self.tree, SeparatePrompts)
        start = now(self.model.device)
        states: Any = encode(self.model, self.tree.prompts[leaf])
        self._filled[node], self._seconds[node] = states, now(self.model.device) - start
        self.num_prefilled[leaf] = self.num_prefilled.get(leaf, 0) + len(node.tokens)
        self.filled(node)


class _EncodedRows(Rows):
    """Rows of an encoder-decoder: outputs of the encoder, padded on the right, and what was written.

    Args:
        states: (T, D) of each prompt.
        begin: As `EncodedDecoder` has it.
        settings: How answers are chosen.
        size: What tokens cost the model.
    """

    first = 1

    def __init__(
        self,
        states: Sequence[Tensor],
        begin: tuple[int, int | None],
        settings: GenerationSettings,
        size: EncoderDecoderSize,
    ) -> None:
        token, forced = begin
        self.options = {"decoder_start_token_id": token, "forced_bos_token_id": forced}
        device, self.size, self.num_rows = states[0].device, size, settings.num_rows
        self.lengths = [len(each) for each in states]
        masks = [torch.ones(length, dtype=torch.long, device=device) for length in self.lengths]
        samples = settings.num_samples
        self.states = pad_sequence(list(states), batch_first=True).repeat_interleave(samples, dim=0)
        self.mask = pad_sequence(masks, batch_first=True).repeat_interleave(samples, dim=0)
        self.ids = torch.full((len(self.states), 1), token, device=device)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def inputs(self) -> dict[str, Any]:
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=self.states),
            "attention_mask": self.mask,
            "decoder_input_ids": self.ids,
            # By its length `generate` sees that the cache has some of the tokens.
            "decoder_attention_mask": torch.ones_like(self.ids),
            "past_key_values": self.cache,
        }

    def keep(self, going: Sequence[int], made: Tensor) -> None:
        if len(going) < len(self.ids):
            self.cache.batch_select_indices(torch.tensor(going, device=made.device))
            self.states, self.mask = self.states[going], self.mask[going]
        self.ids = made[going]

    def cache_bytes(self, prompt: int, num_new: int) -> int:
        """Return the bytes without padding: of the prompt in the decoder's attention to it, and of the answer."""
        return self.size.cache_bytes(self.lengths[prompt] + num_new, self.num_rows)
