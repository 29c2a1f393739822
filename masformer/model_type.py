"""The model type of checkpoints whose plan nobody but masformer computes.

    import masformer
    model = AutoModelForCausalLM.from_pretrained("smollm2-mas")   # a LlamaForCausalLM with its plan on it

Such a `config.json` says `"model_type": "masformer"` and keeps the names of its architecture beside the plan. What
reads checkpoints by their type, as plain transformers and vLLM do, then refuses it by that name; under the
architecture's own type it would compute full attention without a word. `import masformer` makes the type known.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from copy import copy
from functools import cache
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MODEL_TYPE = "masformer"
_ARCHITECTURE = "MasformerForCausalLM"
# What says in a config.json which code computes the model.
_NAMES = ("model_type", "architectures", "auto_map")
# Where they stand beside the plan. Right under `masformer`, transformers would take that for the architecture's config.
_BASE = "base"
_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def typed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json under masformer's own type; it holds a plan under `masformer`."""
    base = {name: config[name] for name in _NAMES if name in config}
    others = {name: value for name, value in config.items() if name not in _NAMES}
    own = {"model_type": MODEL_TYPE, "architectures": [_ARCHITECTURE]}
    return {**others, **own, "masformer": {**config["masformer"], _BASE: base}}


def is_typed(config: Mapping[str, Any]) -> bool:
    """Return whether the content of a config.json has masformer's own type."""
    return config.get("model_type") == MODEL_TYPE


def untyped(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json under the type of its architecture.

    Raises:
        ValueError: It does not name its architecture.
    """
    stored = config.get("masformer")
    base = stored.get(_BASE) if isinstance(stored, dict) else None
    kind = base.get("model_type") if isinstance(base, dict) else None
    if not isinstance(kind, str) or kind == MODEL_TYPE:
        raise ValueError(
            "config.json has the model type 'masformer' and no other one under 'masformer'; restore the original"
        )
    assert isinstance(stored, dict)
    assert isinstance(base, dict)
    names = {name: base.get(name) for name in _NAMES if name in base or name == "architectures"}
    return {**config, **names, "masformer": {name: value for name, value in stored.items() if name != _BASE}}


def read_config(location: str, *, trust_remote_code: bool, **options: Any) -> PreTrainedConfig:
    """Return what `AutoConfig` reads, as a config of the architecture; other arguments are those of `AutoConfig`."""
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if trust_remote_code and "gguf_file" not in options:
        values, _ = PreTrainedConfig.get_config_dict(location, **options)
        code = untyped(values).get("auto_map") if is_typed(values) else None
        if code:  # which AutoConfig looks for under the architecture's own type alone
            kind = get_class_from_dynamic_module(code["AutoConfig"], location, **options)
            config: PreTrainedConfig = kind.from_dict(untyped(values), name_or_path=location)
            return config
    return _untyped_config(AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **options))


def _untyped_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the architecture, where `AutoConfig` read one of masformer's own type."""
    kind = type(config)
    if kind.__module__ != __name__:
        return config
    config = copy(config)
    config.__class__ = kind.__base__
    return config


def register() -> None:
    """Make the type known to `AutoConfig`, and with it to `AutoModelForCausalLM`."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    class MasformerConfig(PreTrainedConfig):  # type: ignore[misc]
        """What `AutoConfig` reads a folder of masformer's own type with."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
            values = untyped(config_dict)
            if values["model_type"] not in CONFIG_MAPPING:
                raise ValueError(
                    f"config.json names the architecture '{values['model_type']}' beside its plan, which this "
                    "transformers does not know; update it. Where it has code of its own, pass --trust-remote-code, or "
                    "load it with masformer.checkpoints.open.open_checkpoint"
                )
            made = CONFIG_MAPPING[values["model_type"]].from_dict(values, **options)
            config = made[0] if isinstance(made, tuple) else made
            config.__class__ = _with_plan(type(config))  # type: ignore[arg-type]
            return made

    CONFIG_MAPPING.register(MODEL_TYPE, MasformerConfig, exist_ok=True)


@cache
def _with_plan(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Return the class of an architecture's configs whose models get the plan in them."""
    from transformers import AutoModelForCausalLM

    # A name of its own, so that auto classes for other kinds of models refuse it.
    made = type(f"Masformer{base.__name__}", (base,), {"__module__": __name__})
    AutoModelForCausalLM.register(made, _Loader, exist_ok=True)
    return made


class _Loader:
    """What `AutoModelForCausalLM` calls: makes the architecture's own model, and puts the plan on it."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, config: PreTrainedConfig, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM

        made = AutoModelForCausalLM.from_pretrained(name, *args, config=_untyped_config(config), **options)
        _apply(made[0] if isinstance(made, tuple) else made, config)
        return made

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_config(_untyped_config(config), **options)
        _apply(model, config)
        return model


def _apply(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    from masformer.convert import apply_plan, stored_plan

    apply_plan(model, stored_plan(config))


class _WhenTransformersLoads(MetaPathFinder):
    """Registers the type once transformers has its auto classes.

    Importing transformers for it would make each command wait for torch.
    """

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if fullname != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register the type now, or as soon as transformers is imported."""
    if _AUTO_CONFIG in sys.modules:
        register()
    elif not any(isinstance(finder, _WhenTransformersLoads) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenTransformersLoads())
