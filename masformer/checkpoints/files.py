"""Which files of a folder or a hub repository make up a checkpoint, settled before a library reads any of them.

    listing = Listing("m", names={"config.json", ...}, path=lambda name: Path("m", name))
    listing.check()
    listing.weights()      # ["model-00001-of-00002.safetensors", ...]
    listing.tensors()      # {"model.embed_tokens.weight": "BF16", ...}

Weights are `model.safetensors`, or the shards of its index. An index may name plain `*.safetensors` files of its own
folder and nothing else: a library would follow it to pickles and to files outside, which no digest would cover. A
library takes of it which files to read, and the last of two tensors of one name; so each is in one file, that which the
index says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from masformer.errors import CheckpointError, first_line

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
# One of them is needed to make tokens.
TOKENIZERS = {
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.tiktoken", "tekken.json", "tokenizer_config.json"),
}
# Far above those of real models: a config that is larger would keep its reader busy, or exhaust memory.
_MOST_BYTES = 32 * 2**20
_SHARD = re.compile(r"[^/\\:\0]+\.safetensors")
_PICKLE = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_LAYERS, _MANY, _LARGE, _HUGE = 1_000, 10_000, 1_000_000, 1_000_000_000
# Sizes in configs, by all the names that architectures have for them: most that makes sense, and whether 0 does.
_SIZES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), (1, _LAYERS)),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads"), (1, _MANY)),
    **dict.fromkeys(("hidden_size", "head_dim", "n_embd", "d_model", "global_head_dim"), (1, _LARGE)),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), (1, _LARGE)),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "n_ctx"), (1, _HUGE)),
    **dict.fromkeys(("sliding_window", "window_size"), (-1, _HUGE)),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"), (0, _MANY)),
    "num_labels": (0, 100_000),
}
# No number of a config is larger; transformers writes 1e30 for "no limit".
_MOST = 10**31
# Of frequencies: beyond these, angles are no numbers.
_ROPE, _MOST_ROPE = ("rope_scaling", "rope_parameters"), 1e12
# What norms add to a variance: 0 and less divide by 0 or take a root of less.
_SMALL = ("norm_eps", "norm_epsilon")
_TOKEN_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")


# Buffers that earlier versions of architectures saved, and that are computed anew.
LEFTOVERS = re.compile(
    r"(^|\.)(original_)?inv_freq$|(^|\.)(cos|sin)_cached$|(^|\.)rope_freqs(\.weight)?$"
    r"|(^|\.)(attn|attention|self_attn)\.(masked_)?bias$|(^|\.)(position_ids|causal_mask)$"
    # Heads that training adds and generation leaves out: values, and further tokens at once.
    r"|^v_head\.|^(model\.)?mtp(_\w+)?\."
)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a folder or of a repository.

    Attributes:
        name: What errors call it.
        names: Files at the top.
        path: Returns where one of them is on this machine, fetched if need be.
        reference: What a library loads them by.
    """

    name: str
    names: Set[str]
    path: Callable[[str], Path]
    reference: str = "MODEL"

    @property
    def is_adapter(self) -> bool:
        """Return whether there is an adapter and no model."""
        return ADAPTER_CONFIG in self.names and not self.names & {WEIGHTS, INDEX}

    def check(self) -> None:
        """Check that the files make up one model, and that the numbers in its configs can be meant.

        Raises:
            CheckpointError: They do not.
        """
        if ADAPTER_CONFIG in self.names:
            base = self.json(ADAPTER_CONFIG).get("base_model_name_or_path")
            of_base = f" of {_short(base)}" if base else ""
            raise CheckpointError(
                f"{self.name} holds a LoRA adapter{of_base} beside a model, and a library would load the adapter; move "
                f"{ADAPTER_CONFIG} away if the weights are merged already, else move the model away"
            )
        if CONFIG not in self.names:
            raise CheckpointError(f"{self.name} holds no {CONFIG}; give the folder of a saved model")
        check_config(self.json(CONFIG), f"{CONFIG} of {self.name}")
        if GENERATION_CONFIG in self.names:
            check_config(self.json(GENERATION_CONFIG), f"{GENERATION_CONFIG} of {self.name}")
        self.weights()

    def check_tokenizer(self) -> None:
        """Check that there is a tokenizer: some classes of transformers make an empty one of nothing.

        Raises:
            CheckpointError: There is none.
        """
        if not (TOKENIZERS & self.names or any(name.endswith((".model", ".tiktoken")) for name in self.names)):
            raise CheckpointError(
                f"{self.name} holds no tokenizer (no tokenizer.json, tokenizer.model or vocab.json); copy its files "
                "from the model that it was made from"
            )

    def weights(self) -> list[str]:
        """Return the names of the files that hold the weights.

        Raises:
            CheckpointError: There are none, some are missing, or it is not clear which count.
        """
        chosen = self._chosen()
        if chosen is not None:
            return self._present([chosen], CONFIG) if chosen != INDEX else self._shards()
        if INDEX not in self.names:
            if WEIGHTS in self.names:
                return [WEIGHTS]
            raise CheckpointError(self._about_absent_weights())
        shards = self._shards()
        if WEIGHTS in self.names and shards != [WEIGHTS]:
            raise CheckpointError(
                f"{self.name} holds two sets of weights: {WEIGHTS}, and the {len(shards)} shards of {INDEX}; move the "
                "older set away"
            )
        return shards

    def _about_absent_weights(self) -> str:
        others = sorted(name for name in self.names if name.endswith(".safetensors"))
        pickles = sorted(filter(_PICKLE.fullmatch, self.names))
        found = f", only {others[0]}" if others else "" if pickles else " and no other .safetensors file"
        absent = f"{self.name} holds no {WEIGHTS}, no {INDEX}{found}"
        if not pickles:
            return f"{absent}; save the whole model again with save_pretrained"
        more = f" and {len(pickles) - 1} more files" if len(pickles) > 1 else ""
        write = f"[each.from_pretrained('{self.reference}').save_pretrained('NEW_FOLDER') for each in (M, T)]"
        return (
            f"{absent}; its weights are in {pickles[0]}{more}, pickles, which are not loaded; write safetensors once, "
            f'with: python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; {write}"'
        )

    def _chosen(self) -> str | None:
        """Return the file that the config names for the weights; None where it leaves that open."""
        chosen = self.json(CONFIG).get("transformers_weights") if CONFIG in self.names else None
        if chosen is None or (isinstance(chosen, str) and (chosen == INDEX or _SHARD.fullmatch(chosen))):
            return chosen
        raise CheckpointError(
            f"{CONFIG} of {self.name} has transformers_weights {_short(chosen)}; a plain *.safetensors name was "
            "expected, or none"
        )

    def tensors(self) -> dict[str, str]:
        """Return the type of each tensor in the weights, as safetensors names it, from the headers of the files.

        Raises:
            CheckpointError: A header cannot be read, or a tensor is in two files, or in another than the index says.
        """
        types: dict[str, str] = {}
        places: dict[str, str] = {}
        for name in self.weights():
            try:
                with safe_open(self.path(name), framework="pt") as file:
                    found = {tensor: file.get_slice(tensor).get_dtype() for tensor in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{name} of {self.name} cannot be read: {first_line(error)}; copy it again"
                ) from None
            for tensor in found:
                if tensor in places and not LEFTOVERS.search(tensor):
                    raise CheckpointError(
                        f"{self.name} holds {tensor[:80]} twice, in {places[tensor]} and in {name}; save the model "
                        "again with save_pretrained"
                    )
                places[tensor] = name
            types |= found
        said = self.json(INDEX)["weight_map"] if INDEX in self.names and self._chosen() in (None, INDEX) else {}
        for tensor, name in said.items():
            # Where one is in no file and is needed, loading misses it; tied heads and buffers are named and left out.
            if places.get(tensor, name) != name and not LEFTOVERS.search(tensor):
                raise CheckpointError(
                    f"{INDEX} of {self.name} says that {tensor[:80]} is in {name[:60]}, and it is in {places[tensor]}; "
                    "save the model again with save_pretrained"
                )
        return types

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file.

        Raises:
            CheckpointError: It is no JSON, no object, or too large to be meant.
        """
        try:
            file = self.path(name)
            if (size := file.stat().st_size) > _MOST_BYTES:
                raise CheckpointError(
                    f"{name} of {self.name} has {size:,} bytes, more than {_MOST_BYTES:,}; restore the original"
                )
            value = json.loads(file.read_bytes())
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{name} of {self.name} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, json.JSONDecodeError) else "damaged or nested too deeply"
            raise CheckpointError(f"{name} of {self.name} is no JSON ({reason}); restore the original") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{name} of {self.name} is {_short(value)}, an object was expected")
        return value

    def _shards(self) -> list[str]:
        shards = self.json(INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(
                f"{INDEX} of {self.name} has weight_map {_short(shards)}; an object that names a file for each tensor "
                "was expected"
            )
        for tensor, name in shards.items():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise CheckpointError(
                    f"{INDEX} of {self.name} names {_short(name)} for {tensor[:80]}; weights are plain *.safetensors "
                    "files beside it, save the model again with save_pretrained"
                )
        return self._present(sorted(set(shards.values())), INDEX)

    def _present(self, names: list[str], where: str) -> list[str]:
        absent = [name for name in names if name not in self.names]
        if absent:
            raise CheckpointError(
                f"{self.name} lacks {absent[0]}, one of {len(absent)} files that its {where} names; copy it again"
            )
        return names


def list_folder(folder: Path, name: str) -> Listing:
    """Return the files of a folder; links count as what they lead to, as in the hub's cache."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    return Listing(name=name, names=names, path=lambda file: folder / file, reference=str(folder))


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise `CheckpointError` for a number that no library should be given, in a config or one within it."""
    for part in _parts(config):
        for name, value in part.items():
            least, most = _SIZES.get(name, (-_MOST, _MOST))
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            # Some architectures have a list with an entry a layer; null leaves a size to the architecture.
            # A window may be switched off by false, and a number may have been written with a point.
            is_meant = value is False if "window" in name else isinstance(value, float) and value.is_integer()
            if name in _SIZES and not (isinstance(value, (list, type(None))) or _is_whole(value) or is_meant):
                raise CheckpointError(f"{where}: {name} is {_short(value)}; a whole number was expected")
            if is_number and (isinstance(value, int) or name in _SIZES) and not least <= value <= most:
                raise CheckpointError(
                    f"{where}: {name} is {_short(value)}; a number from {least:,} to {most:,} was expected"
                )
            if name in _ROPE or name == "rope_theta":
                _check_rope({name: value}, f"{where}: {name}")
            if is_number and name.endswith(_SMALL) and not 0 < value < 1:
                raise CheckpointError(f"{where}: {name} is {_short(value)}; a number between 0 and 1 was expected")
            if name in _TOKEN_IDS:
                check_token_ids(value, f"{where}: {name}")


def _check_rope(value: Any, where: str) -> None:
    """Raise `CheckpointError` for a number in the settings of rotary positions that no angle can be made of."""
    if isinstance(value, (dict, list)):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            if name == "rope_theta" and isinstance(one, (int, float)) and not one > 0:
                raise CheckpointError(f"{where} holds rope_theta {_short(one)}; a number above 0 was expected")
            _check_rope(one, where)
    elif isinstance(value, (int, float)) and not -_MOST_ROPE <= value <= _MOST_ROPE:
        raise CheckpointError(f"{where} holds {_short(value)}; a number up to {_MOST_ROPE:g} was expected")


def check_token_ids(ids: Any, where: str) -> None:
    """Raise `CheckpointError` unless this is a token, a list of tokens, or None; -1 stands for none in some configs."""
    each = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(not _is_whole(token) or not -1 <= token < 2**31 for token in each):
        raise CheckpointError(f"{where} is {_short(ids)}; a token's number or a list of them was expected")


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return a config and those within it, as of the text part of a model; the stored plan has checks of its own."""
    yield config
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("config"):
            yield from _parts(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
