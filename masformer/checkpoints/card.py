"""The model card of a checkpoint: where it comes from, its plan, how to load it, what it costs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

from masformer.checkpoints.hub import HUB_TIMEOUT_SECONDS, within
from masformer.checkpoints.open import SHORT_NAMES, Checkpoint
from masformer.plans.spans import SpanPlan

PAPER = "https://arxiv.org/abs/2310.12442"
_TAGS = ["masformer", "long-context", "sparse-attention", "arxiv:2310.12442"]
_NEEDS_MASFORMER = """\
The plan is stored in `config.json` under `masformer`, and the model type is `masformer`. `import masformer` makes that
type known to transformers, and `from_pretrained` then gives the model with its plan. **Without that line transformers
refuses the checkpoint, and so do other programs that read it by its type; they would compute full attention.**"""
_HAS_CODE = """\
The plan is stored in `config.json` under `masformer`, and the model has code of its own. **masformer reads both;
transformers alone refuses the checkpoint, which it would compute with full attention:**"""
_NEEDS_NOTHING = """\
`config.json` says these spans in transformers' own settings. **The checkpoint needs no masformer:**"""
# How the sentence ends that a plan's quality has to be measured.
_UNMEASURED = "nothing on this page does."
_MEASURED = "the [scores](#scores) below are of runs."
_LICENSE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a converted checkpoint was made from.

    Attributes:
        weights: Names the files that the weights were read from, with digests or a revision, without local folders.
        license: The fields of a card's metadata; empty if it is not known.
    """

    weights: str
    base_model: str | None
    license: Mapping[str, str]


def origin_of(checkpoint: Checkpoint) -> Origin:
    """Return what the card of a conversion says about its source; a base model or licence is never guessed."""
    known = checkpoint.provenance
    own = _own_card(checkpoint)
    license = {name: own[name] for name in _LICENSE_FIELDS if isinstance(own.get(name), str)}
    if checkpoint.gguf_file and not license:
        license = _gguf_license(Path(checkpoint.location) / checkpoint.gguf_file)
    adapter = known.get("adapter")
    merged = "" if adapter is None else f", with the LoRA adapter {_pinned(adapter)} merged into them"
    if known["source"] == "hub":
        return Origin(weights=_pinned(known) + merged, base_model=known["hub_id"], license=license)
    base = SHORT_NAMES[checkpoint.name].hub_id if known["source"] == "package" else own.get("base_model")
    weights = _pinned(known) + (", dequantized" if checkpoint.gguf_file else "") + merged
    return Origin(weights=weights, base_model=base if isinstance(base, str) else None, license=license)


def _pinned(known: Mapping[str, Any]) -> str:
    """Return what pins the weights of a provenance, without local folders."""
    if known["source"] == "hub":
        return f"`{known['hub_id']}` at revision `{known['revision']}`"
    return ", ".join(
        f"`{name}` (SHA-256 `{digest}`)"
        for name, digest in known["files"].items()
        if name.endswith((".safetensors", ".gguf"))
    )


def model_card(
    name: str,
    plan: SpanPlan | None,
    origin: Origin | None,
    cost: Mapping[str, Any] | None,
    dtype: str,
    *,
    needs_masformer: bool,
    has_code: bool = False,
) -> str:
    """Return the text of a checkpoint's `README.md`, whose lines load `name`.

    Args:
        cost: That of `cost_record`.
        needs_masformer: Nothing else computes the plan, and the folder has masformer's own model type.
        has_code: The model comes with code of its own.
    """
    known: dict[str, Any] = {**origin.license, "base_model": origin.base_model} if origin else {}
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=_TAGS if plan else None, **known
    )
    about = _about_plan(name, plan, needs_masformer=needs_masformer, has_code=has_code)
    parts = [f"# {name.rsplit('/')[-1]}", about]
    if origin:
        weights = f"Weights: {origin.weights}, stored in {dtype}. The plan changed none of them."
        parts.append(f"## Origin\n\n{weights}")
    if cost:
        parts.append(_about_cost(cost))
    if plan:
        parts.append(
            f"## Paper\n\nMixed attention spans: [MASFormer]({PAPER}), *Efficient Long-Range Transformers: You Need to "
            "Attend More, but Not Necessarily at Every Layer*, Findings of EMNLP 2023."
        )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def rename(card: str, name: str) -> str:
    """Return the card with loading lines that load `name`; a card without such lines as it is."""
    loading = r'(= (?:Auto\w+\.from_pretrained|open_checkpoint))\("[^"]*"'
    return re.sub(loading, lambda line: f'{line[1]}("{name}"', card)


def with_scores(card: str, scores: str) -> str:
    """Return the card with a section of scores, in place of a former one."""
    bare = re.sub(r"\n## Scores\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL).replace(_UNMEASURED, _MEASURED)
    before, paper, after = bare.partition("\n## Paper\n")
    return f"{before.rstrip()}\n\n## Scores\n\n{scores.strip()}\n{paper}{after}"


def renewed(card: str, name: str, plan: SpanPlan, *, has_code: bool) -> str:
    """Return a card of an earlier version, which said that plain transformers ignores the plan, for its own type."""
    about = _about_plan(name, plan, needs_masformer=True, has_code=has_code)
    if _MEASURED in card:
        about = about.replace(_UNMEASURED, _MEASURED)
    former = rf"Attention spans of the layers.*({re.escape(_UNMEASURED)}|{re.escape(_MEASURED)})"
    return re.sub(former, lambda _: about, card, flags=re.DOTALL)


def _about_plan(name: str, plan: SpanPlan | None, *, needs_masformer: bool, has_code: bool) -> str:
    trust = ", trust_remote_code=True" if has_code else ""
    if needs_masformer and has_code:
        about = _HAS_CODE
        lines = f"""import torch
