"""A LoRA adapter -> its base, what is wrong with it, and, when asked for, a model with the adapter in it.

    adapter = open_adapter("adapter-folder")          # reads no weights yet
    adapter.base, adapter.provenance
    rows = adapter.check(config)                      # names and shapes against the base's config
    adapter.put_on(model, rows, is_merged=True)

Everything that knows LoRA is peft's. A merge adds each layer's product to its weight in float32, or in float64 for such
weights, and rounds once to the weight's own type. So outputs equal those of peft's unmerged model to that rounding.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, __version__, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from masformer.checkpoints.files import ADAPTER_CONFIG, TOKENIZERS, Listing
from masformer.errors import CheckpointError, first_line, refusing
from masformer.plans.spans import SpanPlan

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
# What our own trainings leave beside an adapter.
TRAINED_WITH = "masformer.json"
_NAME = "default"
_PREFIX = "base_model.model."
# What is read of an adapter beside its weights: settings, tokenizer, chat template.
READ_FILES = (
    *(ADAPTER_CONFIG, WEIGHTS, TRAINED_WITH, "chat_template.jinja", "additional_chat_templates/*.jinja"),
    *sorted(TOKENIZERS),
    *("special_tokens_map.json", "added_tokens.json", "merges.txt", "*.model", "*.tiktoken"),
)
# LoRA that no merged weight can compute, or that changes which layers there are.
_UNMERGEABLE = {
    "alora_invocation_tokens": "is switched on by words of the prompt (aLoRA)",
    "layer_replication": "repeats layers of its base (layer_replication)",
    "arrow_config": "routes between several adapters (Arrow)",
    "megatron_config": "is made for Megatron",
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter whose weights are not loaded yet.

    Attributes:
        reference: Folder or hub id.
        provenance: JSON-ready, as that of a checkpoint.
        location: What a tokenizer is loaded from.
        settings: Its `adapter_config.json`.
        trained_with: Its `masformer.json`; empty where another program trained it.
    """

    reference: str
    provenance: Mapping[str, Any]
    location: str
    revision: str | None
    listing: Listing
    settings: Mapping[str, Any]
    trained_with: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"adapter '{self.reference}'"

    @property
    def base(self) -> tuple[str, str | None]:
        """Return the reference of the base, and its revision.

        Raises:
            CheckpointError: It names none.
        """
        base, revision = self.settings.get("base_model_name_or_path"), self.settings.get("revision")
        if not isinstance(base, str) or not base:
            raise CheckpointError(
                f"{ADAPTER_CONFIG} of {self.name} names no base_model_name_or_path; give the model that it was "
                "trained on with --model, beside --adapter"
            )
        return base, revision if isinstance(revision, str) and revision else None

    @property
    def has_tokenizer(self) -> bool:
        """Return whether a whole tokenizer lies beside it."""
        files = self.listing.names
        whole = TOKENIZERS - {"tokenizer_config.json"}
        return bool(whole & files) or any(name.endswith((".model", ".tiktoken")) for name in files)

    def load_tokenizer(self, config: PreTrainedConfig, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
        """Return the tokenizer beside it; `config` is that of its base, which tells the kind where its files do not."""
        revision = {"revision": self.revision} if self.revision else {}
        return AutoTokenizer.from_pretrained(
            self.location, config=config, trust_remote_code=trust_remote_code, **revision
        )

    @property
    def chat_template(self) -> str | None:
        """Return the chat template beside it; None where there is none."""
        if "chat_template.jinja" not in self.listing.names:
            return None
        try:
            return self.listing.path("chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"chat_template.jinja of {self.name} cannot be read: {first_line(error)}") from None

    def check(self, config: PreTrainedConfig, base: str, *, trust_remote_code: bool) -> int | None:
        """Check names and shapes of its tensors against a base, given by config and name; loads no weights.

        Returns:
            Rows that the base's embeddings have to get, or None where they stay.

        Raises:
            CheckpointError: It is of another model, or damaged.
        """
        shapes = self._shapes()
        with refusing(CheckpointError, f"{self.name} does not fit its base '{base}':", _reason), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=trust_remote_code)
            rows = self._rows(model, shapes, base)
            if rows is not None:
                model.resize_token_embeddings(rows, mean_resizing=False)
            self._attach(model, {name: torch.empty(shape) for name, shape in shapes.items()}, is_trial=True)
        return rows

    def put_on(self, model: PreTrainedModel, rows: int, *, is_merged: bool) -> None:
        """Put the adapter on a loaded base, in place.

        Args:
            rows: Embeddings that it is to have.
            is_merged: Add it to the weights; else its layers stay beside those of the base.

        Raises:
            CheckpointError: Its weights cannot be read.
        """
        if any(parameter.is_meta for parameter in model.parameters()):
            raise CheckpointError(
                f"{self.name}: some weights of its base do not fit on the devices and are out of its reach; merge it "
                "first, with: masformer convert"
            )
        if rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        with refusing(CheckpointError, f"{self.name} does not load:", _reason):
            attached = self._attach(model, load_file(self.listing.path(WEIGHTS)))
        if is_merged:
            _merge(model, attached, dtypes)
        model.requires_grad_(is_merged)  # as after loading; layers beside packed weights are not trained

    def _attach(self, model: PreTrainedModel, state: dict[str, Tensor], *, is_trial: bool = False) -> PeftModel:
        """Return peft's view of a model, whose layers now have the adapter's weights.

        Raises:
            CheckpointError: A tensor has no place, or a layer has no tensors.
        """
        settings = self._peft_settings()
        if is_trial:
            settings.init_lora_weights = False  # some ways of beginning read the base's weights
        with _without_warnings():
            attached = PeftModel(model, settings, _NAME)
            result = set_peft_model_state_dict(attached, state, _NAME)
        unused = sorted(result.unexpected_keys)
        if unused:
            raise CheckpointError(
                f"{self.name} has {len(unused)} tensors that its base has no place for, {_plain(unused[0])} among "
                "them; it is of another model"
            )
        missing = set(result.missing_keys)
        parameters = dict(attached.named_parameters(remove_duplicate=False))
        # What tied layers share stands in the file once.
        there = {id(parameter) for name, parameter in parameters.items() if name not in missing}
        absent = sorted(name for name in missing if f".{_NAME}" in name and id(parameters.get(name)) not in there)
        if absent:
            raise CheckpointError(
                f"{self.name} lacks {len(absent)} tensors that its {ADAPTER_CONFIG} names, {_plain(absent[0])} among "
                "them; copy it again"
            )
        return attached

    def _peft_settings(self) -> LoraConfig:
        known = {field.name for field in fields(LoraConfig)}
        switched = {name: value for name, value in self.settings.items() if name not in known}
        # What a later peft has switched on would be left out without a word.
        later = [
            name for name, value in switched.items() if value is True or (value and isinstance(value, (dict, list)))
        ]
        if later:
            raise CheckpointError(
                f"{ADAPTER_CONFIG} of {self.name} sets {later[0][:60]}, which peft {__version__} does not know; "
                "install a later one with: pip install -U peft"
            )
        given = {name: value for name, value in self.settings.items() if name in known - {"runtime_config"}}
        with _without_warnings():
            settings: LoraConfig = LoraConfig.from_peft_type(**LoraConfig.check_kwargs(**given))
        settings.inference_mode = True
        return settings

    def _shapes(self) -> dict[str, list[int]]:
        try:
            with safe_open(self.listing.path(WEIGHTS), framework="pt") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{WEIGHTS} of {self.name} cannot be read: {first_line(error)}; copy it again"
            ) from None

    def _rows(self, model: PreTrainedModel, shapes: Mapping[str, list[int]], base: str) -> int | None:
        """Return the tokens that the adapter was trained with, where its base has another number of embeddings."""
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        names = {id(module): name for name, module in model.named_modules()}
        both = [f"{_PREFIX}{names[id(module)]}" for module in (inputs, outputs) if module is not None]
        whole = {name: shapes.get(f"{name}.weight", shapes.get(f"{name}.base_layer.weight")) for name in both}
        own = inputs.weight.shape[0]
        rows = {shape[0] for shape in whole.values() if shape} | {
            *(shapes[f"{both[0]}.lora_embedding_A"][1:] if f"{both[0]}.lora_embedding_A" in shapes else ()),
            *(shapes[f"{name}.lora_B.weight"][0] for name in both[1:] if f"{name}.lora_B.weight" in shapes),
        }
        rows -= {own}
        if not rows:
            return None
        tied = bool(getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False))
        absent = [name for name, shape in whole.items() if not shape]
        if len(rows) > 1 or (max(rows) > own and absent and not (tied and len(absent) < len(both))):
            raise CheckpointError(
                f"{self.name} was trained with {max(rows):,} tokens, its base '{base}' has embeddings for {own:,}, and "
                f"the adapter lacks those of the others; save it again with save_embedding_layers=True"
            )
        return int(rows.pop())


