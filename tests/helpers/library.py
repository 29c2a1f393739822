"""A random tiny model of every architecture that transformers can decode with, and what spans do to it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from masformer import ConversionError, PlanError, SpanCache, SpanPlan, apply_plan, prefill, remove_plan
from masformer.attention.cache import can_join, join, split
from masformer.attention.prefill import fork, new_cache
from masformer.checkpoints.open import CheckpointError, open_checkpoint
from masformer.checkpoints.wrappers import has_text_part, is_whole, load_text_part, text_part
from masformer.convert import text_config
from masformer.errors import first_line
from masformer.plans.cost import cache_bytes
from masformer.plans.shapes import num_kv_heads, shared_layers
from masformer.plans.spans import FULL, HeadSpans, LayerSpan
from masformer.probe import probe_untouched
from tests.helpers.library_models import tiny_library_model, tiny_whole_model
from tests.helpers.tiny_models import VOCAB

_NUM_TOKENS = 60
_SPANS = (LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2), LayerSpan(span=5))
# Relative to the largest logit; some models compute states in fp32 whatever is asked of them.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WHOLES = tuple(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)

_HEADING = """\
# Architectures

Each architecture that `AutoModelForCausalLM` of transformers {version} knows, as a random tiny model in fp64:
{counted}.

Written by `python -m tests.helpers.library docs/architectures.md`, and tested against every night.

- **exact**: its own spans give the logits of the untouched model. Two mixed plans give in chunks, one token at a time,
  in forks, in padded batches that forks join and leave and, unless it has states, behind drafts that were taken back
  what they give in one pass; so do spans of single heads, unless the remark says otherwise.
- **untouched**: a plan is refused with the remark. Without one, chunks and forks give the untouched logits.
- **refused**: a plan is refused, and so is the model without one, each with its remark.
- **not built**: no tiny model can be made, or its own code fails; the remark says why. Nothing is known of it here.
"""
_HEADING_OF_WHOLES = """
## Models that also see or hear

Each model that `AutoModelForMultimodalLM` knows, its checkpoint opened as `--model` opens it: {counted}.

- **exact**: every command loads its text part alone, as the model type in the remark, with equal logits in fp64. What
  plans do to it stands above.
- **refused**: its checkpoint is not opened, with the remark; some text parts are no model of their own, others scale
  logits otherwise than the whole model, or need an image.
- **as above**: it has no text part to take out; above stands what becomes of it.
- **not built**: no tiny model can be made here, for the reason in the remark. A checkpoint proves itself when it loads.

"""
# Which transformers builds no model of here, whatever the config.
_OTHER = {
    "gemma3n": "its tower for images needs the package timm; its text part is gemma3n_text",
    "gemma4_assistant": "it drafts for another model, whose keys all its layers read",
    "gemma4_unified_assistant": "it drafts for another model, whose keys all its layers read",
    "musicgen": "it writes sound",
    "musicgen_melody": "it writes sound",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an architecture does.

    Attributes:
        kind: Its `model_type`.
        outcome: "exact": its own plan gives the untouched logits, and a mixed plan gives in chunks, one token at a
            time, in forks and in joined batches what it gives in one pass. "untouched": spans are refused by name, and
            the model as it is works in chunks and forks. "refused": neither works, and each says so in one line.
            "not built": no tiny model can be made here.
        remark: What was refused, or why nothing was built; of exact ones, what they go without.
    """

    kind: str
    outcome: Literal["exact", "untouched", "refused", "as above", "not built"]
    remark: str = ""


def examine(kind: str) -> Finding:
    """Return what spans do to a random tiny model of an architecture.

    Raises:
        AssertionError: It is neither exact nor refused.
    """
    try:
        model = tiny_library_model(kind)
    except Exception as error:  # the model's own code, which we do not judge
        return Finding(kind=kind, outcome="not built", remark=_OTHER.get(kind) or first_line(error))
    if not hasattr(text_config(model.config), "num_hidden_layers"):
        return Finding(kind=kind, outcome="refused", remark=_refusal(model))
    tokens = _tokens(model)
    try:
        untouched = _logits(model, tokens)
    except Exception as error:
        return Finding(kind=kind, outcome="not built", remark=first_line(error))
    try:
        own = apply_plan(model)
    except (PlanError, ConversionError) as error:
        return _untouched(kind, model, untouched, str(error))
    _check_same(_logits(model, tokens), untouched, f"{kind} under its own plan '{own}'")
    shared = shared_layers(model.config)
    remarks = []
    for shift in range(2):
        _check_serving(model, apply_plan(model, mixed_plan(model, own, shift)))
    heads = num_kv_heads(model.config) or 0
    try:
        one = HeadSpans((FULL, *(LayerSpan(span=7, sinks=1),) * (heads - 1)))
        if heads > 1:
            _check_serving(model, apply_plan(model, own.with_all(one)))
        else:
            remarks.append("no spans of single heads")
    except (PlanError, ConversionError):
        remarks.append("no spans of single heads")
    if not can_join(model.config):
        remarks.append("no joined batches")
    if shared:
        remarks.append("layers that share keys take one span")
    remove_plan(model)
    _check_same(_logits(model, tokens), untouched, f"{kind} without its plan again")
    return Finding(kind=kind, outcome="exact", remark="; ".join(remarks))


