"""A checkpoint is what its files say: which files count, and what a config may hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import RevisionNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from masformer import PlanError
from masformer.checkpoints import hub
from masformer.checkpoints.files import Listing
from masformer.checkpoints.open import Checkpoint, open_checkpoint
from masformer.errors import CheckpointError
from tests.helpers.properties import tries
from tests.helpers.tiny_models import save_tiny_checkpoint, tiny_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def change(file: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_index(folder: Path, name: Any) -> None:
    """Let the index name another file for every tensor, and keep the weights under a name that nothing reads."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "dummy.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error:
        open_checkpoint(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "../outside.safetensors", "sub/w.safetensors", "/tmp/w.safetensors", "..\\w.safetensors", 3],
)
def test_an_index_names_plain_safetensors_of_its_folder_and_nothing_else(folder: Path, name: Any) -> None:
    change_index(folder, name)
    refused(folder, r"index.json of .* names .* for .*plain \*.safetensors files beside it")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": 1}', b'{"weight_map": {}}', b"[" * 100_000])
def test_a_damaged_index_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").rename(folder / "dummy.safetensors")
    (folder / INDEX).write_bytes(content)
    refused(folder, "index.json of model folder")


def test_weights_of_any_plain_name_load_and_are_in_the_digests(folder: Path) -> None:
    expected = open_checkpoint(str(folder)).load_model(torch.float32).state_dict()
    change_index(folder, "dummy.safetensors")
    save_file({"x": torch.zeros(1)}, folder / "stray.safetensors")
    checkpoint = open_checkpoint(str(folder))
    assert {name for name in checkpoint.provenance["files"] if name.endswith(".safetensors")} == {"dummy.safetensors"}
    loaded = checkpoint.load_model(torch.float32).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_shards_are_each_in_the_digests_and_other_weights_are_other_digests(sharded: Path) -> None:
    before = open_checkpoint(str(sharded)).provenance["files"]
    shards = sorted(file.name for file in sharded.glob("model-*.safetensors"))
    assert [name for name in before if name.endswith(".safetensors")] == shards
    tensors = load_file(sharded / shards[-1])
    save_file({name: value + 1 for name, value in tensors.items()}, sharded / shards[-1], {"format": "pt"})
    after = open_checkpoint(str(sharded)).provenance["files"]
    assert [name for name in after if after[name] != before[name]] == [shards[-1]]


def test_the_hub_cache_of_links_into_blobs_loads(sharded: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in sharded.iterdir():
        (snapshot / file.name).symlink_to(file)
    open_checkpoint(str(snapshot)).load_model(torch.float32)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    name = sorted(sharded.glob("model-*.safetensors"))[1]
    name.unlink()
    refused(sharded, f"lacks {name.name}, one of 1 files that its {INDEX} names")


@pytest.mark.parametrize("names", [["pytorch_model.bin"], [f"pytorch_model-0000{one}-of-00002.bin" for one in (1, 2)]])
def test_pickled_weights_are_named_with_what_writes_them_as_safetensors(
    folder: Path, names: list[str], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    keys = list(model.state_dict())
    cut = len(keys) // len(names) + 1
    parts = [keys[first : first + cut] for first in range(0, len(keys), cut)]
    for name, part in zip(names, parts, strict=True):
        torch.save({key: model.state_dict()[key] for key in part}, folder / name)
    if len(names) > 1:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(CheckpointError, match=f"its weights are in {names[0]}") as error:
        open_checkpoint(str(folder))
    command = str(error.value).partition('python -c "')[2].removesuffix('"')
    exec(command.replace("NEW_FOLDER", str(tmp_path / "new")), {})  # as the message says
    again = open_checkpoint(str(tmp_path / "new")).load_model(torch.float32)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_pickles_beside_safetensors_are_left_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert "pytorch_model.bin" not in open_checkpoint(str(folder)).provenance["files"]
    open_checkpoint(str(folder)).load_model(torch.float32)


def test_old_weights_beside_newer_shards_are_refused(sharded: Path, saved: Path) -> None:
    shutil.copy(saved / "model.safetensors", sharded)
    refused(sharded, r"two sets of weights: model.safetensors, and the \d+ shards")


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize("has_weights", [True, False])
def test_an_adapter_is_no_model(folder: Path, has_config: bool, has_weights: bool) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base", "peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if not has_config:
        (folder / "config.json").unlink()
    if not has_weights:
        (folder / "model.safetensors").unlink()
    refused(
        folder,
        "holds a LoRA adapter of 'base' beside a model" if has_weights else "names 'base' as its base: .* --model BASE",
    )


def test_adapter_weights_without_their_config_are_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    refused(folder, "no model.safetensors.* only adapter_model.safetensors")


def test_an_adapter_beside_a_gguf_file_is_refused(tmp_path: Path) -> None:
    for name in ("m.gguf", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    refused(tmp_path / "m.gguf", r"lies an adapter_config.json; move one")


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "hqq", "no-such-method"])
def test_quantized_weights_are_told_from_the_config(folder: Path, method: str) -> None:
    change(folder / "config.json", quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    refused(folder, f"is quantized \\({method}\\)")


def test_a_folder_without_a_tokenizer_is_told(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "holds no tokenizer .* copy its files")


def test_a_config_with_fewer_layers_than_the_weights_is_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"hold 9 tensors that its config does not use, model.layers.2"):
        open_checkpoint(str(folder)).load_model(torch.float32)


@pytest.mark.parametrize(
    ("leftover", "is_tied"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
        ("model.rotary_emb.original_inv_freq", False),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", False),
        ("model.causal_mask", False),
        ("v_head.summary.weight", False),
        ("mtp.layers.0.mlp.up_proj.weight", False),
        ("lm_head.weight", True),
    ],
)
def test_harmless_leftovers_load(tmp_path: Path, leftover: str, is_tied: bool) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model", tie_word_embeddings=is_tied)
    tensors = load_file(folder / "model.safetensors")
    tensors[leftover] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    open_checkpoint(str(folder)).load_model(torch.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head_dim", 0),
        ("hidden_act", "x"),
        ("rope_parameters", {"rope_type": "x"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e300}),
        ("rope_scaling", {"rope_type": "linear", "factor": float("inf")}),
        ("rope_scaling", {"rope_type": "longrope", "long_factor": [1.0, float("nan")]}),
        ("rope_theta", -1.0),
        ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 0}}),
        ("rms_norm_eps", float("nan")),
        ("text_config", {"layer_norm_epsilon": -1e-5}),
        ("num_hidden_layers", 10**40),
        ("num_hidden_layers", 1_001),
        ("num_labels", 10**9),
        ("intermediate_size", -1),
        ("eos_token_id", "x"),
        ("eos_token_id", [[1]]),
        ("pad_token_id", 10**40),
        ("max_position_embeddings", "many"),
        ("vocab_size", 2**62),
        ("num_attention_heads", True),
        ("transformers_weights", "../outside.safetensors"),
        ("text_config", {"num_hidden_layers": 10**12}),
    ],
)
def test_config_values_that_cannot_be_meant_are_one_line(folder: Path, name: str, value: Any) -> None:
    change(folder / "config.json", **{name: value})
    refused(folder, "config")


