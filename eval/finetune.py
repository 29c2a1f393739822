"""Fine-tune a decoder under a span plan, or train it on with long documents.

accelerate launch eval/finetune.py --task aclsum --maxlen 2048 --max-steps 20 --lora-rank 8 --output trained
accelerate launch eval/run.py --task aclsum --maxlen 2048 --model trained/best
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.config.finetune import TrainConfig
from eval.runtime.given import check_given
from eval.runtime.jobs import command


@command(again="the same command with --resume")
def main(argv: Sequence[str]) -> None:
    """Train under the settings of a command line."""
    config = TrainConfig.from_command_line(argv)
    check_given(config)  # plan, names and paths
    # What trains takes seconds to import, and comes after the checks.
    from eval.reporting.trackers import start_trackers
    from eval.runtime.memory import reset_peak
    from eval.training.forecast import print_forecast
    from eval.training.job import open_training
    from eval.training.launch import start_training
    from eval.training.train import build_trainer, train

    process, dtype = start_training(config)
    job = open_training(config, process, dtype)  # checks data, prompts and positions; no weights yet
    if config.dry_run:
        print_forecast(job, process)
    else:
        with job.lock(process):
            job.start(process, argv)
            trainer, model, adapters = build_trainer(job, process)
            reset_peak(process.device)
            if config.report_to:
                start_trackers(process.accelerator, "masformer-finetune", job.record.config)
            train(job, trainer, model, adapters)  # steps, evaluations, checkpoints
            if process.is_main:
                job.finish()
    process.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