def mixed_plan(model: PreTrainedModel, own: SpanPlan, shift: int = 0) -> SpanPlan:
    """Return a plan whose layers with attention see differently, given a model's own plan."""
    spans = list(own.with_all(*_SPANS[shift:], *_SPANS[:shift]))
    for layer, producer in shared_layers(model.config).items():
        spans[layer] = spans[producer]
    return SpanPlan(tuple(spans))


@torch.no_grad()
def examine_whole(kind: str) -> Finding:
    """Return what a checkpoint of a model that also sees or hears is opened as."""
    config = CONFIG_MAPPING[kind]()
    config.architectures = [MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[kind]]
    if not is_whole(config):
        if config.architectures[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            return Finding(kind=kind, outcome="as above")
        return Finding(kind=kind, outcome="refused", remark="no decoder")
    if not has_text_part(config):
        text = config.get_text_config(decoder=True).model_type
        return Finding(kind=kind, outcome="refused", remark=f"{text} is no causal language model of its own")
    try:
        model = tiny_whole_model(kind)
    except Exception as error:  # the model's own code, or a package that is missing
        return Finding(kind=kind, outcome="not built", remark=first_line(error.__cause__ or error))
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        whole = AutoConfig.from_pretrained(folder)
        try:
            text = text_part(whole, kind)
            options = {"dtype": model.dtype, "experts_implementation": "eager"}
            found, info = load_text_part(whole, folder, config=text, **options)
        except CheckpointError as error:
            return Finding(kind=kind, outcome="refused", remark=str(error))
    if info["missing_keys"] or info["unexpected_keys"]:
        return Finding(kind=kind, outcome="refused", remark="its weights and its config have other names")
    tokens = _tokens(found)
    saved = model(input_ids=tokens, use_cache=False).logits[0]
    _check_same(_logits(found, tokens), saved, f"the text part of {kind}")
    return Finding(kind=kind, outcome="exact", remark=found.config.model_type)


def _untouched(kind: str, model: PreTrainedModel, expected: Tensor, remark: str) -> Finding:
    """Return what becomes of a model without a plan."""
    tokens = _tokens(model)
    try:
        probe_untouched(model)
    except ConversionError as error:
        return Finding(kind=kind, outcome="refused", remark=f"{remark}; {error}")
    cache, parts = new_cache(model, _NUM_TOKENS), []
    for part in tokens.split((30, 29, 1), dim=1):
        parts.append(_logits(model, part, past_key_values=cache, use_cache=True))
        # A second prompt that begins alike, and changes nothing.
        _logits(model, tokens[:, :20], past_key_values=fork(cache, _NUM_TOKENS), use_cache=True)
    _check_same(torch.cat(parts), expected, f"{kind} without a plan in chunks")
    return Finding(kind=kind, outcome="untouched", remark=remark)


def _refusal(model: PreTrainedModel) -> str:
    """Return why no command opens the checkpoint of a model, which has not the layers of a decoder."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            open_checkpoint(folder)
        except CheckpointError as error:
            return str(error).partition("' ")[2]
    raise AssertionError(f"{model.config.model_type} opens")


def _tokens(model: PreTrainedModel) -> Tensor:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    return torch.randint(3, min(vocabulary, VOCAB), (1, _NUM_TOKENS), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Tensor, **more: Any) -> Tensor:
    logits: Tensor = model(tokens, **({"use_cache": False} | more)).logits[0]
    return logits


def _check_same(found: Tensor, expected: Tensor, what: str) -> None:
    difference = float((found - expected).abs().max())
    assert difference <= _TOLERANCE[found.dtype] * max(1.0, float(expected.abs().max())), (
        f"{what} is {difference:.2g} off"
    )


@torch.no_grad()
def _check_drafts(model: PreTrainedModel, plan: SpanPlan, once: Tensor) -> None:
    """Raise `AssertionError` unless passes of which the last tokens are taken back give what one pass gives."""
    tokens, cache = _tokens(model), SpanCache(plan)
    parts = [_logits(model, tokens[:, :30], past_key_values=cache, use_cache=True)]
    if not cache.can_draft:
        return
    for first in range(30, _NUM_TOKENS, 3):
        cache.draft()
        passed = torch.cat([tokens[:, first : first + 3], tokens[:, :2]], dim=1)
        parts.append(_logits(model, passed, past_key_values=cache, use_cache=True)[:3])
        cache.commit(3)
    _check_same(torch.cat(parts), once, f"{model.config.model_type} under '{plan}' with drafts")


@torch.no_grad()
def _check_serving(model: PreTrainedModel, plan: SpanPlan) -> None:
    """Raise `AssertionError` unless chunks, single tokens, forks and joined forks give what one pass gives."""
    kind, tokens = model.config.model_type, _tokens(model)
    once = _logits(model, tokens)
    cache = SpanCache(plan)
    _check_same(
        _logits(model, tokens, past_key_values=cache, use_cache=True), once, f"{kind} under '{plan}' and a cache"
    )
    counted = cache_bytes(model.config, plan, _NUM_TOKENS, model.dtype.itemsize)
    assert counted == cache.num_bytes, f"{kind} under '{plan}': {counted} bytes counted, {cache.num_bytes} stored"
    for steps in ((40, *(1,) * 20), (1, 28, 1, 30)):
        cache = SpanCache(plan)
        parts = [_logits(model, part, past_key_values=cache, use_cache=True) for part in tokens.split(steps, dim=1)]
        _check_same(torch.cat(parts), once, f"{kind} under '{plan}' in chunks of {steps[:4]}")
    _check_drafts(model, plan, once)
    beginning = SpanCache(plan)
    prefill(model, tokens[:, :30], beginning, chunk_tokens=20)
    ends = tokens[:, 30:50], tokens[:, 50:55]
    forks = [beginning.fork(), beginning.fork()]
    for cache, end in zip(forks, ends, strict=True):
        prefill(model, end, cache)
    last = tokens[:, -1:]
    texts = [torch.cat([tokens[:, :30], end, last], dim=1) for end in ends]
    if not can_join(model.config):
        found = torch.cat([_logits(model, last, past_key_values=cache, use_cache=True) for cache in forks])
        alone = torch.cat([_logits(model, text)[-1:] for text in texts])
        _check_same(found, alone, f"{kind} under '{plan}' in forks")
        return
    batch = _step_together(model, forks, texts, f"{kind} under '{plan}' in forks")
    # The padded row goes on with a longer fork, and then both with a shorter one.
    for rows, end in (([1], tokens[:, 40:52]), ([0, 1], tokens[:, 52:56])):
        cache = beginning.fork()
        prefill(model, end, cache)
        texts = [*(texts[row] for row in rows), torch.cat([tokens[:, :30], end], dim=1)]
        texts = [torch.cat([text, last], dim=1) for text in texts]
        what = f"{kind} under '{plan}' where a fork joins rows of a batch"
        batch = _step_together(model, [*split(batch, rows), cache], texts, what)


def _step_together(model: PreTrainedModel, caches: list[SpanCache], texts: list[Tensor], what: str) -> SpanCache:
    """Return the joined caches after the last token of each text.

    Raises:
        AssertionError: Its logits are not those of each text alone.
    """
    lengths = torch.tensor([[text.shape[1]] for text in texts])
    longest, batch = int(lengths.max()), join(caches, room=4)
    found = model(
        torch.cat([text[:, -1:] for text in texts]),
        attention_mask=(torch.arange(longest) >= longest - lengths).long(),
        position_ids=lengths - 1,
        past_key_values=batch,
    ).logits[:, -1]
    _check_same(found, torch.cat([_logits(model, text)[-1:] for text in texts]), what)
    return batch


def on_the_page(part: int) -> dict[str, Finding]:
    """Return what a table of the page says: 0 is that of decoders, 1 that of models which also see or hear."""
    text = PAGE.read_text(encoding="utf-8").split("## Models that also see or hear")[part]
    cells = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") if at == 1 else cell.strip() for at, cell in enumerate(row)] for row in cells]
    return {
        kind: Finding(kind=kind, outcome=outcome, remark=remark)  # type: ignore[arg-type]
        for _, kind, outcome, remark, _ in rows
    }


def table(findings: Sequence[Finding]) -> list[str]:
    """Return the rows of a Markdown table; numbers that depend on rounding are left out."""
    rows = ["| model type | outcome | remark |", "| --- | --- | --- |"]
    for found in findings:
        remark = re.sub(r" \d[\d.e+-]* off where rounding explains [\d.e+-]+", " off", found.remark)
        rows.append(f"| `{found.kind}` | {found.outcome} | {' '.join(remark.replace('|', '/').split())} |")
    return rows


def main() -> None:
    """Write the page: python -m tests.helpers.library docs/architectures.md"""
    texts, wholes = [examine(kind) for kind in KINDS], [examine_whole(kind) for kind in WHOLES]
    heading = _HEADING.format(version=transformers.__version__, counted=_counted(texts))
    lines = [heading, *table(texts), _HEADING_OF_WHOLES.format(counted=_counted(wholes)), *table(wholes), ""]
    Path(sys.argv[1]).write_text("\n".join(lines), encoding="utf-8")


def _counted(findings: Sequence[Finding]) -> str:
    counts = Counter(found.outcome for found in findings)
    known = ("exact", "untouched", "refused", "as above", "not built")
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in known if counts[outcome])


if __name__ == "__main__":
    main()
