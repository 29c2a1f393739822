"""A server for one page, on this machine alone: it gives the sheet and appends the ratings that come back."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from typing import Any

from eval.errors import UserError
from eval.ratings.page import render_sheet
from eval.ratings.sheet import Answer, Sheet, SheetFile
from eval.reporting.loopback import HTML, LoopbackHandler, LoopbackServer


class RatingServer(LoopbackServer):
    """Serves a sheet to one rater.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: The port is taken.
    """

    def __init__(self, sheet: Sheet, file: SheetFile, rater: str, *, with_references: bool, port: int = 0) -> None:
        self.sheet, self.file, self.rater, self.with_references = sheet, file, rater, with_references
        self.cards = sheet.cards(rater)
        # Requests are answered at the same time; ratings are written one by one.
        self.writing = threading.Lock()
        super().__init__(_Handler, port)

    def card(self, content: Any) -> tuple[list[Answer], dict[str, int]]:
        """Return the answers of the card that a request rates, and the ratings.

        Raises:
            ValueError: There is no such card or scale, or a rating is none.
        """
        if not isinstance(content, dict) or content.keys() != {"screen", "card", "ratings"}:
            raise ValueError("not a rating")
        screen, card, ratings = content["screen"], content["card"], content["ratings"]
        if not (_is_index(screen, self.cards) and _is_index(card, self.cards[screen]) and isinstance(ratings, dict)):
            raise ValueError("no such answer")
        scales = {scale.name: scale for scale in self.sheet.scales}
        for name, value in ratings.items():
            if name not in scales or type(value) is not int or not scales[name].low <= value <= scales[name].high:
                raise ValueError("no such rating")
        return self.cards[screen][card], ratings


def _is_index(value: Any, items: list[Any]) -> bool:
    return type(value) is int and 0 <= value < len(items)


class _Handler(LoopbackHandler):
    server: RatingServer

    def do_GET(self) -> None:
        path = self.known_path()
        if path is None:
            return
        if path:
            self.not_here()
            return
        page, policy = render_sheet(
            self.server.sheet, self.server.file, self.server.rater, with_references=self.server.with_references
        )
        self.reply(HTTPStatus.OK, page, HTML, {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        path = self.known_path()
        if path is None:
            return
        if path != "rate":
            self.not_here()
            return
        body = self.body()
        if body is None:
            return
        try:
            answers, ratings = self.server.card(json.loads(body))
            with self.server.writing:
                self.server.file.rate(answers, self.server.rater, ratings)
        except UserError as error:
            self.reply(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        except (ValueError, RecursionError) as error:
            self.reply(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self.reply(HTTPStatus.NO_CONTENT, "")
