"""The settings of `eval/run.py`."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from eval.config.chat import ChatOptions
from eval.config.checks import Value, ascending, distinct_names, natural, path, positive, positive_number, switch
from eval.config.claim import ClaimOptions
from eval.config.engine import EngineOptions
from eval.config.generation import DRAFT_TOKENS, GenerationOptions, GenerationSettings
from eval.config.job import JobOptions, extrapolation_option, plan_option, trackers_option, truncation_option
from eval.config.options import REQUIRED, Group
from eval.config.until import UntilOptions
from eval.errors import UserError
from eval.prompting.chat import ChatSettings
from eval.records.windows import HEAD, WINDOWS
from eval.scoring.letters import check_letters, count_letters, describe_letters
from eval.scoring.profiles import PROFILES
from tasks import CUSTOM, DataError, LoadedExamples, Task, find_task


def _shard(value: Value) -> tuple[int, int]:
    try:
        index, count = map(int, str(value).split("/"))
    except ValueError:
        raise ArgumentTypeError(f"'{value}' is no part; write 1/4 for the first of four") from None
    if not 1 <= index <= count:
        raise ArgumentTypeError(f"{value}: parts count from 1 to {count}")
    return index, count


@dataclass(frozen=True, kw_only=True)
class RunConfig(JobOptions, EngineOptions, ChatOptions, GenerationOptions, ClaimOptions, UntilOptions):
    """Generate from long documents at several truncation lengths, score, report quality beside cost.

    The same command on an existing folder resumes it; lengths, limit and tasks may be added.
    """

    script = "eval/run.py"
    example = "--task plos --maxlen 1024 2048 4096 8192 --limit 4"
    least = "--task aclsum --maxlen 1024 2048"

    maxlen: tuple[int, ...] = Group.LENGTHS.option(
        REQUIRED,
        "lengths in tokens; each counts template, instruction, query, context and the room kept for the answer (which "
        "encoder-decoders have apart)",
        positive,
        nargs="+",
        collect=ascending,
    )
    max_new_tokens: int | None = Group.LENGTHS.option(None, "room for the answer", positive, unset="the task's own")
    max_thinking_tokens: int | None = Group.LENGTHS.option(
        None,
        "room for what a model thinks before its answer, whose end mark is put there once it is used up",
        positive,
        unset="1024 with --thinking on, else none: thoughts are part of the answer",
    )
    template: tuple[str, ...] | None = Group.LENGTHS.option(
        None,
        "prompts, one or more separated by commas: instruct, abstract; for tasks with queries context_first, "
        "query_first; for encoder-decoders document; python -m tasks show NAME names them all",
        collect=distinct_names,
        unset="the task's own, or document",
    )
    shots: int | None = Group.LENGTHS.option(
        None,
        "solved examples at the beginning of each prompt, never cut; their documents are not scored",
        natural,
        unset="the task's own, mostly 0",
    )
    shots_split: str | None = Group.LENGTHS.option(
        None, "split that they are drawn from, by a hash of their ids", unset="the task's own, mostly train"
    )
    shots_seed: int | None = Group.LENGTHS.option(None, "of that drawing", natural, unset="the task's own, mostly 0")
    window: tuple[str, ...] = Group.LENGTHS.option(
        (HEAD,),
        f"what prompts show, one or more of {', '.join(WINDOWS)} separated by commas: why more context helps, or not",
        collect=distinct_names,
        unset=HEAD,
    )
    truncation: str = truncation_option(Group.LENGTHS)
    plan: str = plan_option()
    allow_extrapolation: bool = extrapolation_option()
    thinking: str = Group.MODEL.option(
        "auto",
        "let the model think before its answer, by the chat template's switch; auto leaves it to the template",
        choices=("on", "off", "auto"),
    )
    answers: Path | None = Group.MODEL.option(
        None, "with --engine mock, JSON lines of id, text and perhaps maxlen; else it echoes documents", path
    )
    device_map: str | None = Group.MODEL.option(
        None, "spread one model over all devices of this machine (one process)", choices=("auto",)
    )
    profile: str | None = Group.OUTPUT.option(
        None,
        f"metrics of all tasks, one of {', '.join(PROFILES)}",
        choices=tuple(PROFILES),
        metavar="NAME",
        unset="each task's own",
    )
    accept_ascii_words: bool = Group.OUTPUT.option(
        False, "score under a profile that drops more than a tenth of the references' letters", switch
    )
    think_end_token: str | None = Group.OUTPUT.option(
        None,
        "score what stands after the last of these in an answer, such as </think>; the whole text is kept. Where "
        "thoughts have a room of their own, it is the mark that ends one",
        metavar="TEXT",
        unset="score all of it, or the mark that template or tokenizer have",
    )
    overwrite: bool = Group.OUTPUT.option(
        False, "begin anew in a folder that holds a run; its predictions are lost", switch
    )
    texts: bool | None = Group.OUTPUT.option(
        None,
        "put texts into report.html; --no-texts for a page that is published",
        switch,
        unset="as before, at first on",
    )
    report_to: tuple[str, ...] = trackers_option()
    batch_size: int | None = Group.MACHINE.option(
        None, "prompts that decode together at most", positive, unset="16 on a CPU, 64 on a GPU"
    )
    draft_tokens: int = Group.MACHINE.option(
        DRAFT_TOKENS,
        "guess up to N tokens at once from the text before them where a row decodes alone and greedily; the answers "
        "stay; 0 guesses none",
        natural,
    )
    memory_budget: float | None = Group.MACHINE.option(
        None,
        "for keys and values, in each process",
        positive_number,
        metavar="GIB",
        unset="half of what the weights leave",
    )
    shard: tuple[int, int] | None = Group.MACHINE.option(
        None, "do part I of N, as a job of its own; eval/merge.py joins the parts", _shard, metavar="I/N"
    )
    generate: bool = Group.OUTPUT.option(
        True,
        "answer; --no-generate writes a folder without answers, in which python -m eval.ladder measures the likelihood "
        "of references, and the same command without it answers",
        switch,
    )
    likelihood: bool = Group.OUTPUT.option(
        False,
        "measure how likely the references are at each prompt while it is answered, on the same prefill, for python -m "
        "eval.ladder, which else reads all prompts again",
        switch,
    )
    dry_run: bool = Group.MACHINE.option(
        False,
        "print examples, tokens, dropped tokens, predicted time and memory; load no weights, write nothing",
        switch,
    )

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            if not task.has_references:
                raise UserError(f"task '{name}' has nothing to be scored against; measure it with eval/perplexity.py")
            self.shots_of(task)
            for template in self.template or ():
                if template not in task.templates:
                    known = ", ".join(task.templates)
                    raise UserError(f"task '{name}' has no template '{template}'; known: {known}")
                self._check_windows(task, template)
            if self.template is None:
                self._check_windows(task, task.default_template)
            if self.min_new_tokens > (room := self.max_new_tokens or task.max_new_tokens):
                raise UserError(
                    f"--min-new-tokens {self.min_new_tokens} is more than the {room} new tokens of '{name}'; raise "
                    "--max-new-tokens"
                )
            if self.profile is None and task.profile not in PROFILES:
                raise UserError(
                    f"task '{name}' asks for unknown metrics '{task.profile}'; known: {', '.join(PROFILES)}"
                )
        if self.answers is not None and self.engine != "mock":
            raise UserError(f"--answers {self.answers} is read by --engine mock alone; add it, or leave it out")
        if self.temperature is None and (self.top_p != 1 or self.top_k):
            raise UserError("--top-p and --top-k choose what is sampled; give --temperature too, 1 for example")
        if self.temperature is None and self.num_samples > 1:
            raise UserError(
                f"--num-samples {self.num_samples} would be as many times the same answer; give --temperature too, 1 "
                "for example"
            )
        if self.temperature is not None and self.num_beams > 1:
            raise UserError(f"--temperature samples and --num-beams {self.num_beams} searches; give one of them")
        if self.length_penalty != 1 and self.num_beams == 1:
            raise UserError(f"--length-penalty {self.length_penalty:g} is one of beams; give --num-beams too")
        if self.template is not None and not self.template:
            raise UserError("--template is empty; leave it out for the task's own")
        if self.think_end_token is not None and not self.think_end_token.strip():
            raise UserError("--think-end-token is empty; leave it out to score all of an answer")
        if not all(self.stop):
            raise UserError("--stop has an empty text; give texts of one character at least")
        if not self.window or not set(self.window) <= WINDOWS.keys():
            raise UserError(f"--window is {','.join(self.window) or 'empty'}; give one or more of {', '.join(WINDOWS)}")
        self.check_engine()
        self._check_thinking()
        self.check_claim([self.profile or task.profile for task in self.tasks.values()], self.maxlen)
        self._check_until()
        if self.likelihood and (self.engine != "local" or not self.generate):
            given = "--no-generate" if self.engine == "local" else f"--engine {self.engine}"
            raise UserError(
                f"--likelihood measures on the prefill of answers by --engine local, and this is {given}; leave it "
                "out, and run python -m eval.ladder on the folder"
            )

    @property
    def longest(self) -> int:
        return self.maxlen[-1]

    def _check_windows(self, task: Task, name: str) -> None:
        if self.window == (HEAD,):
            return
        if task.templates[name].truncation is not None:
            raise UserError(
                f"--window: template '{name}' of task '{task.name}' cuts the prompt as a whole, where no window has a "
                "place; give another --template"
            )
        if self.truncation != "head":
            raise UserError(
                f"--window shows the beginning of documents but for the evidence, and --truncation {self.truncation} "
                "keeps another part; leave one of them out"
            )

    @classmethod
    def recorded(cls, settings: Mapping[str, Any], folder: Path, threads: int | None) -> Self:
        """Return the settings of the last session of a run folder, but for what says when it stops.

        Args:
            settings: `config` of its record.
            folder: Where it is now.
            threads: Torch threads that it asks for.

        Raises:
            UserError: A setting cannot be; it was changed, or is of another version.
        """
        left_out = ("output", "threads", "overwrite", "generate", "likelihood", "report_to", "until")
        given = {name: one for name, one in settings.items() if name not in left_out}
        if given.get("engine") == "endpoint":
            given.pop("dtype", None)  # what the server has, and no setting
        if given.get("shard") is not None:
            given["shard"] = "/".join(map(str, given["shard"]))  # as the command line has it
        try:
            return cls(**cls._check_settings(given), output=folder, threads=threads)
        except UserError as error:
            raise UserError(f"{folder / 'run.json'}, config: {error}") from None

    def _check_until(self) -> None:
        if self.until is None:
            return
        if self.shard is not None:
            part, count = self.shard
            raise UserError(
                f"--until looks at all documents of a run, and --shard {part}/{count} has some; launch several "
                "processes for one run"
            )
        if not self.generate:
            raise UserError("--until looks at answers, and --no-generate makes none; leave one of them out")
        stopping = self.stopping
        if stopping is None or stopping.metric is None:
            return
        if self.window != (HEAD,):
            raise UserError(
                f"--until compares what the beginnings of documents give, and --window names {', '.join(self.window)}; "
                "leave one of them out"
            )
        if len(self.tasks) > 1 or len(self.template or ()) > 1:
            what = "task" if len(self.tasks) > 1 else "template"
            names = ", ".join(self.tasks if what == "task" else self.template or ())
            raise UserError(f"--until compares answers of one {what}, and --{what} names {names}; give one of them")
        [task] = self.tasks.values()
        stopping.check(self.profile or task.profile, self.maxlen)

    def _check_thinking(self) -> None:
        flag = f"--thinking {self.thinking}" if self.thinking == "on" else "--max-thinking-tokens"
        if self.max_thinking_tokens is not None and self.thinking == "off":
            raise UserError("--max-thinking-tokens is a room for thoughts, and --thinking off has none; leave one out")
        if self.handles_thoughts and self.engine == "mock":
            raise UserError(f"{flag} is of models, and --engine mock has none; leave it out")
        if self.handles_thoughts and self.engine != "local":
            raise UserError(
                f"{flag} gives thoughts a room of their own, which no server does; leave it out, and cut thoughts from "
                "answers with --think-end-token"
            )
        if self.handles_thoughts and self.num_beams > 1:
            raise UserError(
                f"{flag}: each beam would think by itself; leave out --num-beams {self.num_beams}, or give --thinking "
                "off"
            )

    @property
    def handles_thoughts(self) -> bool:
        """Return whether thoughts have a room of their own, and are told from answers as they are written."""
        return self.thinking == "on" or self.max_thinking_tokens is not None

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take lengths that are not given from the tasks, where all that name some name the same."""
        values = super().completed(values)
        if "maxlen" in values or "task" not in values:
            return values
        try:
            found = [find_task(name, values.get("tasks_from")).maxlen for name in values["task"] if name != CUSTOM]
        except DataError as error:
            raise UserError(str(error)) from error
        lengths = set(filter(None, found))
        if len(lengths) > 1:
            named = "; ".join(sorted(", ".join(map(str, each)) for each in lengths))
            raise UserError(f"--maxlen is missing, and the tasks name different lengths: {named}")
        return values | ({"maxlen": lengths.pop()} if lengths else {})

    def shots_of(self, task: Task) -> dict[str, Any]:
        number = task.shots if self.shots is None else self.shots
        split = task.shots_split if self.shots_split is None else self.shots_split
        if not number and self.shots is None and (self.shots_split, self.shots_seed) != (None, None):
            raise UserError("--shots-split and --shots-seed have no effect without --shots; give it too, 2 for example")
        if number and not task.has_split(split):
            known = ", ".join(task.splits)
            raise UserError(
                f"task '{task.name}' has no split '{split}' for --shots; --shots-split names one of {known}"
            )
        seed = task.shots_seed if self.shots_seed is None else self.shots_seed
        return {"shots": number, "shots_split": split, "shots_seed": seed}

    def describe_shots(self, loaded: LoadedExamples, task: Task) -> dict[str, Any] | None:
        """Return what `run.json` says of the shots of a task; None without any."""
        if not loaded.shots:
            return None
        about = self.shots_of(task)
        ids = [shot.id for shot in loaded.shots]
        return {"split": about["shots_split"], "seed": about["shots_seed"], "ids": ids}

    def chat_settings(self, clock: str | None = None) -> ChatSettings:
        return replace(super().chat_settings(clock), thinking=self.thinking)

    @property
    def unknown_to_0_1(self) -> tuple[str, ...]:
        """Return settings that names and records of 0.1's only engine do not have."""
        engine = [*self.unset_engine_options, *(["answers"] if self.engine == "local" else [])]
        names = ["think_end_token", "accept_ascii_words", "model_revision", "max_thinking_tokens"]
        names += ["adapter", "adapter_revision", "quantize"]
        names += ["shots_split", "shots_seed", *(["shots"] if self.shots is None else [])]
        unset = [name for name in names if not getattr(self, name)]
        unset += ["window"] if self.window == (HEAD,) else []
        unset += ["thinking"] if self.thinking == "auto" else []
        alone = ["num_samples"] if self.num_samples == 1 else []
        alone += ["draft_tokens"] if self.draft_tokens == DRAFT_TOKENS else []
        alone += ["generate"] if self.generate else []
        alone += ["likelihood"] if not self.likelihood else []
        alone += ["until"] if self.until is None else []
        return (*engine, *self.unset_chat_options, *self.unset_claim_options, *unset, *alone)

    def check_letters(self, data: Mapping[str, LoadedExamples]) -> list[str]:
        """Return what the profiles lose of the references, in sentences.

        Raises:
            UserError: A profile loses so much that it tells nothing, and nobody insists.
        """
        notes = []
        for name, loaded in data.items():
            profile = self.profile or self.tasks[name].profile
            if PROFILES[profile].needs_classes and not all(one.classes for one in loaded.examples):
                raise UserError(
                    f"profile {profile} needs the names of all classes, which task '{name}' does not have; choose "
                    "another --profile"
                )
            letters = count_letters(profile, (text for one in loaded.examples for text in one.references))
            if not self.accept_ascii_words:
                check_letters(f"task '{name}'", profile, letters)
            notes += describe_letters(name, profile, letters)
        return notes

    def describe_smaller_rooms(self) -> list[str]:
        """Return for which tasks an answer has less room than the task gives it, in lines."""
        if self.max_new_tokens is None:
            return []
        own = {name: task.max_new_tokens for name, task in self.tasks.items()}
        return [
            f"{name}: {self.max_new_tokens} new tokens are {self.max_new_tokens / room:.0%} of the task's own {room}"
            for name, room in own.items()
            if self.max_new_tokens < room
        ]

    def generation(self, max_new_tokens: int) -> GenerationSettings:
        """Return how answers of as much room are chosen."""
        options = {field.name: getattr(self, field.name) for field in fields(GenerationOptions)}
        return GenerationSettings(max_new_tokens=max_new_tokens, **options)
