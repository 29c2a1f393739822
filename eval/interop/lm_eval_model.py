"""A conversion as a model of lm-evaluation-harness.

    lm = MasformerLM("smollm2-135m", plan="full@17,18,20,23 span=512 sinks=4", dtype="float32")
    lm_eval.simple_evaluate(model=lm, tasks=["longbench_qmsum"])

It is the harness's own `hf` model on top of a model with a span plan. Log-likelihoods, chat templates and processes are
computed by its code. Answers are decoded by ours: the prompts of all requests form one tree, what they share is
prefilled once, and rows decode together. Texts are cut as the `hf` model cuts them. Control tokens that data spell stay
text.

Source: `HFLM` in lm_eval/models/huggingface.py of lm-evaluation-harness 0.4.13. Deliberate deviations: the device is
the CPU where there is no other, processes on CPUs share the work, and too long prompts are told once with their count.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList

from eval.config.generation import GenerationSettings
from eval.config.job import QUANTIZERS
from eval.errors import UserError
from eval.generation.answer import end_tokens, set_end_tokens
from eval.generation.groups import ModelSize
from eval.generation.library_loop import ScoresWatch
from eval.generation.prompt_tree import PromptTree
from eval.generation.tree_decoder import Observer, TreeDecoder
from eval.interop.thinking_arguments import arguments_of
from eval.prompting.chat import ChatSettings, ChatTemplate
from eval.prompting.encoding import TextEncoder
from eval.prompting.ends import find_ends
from eval.runtime.memory import memory_budget
from eval.runtime.model import TORCH_DTYPES, check_dtype, load_converted, resolve_plan, suggested_ends
from masformer import fixed_frequencies
from masformer.attention.prefill import frequency_class
from masformer.checkpoints.open import open_checkpoint
from masformer.errors import NumbersError

# Under lm-evaluation-harness's logger, so that its level and format hold.
_log = logging.getLogger("lm_eval.masformer")
# Options of the `hf` model that mean the same here.
_OPTIONS = (
    "add_bos_token",
    "backend",
    "batch_size",
    "chat_template_args",
    "device",
    "enable_thinking",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "prefix_token_id",
    "revision",
    "softmax_dtype",
    "think_end_token",
    "tokenizer",
    "truncation",
    "trust_remote_code",
    "use_fast_tokenizer",
)
_THINKING_OPTIONS = ("thinking", "max_thinking_tokens")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Generation arguments that change nothing where the likeliest token is always taken, one answer at a time.
_UNUSED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "length_penalty", "early_stopping")
_IGNORED = {*_UNUSED, *_TOKENS, "use_cache", "transformers_version"}
# Of a checkpoint's suggestions: lengths are those of the requests, and the cache is ours.
_OF_REQUESTS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "cache_implementation")
# Those that a batch of ours has too.
_SHARED = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")

# Stands within what would become a control token, where lm-evaluation-harness puts data into a chat template.
_TEXT_MARK = "\N{OBJECT REPLACEMENT CHARACTER}\u2060\N{OBJECT REPLACEMENT CHARACTER}"

Tokens = tuple[int, ...]


class _LoggedRemarks(Observer):
    def print(self, text: str) -> None:
        _log.warning(text)


class MasformerLM(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """The `hf` model of lm-evaluation-harness with a span plan and shared prefills.

    Args:
        pretrained: What `--model` takes: a short name, a `.gguf` file, a folder, a hub id.
        plan: What `--plan` takes.
        adapter: What `--adapter` takes, and `adapter_revision` its revision.
        quantize: What `--quantize` takes.
        dtype: A key of `TORCH_DTYPES`; `auto` is that of the checkpoint's config, as in the `hf` model.
        rows: Prompts that decode together at most; `batch_size` is for log-likelihoods. None is 16, on CUDA 64.
        memory_gib: For keys and values while answers are written; None is half of what the weights leave.
        thinking: What `--thinking` takes; True is `on`, False is `off`.
        max_thinking_tokens: Room for a thought before an answer; None is 1,024 with `thinking=on`, else no room of its
            own.
        options: Options of the `hf` model.

    Raises:
        CheckpointError: The reference leads to no usable decoder.
        UserError: An unknown option or value.
        ConversionError: The architecture cannot take the plan.
        PlanError: The plan is malformed, or does not fit the model.
    """

    # Whether prompts hold the markup of a chat template; else all of a prompt is data.
    _is_templated = False
    tokenizer: Any
    think_end_token: Any

    def __init__(
        self,
        pretrained: str,
        plan: str = "auto",
        adapter: str | None = None,
        adapter_revision: str | None = None,
        quantize: str | None = None,
        dtype: str = "auto",
        rows: int | None = None,
        memory_gib: float | None = None,
        thinking: str | bool = "auto",
        max_thinking_tokens: int | None = None,
        **options: Any,
    ) -> None:
        unknown = sorted(options.keys() - set(_OPTIONS))
        if unknown:
            named = ("pretrained", "plan", "adapter", "adapter_revision", "quantize", "dtype", "rows", "memory_gib")
            known = ", ".join((*named, *_THINKING_OPTIONS, *_OPTIONS))
            raise UserError(f"model_args: '{unknown[0]}' is no option of the masformer model; known: {known}")
        if dtype not in ("auto", *TORCH_DTYPES):
            raise UserError(f"model_args: dtype '{dtype}' is unknown; known: auto, {', '.join(TORCH_DTYPES)}")
        if rows is not None and not (isinstance(rows, int) and rows > 0):
            raise UserError(f"model_args: rows is {rows!r}, a whole number above 0 was expected")
        if memory_gib is not None and not (isinstance(memory_gib, (int, float)) and memory_gib > 0):
            raise UserError(f"model_args: memory_gib is {memory_gib!r}, a number above 0 was expected")
        trusts = bool(options.get("trust_remote_code"))
        if quantize not in (None, *QUANTIZERS):
            raise UserError(f"model_args: quantize is {quantize!r}; known: {', '.join(QUANTIZERS)}")
        self.checkpoint = open_checkpoint(
            str(pretrained),
            revision=options.get("revision"),
            adapter=None if adapter is None else str(adapter),
            adapter_revision=adapter_revision,
            quantize=quantize,
            trust_remote_code=trusts,
        )
        self.asked_plan = str(plan)
        self.plan = resolve_plan(self.asked_plan, self.checkpoint, keeps_full=True)
        own = next((name for name, of in TORCH_DTYPES.items() if of == self.checkpoint.config.dtype), "float32")
        self.dtype_name = own if dtype == "auto" else dtype
        check_dtype(self.dtype_name, quantize)
        self.memory_gib = memory_gib
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        self._thinking_arguments = arguments_of(thinking, max_thinking_tokens, options)
        thinks = options.get("enable_thinking")
        if thinks and options.get("think_end_token") is None:
            raise UserError("model_args: enable_thinking needs think_end_token, the text or token that ends a thought")
        # As the `hf` model puts them together once its weights are there.
        self.chat_template_args = (options.get("chat_template_args") or {}) | (
            {} if thinks is None else {"enable_thinking": thinks}
        )
        super().__init__(pretrained=str(pretrained), dtype=self.dtype_name, **options)
        self.chat_template_args = self.chat.variables
        if self.thinking is not None:
            self.think_end_token = self.thinking.end
        if hasattr(self, "accelerator"):
            # The `hf` model leaves this out on CPUs, where each process would do all of the work.
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.rows = rows or (64 if self.device.type == "cuda" else 16)
        set_end_tokens(self.model, self.ends.token_ids)
        if self.rank == 0:
            if self.checkpoint.part:
                _log.warning("used is %s", self.checkpoint.part)
            _log.info("answers end at %s", self.ends.describe())

    def _get_config(self, pretrained: str, **_: Any) -> None:
        self._config = self.checkpoint.config

    def _create_tokenizer(self, pretrained: str, tokenizer: Any, **options: Any) -> None:
        if tokenizer or options.get("add_bos_token") is not None or not options.get("use_fast_tokenizer", True):
            checkpoint = self.checkpoint
            source = {"revision": checkpoint.revision or "main", "gguf_file": checkpoint.gguf_file}
            super()._create_tokenizer(checkpoint.location, tokenizer, **options | source)
            self.checkpoint = replace(checkpoint, tokenizer=self.tokenizer)
        else:
            self.tokenizer = self.checkpoint.tokenizer
        switch = self._thinking_arguments.switch
        self.chat = ChatTemplate(self.tokenizer, ChatSettings(kwargs=self.chat_template_args, thinking=switch))
        self.ends = find_ends(self.tokenizer, suggested_ends(self.checkpoint), self.chat)
        self.thinking = self._thinking_arguments.settings(self.tokenizer, self.chat, self.ends)

    def _create_model(self, pretrained: str, **_: Any) -> None:
        self._model = load_converted(
            self.checkpoint, self.dtype_name, self.device, self.plan, self.asked_plan, _log.warning
        )
        # What the checkpoint suggests for generation counts, as in the `hf` model; its end tokens are there already.
        ends = {name: getattr(self._model.generation_config, name) for name in _TOKENS}
        suggested = _suggested(self.checkpoint.location, self.checkpoint.revision)
        self._model.generation_config = GenerationConfig(**suggested | ends)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        # lm-evaluation-harness reads it where it applies a chat template, cached requests included.
        self._is_templated = True
        return str(super().tokenizer_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a rendered conversation in which the control tokens that data spell are marked as text."""
        self._is_templated = True
        turns = [turn | {"content": self._marked(turn["content"])} for turn in chat_history]
        return str(super().apply_chat_template(turns, add_generation_prompt))

    def tok_encode(self, string: str, *given: Any, **options: Any) -> list[int]:
        """Return the tokens of a text; control tokens that data spell stay text.

        Raises:
            CheckpointError: It spells a word that the model has no embedding for.
        """
        self._check_words(string)
        first, *others = self._text_pieces(string)
        if not others:
            return list(super().tok_encode(string, *given, **options))
        most = options.pop("left_truncate_len", None)
        tokens = list(super().tok_encode(first, *given, **options))
        for piece in others:
            tokens += self._encoder.encode(piece, "a")
        return tokens[-most:] if most else tokens

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt and of what is scored after it, which is data under a chat template too."""
        encoded = super()._encode_pair(context, self._marked(continuation) if self._is_templated else continuation)
        return list(encoded[0]), list(encoded[1])

    def _check_words(self, text: str) -> None:
        self.checkpoint.check_text(text.replace(_TEXT_MARK, ""), f"the text that begins {text[:60]!r}")

    def _marked(self, text: Any) -> Any:
        return _TEXT_MARK.join(self._encoder.pieces(text)) if isinstance(text, str) else text

    def _text_pieces(self, string: str) -> list[str]:
        """Return a text in pieces between which no control token stands; without a chat template, all of it is data."""
        if self._is_templated:
            return string.split(_TEXT_MARK)
        bos = self.tokenizer.bos_token or ""
        start = len(bos) if string.startswith(bos) else 0
        first, *others = self._encoder.pieces(string[start:])
        return [string[:start] + first, *others]

    def get_model_info(self) -> dict[str, Any]:
        """Return what is recorded with the results: the plan, and what pins the weights."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": self.checkpoint.revision or "",
            "model_sha": self.checkpoint.revision or "",
            "model_provenance": self.checkpoint.provenance,
            "quantization": self.checkpoint.quantization,
            "plan": None if self.plan is None else str(self.plan),
        }

    def _model_call(self, inps: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *args, **options)
        bad = ~logits.amax(dim=-1).isfinite().all(dim=-1)
        if bool(bad.any()):
            raise self._no_numbers(inps[int(bad.nonzero()[0])].tolist())
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        watch = ScoresWatch(end_tokens(self.model), context.shape[1], is_eager=True)
        made: torch.Tensor = super()._model_generate(
            context, *args, logits_processor=LogitsProcessorList([watch]), **options
        )
        if (bad := watch.first_bad(len(context))) is not None:
            raise self._no_numbers(context[bad].tolist())
        return made

    def _no_numbers(self, tokens: Sequence[int]) -> NumbersError:
        begin = self.tok_decode(list(tokens[:24]))
        return NumbersError(f"the logits on a text of {len(tokens):,} tokens that begins {begin!r}", self.dtype_name)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each request, in order.

        Args:
            requests: Instances of lm-evaluation-harness, with a prompt and its generation arguments.
            disable_tqdm: Show no progress.

        Raises:
            UserError: A generation argument is unknown, or leaves no room for the prompt.
            CheckpointError: A prompt spells a word that the model has no embedding for.
        """
        for request in requests:
            self._check_words(request.args[0])
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        for members in alike.values():
            _check_arguments(requests[members[0]].args[1])
        texts: dict[int, str] = {}
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        with bar:
            for members in alike.values():
                for index, text in self._answer([requests[index] for index in members]):
                    texts[members[index]] = text
                    bar.update(1)
        return [texts[index] for index in range(len(requests))]

    def _answer(self, requests: Sequence[Any]) -> Iterator[tuple[int, str]]:
        """Return answers to requests with the same generation arguments, by index, as they are made."""
        asked = requests[0].args[1]
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        until, num_new = kwargs.pop("until"), kwargs.pop("max_gen_toks")
        room = GenerationSettings(max_new_tokens=num_new, thinking=self.thinking).room
        if room >= self.max_length:
            thought = f" with {room - num_new} for the thought" if self.thinking else ""
            raise UserError(
                f"max_gen_toks {num_new}{thought} leaves no room for a prompt within max_length {self.max_length}; "
                "lower it, or pass max_length in --model_args"
            )
        given = self.model.generation_config.to_diff_dict() | kwargs
        options = {name: value for name, value in given.items() if name not in _IGNORED and not _is_off(name, value)}
        special = ["do_sample"] if given["do_sample"] else sorted(options.keys() - set(_SHARED))
        prompts = [] if special else self._prompts([request.args[0] for request in requests], room)
        if special or min(map(len, prompts)) < 2:
            why = f"use {', '.join(special)}" if special else "have a prompt of one token"
            share = ", where thought and answer share max_gen_toks" if self.thinking else ""
            told = "%d requests %s: they share no prefill and decode as in the hf model%s"
            _log.warning(told, len(requests), why, share)
            yield from enumerate(super().generate_until(list(requests), disable_tqdm=True))
            return
        settings = GenerationSettings(
            max_new_tokens=num_new,
            thinking=self.thinking,
            stop=(*filter(None, until), *self.ends.texts),
            **options,
        )
        askers: dict[Tokens, list[int]] = {}
        for index, prompt in enumerate(prompts):
            askers.setdefault(prompt, []).append(index)
        cuts = handle_stop_sequences(
            [*until, *self.ends.texts], eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        for prompt, tokens, answer in self._decode_all(list(askers), settings):
            text = answer if self.thinking else self._text(list(tokens), cuts)
            for index in askers[prompt]:
                self.cache_hook.add_partial("generate_until", (requests[index].args[0], asked), text)
                yield index, text

    def _prompts(self, texts: Sequence[str], num_new: int) -> list[Tokens]:
        """Return the tokens of prompts, cut from the left to leave room for the answer, which is told."""
        most = self.max_length - num_new
        known: dict[str, Tokens] = {}
        for text in texts:
            if text not in known:
                if len(self._text_pieces(text)) > 1:
                    known[text] = tuple(self.tok_encode(text))
                else:
                    known[text] = tuple(self.tok_batch_encode([text], truncation=self.truncation)[0][0].tolist())
        cut = sum(len(known[text]) > most for text in texts)
        if cut:
            _log.warning(
                "%d of %d prompts are longer than %d tokens (max_length %d less %d for the answer) and were cut from "
                "the left",
                *(cut, len(texts), most, self.max_length, num_new),
            )
        return [known[text][-most:] for text in texts]

    def _text(self, tokens: list[int], cuts: list[str]) -> str:
        """Return an answer as the `hf` model makes it of its tokens: without stop texts and what was thought."""
        end = self.think_end_token
        thought = [at for at, token in enumerate(tokens) if token == end] if isinstance(end, int) else []
        text = str(self.tok_decode(tokens[thought[-1] + 1 :] if thought else tokens))
        text = text.lstrip() if isinstance(end, int) else text
        return str(postprocess_generated_text(text, cuts, end if isinstance(end, str) else None))

    def _decode_all(
        self, prompts: Sequence[Tokens], settings: GenerationSettings
    ) -> Iterator[tuple[Tokens, Tokens, str]]:
        """Return tokens and text of the answer to each prompt, in the order in which they are made: the longest first.

        A thought is among the tokens and not in the text.
        """
        by_class: dict[int, list[Tokens]] = {}
        for prompt in sorted(prompts, key=len, reverse=True):
            by_class.setdefault(frequency_class(self.config, len(prompt)), []).append(prompt)
        decoder = TreeDecoder(self.model, self.tokenizer, _LoggedRemarks(), "rows or memory_gib in --model_args")
        for alike in by_class.values():
            tree = PromptTree(alike)
            caches = decoder.caches(tree, range(len(alike)))

            def fits(leaves: Sequence[int], tree: PromptTree = tree) -> bool:
                ends = [tree.ends[leaf] for leaf in leaves]
                return self._size.num_bytes(ends, settings.room, settings.num_rows) <= self._budget

            with fixed_frequencies(self.model, len(alike[0])):
                for batch in decoder.batches(tree.order, settings, self.rows, fits):
                    try:
                        for leaves, answers in decoder.decode(batch, alike, caches, settings, self.rows, fits):
                            for leaf, answer in zip(leaves, answers, strict=True):
                                tokens = answer.token_ids
                                is_ended = tokens and tokens[-1] in self.ends.token_ids
                                yield alike[leaf], tokens[:-1] if is_ended else tokens, answer.text
                            caches.release(leaves)
                    except NumbersError as error:
                        raise self._no_numbers(alike[error.row]) from error

    @cached_property
    def _size(self) -> ModelSize:
        size = TORCH_DTYPES[self.dtype_name].itemsize
        plan = getattr(self.model, "span_plan", None)
        return ModelSize(self.config, plan, size, trust_remote_code=self.checkpoint.trust_remote_code)

    @cached_property
    def _budget(self) -> int:
        if self.memory_gib is not None:
            return int(self.memory_gib * 2**30)
        dtype = TORCH_DTYPES[self.dtype_name]
        return memory_budget(self.device, self._size.num_weights * dtype.itemsize, dtype, os.environ, None)


def _suggested(location: str, revision: str | None) -> dict[str, Any]:
    """Return what a checkpoint's `generation_config.json` says beyond transformers' defaults; nothing without one."""
    try:
        suggested = GenerationConfig.from_pretrained(location, revision=revision or "main").to_diff_dict()
    except OSError:
        return {}
    return {name: value for name, value in suggested.items() if name not in _OF_REQUESTS}


def _is_off(name: str, value: Any) -> bool:
    """Return whether a generation argument says what is so without it."""
    return value is None or value is False or name.startswith("_") or (name.startswith("num_") and value == 1)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check that generation arguments are known before anything is decoded."""
    known = GenerationConfig()
    aliases = ("until", "max_gen_toks", "max_tokens", "max_completion_tokens")
    unknown = sorted(name for name in arguments if name not in aliases and not hasattr(known, name))
    if unknown or "cache_implementation" in arguments:
        raise UserError(
            f"generation argument '{(*unknown, 'cache_implementation')[0]}' is not taken; give until, max_gen_toks, or "
            "what transformers' GenerationConfig has besides the cache, which is masformer's"
        )
