from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tasks import CustomTask, DataError, Example, LoadedExamples, LoadRequest
from tasks.readers.sampling import count_strata, draw_sample


def examples(num_documents: int, of_each: int = 1) -> list[Example]:
    return [
        Example(
            id=f"{name}-{question}",
            document_id=f"d{name}",
            context=f"Text {name}.",
            references=("x",),
            stratum="odd" if name % 2 else "even",
        )
        for name in range(num_documents)
        for question in range(of_each)
    ]


def documents(sample: tuple[Example, ...]) -> list[str]:
    return list(dict.fromkeys(one.document_id for one in sample))


def test_a_larger_sample_contains_a_smaller_one_in_the_order_of_the_source() -> None:
    source = examples(200, of_each=3)
    small, large = draw_sample(source, 20, 0), draw_sample(source, 40, 0)
    assert len(documents(small)) == 20
    assert len(documents(large)) == 40
    assert set(small) <= set(large)
    assert len(small) == 60  # whole documents
    assert [one for one in source if one in large] == list(large)


def test_a_sample_does_not_depend_on_the_order_of_the_source() -> None:
    source = examples(100)
    shuffled = random.Random(0).sample(source, len(source))
    assert set(draw_sample(source, 10, 3)) == set(draw_sample(shuffled, 10, 3))


def test_samples_of_other_machines_and_versions_are_the_same() -> None:
    # Runs that were drawn before must be able to grow.
    source = examples(200)
    assert documents(draw_sample(source, 5, 0)) == ["d41", "d93", "d109", "d144", "d167"]
    assert documents(draw_sample(source, 5, 1)) == ["d3", "d20", "d67", "d73", "d135"]


def test_examples_of_a_document_that_lie_apart_are_all_drawn() -> None:
    source = examples(30, of_each=2)
    apart = [one for one in source if one.id.endswith("-0")] + [one for one in source if one.id.endswith("-1")]
    assert len(draw_sample(apart, 7, 0)) == 14


def test_seeds_draw_other_documents_and_all_about_as_often() -> None:
    source = examples(10)
    counts = dict.fromkeys((one.document_id for one in source), 0)
    for seed in range(2000):
        for name in documents(draw_sample(source, 3, seed)):
            counts[name] += 1
    assert all(500 < count < 700 for count in counts.values()), counts  # 600 in the mean, standard deviation 20


def test_a_sample_of_more_than_there_are_is_everything() -> None:
    source = examples(5)
    assert draw_sample(source, 9, 0) == tuple(source)


def test_strata_count_documents_and_not_examples() -> None:
    source = examples(5, of_each=4)
    strata = {one.document_id: one.stratum for one in source if one.stratum}
    assert count_strata(strata, source[:4]) == {"even": [1, 3], "odd": [0, 2]}


def load(tmp_path: Path, **request: object) -> LoadedExamples:
    rows = [{"id": index, "text": "word " * index, "target": "x", "kind": index % 3} for index in range(1, 31)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = CustomTask(context_field="text", stratum_field="kind").task()
    return task.load(LoadRequest(split="test", data=file, **request))  # type: ignore[arg-type]


def test_what_is_left_out_is_not_drawn(tmp_path: Path) -> None:
    loaded = load(tmp_path, sample=20, min_words=21, accepts=lambda context: len(context.split()) != 25)
    assert len(loaded.examples) == 9
    assert loaded.provenance["num_few_tokens"] == 1
    assert loaded.strata == {"0": [4, 4], "2": [3, 3], "1": [2, 2]}


def test_a_limit_reads_no_further_and_counts_accepted_documents(tmp_path: Path) -> None:
    loaded = load(tmp_path, limit=2, accepts=lambda context: len(context.split()) > 5)
    assert [one.id for one in loaded.examples] == ["6", "7"]
    assert loaded.provenance["num_rows"] == 7


def test_a_sample_beside_a_limit_or_of_nothing_is_refused(tmp_path: Path) -> None:
    for request in ({"sample": 2, "limit": 2}, {"sample": 0}):
        with pytest.raises(DataError, match="give a sample of 1 document or more, or a limit"):
            load(tmp_path, **request)
    with pytest.raises(DataError, match="no document of enough tokens"):
        load(tmp_path, accepts=lambda context: False)