from masformer import apply_plan
from masformer.checkpoints.open import open_checkpoint

checkpoint = open_checkpoint("{name}"{trust})
tokenizer, model = checkpoint.tokenizer, checkpoint.load_model(torch.float32)
apply_plan(model)"""
    else:
        about = _NEEDS_MASFORMER if needs_masformer else _NEEDS_NOTHING
        first = "import masformer\n" if needs_masformer else ""
        lines = f"""{first}from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})"""
    return f"""Attention spans of the layers (MASFormer plan): `{plan or "full"}`

{about}

```python
{lines}
```

A plan changes what the model computes, so its quality has to be measured: {_UNMEASURED}"""


def _about_cost(cost: Mapping[str, Any]) -> str:
    own = cost["own_plan"]
    lines = [
        "## Cost",
        "",
        f"| tokens | | this plan | own spans (`{own}`) | ratio |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for row in cost["lengths"]:
        for label, figures, unit in _figures(row):
            plan, base = (_number(figures[side] / unit) for side in ("plan", "own"))
            lines.append(f"| {row['length']:,} | {label} | {plan} | {base} | {figures['ratio']:.2f} |")
    about = (
        "Ratio is this plan / own spans. Attention operations (two matrix products) and cache: closed form, batch 1."
    )
    how = cost["measured_with"]
    if how:
        prefill, decoding = (
            max(row["measured"][name]["slowest_to_fastest"] for row in cost["lengths"])
            for name in ("prefill_seconds", "decode_ms_per_token")
        )
        versions = ", ".join(f"{package} {number}" for package, number in how["versions"].items())
        about += (
            f" Prefill, decoding and the measured cache: medians of {how['repeats']} turns in one process, both plans "
            "computed by masformer, in turn, on the same random tokens. A length counts the prompt and the "
            f"{how['decoded_tokens']} tokens decoded after it. Turns of one plan differed by up to {prefill:.2f}x in "
            f"prefill and {decoding:.2f}x in decoding: smaller differences are noise. {how['device']}, threads: "
            f"{how['threads']}, {how['dtype']}, {versions}, {how['date']}."
        )
    lines += ["", about, "", "The same figures, unrounded: `masformer_cost.json`."]
    return "\n".join(lines)


def _figures(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float], float]]:
    closed = [("attention, GFLOP", row["attention_flops"], 1e9), ("cache, MiB", row["cache_bytes"], 2.0**20)]
    measured = row["measured"]
    if not measured:
        return closed
    return [
        ("prefill, s", measured["prefill_seconds"], 1.0),
        ("decoding, ms a token", measured["decode_ms_per_token"], 1.0),
        ("cache measured, MiB", measured["cache_bytes"], 2.0**20),
        *closed,
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _own_card(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the metadata of the checkpoint's own card; empty where there is none that can be read."""
    folder = Path(checkpoint.location)
    try:
        if checkpoint.provenance["source"] != "hub" or folder.is_dir():
            file = folder / "README.md"
        else:
            file = Path(
                within(
                    HUB_TIMEOUT_SECONDS,
                    lambda: hf_hub_download(checkpoint.location, "README.md", revision=checkpoint.revision),
                )
            )
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        return dict(vars(card.data))
    except Exception:  # no card, or one that is broken: it only adds what is known
        return {}


def _gguf_license(file: Path) -> dict[str, str]:
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("general.license")
    value = field.contents() if field else None
    return {"license": value} if isinstance(value, str) and value else {}
