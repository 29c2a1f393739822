"""A sheet -> the page on which a person rates it. It names no system, no length and no run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.ratings.sheet import Answer, Sheet, SheetFile
from eval.reporting.page import as_json, served_page

_ASSETS = Path(__file__).parent / "page_assets"


def render_sheet(sheet: Sheet, file: SheetFile, rater: str, *, with_references: bool) -> tuple[str, str]:
    """Return the page with what this rater has given so far, and its Content-Security-Policy."""
    content = _content(sheet, file, rater, with_references=with_references)
    return served_page(_ASSETS, "rate", ["dom.js"], sheet=as_json(content))


def _content(sheet: Sheet, file: SheetFile, rater: str, *, with_references: bool) -> dict[str, Any]:
    windows: list[list[dict[str, Any]]] = []
    numbers: dict[Any, int] = {}
    screens = []
    for cards in sheet.cards(rater):
        answers = [one for card in cards for one in card]
        first, spans = answers[0], _union(answers)
        key = first.document_id, tuple(map(tuple, spans))
        if key not in numbers:
            numbers[key] = len(windows)
            windows.append(_pieces(sheet.documents[first.document_id], spans))
        screens.append(
            {
                "query": first.query,
                "references": first.references if with_references else [],
                "window": numbers[key],
                "cards": [{"text": card[0].prediction.strip(), "ratings": file.given(card, rater)} for card in cards],
            }
        )
    scales = {one.name: [one.low, one.high] for one in sheet.scales}
    return {"screens": screens, "windows": windows, "scales": scales}


def _union(answers: Sequence[Answer]) -> list[list[int]]:
    """Return what any of the answers was shown: the window of one alone would tell its length."""
    merged: list[list[int]] = []
    for start, end in sorted((start, end) for one in answers for start, end in one.window_spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def _pieces(document: str, spans: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return the shown parts of a document, each with how many characters were left out before it."""
    pieces, reached = [], 0
    for start, end in [*spans, (len(document), len(document))]:
        if end > start or start > reached:
            pieces.append({"skipped": start - reached, "text": document[start:end]})
        reached = end
    return pieces
