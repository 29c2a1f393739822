"""What a task hands to the evaluation: examples, and where they came from.

A task turns rows of a published data set into `Example` records. It knows no model and no tokenizer.

    task = TASKS["qmsum"]
    loaded = task.load(LoadRequest(split="validation", data=Path("val.jsonl"), limit=4))
    loaded.examples[0].context, loaded.examples[0].query, loaded.examples[0].references
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Bad data or a source that cannot be reached: one line that says what, where, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One context with what should be written about it.

    Attributes:
        id: The source's own id, or `SPLIT-ROW` where it has none; unique within the task and split.
        document_id: Equal for examples that share a document (several queries about one meeting).
        context: The document. The only field that truncation may cut.
        references: One or more reference texts; a score is that against the best of them, metric by metric.
        query: The question or aspect, never cut; None for plain summarization.
        evidence: Where in the context the source says that the answer stands, as starts and ends in characters; None
            where it does not say.
    """

    id: str
    document_id: str
    context: str
    references: tuple[str, ...]
    query: str | None = None
    evidence: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """What to load.

    Attributes:
        split: `train`, `validation` or `test`, whatever the source calls it.
        data: A local file or folder in one of the set's official formats; None reads the hub or the installed package.
        limit: Keep the first `limit` examples; None keeps all.
        min_words: Leave out, before they are counted, examples whose context has fewer words between white space.
        revision: Branch, tag or commit of the data set on the hub; None takes the task's.
        on_bad_row: `fail` at the first row that cannot be used, or `skip` it and count it.
    """

    split: str
    data: Path | None = None
    limit: int | None = None
    min_words: int | None = None
    revision: str | None = None
    on_bad_row: str = "fail"


@dataclass(frozen=True, kw_only=True)
class LoadedExamples:
    """Examples and their provenance.

    Attributes:
        examples: In the order of the source.
        provenance: JSON-ready facts about the source that was read: `kind` (`hub`, `file` or `package`), its name,
            the `revision`, `sha256` or `version` that pins the content, and counts of rows (`num_...`).
        bad_rows: What is wrong with each row that was skipped, and where it stands.
    """

    examples: tuple[Example, ...]
    provenance: Mapping[str, Any]
    bad_rows: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text around a document.

    Attributes:
        text: Holds `{context}` once, and `{query}` where the task has queries.
        chat: Put it into one user turn where the model has a chat template; a plain one is given as it stands.
    """

    text: str
    chat: bool = True


def template_variants(name: str, before: str, after: str, cue: str, *, once: bool = True) -> dict[str, Template]:
    """Return templates that differ in one thing each: what they are called says in what.

    `NAME` repeats the instruction after the context, `NAME-once` does not, and `-plain` leaves the chat template out.

    Args:
        name: Of the first.
        before: What stands before the context.
        after: What stands after it, the instruction once more.
        cue: What a plain prompt ends with, so that a model without a chat template knows that it is to answer.
        once: False where nothing before the context says what to do, so that it cannot be left out after it.
    """
    chat = {name: after} | ({f"{name}-once": ""} if once else {})
    return {key: Template(text=f"{before}{{context}}{end}") for key, end in chat.items()} | {
        f"{key}-plain": Template(text=f"{before}{{context}}{end}{cue}", chat=False) for key, end in chat.items()
    }


def query_templates(before: str, after: str, cue: str, first: str = "{query}") -> dict[str, Template]:
    """Return the templates of a task with queries.

    With `context_first` the query comes after the document alone, so that all queries about one share its prefill. With
    `query_first` what to look for is known while reading, and each query pays for its own reading.

    Args:
        before: What introduces the document.
        after: What asks about it; holds `{query}`.
        cue: What a plain prompt ends with.
        first: What asks before the document where the query comes first; holds `{query}`.
    """
    return template_variants("context_first", before, after, cue, once=False) | template_variants(
        "query_first", f"{first}\n\n{before}", after, cue
    )


def question_templates(document: str, told: str, asked: str = "Question: {query}") -> dict[str, Template]:
    """Return `query_templates` that say what an answer is to look like wherever they ask.

    Args:
        document: What the document is, with its article.
        told: How to answer.
        asked: The question, `{query}` in it.
    """
    ask = f"{told}\n\n{asked}"
    return query_templates(f"Here is {document}.\n\n", f"\n\n{ask}", "\n\nAnswer:", ask)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One data set with its prompts and defaults.

    Attributes:
        name: What `--task` takes.
        version: Raised by hand whenever the examples or the prompts of this task change.
        description: One line: document -> target.
        source: Hub id or package, with the formats that `--data` takes.
        licence: Of the data.
        splits: Names that `--split` takes, with the number of examples as published; None where nobody says.
        default_split: The split that is scored when none is asked for.
        max_new_tokens: Default room for the answer, in tokens.
        templates: By name; none for a task of texts alone.
        default_template: A key of `templates`, or empty.
        needs_hub: False when an installed package can serve the data.
        read: Reads examples, for `load`. Raises `DataError`.
        profile: Metric profile that its answers are scored under unless another is asked for.
        revision: Branch or commit of the data set on the hub that is read unless another is asked for; None where it
            is not read from the hub, or the data set is the user's.
        scores_first_line: Whether an answer is scored by its first line that is not empty.
    """

    name: str
    version: int
    description: str
    source: str
    licence: str
    splits: Mapping[str, int | None]
    default_split: str
    max_new_tokens: int
    templates: Mapping[str, Template]
    default_template: str
    needs_hub: bool
    read: Callable[[LoadRequest], LoadedExamples]
    profile: str = "hf"
    revision: str | None = None
    scores_first_line: bool = False

    @property
    def has_references(self) -> bool:
        """Return whether there is anything to write about the documents: texts alone have no prompt."""
        return bool(self.templates)

    def load(self, request: LoadRequest) -> LoadedExamples:
        """Return the examples that are asked for, from the task's own revision of a hub data set unless another is.

        Raises:
            DataError: The request, the source or a row is at fault.
        """
        if request.data is None and request.revision is None:
            request = replace(request, revision=self.revision)
        elif request.data is None and self.revision is None:
            raise DataError(f"--revision {request.revision} is of the hub, which task {self.name} does not read")
        return self.read(request)
