"""The settings of one run of `eval/run.py`: defaults and checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from eval.config.data import DataOptions, add_data_flags
from eval.config.parser import (
    Parser,
    add_extrapolation_flag,
    add_machine_flags,
    add_model_flags,
    add_tracker_flag,
    add_truncation_flag,
    finite_number,
    natural,
    positive,
    positive_number,
    read_settings,
    share,
)
from eval.errors import UserError
from eval.generation.decode import GenerationOptions, GenerationSettings
from eval.scoring.profiles import PROFILES


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataOptions, GenerationOptions):
    """What one run does. Every attribute, how answers are chosen included, is a flag of `eval/run.py` of the same name.

    Attributes:
        maxlen: Lengths in tokens, each counting all the model sees: prompt, template, and room for the answer.
        truncation: Which part of the context is kept.
        template: Names of templates that each task has; None takes the task's default.
        max_new_tokens: Room for the answer; None takes the task's default.
        model: Short name, `.gguf` file, folder or hub id.
        plan: Text form of a span plan, or `auto`: the plan the checkpoint carries, else the spans of its
            architecture.
        dtype: None takes bfloat16 on a GPU and float32 on a CPU.
        allow_extrapolation: Run beyond the positions that the model was trained on.
        trust_remote_code: Run code that comes with the checkpoint.
        profile: Metric profile of all tasks; None takes each task's own.
        output: Run folder; None makes a name under `runs/` from the settings.
        texts: Put texts of documents, references and predictions into the report's page; None does as before, and
            first does.
        report_to: Names of accelerate's trackers.
        overwrite: Begin anew in a folder that holds a run.
        dry_run: Print what would be done, and do nothing.
        shard: Which of how many independent jobs this is; None is the whole run.
        batch_size: Prompts that decode together at most; None takes 16 on a CPU and 64 on a GPU.
        memory_budget: GiB for keys and values in each process; None takes half of what the weights leave.
        device_map: `auto` spreads one model over all devices of this machine.
        threads: Torch threads of each process; None shares the cores among the local processes.
    """

    maxlen: tuple[int, ...]
    truncation: str = "head"
    template: tuple[str, ...] | None = None
    max_new_tokens: int | None = None
    model: str = "smollm2-135m"
    plan: str = "auto"
    dtype: str | None = None
    allow_extrapolation: bool = False
    trust_remote_code: bool = False
    profile: str | None = None
    output: Path | None = None
    texts: bool | None = None
    report_to: tuple[str, ...] = ()
    overwrite: bool = False
    dry_run: bool = False
    shard: tuple[int, int] | None = None
    batch_size: int | None = None
    memory_budget: float | None = None
    device_map: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            if not task.has_references:
                raise UserError(f"task '{name}' has nothing to be scored against; measure it with eval/perplexity.py")
            for template in self.template or ():
                if template not in task.templates:
                    known = ", ".join(task.templates)
                    raise UserError(f"task '{name}' has no template '{template}'; known: {known}")
            if self.min_new_tokens > (room := self.max_new_tokens or task.max_new_tokens):
                raise UserError(
                    f"--min-new-tokens {self.min_new_tokens} is more than the {room} new tokens of '{name}'; raise "
                    "--max-new-tokens"
                )
            if self.profile is None and task.profile not in PROFILES:
                raise UserError(
                    f"task '{name}' asks for unknown metrics '{task.profile}'; known: {', '.join(PROFILES)}"
                )
        if self.temperature is None and (self.top_p != 1 or self.top_k):
            raise UserError("--top-p and --top-k choose what is sampled; give --temperature too, 1 for example")
        if self.temperature is not None and self.num_beams > 1:
            raise UserError(f"--temperature samples and --num-beams {self.num_beams} searches; give one of them")
        if self.length_penalty != 1 and self.num_beams == 1:
            raise UserError(f"--length-penalty {self.length_penalty:g} is one of beams; give --num-beams too")
        if self.template is not None and not self.template:
            raise UserError("--template is empty; leave it out for the task's own")
        if not all(self.stop):
            raise UserError("--stop has an empty text; give texts of one character at least")

    def generation(self, max_new_tokens: int) -> GenerationSettings:
        """Return how answers of as much room are chosen."""
        options = {field.name: getattr(self, field.name) for field in fields(GenerationOptions)}
        return GenerationSettings(max_new_tokens=max_new_tokens, **options)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `eval/run.py`; absent flags leave no attribute, so that defaults live in `RunConfig`."""
    parser = Parser(
        "eval/run.py",
        "Generate from long documents at several truncation lengths, score, report quality beside cost. The "
        "same command on an existing folder resumes it; lengths, limit and tasks may be added.",
        "accelerate launch eval/run.py --task plos --maxlen 1024 2048 4096 8192 --limit 4",
    )
    add_data_flags(parser, "the split that the task is scored on")
    how = parser.add_argument_group("how long, and how it is cut")
    how.add_argument(
        "--maxlen",
        metavar="N",
        type=positive,
        nargs="+",
        help="lengths in tokens; each counts template, instruction, query, context and the room kept for the answer",
    )
    how.add_argument(
        "--template",
        metavar="NAME",
        help="prompts, one or more separated by commas: instruct, abstract; for tasks with queries context_first, "
        "query_first (default: the task's own; python -m tasks show NAME names them all)",
    )
    add_truncation_flag(how)
    add_extrapolation_flag(how)
    _add_generation_flags(parser)
    add_model_flags(parser, RunConfig.model, "default: bfloat16 on a GPU, float32 on a CPU").add_argument(
        "--device-map", choices=["auto"], help="spread one model over all devices of this machine (one process)"
    )
    out = parser.add_argument_group("scores and output")
    out.add_argument("--profile", choices=list(PROFILES), help="metrics of all tasks (default: each task's own)")
    out.add_argument("--output", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    out.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        help="begin anew in a folder that holds a run; its predictions are lost (default: off)",
    )
    out.add_argument(
        "--texts",
        action=argparse.BooleanOptionalAction,
        help="put texts into report.html; --no-texts for a page that is published (default: as before, at first on)",
    )
    add_tracker_flag(out)
    machine = add_machine_flags(parser, f"of torch and of sampling (default: {RunConfig.seed})")
    machine.add_argument(
        "--batch-size", metavar="N", type=positive, help="prompts that decode together at most (default: 16, GPU: 64)"
    )
    machine.add_argument(
        "--memory-budget",
        metavar="GIB",
        type=positive_number,
        help="for keys and values, in each process (default: half of what the weights leave)",
    )
    machine.add_argument(
        "--shard", metavar="I/N", type=_shard, help="do part I of N, as a job of its own; eval/merge.py joins the parts"
    )
    machine.add_argument(
        "--dry-run",
        action=argparse.BooleanOptionalAction,
        help="print examples, tokens, dropped tokens, predicted time and memory; load no weights, write nothing",
    )
    return parser


