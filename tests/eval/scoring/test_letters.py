"""References of which a profile leaves too little are refused before anything is scored or generated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.run import main as run
from eval.score import main as score
from eval.scoring.baselines import describe_baselines
from eval.scoring.letters import LEAST_SHARE, count_letters, describe_letters
from eval.scoring.profiles import PROFILES, headline, score_prediction
from tests.helpers.run_folders import read_scores

# A river flows from the hill to the sea, and people of a village grow rice there; two sentences in each language.
TEXTS = {
    "Chinese": "河流从山上流到海里。村民在河边种稻。",
    "Japanese": "川は山から海へ流れる。村の人は川のそばで米を作る。",
    "Korean": "강은 산에서 바다로 흐른다. 마을 사람들은 강가에서 벼를 기른다.",
    "Thai": "แม่น้ำไหลจากภูเขาไปยังทะเล\nชาวบ้านปลูกข้าวริมแม่น้ำ",
    "Arabic": "يجري النهر من الجبل إلى البحر. هل يزرع أهل القرية الأرز؟",
    "Hebrew": "הנהר זורם מההר אל הים. אנשי הכפר מגדלים אורז לידו.",
    "Greek": "Ο ποταμός κυλά από το βουνό στη θάλασσα. Οι χωρικοί καλλιεργούν ρύζι.",
    "Russian": "Река течёт с горы к морю. Жители деревни выращивают рис.",
    "Hindi": "नदी पहाड़ से समुद्र तक बहती है। गाँव के लोग धान उगाते हैं।",
    "Vietnamese": "Dòng sông chảy từ núi ra biển. Dân làng trồng lúa bên sông.",
}
GERMAN = "Der Fluss fließt vom Berg ins Meer. Die Leute im Dorf bauen dort Reis für den Winter an, wenn es kühl ist."
# Texts that share digits and nothing else.
OPPOSITES = ("2023年收入增长15%,利润下降。", "公司在2023年亏损15亿美元。")


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(
    "profile", [name for name, one in PROFILES.items() if one.is_for_all_scripts and not one.needs_classes]
)
def test_equal_texts_score_1_and_others_less_in_ten_scripts(profile: str, language: str) -> None:
    text = TEXTS[language]
    metric = headline(profile)
    assert score_prediction(profile, text, [text])[metric] == pytest.approx(1)
    other = TEXTS["Thai" if language == "Arabic" else "Arabic"]
    assert score_prediction(profile, text, [other])[metric] < 0.05
    half = score_prediction(profile, text[: len(text) // 2], [text])[metric]
    assert 0.2 < half < 0.9, "words are compared one by one"
    assert count_letters(profile, [text]).share == 1
    assert describe_letters("task a", profile, count_letters(profile, [text])) == []


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("profile", ["hf", "scrolls"])
def test_too_little_is_left_of_ten_scripts_in_ascii(profile: str, language: str) -> None:
    letters = count_letters(profile, [TEXTS[language]])
    assert letters.share is not None
    assert letters.share < LEAST_SHARE
    assert letters.num_without_words == (language != "Vietnamese")


def test_a_few_lost_letters_are_told_and_accepted() -> None:
    letters = count_letters("hf", [GERMAN])
    assert letters.share is not None
    assert LEAST_SHARE < letters.share < 0.99
    [note] = describe_letters("task a", "hf", letters)
    assert note.startswith("Profile hf drops")
    assert note.endswith("Profile unicode or chrf keeps them.")
    assert describe_letters("task a", "hf", count_letters("hf", ["Only a few words of English, 3.5 km."])) == []


def test_a_few_references_without_words_are_counted() -> None:
    letters = count_letters("hf", [*["A long reference in plain English words."] * 9, "河流", "?!", "", "42"])
    assert (letters.num_references, letters.num_without_words) == (13, 1)
    notes = " ".join(describe_letters("task a", "hf", letters))
    assert "1 of 13 references of task a have no word under profile hf" in notes


def test_sentences_that_are_taken_for_words_are_told() -> None:
    for profile, better in (("f1", "f1_unicode"), ("exact_match", "f1_unicode"), ("longbench", "unicode or chrf")):
        [note] = describe_letters("task a", profile, count_letters(profile, [TEXTS["Thai"]]))
        assert f"Profile {better} compares characters." in note
        assert describe_letters("task a", profile, count_letters(profile, [TEXTS["Hindi"]])) == []


def test_texts_that_share_digits_alone_do_not_score_100() -> None:
    assert score_prediction("hf", OPPOSITES[0], [OPPOSITES[1]])["rouge1"] == 1
    for profile in ("unicode", "chrf", "f1_unicode"):
        assert score_prediction(profile, OPPOSITES[0], [OPPOSITES[1]])[headline(profile)] < 0.6


def test_answers_that_differ_in_signs_of_their_script_are_one_common_answer() -> None:
    references = [["北京。"], ["上海"], ["北京"]]
    assert describe_baselines("f1_unicode", references).common_answer == "北京。"
    assert describe_baselines("f1", [["上海"], ["Yes!"], ["yes"]]).common_answer == "Yes!"


def write_custom(folder: Path, count: int = 6) -> list[str]:
    """Write one document a language, and return a command that answers them without a model."""
    lines = [{"context": (text + "\n") * 3, "target": text} for text in TEXTS.values()][:count]
    file = folder / "data.jsonl"
    file.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    return [
        *("--task", "custom", "--data", str(file), "--engine", "mock", "--maxlen", "400", "800"),
        *("--output", str(folder / "run"), "--max-new-tokens", "64"),
    ]


@pytest.mark.usefixtures("no_plots")
def test_ten_scripts_go_from_a_file_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = write_custom(tmp_path, count=10)
    assert run(command) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: profile hf keeps ")
    assert "of the letters of the references of task 'custom'" in error
    assert "--profile unicode or chrf, or --accept-ascii-words" in error
    assert not (tmp_path / "run").exists()

    for profile in ("unicode", "chrf", "f1_unicode"):
        assert run([*command, "--profile", profile, "--overwrite"]) == 0
        scores = read_scores(tmp_path / "run")
        [model] = [one for one in scores.results if (one.kind, one.subset, one.maxlen) == ("model", "all", 800)]
        assert model.num_examples == 10
        assert model.metrics[headline(profile)].value > 0.3, "the mock echoes the document"
        assert scores.letters["custom"].share == 1
        assert scores.yardsticks["custom"].word_budget in range(10, 25)
    page = (tmp_path / "run" / "report.html").read_text()
    for text in TEXTS.values():
        assert text.split("\n")[0] in page

    assert score([str(tmp_path / "run"), "--profile", "hf"]) == 2
    assert "keeps 9% of the letters" in capsys.readouterr().err
    assert score([str(tmp_path / "run"), "--profile", "hf", "--accept-ascii-words"]) == 0
    assert read_scores(tmp_path / "run").accept_ascii_words
    assert "drops 9" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.usefixtures("no_plots")
def test_who_insists_is_recorded_and_need_not_insist_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = write_custom(tmp_path)
    assert run([*command, "--accept-ascii-words"]) == 0
    assert "references of custom have no word under profile hf" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["accept_ascii_words"] is True
    assert read_scores(tmp_path / "run").accept_ascii_words
    assert score([str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("profile", ["hf", "scrolls"])
def test_files_are_refused_too(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.txt"
    file.write_text(f"{TEXTS['Hebrew']}\n")
    command = ["--predictions", str(file), "--references", str(file), "--profile"]
    assert score([*command, profile]) == 2
    assert f"error: profile {profile} keeps 0% of the letters" in capsys.readouterr().err
    assert score([*command, profile, "--accept-ascii-words"]) == 0
    assert "have no word under profile" in capsys.readouterr().err
    assert score([*command, "unicode"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["metrics"]["rougeLsum"]["mean"] == 1


@pytest.mark.parametrize("profile", ["f1", "exact_match", "f1_unicode"])
def test_articles_that_answers_do_without_are_no_loss(profile: str) -> None:
    letters = count_letters(profile, ["The end", "a sea", "An ox", "the"])
    assert letters.share == 1
    assert letters.num_without_words == 0
