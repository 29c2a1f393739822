"""The evidence of examples, and the document that stands in for another: what windows are made of.

about = DocumentEvidence(context, "hf")
about.of(example)                       # spans that the data set marks, else the sentences of the oracle
about.oracle(example, [(0, 4000)])      # the oracle's sentences of what is shown
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Literal, NamedTuple

from eval.errors import UserError
from eval.records.windows import FOREIGN, HEAD, ORACLE, window_of
from eval.scoring.baselines import PreparedDocument, Span, merge_spans, prepare_document, visible_oracles, word_budget
from eval.scoring.profiles import PROFILES
from tasks import Example


class Evidence(NamedTuple):
    """Characters of a document that hold what an example asks for, and who says so."""

    spans: tuple[Span, ...]
    source: Literal["gold", "oracle"]


class DocumentEvidence:
    """Finds the evidence in one document.

    Args:
        context: The document.
        profile: Metrics of the task, at which the oracle aims.
    """

    def __init__(self, context: str, profile: str) -> None:
        self._context = context
        self._objective = PROFILES[profile].objective
        self._found: dict[str, Evidence] = {}
        self._oracles: dict[tuple[str, tuple[Span, ...]], tuple[Span, ...]] = {}

    @cached_property
    def _document(self) -> PreparedDocument:
        assert self._objective is not None
        return prepare_document(self._context, self._objective)

    def of(self, example: Example) -> Evidence:
        """Return the passages that the data set marks, else what the oracle picks of the whole document."""
        if example.id not in self._found:
            if example.evidence is not None:
                self._found[example.id] = Evidence(tuple(merge_spans(example.evidence)), "gold")
            else:
                self._found[example.id] = Evidence(self.oracle(example, [(0, len(self._context))]), "oracle")
        return self._found[example.id]

    def oracle(self, example: Example, shown: Iterable[Sequence[int]]) -> tuple[Span, ...]:
        """Return the sentences that the oracle picks of some spans, with as many words as the references."""
        if self._objective is None:
            return ()
        key = example.id, tuple(merge_spans(shown))
        if key not in self._oracles:
            budget = word_budget(example.references) if self._objective.is_of_summaries else None
            oracle = visible_oracles(self._document, {0: key[1]}, example.references, {0: budget})[0]
            self._oracles[key] = oracle.sentences
        return self._oracles[key]

    def forget_document(self) -> None:
        """Free the document's counts, which take more memory than all that was found with them."""
        vars(self).pop("_document", None)


def check_windows(task: str, templates: Iterable[str], examples: Sequence[Example], profile: str) -> None:
    """Check that the examples of a task have what windows show.

    Raises:
        UserError: A window needs evidence, and nothing names any.
    """
    windows = {window_of(template) for template in templates} - {HEAD, FOREIGN}
    if not windows:
        return
    flag, without = f"--window {','.join(sorted(windows))}", [one for one in examples if one.evidence is None]
    if PROFILES[profile].objective is None and (without or ORACLE in windows):
        reason = f"{len(without)} of {len(examples)} examples mark no evidence, and " if without else ""
        raise UserError(
            f"{flag} of task '{task}': {reason}metrics '{profile}' have no oracle to find any; leave "
            f"{'it' if without else ORACLE} out"
        )
    if kept := [one for one in without if one.kept is not None]:
        raise UserError(
            f"{flag} of task '{task}': every length shows passages of '{kept[0].id}' that are no evidence of it; leave "
            "it out"
        )


def foreign_examples(task: str, templates: Iterable[str], documents: Sequence[Example]) -> dict[str, Example]:
    """Return for each document, by its id, one that stands in for it; none where no template has the window.

    Documents follow each other by a hash of their ids. The next one stands in that is at least as long, or the next of
    all; one of the same cluster, such as another chapter of a book, never does.

    Raises:
        UserError: A document has none.
    """
    if FOREIGN not in map(window_of, templates):
        return {}
    order = sorted(documents, key=lambda one: hashlib.sha256(one.document_id.encode(errors="surrogatepass")).digest())
    found = {}
    for place, own in enumerate(order):
        others = [one for one in chain(order[place + 1 :], order[:place]) if _may_stand_in(one, own)]
        if not others:
            raise UserError(
                f"--window {FOREIGN} shows another document of task '{task}', and there is none beside "
                f"'{own.document_id}'; raise --limit or --sample, or leave it out"
            )
        longer = (one for one in others if len(one.context) >= len(own.context))
        found[own.document_id] = next(longer, others[0])
    return found


def _may_stand_in(other: Example, own: Example) -> bool:
    is_of_cluster = own.cluster_id is not None and own.cluster_id == other.cluster_id
    return not is_of_cluster and other.context != own.context and (own.kept is None) == (other.kept is None)
