"""What was answered in a scored run, sample by sample, as the formats of others need it.

A length is a task there: `arxiv_4096`, or `arxiv_instruct_4096` where a run has several templates. A prompt is the
template with what was shown of the document, before the chat template: solved examples and a system message, which the
run's record names, are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval.metrics.answers import first_line
from eval.records.read_run import answer_of
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleRecord, ExampleScore, Prediction, Result, RunRecord
from eval.records.windows import shown_of
from eval.scoring.examples import Setting, setting_of
from eval.scoring.scored_run import ScoredRun

# Options of answers that are named where they are not these.
_DEFAULTS = {"min_new_tokens": 0, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
_MAX_NAME = 60  # characters, of which each may take four bytes in a file system


@dataclass(frozen=True, kw_only=True)
class AnsweredExample:
    """An example at one setting.

    Attributes:
        number: Its place among the examples of its task, from 0.
        scored: The part of each answer that is scored.
    """

    number: int
    example: ExampleRecord
    prediction: Prediction
    line: ExampleScore
    prompt: str
    scored: tuple[str, ...]


def task_name(setting: Setting, record: RunRecord) -> str:
    """Return the name of a setting as a task, unique in its run."""
    task, template, maxlen = setting
    return f"{task}_{maxlen}" if len(record.tasks[task].templates) == 1 else f"{task}_{template}_{maxlen}"


def system_message(setting: Setting, record: RunRecord) -> str | None:
    """Return the system message of a setting's prompts: that of the command, else of the task; None or "" for none."""
    task, template, _ = setting
    given: str | None = record.config.get("system")
    return record.tasks[task].templates[template].system if given is None else given


def file_name(name: str) -> str:
    """Return a model's name as a part of a path; of a long one the end, and no name that leads elsewhere."""
    clean = re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f\x7f-\x9f\ud800-\udfff]+", "__", name)
    return re.sub(r"^\.+$", "__", clean)[-_MAX_NAME:] or "__"


def model_results(run: ScoredRun) -> dict[Setting, Result]:
    """Return the model's results on all examples, by setting."""
    return {
        setting_of(one): one
        for one in run.scores.results
        if (one.kind, one.subset) == ("model", "all") and setting_of(one) in run.lines
    }


def generation_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how answers of a task were chosen, as lm-evaluation-harness and transformers name it."""
    samples = settings.get("temperature") is not None
    known = {
        "until": list(settings.get("stop") or ()),
        "max_gen_toks": settings["max_new_tokens"],
        "do_sample": samples,
    }
    of_sampling = {name: settings.get(name) for name in ("temperature", "top_p", "top_k")} if samples else {}
    others = {name: settings.get(name) for name, default in _DEFAULTS.items() if settings.get(name, default) != default}
    return known | {name: value for name, value in (of_sampling | others).items() if value is not None}


def answered_examples(run: ScoredRun) -> Iterator[tuple[Setting, list[AnsweredExample]]]:
    """Yield the settings of a run, each with its examples in their order."""
    folder = RunFolder(run.path)
    predictions = folder.read_journal(Prediction).lines
    documents = {(one.task, one.document_id): one.text for one in folder.read_documents()}
    for setting, lines in run.lines.items():
        task, template, maxlen = setting
        about = run.record.tasks[task]
        of_setting = []
        examples = [one for (of_task, _), one in run.examples.items() if of_task == task]
        for number, example in enumerate(examples):
            if example.id in lines:
                prediction = predictions[task, template, example.id, maxlen]
                name, spans = shown_of(prediction, example.document_id)
                shown = "".join(documents[task, name][start:stop] for start, stop in spans)
                before, _, after = about.templates[template].text.partition("{context}")
                query = example.query or ""
                answers = [one.text for one in answer_of(prediction, run.record.think_end_token).answers]
                of_setting.append(
                    AnsweredExample(
                        number=number,
                        example=example,
                        prediction=prediction,
                        line=lines[example.id],
                        prompt=before.replace("{query}", query) + shown + after.replace("{query}", query),
                        scored=tuple(map(first_line, answers) if about.scores_first_line else answers),
                    )
                )
        yield setting, of_setting
