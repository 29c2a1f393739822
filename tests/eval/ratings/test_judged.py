"""Rated answers from published files and from tables of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from eval.ratings.judged import Judgements, read_judgements


def written(path: Path, *lines: dict[str, Any]) -> Judgements:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_judgements(path)


def test_longsciverify_has_the_mean_of_each_raters_sentences(tmp_path: Path) -> None:
    line = {
        "set": "arxiv",
        "id": "1",
        "system": "x",
        "summary": "a b",
        "document": "a b c",
        "reference": "c",
        "sentence_factuality": [[1, 0, None], [1, 1, 1], [None, None, None]],
        "coherence": [2, None, 3],
        "fluency": [1, 1, 1],
    }
    found = written(tmp_path / "x.jsonl", line)
    [answer] = found.answers
    assert (found.name, found.headline) == ("LongSciVerify", "factuality")
    assert answer.ratings["factuality"] == (0.5, 1.0, None)
    assert (answer.rating("factuality"), answer.rating("coherence"), answer.rating("none")) == (0.75, 2.5, None)
    assert (answer.item.references, answer.item.window, answer.unit) == (("c",), "a b c", ("arxiv", "1"))


def test_an_answer_by_a_person_is_no_reference_of_those_beside_it(tmp_path: Path) -> None:
    about = {"id": "1-0", "document_id": "1", "query": "q", "document": "d", "references": ["By  one.", "By another."]}
    ratings = {"overall": [1, 3]}
    found = written(
        tmp_path / "x.jsonl",
        {**about, "system": "human", "summary": "By one.", "ratings": ratings},
        {**about, "system": "model", "summary": "Words.", "ratings": ratings},
    )
    assert [answer.item.references for answer in found.answers] == [("By another.",)] * 2
    assert [answer.is_human for answer in found.answers] == [True, False]


def test_lengths_and_how_the_input_was_shortened_are_read_from_the_name_of_the_system(tmp_path: Path) -> None:
    line = {
        "dataset": "arXiv",
        "dataset_id": "1",
        "model_type": "BART (ORACLE 4K)",
        "model_summary": "s",
        "relevance": 0.5,
        "factual_consistency": 1,
    }
    [answer] = written(tmp_path / "x.jsonl", line).answers
    assert (answer.system, answer.condition, answer.length) == ("BART", "oracle", 4096)
    assert answer.ratings == {"relevance": (0.5,), "consistency": (1.0,)}


TABLE = """document_id,id,system,rater,prediction,references,rating:overall,rating:clear,length,cluster_id
d1,1,a,anna,Text one.,"[""r1"", ""r2""]",4,,1024,c1
d1,1,a,ben,Text one.,"[""r1"", ""r2""]",2,5,1024,c1
d1,1,b,ben,Text two.,"[""r1"", ""r2""]",1,1,1024,c1
d1,1,b,anna,Text two.,"[""r1"", ""r2""]",3,1,1024,c1
d1,1,b,anna,Text two.,"[""r1"", ""r2""]",5,1,1024,c1
"""


def test_a_table_of_ones_own_has_a_row_an_answer_and_rater(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(TABLE)
    found = read_judgements(tmp_path / "mine.csv")
    assert (found.name, found.headline, found.ratings) == ("mine", "overall", ["overall", "clear"])
    first, second = found.answers
    assert first.ratings == {"overall": (4.0, 2.0), "clear": (None, 5.0)}
    # The last row of a rater counts, and raters stand in one order everywhere.
    assert second.ratings == {"overall": (5.0, 1.0), "clear": (1.0, 1.0)}
    assert (first.item.references, first.length, first.unit) == (("r1", "r2"), 1024, ("", "cluster c1"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("document_id,system,prediction\nd,a,t\n", "no rating; give columns 'rating:NAME'"),
        ("system,prediction,rating\na,t,1\n", "no document_id"),
        ("document_id,system,prediction,rating\nd,a,t,good\n", "rating rating is 'good'; give a number"),
        ("document_id,system,prediction,rating\nd,a,t,nan\n", "rating rating is 'nan'; give a number"),
        ("document_id,system,prediction,rating,length\nd,a,t,1,4k\n", "length '4k' is no number of tokens"),
        ("document_id,id,system,prediction,rating\nd,1,a,t,1\nd,1,a,t,2\n", "a second row of id '1'"),
        ("document_id,id,system,prediction,rating,rater\nd,1,a,t,1,x\nd,1,a,u,2,y\n", "other texts than in an earlier"),
        ("document_id,system,prediction,rating\n", "is empty"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_line(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(rows)
    with pytest.raises(UserError, match=r"mine\.csv") as error:
        read_judgements(tmp_path / "mine.csv")
    assert message in str(error.value)


SHEET = [
    {"sheet": 1, "scales": {"overall": [1, 5], "clear": [1, 5]}, "seed": 0, "answers": "digest"},
    {"document_id": "d", "document": "A document."},
    *(
        {"answer": f"0-{index}", "id": "1", "document_id": "d", "system": system, "prediction": f"Text {index}."}
        for index, system in enumerate("abc")
    ),
]


def given(answer: int, ratings: Any, rater: str = "anna") -> dict[str, Any]:
    return {"answer": f"0-{answer}", "rater": rater, "ratings": ratings}


def test_the_first_scale_of_a_sheet_is_the_headline_in_whatever_order_people_click(tmp_path: Path) -> None:
    lines = [given(0, {"clear": 2}), given(1, {"clear": 1, "overall": 4})]
    found = written(tmp_path / "x.jsonl", *SHEET, *lines)
    assert (found.headline, found.ratings) == ("overall", ["overall", "clear"])
    assert [answer.ratings["overall"] for answer in found.answers] == [(None,), (4.0,)]


def test_a_rating_that_was_cleared_leaves_neither_answer_nor_rater(tmp_path: Path) -> None:
    lines = [given(0, {"overall": 2}), given(0, {}), given(1, {"overall": 3}), given(1, {}, "ben")]
    found = written(tmp_path / "x.jsonl", *SHEET, *lines)
    assert [(answer.system, answer.ratings) for answer in found.answers] == [("b", {"overall": (3.0,)})]


def test_the_first_rated_column_of_a_table_is_the_headline(tmp_path: Path) -> None:
    header = "document_id,system,prediction,rating:none,rating:overall,rating:clear\n"
    (tmp_path / "mine.csv").write_text(header + "d,a,t,,,2\nd,b,u,,,\nd,c,v,,3,\n")
    found = read_judgements(tmp_path / "mine.csv")
    assert (found.headline, found.ratings) == ("overall", ["overall", "clear"])
    assert [answer.system for answer in found.answers] == ["a", "c"]


@pytest.mark.parametrize("lines", [[], [given(0, {})], [given(0, {"overall": None})]])
def test_a_sheet_without_a_rating_is_refused(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl holds no rating yet"):
        written(tmp_path / "x.jsonl", *SHEET, *lines)


def test_a_table_of_empty_ratings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("document_id,system,prediction,rating\nd,a,t,\nd,b,u, \n")
    with pytest.raises(UserError, match=r"mine\.csv holds no rating yet"):
        read_judgements(tmp_path / "mine.csv")


LONGSCIVERIFY = {
    "set": "arxiv",
    "id": "1",
    "system": "x",
    "summary": "a b",
    "document": "a b c",
    "reference": "c",
    "sentence_factuality": [[1]],
    "coherence": [2],
    "fluency": [1],
}
KOH = {
    "dataset": "arXiv",
    "dataset_id": "1",
    "model_type": "BART (ORACLE 4K)",
    "model_summary": "s",
    "relevance": 0.5,
    "factual_consistency": 1,
}


def without(line: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != name}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *((without(LONGSCIVERIFY, name), f"field '{name}' is missing") for name in ("coherence", "document")),
        ({**LONGSCIVERIFY, "sentence_factuality": 1}, "sentence_factuality is '1'; give a list"),
        ({**LONGSCIVERIFY, "fluency": [10**400]}, "rating fluency is '1000"),
        ({**KOH, "model_type": "BART"}, "model_type is 'BART'; give model, input and length"),
        ({**KOH, "model_type": "BART (LEAD xK)"}, "model_type is 'BART (LEAD xK)'"),
        (without(KOH, "relevance"), "field 'relevance' is missing"),
        ({"summary": "s", "query": "q", "ratings": 3, "document": "d"}, "field 'references' is missing"),
    ],
)
def test_a_mistake_in_a_published_row_is_named_with_its_line(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    first = LONGSCIVERIFY if "summary" in line else KOH
    first = line if "query" in line else first
    with pytest.raises(UserError, match=rf"^x\.jsonl line {1 if first is line else 2}: ") as error:
        written(tmp_path / "x.jsonl", first, line)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (given(0, 3), "field 'ratings' is a number"),
        (given(0, None), "field 'ratings' is null"),
        (given(7, {"overall": 3}), "an answer that the sheet does not have"),
        (given(0, {"overall": [[1]]}), "rating overall is '[1]'"),
    ],
)
def test_a_mistake_in_a_sheet_is_named_with_its_line(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^x\.jsonl line 6: ") as error:
        written(tmp_path / "x.jsonl", *SHEET, line)
    assert message in str(error.value)


@pytest.mark.parametrize("spans", [3, [1], [[1]], [["a", 2]], [[3, 1]], [[-1, 2]], [None]])
def test_windows_that_are_no_pairs_are_named_with_their_line(tmp_path: Path, spans: Any) -> None:
    line = {"document_id": "d", "document": "A b.", "system": "a", "prediction": "t", "rating": 1}
    with pytest.raises(UserError, match=r"^x\.jsonl line 2: field 'window_spans'"):
        written(tmp_path / "x.jsonl", {**line, "window_spans": [[0, 1]]}, {**line, "window_spans": spans})


def test_lengths_in_digits_of_other_scripts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("document_id,system,prediction,rating,length\nd,a,t,1,\u00b2\n")
    with pytest.raises(UserError, match=r"mine\.csv line 2: length '\u00b2' is no number of tokens"):
        read_judgements(tmp_path / "mine.csv")


def test_a_table_without_ids_joins_the_raters_of_one_answer(tmp_path: Path) -> None:
    rows = "d,a,anna,t,4\nd,a,ben,t,2\nd,b,anna,t,1\nd,a,anna,u,3\n"
    (tmp_path / "mine.csv").write_text("document_id,system,rater,prediction,rating:overall\n" + rows)
    found = [
        (one.system, one.item.prediction, one.ratings["overall"])
        for one in read_judgements(tmp_path / "mine.csv").answers
    ]
    assert found == [("a", "t", (4.0, 2.0)), ("b", "t", (1.0, None)), ("a", "u", (3.0, None))]


def test_a_table_without_ids_and_raters_has_an_answer_a_row(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("document_id,system,prediction,rating\nd,a,t,4\nd,a,t,2\n")
    assert [one.ratings["rating"] for one in read_judgements(tmp_path / "mine.csv").answers] == [(4.0,), (2.0,)]


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_a_table_with_a_column_named_sheet_is_no_rating_sheet(tmp_path: Path, name: str) -> None:
    row = {"sheet": "1", "document_id": "d", "system": "a", "prediction": "t", "rating": "4"}
    text = ",".join(row) + "\n" + ",".join(row.values()) + "\n" if name.endswith("csv") else json.dumps(row) + "\n"
    (tmp_path / name).write_text(text)
    assert [one.ratings for one in read_judgements(tmp_path / name).answers] == [{"rating": (4.0,)}]