def read_adapter(
    reference: str, listing: Listing, location: str, revision: str | None, source: Mapping[str, Any]
) -> Adapter:
    """Return the adapter in a folder or repository, without weights.

    Args:
        reference: Folder or hub id.
        location: Folder or hub id that transformers loads from.
        revision: Commit on the hub; None for a folder.
        source: Its provenance.

    Raises:
        CheckpointError: It is no LoRA adapter of a decoder, or its files are not whole.
    """
    name = f"adapter '{reference}'"
    if ADAPTER_CONFIG not in listing.names:
        raise CheckpointError(f"{name} holds no {ADAPTER_CONFIG}; give the folder or hub id of a LoRA adapter")
    settings = listing.json(ADAPTER_CONFIG)
    kind, task = settings.get("peft_type"), settings.get("task_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{name} is of type {_short(kind)}; LoRA adapters are loaded, merge others with peft first"
        )
    if task not in (None, "CAUSAL_LM"):
        raise CheckpointError(f"{name} is for the task {_short(task)}; one of a decoder (CAUSAL_LM) is needed")
    for setting, what in _UNMERGEABLE.items():
        if settings.get(setting):
            raise CheckpointError(f"{name} {what}, which is not supported; give an adapter of plain LoRA")
    if WEIGHTS not in listing.names:
        remedy = "save it again with PEFT"
        if _PICKLE in listing.names:
            remedy = (
                f'{_PICKLE} is a pickle, which is not loaded; write it as safetensors: python -c "import torch, '
                f"safetensors.torch as s; s.save_file(torch.load('{_PICKLE}', weights_only=True), '{WEIGHTS}')\""
            )
        raise CheckpointError(f"{name} holds no {WEIGHTS}; {remedy}")
    trained_with = listing.json(TRAINED_WITH) if TRAINED_WITH in listing.names else {}
    if trained_with.get("extend_positions"):
        raise CheckpointError(
            f"{name} was trained on a model whose positions were extended first; give the checkpoint above it, which "
            "has both"
        )
    return Adapter(
        reference=reference,
        provenance=source,
        location=location,
        revision=revision,
        listing=listing,
        settings=settings,
        trained_with=trained_with,
    )


