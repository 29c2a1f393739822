"""The process that `benchmarks/step.py` starts for each way: a batch that decodes when it is told to.

Runs on the sources of this version or of 0.1, so it uses only what both have under one name. A line on standard input
has the sweep's prompts decoded once, and is answered by the milliseconds of a step.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", help="folder of the packages")
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("plan")
    parser.add_argument("steps", type=int, help="tokens of an answer")
    parser.add_argument("threads", type=int)
    decode_in_turn(parser.parse_args())


def decode_in_turn(options: argparse.Namespace) -> None:
    sys.path[0] = options.sources  # before what is imported from there

    import torch

    from benchmarks.sweep import sweep_prompts
    from eval.generation import decode as decoding
    from eval.generation.prompt_tree import PromptTree, TreeCaches
    from eval.runtime import model as models
    from masformer import apply_plan, read_plan
    from masformer.checkpoints.open import open_checkpoint

    torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint("smollm2-135m")
    settings = decoding.GenerationSettings(max_new_tokens=options.steps)  # type: ignore[attr-defined]  # where 0.1 has it
    model = checkpoint.load_model(models.TORCH_DTYPES[options.dtype])
    model.generation_config.eos_token_id = None  # all answers are as long
    if hasattr(models, "tune_linear"):
        models.tune_linear(model)
    apply_plan(model, read_plan(options.plan, model.config))
    decoding.warm_up(model, checkpoint.tokenizer)
    prompts = sweep_prompts(checkpoint.tokenizer, settings.max_new_tokens)
    tree = PromptTree(prompts)
    caches = TreeCaches(model, tree, range(len(prompts)))
    filled = [caches.take(leaf) for leaf in tree.order]
    ordered = [prompts[leaf] for leaf in tree.order]
    print(len(prompts), flush=True)
    for _ in sys.stdin:
        forks = [cache.fork(cache.get_seq_length()) for cache in filled]
        answers = decoding.decode(model, checkpoint.tokenizer, ordered, forks, settings)
        print(1000 * sum(answer.seconds for answer in answers) / settings.max_new_tokens, flush=True)


if __name__ == "__main__":
    main()
