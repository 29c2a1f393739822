"""What `masformer convert`, `show` and `push` do, once `masformer.checkpoint_commands` has read their flags."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from masformer.attention.ways import check_attention_ways
from masformer.checkpoint_commands import DTYPES
from masformer.checkpoints.card import origin_of
from masformer.checkpoints.native import native_config
from masformer.checkpoints.open import Checkpoint, max_positions, open_checkpoint
from masformer.checkpoints.publish import check_push, push_to_hub
from masformer.checkpoints.saving import SaveError, check_output, check_space, save_checkpoint
from masformer.convert import apply_plan, native_plan, num_layers, read_plan, stored_plan
from masformer.errors import CheckpointError, ConversionError
from masformer.hardware import dtype_name
from masformer.measure import MeasureError, closed_form, cost_record, lengths_to_measure
from masformer.tuning import check_names


def run(options: argparse.Namespace) -> None:
    """Do what checked flags ask for."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    {"convert": convert, "show": show, "push": push}[options.command](options)


def convert(options: argparse.Namespace) -> None:
    """Put a plan on a checkpoint, measure it, save it, and send it to the hub where that is asked for."""
    folder, repo_id = Path(options.output), options.push_to_hub
    device = _device(options.device)
    check_output(folder, overwrite=options.overwrite)
    checkpoint = _open(options)
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"model '{checkpoint.name}' has weights {checkpoint.quantization}, which are not saved again; convert the "
            "model that it was made from, and pass --quantize where the result is run"
        )
    plan = read_plan(options.plan, checkpoint.config)
    native_plan(checkpoint.config)  # layers that no span describes would be refused later, with the weights loaded
    if options.native:
        with _native_form():
            native_config(checkpoint.config, plan)
    lengths = lengths_to_measure(options.measure, checkpoint.config)
    if repo_id is not None:
        check_push(repo_id)
    origin = origin_of(checkpoint)
    check_names()
    check_attention_ways(device)
    _say(f"model   {_name(checkpoint)}, {num_layers(checkpoint.config)} layers")
    _say(f"plan    {plan}")
    model = checkpoint.load_model(_dtype(options.dtype, checkpoint), device)
    check_space(folder, sum(weight.nbytes for weight in model.parameters()))
    apply_plan(model, plan)
    _keep_generation_settings(model, checkpoint)
    cost = cost_record(
        model, plan, lengths, is_measured=not options.no_measure, say=lambda text: _say(f"cost    {text}")
    )
    try:
        with _native_form() if options.native else nullcontext():
            save_checkpoint(
                model, checkpoint.tokenizer, folder, name=repo_id, origin=origin, cost=cost, native=options.native
            )
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SaveError(f"--output {folder} cannot be written: {reason}; what was there before is whole") from error
    if options.native:
        _say("native  plain transformers computes the plan from the folder, as was tried beyond its window")
    _say(f"saved   {folder}: weights in {dtype_name(model.dtype)}, plan, card and cost")
    if repo_id is not None:
        _say(f"pushed  {push_to_hub(folder, repo_id, private=options.private or None)}")


@contextmanager
def _native_form() -> Iterator[None]:
    """Say in an error that it is about the native form, and what goes without one."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"--native: {error}, or leave --native out") from error


def show(options: argparse.Namespace) -> None:
    """Print a model's layers and what a plan costs at several lengths, without loading weights."""
    checkpoint = _open(options)
    config, own = checkpoint.config, native_plan(checkpoint.config)
    plan = read_plan(options.plan, config) if options.plan is not None else stored_plan(config)
    plan = plan or own
    known = max_positions(config)
    positions = "" if known is None else f", trained to {known:,} positions"
    dtype = _dtype(options.dtype, checkpoint)
    _say(f"model   {_name(checkpoint)}: {config.model_type}, {num_layers(config)} layers{positions}")
    _say(f"plan    {plan}")
    _say(f"own     {own}")
    for span, same in groupby(range(len(plan)), key=plan.__getitem__):
        first, *others = same
        _say(f"layers  {f'{first}-{others[-1]}' if others else first:<8} {span}")
    _say("")
    _say(f"{'':>9}  {'attention, GFLOP':^32}  {f'cache in {dtype_name(dtype)}, MiB':^32}".rstrip())
    _say(f"{'tokens':>9}" + f"  {'plan':>12}{'own':>12}{'ratio':>8}" * 2)
    for length in options.lengths:
        row = closed_form(config, plan, length, dtype.itemsize)
        cells = ""
        for figures, unit in ((row["attention_flops"], 1e9), (row["cache_bytes"], 2.0**20)):
            cells += f"  {figures['plan'] / unit:>12,.2f}{figures['own'] / unit:>12,.2f}{figures['ratio']:>8.2f}"
        _say(f"{length:>9,}{cells}")


def _open(options: argparse.Namespace) -> Checkpoint:
    return open_checkpoint(
        options.model,
        revision=options.model_revision,
        adapter=options.adapter,
        adapter_revision=options.adapter_revision,
        trust_remote_code=options.trust_remote_code,
    )


def _name(checkpoint: Checkpoint) -> str:
    name = checkpoint.name if checkpoint.adapter is None else f"{checkpoint.adapter.name} on {checkpoint.name}"
    return f"{name}, {checkpoint.part}" if checkpoint.part else name


def push(options: argparse.Namespace) -> None:
    """Send a converted checkpoint that is already saved to the hub."""
    _say(f"pushed  {push_to_hub(options.folder, options.repo_id, private=options.private or None)}")


def _dtype(asked: str | None, checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype that is asked for, else that of the stored weights; float32 for GGUF files."""
    known: list[torch.dtype] = [getattr(torch, name) for name in DTYPES]
    if asked is not None:
        return known[DTYPES.index(asked)]
    own = getattr(checkpoint.config, "dtype", None)
    return torch.float32 if checkpoint.gguf_file or own not in known else own


def _device(asked: str | None) -> torch.device:
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=asked).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MeasureError(f"--device {asked} cannot be used: {reason}; give cpu, or leave it out") from None
    if device.type == "meta":
        raise MeasureError("--device meta computes nothing; give cpu, or leave it out")
    return device


def _keep_generation_settings(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Give the model what its checkpoint suggests for generation, which loading leaves out for measurements."""
    try:
        own = GenerationConfig.from_pretrained(checkpoint.location, revision=checkpoint.revision or "main")
        own.validate(strict=True)
    except (OSError, ValueError):  # none, or one that transformers would refuse to save
        return
    model.generation_config = own


def _say(text: str) -> None:
    print(text, flush=True)