@pytest.mark.parametrize("value", ["x", [1, "x"], [[1]], {"a": 1}, 10**12, -5, 1.5])
def test_end_tokens_that_are_none_are_one_line(folder: Path, value: Any) -> None:
    change(folder / "generation_config.json", eos_token_id=value)
    refused(folder, "generation_config.json of .* eos_token_id is")


def test_end_tokens_beyond_the_embeddings_are_left_out(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[2, 95_000])
    assert open_checkpoint(str(folder)).load_model(torch.float32).generation_config.eos_token_id == [2]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["owner/kernel", "owner/kernel@v1:function", "flash_attention_2", "x"])
def test_an_attention_function_is_never_a_repository(folder: Path, key: str, value: str) -> None:
    change(folder / "config.json", **{key: value})
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config._attn_implementation is None
    assert checkpoint.load_model(torch.float32).config._attn_implementation == "sdpa"


def test_an_attention_function_of_transformers_stays(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="eager")
    assert open_checkpoint(str(folder)).load_model(torch.float32).config._attn_implementation == "eager"


@pytest.fixture
def short_table(folder: Path) -> Checkpoint:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<doc>"])
    tokenizer.save_pretrained(folder)
    return open_checkpoint(str(folder))


def test_tokens_without_an_embedding_are_named(short_table: Checkpoint) -> None:
    beyond = short_table.tokenizer.convert_tokens_to_ids("<doc>")
    short_table.check_tokens([5, 6], "a text")
    with pytest.raises(CheckpointError, match=r"d1 holds the token '<doc>', number 260 of 261 .* embeddings for 259"):
        short_table.check_tokens([5, beyond], "d1")
    # Also where it would be spelled in characters, as markup in data is; padding is never text.
    short_table.check_text("A text of [PAD] and < doc >.", "d2")
    with pytest.raises(CheckpointError, match="d3 holds the token '<doc>'"):
        short_table.check_text("A <doc> text.", "d3")
    model = short_table.load_model(torch.float32)
    with pytest.raises(CheckpointError, match="the token '<doc>'"):
        model(torch.tensor([[5, beyond]]))
    padding = short_table.tokenizer.pad_token_id
    assert torch.isfinite(model(torch.tensor([[5, padding]])).logits).all()


class _Siblings:
    sha = "0" * 40

    def __init__(self, folder: Path) -> None:
        self.siblings = [type("File", (), {"rfilename": file.name}) for file in folder.iterdir()]


def test_a_name_that_is_not_utf_8_is_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"^the name of model '\./m\\udcff' is not UTF-8; rename it$"):
        open_checkpoint("./m\udcff")


def test_an_index_on_the_hub_is_read_by_the_same_rule(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_index(folder, "pytorch_model.bin")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "model_info", lambda *_, **__: _Siblings(folder))
    monkeypatch.setattr(hub, "hf_hub_download", lambda _, file, **__: str(folder / file))
    with pytest.raises(CheckpointError, match=r"index.json of model 'owner/name' on the hub names 'pytorch_model.bin'"):
        open_checkpoint("owner/name")


