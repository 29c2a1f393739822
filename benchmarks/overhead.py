"""What journal, tree and plan cost a prediction, and whether that grows with the run.

    python benchmarks/overhead.py [--examples 10000]

Short synthetic examples and a random model of two tiny layers, made here: everything of `eval/run.py` that is not the
model is the overhead. Timed are the plan (tokenizing, fingerprints, groups), the answers in tenths of the run with the
model's own time taken out, the reading of the journal by a resume, and the end (merge, scores, report). The ratio of
the last fifth's overhead to the first's says whether it grows; 1 is flat. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.pairs import Case, finish
from eval import run
from eval.generation import local, prompt_tree, run_job, tree_decoder
from eval.generation.decode import decode
from eval.generation.groups import measure
from eval.records.journal import append_line
from eval.records.run_folder import RunFolder
from eval.records.schema import Prediction
from eval.runtime import jobs
from masformer.attention.prefill import prefill


def save_model(folder: Path) -> None:
    """Write a random model of two layers with a token a byte."""
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), max_position_embeddings=512, **sizes)).save_pretrained(
        folder
    )


class Clock:
    """Seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, mock.patch("builtins.print") as printed:
        folder = Path(name)
        save_model(folder / "model")
        rows = ({"article": f"paper {index} says {index * 7} " * 3, "abstract": f"{index}"} for index in range(10**9))
        with (folder / "data.jsonl").open("w") as stream:
            stream.writelines(json.dumps(next(rows)) + "\n" for _ in range(arguments.examples))
        command = f"--task arxiv --model {folder / 'model'} --data {folder / 'data.jsonl'} --maxlen 160 200"
        command += f" --max-new-tokens 4 --output {folder / 'run'}"
        model, plan, finishing, reading = Clock(), Clock(), Clock(), Clock()
        moments: list[tuple[float, float]] = []

        def append(*line: Any) -> None:
            append_line(*line)
            moments.append((time.perf_counter(), model.seconds))

        patches = (
            mock.patch.object(tree_decoder, "decode", model.around(decode)),
            mock.patch.object(prompt_tree, "prefill", model.around(prefill)),
            mock.patch.object(jobs, "append_line", append),
            mock.patch.object(local, "measure", plan.around(measure)),
            mock.patch.object(run_job, "finish_run", finishing.around(run_job.finish_run)),
        )
        for patch in patches:
            patch.start()
        assert run.main(command.split()) == 0
        for patch in patches:
            patch.stop()
        # As a resume reads it, had the run been killed before its end.
        (folder / "run" / "predictions.jsonl").rename(folder / "run" / "journal.jsonl")
        (folder / "run" / "journal").mkdir()
        (folder / "run" / "journal.jsonl").rename(folder / "run" / "journal" / "00000.jsonl")
        found = reading.around(RunFolder(folder / "run").read_journal)(Prediction)
        assert len(found.lines) == len(moments) == 2 * arguments.examples
        assert printed.called

    tenth = len(moments) // 10
    overheads = []
    for part in range(10):
        (begin, before), (end, after) = moments[part * tenth], moments[(part + 1) * tenth - 1]
        overheads.append(1000 * ((end - begin) - (after - before)) / (tenth - 1))
    count = len(moments)
    print(f"{count:,} predictions of {arguments.examples:,} examples; milliseconds a prediction:")
    print("  answers, by tenths of the run: " + " ".join(f"{value:.2f}" for value in overheads))
    for label, clock in (("plan", plan), ("reading the journal", reading), ("merge, scores, report", finishing)):
        print(f"  {label}: {1000 * clock.seconds / count:.2f}")
    print(f"  the model itself: {1000 * model.seconds / count:.2f}")
    last, first = statistics.mean(overheads[-2:]), statistics.mean(overheads[:2])
    finish(
        [
            Case(
                case="overhead of the last fifth to the first",
                ours=last,
                peer=first,
                unit="ms",
                saves=False,
                target=1.2,
            )
        ]
    )


if __name__ == "__main__":
    main()
