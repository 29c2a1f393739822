"""The baselines that stand beside each answer: at the length of the references, and at the length of the answer.

ROUGE rises with the number of words, so a lead of 220 words beside an answer of 95 compares lengths. What is `matched`
has as many words as the answer that it stands beside, and is what a model should be compared with. The other baselines
have as many as references have in the median, and tell what each window holds.

The `foreign_oracle` is the floor of the visible oracle: it picks from the same windows, in which all that lies beyond
the smallest one has been replaced by the text of another document. What the oracle gains over it with length, it gains
because the right text is there, and not because there is more to pick from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from eval.records.schema import Baselines, ExampleRecord, Prediction
from eval.records.windows import shown_of
from eval.scoring.baselines import (
    Baseline,
    CommonAnswers,
    Span,
    document_baselines,
    joined_spans,
    merge_spans,
    prepare_document,
    query_echo,
    visible_oracles,
    words_at_end,
)
from eval.scoring.profiles import PROFILES


class BaselinesOfDocument:
    """Makes the baselines of all answers about one document."""

    def __init__(
        self,
        text: str,
        foreign: str | None,
        predictions: Iterable[Prediction],
        profile: str,
        made_with: Baselines,
        common: CommonAnswers | None,
    ) -> None:
        """Prepare a document.

        Args:
            text: The document.
            foreign: Text that takes the place of what larger windows show; None where there is no other document.
            predictions: All predictions about the document.
            profile: Metrics of the task.
            made_with: What baselines of the task are made with.
            common: Common answers of the task; None where they are no baseline.
        """
        objective = PROFILES[profile].objective
        self._budget = made_with.word_budget or 0
        self._common = common
        self._document = None if objective is None else prepare_document(text, objective)
        self._foreign = None
        # Other windows show what lies anywhere.
        predictions = [one for one in predictions if one.window is None]
        if objective is not None and foreign is not None and predictions:
            self._smallest = min(one.maxlen for one in predictions)
            shown = (one.context_spans for one in predictions if one.maxlen == self._smallest)
            own = merge_spans(chain.from_iterable(shown))
            self._foreign = prepare_document(with_foreign(text, own, foreign), objective)

    def beside(
        self, predictions: Sequence[Prediction], budgets: Mapping[int, int], example: ExampleRecord
    ) -> dict[int, list[Baseline]]:
        """Return the baselines of one example and template by maxlen, beside answers of so many words.

        Where another document was shown, no part of this one stands beside the answers.
        """
        shown = {one.maxlen: shown_of(one, example.document_id) for one in predictions}
        windows = {maxlen: spans for maxlen, (_, spans) in shown.items()}
        common = [] if self._common is None else [self._common.beside(example.references)]
        everywhere = [Baseline(system="common_answer", text=answer) for answer in common]
        document = self._document
        if document is None:
            return dict.fromkeys(windows, everywhere)
        if any(name != example.document_id for name, _ in shown.values()):
            everywhere = [*query_echo(example.query), *everywhere]
            return dict.fromkeys(windows, everywhere)
        rows = document_baselines(document, windows, example.references, example.query, self._budget)
        merged = {maxlen: merge_spans(windows[maxlen]) for maxlen in sorted(windows)}
        for maxlen, budget in budgets.items():
            for system, is_last in (("matched_lead", False), ("matched_tail", True)):
                text = words_at_end(document.text, joined_spans(windows[maxlen]), budget, is_last=is_last)
                rows[maxlen].append(Baseline(system=system, text=text))
        if document.objective.is_of_summaries:
            for maxlen, oracle in visible_oracles(document, merged, example.references, budgets).items():
                rows[maxlen].append(_text_of(oracle, "matched_oracle"))
        if self._foreign is not None and predictions[0].window is None:
            alike = dict.fromkeys(merged, self._budget if document.objective.is_of_summaries else None)
            found = visible_oracles(self._foreign, merged, example.references, alike)
            for maxlen, of_length in rows.items():
                [own] = [one for one in of_length if one.system == "visible_oracle"]
                of_length.append(_text_of(own if maxlen == self._smallest else found[maxlen], "foreign_oracle"))
        return {maxlen: [*of_length, *everywhere] for maxlen, of_length in rows.items()}


def _text_of(oracle: Baseline, system: str) -> Baseline:
    """Return an oracle's text under another name; where its sentences lie is told of the visible oracle alone."""
    return replace(oracle, system=system, sentences=(), objective=None)


class ForeignTexts:
    """What stands in the place of each document: the text of the next ones, until it is long enough.

    Documents follow each other by a hash of their ids, so that neighbours in a source, which are often alike, are not
    neighbours here. Documents of one cluster, such as chapters of a book, do not stand in for each other.
    """

    def __init__(self, texts: Mapping[str, str], clusters: Mapping[str, str | None]) -> None:
        self._texts, self._clusters = texts, clusters
        self._order = sorted(texts, key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())
        self._places = {name: place for place, name in enumerate(self._order)}

    def instead_of(self, name: str) -> str | None:
        """Return the text in the place of a document, made anew at each call; None where there is no other."""
        own, place = self._texts[name], self._places[name]
        pieces: list[str] = []
        length = 0
        for other in chain(self._order[place + 1 :], self._order[:place]):
            if self._texts[other] != own and not self._are_of_one_whole(name, other):
                pieces.append(self._texts[other])
                length += len(pieces[-1])
                if length >= len(own):
                    break
        return "\n".join(pieces) if pieces else None

    def _are_of_one_whole(self, name: str, other: str) -> bool:
        cluster = self._clusters.get(name)
        return cluster is not None and cluster == self._clusters.get(other)


def with_foreign(text: str, own: Sequence[Span], foreign: str) -> str:
    """Return a text of the same length in which all but these spans is taken from another text, repeated if short.

    A sentence that the spans cut goes on in the other text, so it is whole in none of them, as in the document itself.
    """
    pieces, position, used = [], 0, 0
    for start, end in [*own, (len(text), len(text))]:
        room = start - position
        if room:
            repeated = foreign * (1 + (used + room) // max(len(foreign), 1))
            pieces.append(repeated[used : used + room])
            used += room
        pieces.append(text[start:end])
        position = end
    return "".join(pieces)
