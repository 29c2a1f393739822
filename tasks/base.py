"""Tasks, which turn rows of a published data set into examples. They know no model and no tokenizer.

    task = TASKS["qmsum"]
    loaded = task.load(LoadRequest(split="validation", data=Path("val.jsonl"), limit=4))
    loaded.examples[0].context, loaded.examples[0].query, loaded.examples[0].references

**To add a task**, write `tasks/NAME.py` with a `Task` and its `sample`, and list it in `tasks/__init__.py`. The tests
load the sample, and `python -m tasks list --write docs/tasks.md` writes the table of the documentation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SHOTS_SPLIT = "train"
SPLIT_NAMES = ("train", "validation", "test")
# Rows of a split that shots are drawn from: nobody fetches the training data of a large set for two examples.
SHOTS_SCAN = 1_000
# Names of tasks and of their templates, which become parts of the names of files.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
Sample = Mapping[str, str | Sequence[Mapping[str, Any]]]


class DataError(ValueError):
    """Bad data or a source that cannot be reached: one line that says what, where, and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))  # names of columns may hold anything


@dataclass(frozen=True, kw_only=True)
class Example:
    """One context with what should be written about it.

    Attributes:
        id: The source's own id, or `SPLIT-ROW` if it has none; unique within the task and split.
        document_id: Equal for examples that share a document (several queries about one meeting).
        context: The document. The only field that truncation may cut.
        references: One or more texts; a score is that against the best of them, metric by metric.
        query: The question or aspect, never cut; None for plain summarization.
        cluster_id: Equal for documents that depend on each other, as chapters of a book do; None for one by itself.
        evidence: Start and end, in characters of the context, of each passage that the source marks as evidence; None
            if it marks none.
        stratum: Kind of document, such as its journal, by which reports count what was selected; None without kinds.
        kept: Start and end, in characters of the context, of passages that every length shows; what lies between them
            is cut evenly, so that they keep their depth. None for documents that are cut as `--truncation` has it.
        classes: Names of all classes that the answer is one of; empty if it is no class.
        groups: Groups whose scores the publishers report apart, such as `0-4k`; empty without any.
    """

    id: str
    document_id: str
    context: str
    references: tuple[str, ...]
    query: str | None = None
    cluster_id: str | None = None
    evidence: tuple[tuple[int, int], ...] | None = None
    stratum: str | None = None
    kept: tuple[tuple[int, int], ...] | None = None
    classes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """What to load.

    Attributes:
        split: `train`, `validation` or `test`, whatever the source calls it.
        data: A local file or folder in one of the set's official formats; None reads the hub or the installed package.
        limit: Number of examples to keep, the first ones; None keeps all.
        sample: Number of documents to draw, with all their examples; None draws none. All rows are read for it.
        sample_seed: Other seeds draw other documents; a larger sample of a seed contains a smaller one.
        scan: Number of rows that a sample is drawn from, the first ones; None scans all.
        min_words: Leave out, before these count, examples whose context has fewer words between white space.
        accepts: Called with each context; leaves out, before limit and sample count, those that it refuses.
        revision: Branch, tag or commit of the data set on the hub; None takes the task's.
        on_bad_row: `fail` at the first row that cannot be used, or `skip` it and count it.
        shots: Number of solved examples to draw for the prompts; their documents are left out of the others.
        shots_split: Split that they are drawn from; None takes `train`.
        shots_seed: Other seeds draw others.
        left_out: `digest_of` of each context to leave out.
        longest: Tokens of the longest prompt, which documents that are made here should fill.
    """

    split: str
    data: Path | None = None
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    scan: int | None = None
    min_words: int | None = None
    accepts: Callable[[str], bool] | None = None
    revision: str | None = None
    on_bad_row: str = "fail"
    shots: int = 0
    shots_split: str | None = None
    shots_seed: int = 0
    left_out: frozenset[bytes] = frozenset()
    longest: int = 8192

    @property
    def reads_parts(self) -> bool:
        """Return whether not all rows are read, so that no file need be fetched whole."""
        return self.limit is not None or self.scan is not None


