"""Encoders and classifiers of the user's, or of a package, for metrics that need weights.

tokenizer, model = load_weights("AutoModel", "sentence-transformers/all-MiniLM-L6-v2", "encoder")
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Padding included. Small, so that little is padded: on a CPU sentences of a document take half the time of 8,192.
MAX_BATCH_TOKENS = 512


def load_weights(kind: str, place: str, what: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return tokenizer and model of a folder or a hub id, the model in fp32 and in eval mode.

    Args:
        kind: Auto class of transformers, such as `AutoModel`.
        what: What errors call it.

    Raises:
        UserError: Nothing is there, it is of another kind, or weights that the kind needs are missing.
    """
    import torch
    import transformers

    if not place or (place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir()):
        raise UserError(f"{what} folder '{place}' does not exist; give a folder or a hub id")
    path = str(Path(place).expanduser()) if Path(place).expanduser().is_dir() else place
    logging = transformers.utils.logging
    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            model, info = getattr(transformers, kind).from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # transformers' own, the hub's, safetensors', OSError, ValueError and KeyError
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{what} '{place}' cannot be loaded: {reason}; give a folder or a hub id") from error
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()
    # A pooler is no part of what is computed here, and a missing one is common.
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise UserError(f"{what} '{place}' has no weights for {missing[0]}; its head was not trained")
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(f"{what} '{place}' has a tokenizer that does not pad or has no tokenizer.json")
    return tokenizer, model.eval()


def max_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Return how many tokens a model of this kind reads at once, special tokens included."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= (config.pad_token_id or 0) + 1  # their positions begin behind that of padding
    return int(min(tokenizer.model_max_length, positions))


def weights_provenance(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> dict[str, Any]:
    """Return digests of weights and tokenizer, and the packages that compute."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    pieces = json.loads(tokenizer.backend_tokenizer.to_str())
    del pieces["truncation"], pieces["padding"]  # of the last call
    return {
        "weights_sha256": digest.hexdigest(),
        "tokenizer_sha256": hashlib.sha256(json.dumps(pieces).encode()).hexdigest(),
        **{package: version(package) for package in ("tokenizers", "torch", "transformers")},
    }


def by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of texts in batches of about one length, short ones first, so that little is padded."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > MAX_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows of token ids as one batch of tensors (B, T)."""
    names = tokenizer.model_input_names
    return tokenizer.pad([{name: row[name] for name in names if name in row} for row in rows], return_tensors="pt")
