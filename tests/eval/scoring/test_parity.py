"""A sample of every scoring equals the reference package; so do chrF, and the words of Unicode on ASCII."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from sacrebleu import sentence_chrf

from eval.errors import UserError
from eval.score import main as score
from eval.scoring import parity
from eval.scoring.parity import NUM_PREDICTIONS, PACKAGES, TOLERANCE, Checked, check_parity
from eval.scoring.profiles import PROFILES, score_prediction
from tasks import TASKS, LoadRequest
from tests.helpers.run_folders import example_line, read_scores, run_record, write_run

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "qmsum" / "val.jsonl"
LETTERS = ["river", "Dr.", "3.5", "e.g.", "H2O", "don't", "the", "of", '"', ".", "?", "!", "\n", "-", "(", ")"]
OTHERS = ["河流", "。", "река", "Ω", "ที่นี่", "नदी", "।", "é", "؟"]
Pair = tuple[str, str]


def random_pairs(count: int, vocabulary: Sequence[str]) -> list[Pair]:
    rng = random.Random(2020)

    def text() -> str:
        return "".join(rng.choice(vocabulary) + rng.choice(["", " ", " "]) for _ in range(rng.choice([0, 1, 9, 40])))

    return [(text(), text()) for _ in range(count)]


def real_pairs(count: int) -> list[Pair]:
    """Return parts of meetings, each with what was asked for."""
    if not DATA.exists():
        pytest.skip(f"no QMSum file at {DATA}")
    examples = TASKS["qmsum"].load(LoadRequest(split="validation", data=DATA)).examples
    pairs = []
    for start in range(0, 4000, 25):
        for one in examples:
            words = one.context.split()[start : start + 25]
            pairs.append((" ".join(words), " ".join(one.references[0].split()[:40])))
            if len(pairs) == count:
                return pairs
    raise AssertionError("too few meetings")


def in_ascii(pairs: Sequence[Pair]) -> list[Pair]:
    return [
        (first.encode("ascii", "ignore").decode(), second.encode("ascii", "ignore").decode()) for first, second in pairs
    ]


def check_chrf(pairs: Sequence[Pair]) -> None:
    for prediction, reference in pairs:
        expected = sentence_chrf(prediction, [reference]).score / 100
        assert score_prediction("chrf", prediction, [reference]) == {"chrf": pytest.approx(expected, abs=TOLERANCE)}


def check_words(pairs: Sequence[Pair]) -> None:
    for prediction, reference in in_ascii(pairs):
        # `scrolls` is `hf` without stems.
        assert score_prediction("unicode", prediction, [reference]) == score_prediction(
            "scrolls", prediction, [reference]
        )
        assert score_prediction("f1_unicode", prediction, [reference]) == score_prediction(
            "f1", prediction, [reference]
        )


def test_chrf_is_that_of_sacrebleu_on_random_text() -> None:
    check_chrf(random_pairs(1000, [*LETTERS, *OTHERS]))


def test_chrf_is_that_of_sacrebleu_on_1000_real_pairs() -> None:
    check_chrf(real_pairs(1000))


def test_unicode_is_hf_without_stems_on_random_ascii() -> None:
    check_words(random_pairs(1000, LETTERS))


def test_unicode_is_hf_without_stems_on_1000_real_pairs() -> None:
    check_words(real_pairs(1000))


def test_the_best_reference_counts_as_in_sacrebleu() -> None:
    pairs = [text for pair in random_pairs(100, [*LETTERS, *OTHERS]) for text in pair]
    for number in range(0, 195, 3):
        prediction, *references = pairs[number : number + 4]
        expected = sentence_chrf(prediction, references).score / 100
        assert score_prediction("chrf", prediction, references)["chrf"] == pytest.approx(expected, abs=TOLERANCE)


# The check in every scoring


def checked(profile: str, pairs: Sequence[Pair]) -> list[Checked]:
    return [
        Checked(
            name=f"id {number}",
            text=prediction,
            references=[reference, "another"],
            metrics=score_prediction(profile, prediction, [reference, "another"]),
        )
        for number, (prediction, reference) in enumerate(pairs)
    ]


@pytest.mark.parametrize("profile", PACKAGES)
def test_a_seeded_sample_is_scored_again(profile: str) -> None:
    pairs = random_pairs(80, [*LETTERS, *OTHERS])
    found = check_parity(profile, checked(profile, pairs))
    assert found.package is not None
    assert found.package.split()[0] == PACKAGES[profile].name
    assert found.num_predictions == NUM_PREDICTIONS
    assert found.largest_difference is not None
    assert found.largest_difference <= TOLERANCE
    assert check_parity(profile, reversed(checked(profile, pairs))) == found, "whatever their order"


@pytest.mark.parametrize("profile", PACKAGES)
def test_a_score_that_differs_names_the_prediction(profile: str) -> None:
    [one] = checked(profile, [("the river flows down", "the river flows")])
    metric = next(iter(one.metrics))
    wrong = Checked(
        name="task a, id 7", text=one.text, references=one.references, metrics={**one.metrics, metric: 0.123}
    )
    with pytest.raises(UserError, match=rf"task a, id 7: {metric} is 0\.123 under profile {profile}, and 0\."):
        check_parity(profile, [wrong])


def test_a_profile_without_a_package_says_so() -> None:
    without = {"f1", "exact_match", "f1_unicode", "found_all", "found_any", "longbench_number", "longbench_code"}
    without |= {"longbench_choice", "longbench_class", "helmet_qa", "helmet_choice", "helmet_answer", "helmet_summary"}
    assert PROFILES.keys() - PACKAGES.keys() == without
    found = check_parity("f1", checked("f1", [("a", "b")]))
    assert (found.package, found.num_predictions, found.largest_difference) == (None, 0, None)
    assert parity.describe_parity({"f1": found}) == "no reference package"


def test_long_texts_do_not_make_the_package_outlast_the_scoring() -> None:
    pairs = [("river " * 4000, "flows " * 4000), ("the river", "the river flows")]
    assert check_parity("scrolls", checked("scrolls", pairs)).num_predictions == 1
    # `rouge` gives up on a sentence of a thousand words.
    assert check_parity("longbench", checked("longbench", [("cat " * 1200, "dog " * 300 + "cat")])).num_predictions == 0


@pytest.mark.usefixtures("no_plots")
def test_a_run_says_what_was_checked_and_refuses_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [example_line(index) for index in range(6)]
    write_run(tmp_path, lambda example, maxlen: example.references[0], examples, record=run_record())
    assert score([str(tmp_path)]) == 0
    [found] = read_scores(tmp_path).parity.values()
    assert found.num_predictions == 12
    report = (tmp_path / "report.md").read_text()
    assert "12 predictions scored again by rouge-score 0.1.2, largest difference 0" in report
    before = (tmp_path / "scores.json").read_bytes()
    broken = parity.Package(
        name="rouge-score", load=lambda: lambda ours, theirs: dict.fromkeys(PROFILES["hf"].metrics, 0.5)
    )
    monkeypatch.setitem(PACKAGES, "hf", broken)
    assert score([str(tmp_path)]) == 2
    assert "is 1.0 under profile hf, and 0.5 by rouge-score" in capsys.readouterr().err
    assert (tmp_path / "scores.json").read_bytes() == before