def _add_generation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how answers are chosen (default: the likeliest token, greedily)")
    group.add_argument("--max-new-tokens", metavar="N", type=positive, help="room for the answer; default: the task's")
    group.add_argument("--min-new-tokens", metavar="N", type=natural, help="no end token before N (default: 0)")
    group.add_argument("--num-beams", metavar="N", type=positive, help="beam search (default: 1, none)")
    group.add_argument(
        "--length-penalty",
        metavar="X",
        type=finite_number,
        help="beams' scores are divided by length ** X (default: 1)",
    )
    group.add_argument(
        "--temperature", metavar="X", type=positive_number, help="sample, reproducibly under --seed (default: do not)"
    )
    group.add_argument("--top-p", metavar="X", type=share, help="of sampling: probability kept (default: 1)")
    group.add_argument("--top-k", metavar="N", type=natural, help="of sampling: tokens kept (default: 0, all)")
    group.add_argument(
        "--repetition-penalty", metavar="X", type=positive_number, help="divides logits of tokens seen (default: 1)"
    )
    group.add_argument(
        "--no-repeat-ngram-size", metavar="N", type=natural, help="no N tokens in a row occur twice (default: 0, off)"
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        nargs="+",
        action="extend",
        help="texts that end an answer and are left out of it; a line's end is $'\\n' in most shells",
    )


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no part; write 1/4 for the first of four") from None
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text}: parts count from 1 to {count}")
    return index, count


def load_config(arguments: Sequence[str]) -> RunConfig:
    """Return the settings of a command line and the YAML file that it names.

    Raises:
        UserError: A value, a key or a combination that cannot be.
    """
    values = read_settings(build_parser(), arguments, "1024 2048")
    if "template" in values:
        values["template"] = tuple(
            dict.fromkeys(name.strip() for name in values["template"].split(",") if name.strip())
        )
    for name in ("stop", "report_to"):
        if name in values:
            values[name] = tuple(values[name])
    return RunConfig(**values)
