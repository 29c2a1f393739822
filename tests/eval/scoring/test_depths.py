"""What was found of needles, by their depth in what a prompt shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.records.schema import DepthCell, Prediction
from eval.reporting.depth_chart import depth_map, depth_table
from eval.scoring.depths import depth_of, found_by_depth
from eval.scoring.profiles import score_prediction
from tests.helpers.run_folders import example_line, prediction_line

SHOWN = [[0, 100], [500, 510], [900, 1000]]


@pytest.mark.parametrize(
    ("span", "depth"),
    [((0, 10), 0.0), ((90, 100), 90 / 200), ((500, 510), 100 / 200), ((990, 1000), 1.0), ((95, 105), None)],
)
def test_depth_is_the_share_of_what_is_shown_before_the_needle(span: tuple[int, int], depth: float | None) -> None:
    assert depth_of(span, SHOWN) == depth
    assert depth_of((20, 30), [[20, 30]]) == 0.0


def answered(name: str, text: str, maxlen: int = 1024) -> Prediction:
    return replace(prediction_line(example_line(0), maxlen, text, 1000), id=name, context_spans=SHOWN)


def test_each_needle_of_an_example_is_found_by_its_own_answer() -> None:
    example = replace(
        example_line(0), id="a", references=["11", "Mill", "33"], evidence=[[0, 10], [500, 510], [990, 1000]]
    )
    cells = found_by_depth([answered("a", "mill, 33"), answered("a", "11", 2048)], [example], {"plos": "found_all"})
    found = {(cell.maxlen, cell.depth): (cell.found, cell.num_needles) for cell in cells}
    assert found == {
        (1024, 0.0): (0.0, 1),
        (1024, 0.4): (1.0, 1),
        (1024, 0.8): (1.0, 1),
        (2048, 0.0): (1.0, 1),
        (2048, 0.4): (0.0, 1),
        (2048, 0.8): (0.0, 1),
    }


def test_answers_of_one_needle_share_its_depth_and_samples_count_in_the_mean() -> None:
    examples = [
        replace(example_line(0), id=name, references=["the mayor", "mayor"], evidence=[[500, 510]]) for name in "abc"
    ]
    samples = [replace(answered("c", "").answers[0], text=text) for text in ("A mayor.", "Nobody")]
    several = replace(answered("c", "A mayor."), samples=samples)
    predictions = [answered("a", "It was the Mayor."), answered("b", "The king"), several]
    [cell] = found_by_depth(predictions, examples, {"plos": "found_any"})
    assert (cell.depth, cell.found, cell.num_needles) == (0.4, 0.5, 3)


def test_tasks_without_needles_and_needles_that_are_cut_have_no_depth() -> None:
    example = replace(example_line(0), id="a", references=["11"], evidence=[[0, 10]])
    assert not found_by_depth([answered("a", "11")], [example], {"plos": "hf"})
    assert not found_by_depth([answered("a", "11")], [replace(example, evidence=None)], {"plos": "found_all"})
    cut = replace(example, evidence=[[200, 210]])
    assert not found_by_depth([answered("a", "11")], [cut], {"plos": "found_all"})


def test_answers_count_by_the_share_that_is_found_whatever_their_case() -> None:
    assert score_prediction("found_all", "ABC and 12.", ["abc", "12", "13"]) == {"found": 2 / 3, "all_found": 0.0}
    assert score_prediction("found_all", "13, 12, abc", ["abc", "12", "13"]) == {"found": 1.0, "all_found": 1.0}
    assert score_prediction("found_any", "It was ABC", ["abc", "12"]) == {"found": 1.0}
    assert score_prediction("found_any", "It was AB C", ["abc", "12"]) == {"found": 0.0}


def test_table_and_map_show_each_fifth_at_each_length() -> None:
    about = {"task": "needle_single", "template": "instruct", "num_needles": 4}
    cells = [
        DepthCell(**about, maxlen=1024, depth=0.0, found=1.0),
        DepthCell(**about, maxlen=8192, depth=0.0, found=0.25),
        DepthCell(**about, maxlen=8192, depth=0.8, found=0.5),
    ]
    assert depth_table(cells) == [
        ["depth", "1,024", "8,192"],
        ["0-20%", "100 (4)", "25 (4)"],
        ["80-100%", "", "50 (4)"],
    ]
    drawn = depth_map(cells)["layer"][0]["data"]["values"]
    assert [(row["length"], row["depth"], row["found"]) for row in drawn] == [
        ("1,024", "0-20%", 100.0),
        ("8,192", "0-20%", 25.0),
        ("8,192", "80-100%", 50.0),
    ]