def test_a_revision_is_that_of_the_hub_and_of_its_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def info(_: str, revision: str | None, **__: Any) -> _Siblings:
        asked.append(revision)
        if revision == "gone":
            raise RevisionNotFoundError("no", response=Mock(status_code=404, headers={}))
        return _Siblings(folder)

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "model_info", info)
    with pytest.raises(CheckpointError, match=r"^model 'owner/name' on the hub has no revision 'gone'; give another$"):
        open_checkpoint("owner/name", revision="gone")
    with pytest.raises(CheckpointError, match="is on this machine and has no revision 'v1'; leave that out"):
        open_checkpoint(str(folder), revision="v1")
    assert asked == ["gone"]
    # Without the hub: a commit, or a name that the cache knows.
    cached = tmp_path / "hub" / "models--owner--name"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text("a" * 40)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision, commit in {"v1": "a", "b" * 40: "b"}.items():
        checkpoint = open_checkpoint("owner/name", revision=revision)
        assert checkpoint.provenance["revision"] == commit * 40
        assert Path(checkpoint.location).name == commit * 40
    for revision in ("v2", "../../../v1", "c" * 40):
        with pytest.raises(CheckpointError, match=f"its cache holds no revision '{revision}' of model 'owner/name'"):
            open_checkpoint("owner/name", revision=revision)


def test_a_config_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**26)
    listing = Listing(name="it", names={"config.json"}, path=lambda name: tmp_path / name)
    with pytest.raises(CheckpointError, match="has 67,108,864 bytes, more than"):
        listing.check()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_tensor_in_two_shards_is_refused(sharded: Path, name: str) -> None:
    place = json.loads((sharded / INDEX).read_text())["weight_map"][name]
    other = next(file for file in sorted(sharded.glob("model-*.safetensors")) if file.name != place)
    save_file(load_file(other) | {name: load_file(sharded / place)[name] * 2}, other, {"format": "pt"})
    refused(sharded, f"holds {name} twice, in model-.* and in model-.*; save the model again")


def test_an_index_that_is_not_of_its_shards_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    places = index["weight_map"]
    moved, first = "model.norm.weight", places["model.norm.weight"]
    last = next(place for place in places.values() if place != first)
    change(sharded / INDEX, weight_map=places | {moved: last})
    refused(sharded, f"says that {moved} is in {last}, and it is in {first}")
    # What is named and left out is missed where it is needed.
    change(sharded / INDEX, weight_map=places | {"embed_out.weight": last})
    open_checkpoint(str(sharded)).load_model(torch.float32)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int16, "I16"), (torch.uint8, "U8"), (torch.bool, "BOOL"), (torch.float8_e5m2, "F8_E5M2")]
)
def test_tensors_that_only_a_quantizer_could_read_are_refused(folder: Path, dtype: torch.dtype, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    key = "model.layers.1.self_attn.o_proj.weight"
    save_file(tensors | {key: tensors[key].to(dtype)}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"hold 1 tensors of type {name}, {key} among them, and its config has no quantization_config")


def test_masks_of_earlier_versions_may_be_bools(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    mask = {"model.layers.1.self_attn.masked_bias": torch.ones(1, dtype=torch.bool)}
    save_file(tensors | mask, folder / "model.safetensors", {"format": "pt"})
    open_checkpoint(str(folder)).load_model(torch.float32)


ODD = st.one_of(
    st.sampled_from([None, -1, 0, 10**12, 10**40, 1.5, "x", [], {}, True, float("nan"), [[1]], "../x", "a/b", 2**63]),
    st.integers(),
    st.text(max_size=4),
    st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)),
)


@tries(60)
@given(data=st.data())
def test_one_odd_value_is_taken_or_refused_in_one_line(saved: Path, data: st.DataObject) -> None:
    file = saved / data.draw(st.sampled_from(["config.json", "generation_config.json", "tokenizer_config.json"]))
    original = file.read_text()
    values = json.loads(original)
    message = ""
    key = data.draw(st.sampled_from([*values, "text_config", "transformers_weights", "quantization_config", "x"]))
    try:
        file.write_text(json.dumps(values | {key: data.draw(ODD)}))
        checkpoint = open_checkpoint(str(saved))
        checkpoint.load_model(torch.float32)
    except (CheckpointError, PlanError) as error:
        message = str(error)
    finally:
        file.write_text(original)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_max_length", int(1e30)),
        ("seed", 2**60),
        ("sliding_window", False),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e7}),
    ],
)
def test_odd_numbers_that_do_no_harm_are_taken(folder: Path, name: str, value: Any) -> None:
    change(folder / "config.json", **{name: value})
    open_checkpoint(str(folder)).load_model(torch.float32)


def test_an_error_is_one_line_whatever_a_config_names(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["a\nb\x0bc"]}))
    with pytest.raises(CheckpointError, match="is a a b c, not a decoder"):
        open_checkpoint(str(folder))