def note_training(folder: Path, plan: SpanPlan | None, extend_positions: str | None) -> None:
    """Write beside an adapter what its base needs before it fits: the plan, and whether positions were extended."""
    content = {"plan": None if plan is None else plan.to_json(), "extend_positions": extend_positions}
    (folder / TRAINED_WITH).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _merge(model: PreTrainedModel, attached: PeftModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Add the adapter to the weights of the model, in place; `dtypes` are those of the base's parameters."""
    _untie(model)
    wide = torch.float64 if torch.float64 in dtypes.values() else torch.float32
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        layer.to(wide)
    with _without_warnings():
        attached.merge_and_unload()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, model.dtype))
    if hasattr(model, "peft_config"):
        del model.peft_config


def _untie(model: PreTrainedModel) -> None:
    """Give embeddings and output layer weights of their own where the adapter changes one of them alone."""
    both = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in both or not any(
        isinstance(module, BaseTunerLayer) or hasattr(module, "modules_to_save") for module in both
    ):
        return
    inputs, outputs = (getattr(module, "base_layer", getattr(module, "original_module", module)) for module in both)
    if inputs.weight is outputs.weight:
        outputs.weight = nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
    model.config.get_text_config(decoder=True).tie_word_embeddings = model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """peft warns of what is checked here, or is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _plain(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(f".{_NAME}", "")[:100]


def _reason(error: Exception) -> str:
    """Return one line of an error; torch names a tensor of another shape in its second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and "size mismatch" in lines[1] else first_line(error)


def _short(value: Any) -> str:
    return repr(value)[:60]