@dataclass(frozen=True, kw_only=True)
class LoadedExamples:
    """Examples in the order of the source, and their provenance.

    Attributes:
        provenance: JSON-ready facts about the source: `kind` (`hub`, `file`, `package` or `made`), `name`, the
            `revision`, `sha256` or `version` that pins the content, and counts of rows (`num_...`).
        bad_rows: One message for each row that was skipped: where it is and what is wrong with it.
        strata: Number of documents that are kept and that were read, by stratum; empty for a task without strata.
        shots: Solved examples for the prompts, in their order there.
    """

    examples: tuple[Example, ...]
    provenance: Mapping[str, Any]
    bad_rows: tuple[str, ...] = ()
    strata: Mapping[str, Sequence[int]] = field(default_factory=dict)
    shots: tuple[Example, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text around a document.

    Attributes:
        text: Holds `{context}` once, and `{query}` where the task has queries.
        chat: Put the text into one user turn if the model has a chat template; False uses it as it is.
        system: System message, unless the user gives another; without a chat template it opens the prompt.
        truncation: What is kept of a prompt that is too long, whatever the run keeps of others; None follows the run.
        shot: Solved example without its document, with `{query}` and `{answer}`. None shows each as a prompt and its
            answer before the prompt.
        shots: What stands in the place of `{shots}` in the text, with `{shots}` for all of them; nothing without any.
        note: What follows a document that has lost its end, within the room for the document.
        aside: Tokens that a document with a note leaves free beside the room for the answer, also where all else of the
            prompt has fewer; 0 lets it fill its prompt.
    """

    text: str
    chat: bool = True
    system: str | None = None
    truncation: str | None = None
    shot: str | None = None
    shots: str = ""
    note: str = ""
    aside: int = 0


def template_variants(name: str, before: str, after: str, cue: str, *, once: bool = True) -> dict[str, Template]:
    """Return templates that differ in one thing each.

    `NAME` repeats the instruction after the context, `NAME-once` does not, and `-plain` leaves the chat template out.

    Args:
        cue: End of a plain prompt, so that a model without a chat template knows that it is to answer.
        once: False if only `after` says what to do, so that it cannot be left out.
    """
    chat = {name: after} | ({f"{name}-once": ""} if once else {})
    return {key: Template(text=f"{before}{{context}}{end}") for key, end in chat.items()} | {
        f"{key}-plain": Template(text=f"{before}{{context}}{end}{cue}", chat=False) for key, end in chat.items()
    }


def query_templates(before: str, after: str, cue: str, first: str = "{query}") -> dict[str, Template]:
    """Return the templates of a task with queries.

    With `context_first` the query comes after the document alone, so that all queries about one share its prefill. With
    `query_first` the model knows what to look for while it reads, and each query pays for its own reading: `first`
    asks before the document. `before` introduces the document, and `after` asks about it.
    """
    return template_variants("context_first", before, after, cue, once=False) | template_variants(
        "query_first", f"{first}\n\n{before}", after, cue
    )


def question_templates(document: str, instruction: str, question: str = "Question: {query}") -> dict[str, Template]:
    """Return `query_templates` that say how to answer wherever they ask; `document` is such as "a contract"."""
    ask = f"{instruction}\n\n{question}"
    return query_templates(f"Here is {document}.\n\n", f"\n\n{ask}", "\n\nAnswer:", ask)


# The prompt of encoder-decoders: what a model trained on pairs of texts reads, without an instruction.
DOCUMENT = "document"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One data set with its prompts and defaults.

    Attributes:
        version: Raised by hand whenever the examples or the prompts of this task change.
        description: One line: document -> target.
        source: Hub id or package, with the formats that `--data` takes.
        splits: Number of examples of each split as published; None if it is not published.
        takes_any_split: The data is the user's own, and may have splits that are not among `splits`.
        read: Reads examples, for `load`. Raises `DataError`.
        templates: Empty for a task of texts alone. Others get the template `document` too, unless they have their own:
            the document, after the query where there is one, and nothing else.
        default_template: A key of `templates`, or empty if there are none.
        max_new_tokens: Default room for the answer.
        profile: Default metric profile.
        revision: Default branch or commit of the data set on the hub; None if the task does not read the hub.
        needs_data: There is nothing to read without `--data`.
        scores_first_line: Score only the first line of an answer that is not empty.
        maxlen: Default lengths in tokens; empty if the user names them.
        stop: Texts that end an answer, beside those of the user.
        shots: Default number of solved examples in a prompt, drawn with `shots_seed` from `shots_split`.
        sample: The official files in miniature, by path below `--data`, for tests: small records of our own, written
            as JSON lines or CSV, or a text. `A.zip/B` is the file B inside a zip; `.gz` is compressed.
    """

    name: str
    version: int = 1
    description: str
    source: str
    licence: str
    splits: Mapping[str, int | None]
    takes_any_split: bool = False
    read: Callable[[LoadRequest], LoadedExamples]
    templates: Mapping[str, Template]
    default_template: str = "instruct"
    default_split: str = "test"
    max_new_tokens: int = 256
    profile: str = "hf"
    revision: str | None = None
    needs_data: bool = False
    scores_first_line: bool = False
    maxlen: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    shots: int = 0
    shots_split: str = SHOTS_SPLIT
    shots_seed: int = 0
    sample: Sample = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.templates:
            asks = any("{query}" in template.text for template in self.templates.values())
            own = Template(text="{query}\n\n{context}" if asks else "{context}", chat=False)
            object.__setattr__(self, "templates", {**self.templates, DOCUMENT: self.templates.get(DOCUMENT, own)})

    @property
    def needs_hub(self) -> bool:
        """Return whether the data comes from the hub unless the user has a copy."""
        return self.revision is not None

    @property
    def has_references(self) -> bool:
        """Return whether there is anything to write about the documents; a task of texts alone has no prompt."""
        return bool(self.templates)

    def has_split(self, name: str) -> bool:
        """Return whether a split may be asked for."""
        return self.takes_any_split or name in self.splits

    def load(self, request: LoadRequest) -> LoadedExamples:
        """Return the requested examples. Raises `DataError` if the request, the source or a row is at fault."""
        if not self.has_split(request.split):
            raise DataError(f"task {self.name} has no split '{request.split}'; choose from: {', '.join(self.splits)}")
        if request.limit is not None and request.limit < 1:
            raise DataError(f"limit is {request.limit}; give 1 or more, or leave it out to keep all examples")
        if request.sample is not None and (request.sample < 1 or request.limit is not None):
            wrong = f"sample is {request.sample}" + ("" if request.limit is None else f" and limit {request.limit}")
            raise DataError(f"{wrong}; give a sample of 1 document or more, or a limit")
        if request.scan is not None and (request.scan < 1 or request.sample is None):
            raise DataError(f"scan is {request.scan}; give 1 row or more, with a sample that is drawn from them")
        if request.shots < 0:
            raise DataError(f"shots is {request.shots}; give 0 or more")
        # A path that does not exist may name a data set of the hub, for the task `text`.
        if request.revision is not None and request.data is not None and request.data.exists():
            raise DataError(
                f"--revision {request.revision} is of the hub, and --data {request.data} is read; leave one out"
            )
        if request.data is None and request.revision is None:
            request = replace(request, revision=self.revision)
        elif request.data is None and self.revision is None:
            raise DataError(f"--revision {request.revision} is of the hub, which task {self.name} does not read")
        if not request.shots:
            return self.read(request)
        shots = self._draw_shots(request)
        left_out = request.left_out | {digest_of(shot.context) for shot in shots}
        return replace(self.read(replace(request, left_out=left_out)), shots=shots)

    def _draw_shots(self, request: LoadRequest) -> tuple[Example, ...]:
        """Return solved examples about different documents, the same whatever else of the request differs."""
        split = request.shots_split or self.shots_split
        if not self.has_split(split):
            raise DataError(
                f"task {self.name} has no split '{split}' for its shots; choose from: {', '.join(self.splits)}"
            )
        drawn = self.read(
            LoadRequest(
                split=split,
                data=request.data,
                sample=request.shots,
                sample_seed=request.shots_seed,
                scan=SHOTS_SCAN,
                revision=request.revision,
                on_bad_row=request.on_bad_row,
                longest=request.longest,
            )
        )
        shots = tuple({example.document_id: example for example in reversed(drawn.examples)}.values())[::-1]
        if len(shots) < request.shots:
            raise DataError(
                f"task {self.name} has {len(shots)} documents in the first {SHOTS_SCAN:,} rows of split {split}, and "
                f"{request.shots} shots are drawn from them; lower --shots, or name another --shots-split"
            )
        return shots


def digest_of(context: str) -> bytes:
    """Return the SHA-256 of a context."""
    return hashlib.sha256(context.encode(errors="surrogatepass")).digest()
