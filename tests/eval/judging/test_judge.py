"""A judge of single answers against a server that knows what is right, and one that does not do as it is asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.errors import UserError
from eval.judging.judge import open_judge
from eval.judging.questions import UnreadError, built_in, read_choice, read_numbers, read_points
from eval.metrics.base import check_metric, checked_scores
from tests.eval.judging.conftest import REFERENCES, Write, item, looks, prompt_of
from tests.helpers.engine_faults import Call, Fault, from_number, openai_error
from tests.helpers.engine_standin import EngineStandIn, engine_standin
from tests.helpers.forks import ROOT

ALL, HALF, NONE = " ".join(REFERENCES), "Ice melts in spring. Rivers carry stones.", "Cats sleep."
BATCH = [item(ALL), item(HALF), item(f"{NONE} Floods follow."), item(NONE)]
REFUSAL = "I'm sorry, but I can't help with that."


def judged(file: Path, batch: list, **settings: bool) -> list[dict[str, float | None]]:
    """Return what a judge gives, as `eval.score` would check it."""
    judge = open_judge(str(file), **settings)
    with judge.replies:
        check_metric(judge)
        return checked_scores(judge, batch)


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.with_suffix(".replies.jsonl").read_text().splitlines()]


# Values


def test_recall_is_the_share_of_key_points_and_precision_that_of_sentences(write: Write) -> None:
    scores = judged(write(), BATCH)
    assert [one["recall"] for one in scores] == [1.0, 0.5, 0.25, 0.0]
    assert [one["precision"] for one in scores] == [1.0, 1.0, 0.5, 0.0]
    assert [one["f1"] for one in scores] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert {one["unread"] for one in scores} == {0.0}


def test_an_empty_answer_says_no_key_point_and_is_not_asked_about(server: EngineStandIn, write: Write) -> None:
    [score] = judged(write(), [item("  ")])
    assert (score["recall"], score["precision"], score["f1"]) == (0.0, None, 0.0)
    assert score["unread"] is None
    assert len(server.asked) == 1  # the key points


def test_key_points_are_made_once_for_all_answers_and_all_runs(server: EngineStandIn, write: Write) -> None:
    file = write()
    judged(file, BATCH[:2])
    judged(file, BATCH[2:])
    kinds = [line["kind"] for line in lines_of(file)]
    assert kinds.count("key_points") == 1
    assert len(server.asked) == 1 + 2 * len(BATCH)


def test_tokens_and_their_price_are_those_that_the_server_counts(server: EngineStandIn, write: Write) -> None:
    file = write(prices={"prompt": 2.0, "completion": 8.0, "currency": "EUR"})
    [score] = judged(file, BATCH[:1])
    about = [line for line in lines_of(file) if line["kind"] != "key_points"]
    prompts, replies = (sum(line[name] for line in about) for name in ("prompt_tokens", "completion_tokens"))
    assert prompts > replies > 0
    assert score["judge_tokens"] == prompts + replies
    assert score["price"] == pytest.approx((2 * prompts + 8 * replies) / 1e6)
    server.fail(Fault(has_usage=False))
    [other] = judged(file, BATCH[1:2])
    assert (other["judge_tokens"], other["price"]) == (None, None)


def test_repeats_tell_how_far_the_judge_agrees_with_itself(server: EngineStandIn, write: Write) -> None:
    said = {0: [1], 1: [1, 2], 2: [1, 2, 3]}

    def moody(call: Call) -> str:
        text = looks(call)
        return json.dumps({"said": said[call.body["seed"] - 7]}) if '"said"' in text else text

    server.says = moody
    file = write(seed=7, repeats=3)
    [score] = judged(file, [item(HALF)])
    assert score["recall"] == pytest.approx(0.5)
    assert score["recall_sd"] == pytest.approx(0.25)
    assert score["precision_sd"] == 0.0
    # Fewer repeats are those that are there.
    assert judged(write(seed=7), [item(HALF)])[0]["recall"] == 0.25
    assert len(server.asked) == 1 + 2 * 3


def test_a_rubric_asks_for_values_on_scales(server: EngineStandIn, write: Write, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text('Rate {prediction} for {query} by {"clear": 1 to 5}.')
    values = {"clear": {"low": 1, "high": 5, "title": "clarity"}, "rude": {"low": 0, "high": 1, "better": "lower"}}
    server.says = lambda call: 'Thinking of {braces} ... {"clear": 1} no: ```json\n{"clear": 4, "rude": 0.5}\n```'
    file = write("rubric", prompt="mine.txt", values=values)
    [score] = judged(file, [item("It {query} flows.", references=())])
    assert (score["clear"], score["rude"], score["unread"]) == (4.0, 0.5, 0.0)
    # What stands in an answer is no place of the prompt.
    assert prompt_of(server.asked[0]) == 'Rate It {query} flows. for What do rivers do? by {"clear": 1 to 5}.'
    asked = server.asked[0].body["response_format"]["json_schema"]["schema"]
    assert asked["required"] == ["clear", "rude"]


# Replies that are not what was asked for


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("", "empty"),
        (REFUSAL, "no JSON"),
        ('{"said": [1', "no JSON"),
        ("[1, 2]", "no JSON"),
        ('{"answer": [1]}', "other JSON"),
        ('{"said": "all"}', "other JSON"),
        ('{"said": ["1"]}', "other JSON"),
        ('{"said": [true]}', "other JSON"),
        ('{"said": [5]}', "out of range"),
        ('{"said": [0]}', "out of range"),
    ],
)
def test_garbage_and_refusals_are_counted_and_are_no_score(
    reply: str, kind: str, server: EngineStandIn, write: Write
) -> None:
    server.says = lambda call: reply if '"said"' in prompt_of(call) else looks(call)
    [score] = judged(write(), [item(HALF)])
    assert (score["recall"], score["f1"], score["precision"]) == (None, None, 1.0)
    assert score["unread"] == 0.5
    with pytest.raises(UnreadError) as error:
        read_numbers(reply, "said", 4)
    assert error.value.kind == kind


@pytest.mark.parametrize("name", ["key_points", "said", "supported", "pairwise"])
def test_who_repeats_the_prompt_has_said_nothing(name: str) -> None:
    prompt = built_in(f"{name}.v1").text
    example = prompt[prompt.rindex("{") :].strip().splitlines()[0]
    reads = {"key_points": read_points, "pairwise": read_choice}
    for text in (prompt, example):
        with pytest.raises(UnreadError):
            reads.get(name, lambda text: read_numbers(text, name, 9))(text)


def test_without_key_points_there_is_no_recall_and_it_counts_as_unread(server: EngineStandIn, write: Write) -> None:
    server.says = lambda call: '{"key_points": []}' if '"key_points"' in prompt_of(call) else looks(call)
    [score] = judged(write(), [item(HALF)])
    assert (score["recall"], score["precision"], score["unread"]) == (None, 1.0, 0.5)


def test_a_repeat_that_cannot_be_read_leaves_the_others(server: EngineStandIn, write: Write) -> None:
    server.says = lambda call: REFUSAL if call.body["seed"] == 1 and '"said"' in prompt_of(call) else looks(call)
    [score] = judged(write(repeats=2), [item(HALF)])
    assert (score["recall"], score["recall_sd"], score["unread"]) == (0.5, None, 0.25)


def test_a_reply_that_its_room_cuts_is_unread(server: EngineStandIn, write: Write) -> None:
    file = write(max_tokens=1)
    [score] = judged(file, [item(ALL)])
    assert (score["recall"], score["unread"]) == (None, 1.0)
    assert {line["finish_reason"] for line in lines_of(file)} == {"length"}


def test_prompts_that_the_server_refuses_are_unread_and_not_asked_again(server: EngineStandIn, write: Write) -> None:
    too_long = Fault(status=400, body=openai_error("maximum context length is 4096 tokens", "invalid_request_error"))
    server.fail(too_long, lambda call: "Cats" in prompt_of(call) and '"said"' in prompt_of(call))
    file = write()
    score = judged(file, BATCH)[-1]
    assert (score["recall"], score["precision"], score["unread"]) == (None, 0.0, 0.5)
    count = len(server.asked)
    assert judged(file, BATCH)[-1] == score
    assert len(server.asked) == count
    assert "maximum context length" in str([line.get("refusal") for line in lines_of(file)])


def test_a_server_that_refuses_all_prompts_ends_the_command_and_leaves_nothing(
    server: EngineStandIn, write: Write
) -> None:
    server.formats = ("json_object", "text")
    file = write()
    with pytest.raises(UserError, match=r"judge .*judge.yaml: .*json_schema.*; look at answers_as"):
        judged(file, BATCH)
    assert lines_of(file) == []
    assert judged(write(answers_as="object"), BATCH)[0]["recall"] == 1.0


def test_a_reply_of_another_model_ends_the_command(server: EngineStandIn, write: Write) -> None:
    server.fail(Fault(model="tiny-instruct-2026-01-01"))
    with pytest.raises(UserError, match="served_model: tiny-instruct-2026-01-01"):
        judged(write(), BATCH)
    assert judged(write(served_model="tiny-instruct-2026-01-01"), BATCH)[0]["recall"] == 1.0


def test_newer_models_are_given_room_under_the_newer_name(server: EngineStandIn, write: Write) -> None:
    server.is_new = True
    assert judged(write(), BATCH)[0]["recall"] == 1.0


# What is kept


def test_a_failed_session_goes_on_without_asking_twice(server: EngineStandIn, write: Write) -> None:
    whole = judged(write(name="whole.yaml"), BATCH)
    asked = len(server.asked)
    server.fail(Fault(status=500, body={}), from_number(asked + 4))
    file = write(concurrency=1)
    with pytest.raises(UserError, match="500"):
        judged(file, BATCH)
    kept = len(lines_of(file))
    assert 0 < kept < asked
    server.faults.clear()
    before = len(server.asked)
    assert judged(file, BATCH) == whole
    assert len(server.asked) - before == asked - kept


def test_a_killed_session_keeps_each_reply_that_came(tmp_path: Path, write: Write) -> None:
    with engine_standin(says=looks) as server:
        slow = server.says
        server.says = lambda call: (time.sleep(0.15), looks(call))[1]
        file = write(base_url=server.base_url, concurrency=2)
        code = (
            "import sys; from eval.judging.judge import open_judge; from tests.eval.judging.test_judge import BATCH;"
            "open_judge(sys.argv[1]).score(BATCH)"
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=ROOT)
        replies = file.with_suffix(".replies.jsonl")
        deadline = time.monotonic() + 300
        while not (replies.exists() and replies.read_bytes().count(b"\n") >= 3):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with replies.open("ab") as stream:
            stream.write(b'{"request": "torn')
        kept = replies.read_bytes().count(b"\n")
        server.says = slow
        before = len(server.asked)
        assert [one["recall"] for one in judged(file, BATCH)] == [1.0, 0.5, 0.25, 0.0]
        assert len(server.asked) - before == 1 + 2 * len(BATCH) - kept


def test_two_processes_do_not_ask_one_judge_at_a_time(write: Write) -> None:
    file = write()
    with open_judge(str(file)).replies, pytest.raises(UserError, match="another process"):
        open_judge(str(file))
    open_judge(str(file)).replies.close()


def test_a_changed_line_is_named(write: Write) -> None:
    file = write()
    judged(file, BATCH)
    replies = file.with_suffix(".replies.jsonl")
    replies.write_text(replies.read_text().replace("said", "sold", 1))
    with pytest.raises(UserError, match="is damaged"):
        open_judge(str(file))


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"seed": 3}, {"temperature": 1.0}, {"extra": {"top_k": 1}}, {"answers_as": "text"}],
    ids=str,
)
def test_other_settings_ask_anew_and_have_another_provenance(change: dict, server: EngineStandIn, write: Write) -> None:
    server.models = ("tiny-instruct", "other")
    judged(write(), BATCH[:1])
    count = len(server.asked)
    provenance = {}
    for name, settings in {"old": {}, "new": change}.items():
        with (judge := open_judge(str(write(**settings)))).replies:
            judge.score(BATCH[:1])
            provenance[name] = judge.provenance()
    assert len(server.asked) == 2 * count
    assert provenance["old"] != provenance["new"]
    json.dumps(provenance)


def test_the_key_goes_to_the_server_and_into_no_file(
    server: EngineStandIn, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-of-the-judge-4711"
    file = write(api_key_env="KEY_OF_JUDGE")
    with pytest.raises(UserError, match=r"api_key_env of judge .*judge.yaml names no environment variable"):
        judged(file, BATCH)
    monkeypatch.setenv("KEY_OF_JUDGE", server.key)
    judged(file, BATCH)
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {server.key}"}
    assert not [one for one in file.parent.rglob("*") if one.is_file() and server.key in one.read_text()]
    # Replies that are there are read without it.
    monkeypatch.delenv("KEY_OF_JUDGE")
    assert judged(file, BATCH)[0]["recall"] == 1.0
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    with pytest.raises(UserError, match="401"):
        judged(write(name="without.yaml"), BATCH)
    assert not any("somebody-else" in call.headers["authorization"] for call in server.calls)


# What leaves the machine


@pytest.mark.parametrize("place", ["window", "document"])
def test_documents_are_sent_only_where_that_is_allowed(
    place: str, server: EngineStandIn, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text(f"Is {{prediction}} true of {{{place}}}?")
    file = write("rubric", prompt="mine.txt", values={"true": {"low": 0, "high": 1}})
    server.says = lambda call: '{"true": 1}'
    about = item(HALF, window="The secret window.", document="The secret document.")
    with pytest.raises(UserError, match=f"mine.txt sends text of documents.*{place}.*--judge-may-see-documents"):
        judged(file, [about])
    assert server.calls == []
    assert judged(file, [about], may_see_documents=True)[0]["true"] == 1.0
    assert f"The secret {place}." in prompt_of(server.asked[0])


def test_key_points_send_no_text_of_documents_whatever_is_allowed(server: EngineStandIn, write: Write) -> None:
    about = item(HALF, window="The secret window.", document="The secret document.")
    judged(write(), [about], may_see_documents=True)
    assert "secret" not in " ".join(map(prompt_of, server.asked))


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modell": "x"}, "unknown key 'modell'"),
        ({"base_url": None}, "has no base_url"),
        ({"mode": "points"}, "expected 'key-points' or 'rubric' or 'pairwise'"),
        ({"repeats": 0}, "field 'repeats' is 0, expected at least 1"),
        ({"temperature": -1}, "field 'temperature' is -1, expected at least 0"),
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"base_url": "https://user:secret@host/v1"}, "holds more than an address"),
        ({"extra": {"seed": 1}}, "extra has seed"),
        ({"prompt": "x.txt"}, "has its own prompts"),
        ({"values": {"a": {"low": 0, "high": 1}}}, "no other mode has them"),
        ({"mode": "rubric", "prompt": "x.txt"}, "needs values"),
        ({"mode": "rubric", "values": {"a": {"low": 0, "high": 1}}}, "needs a prompt file"),
        ({"mode": "rubric", "prompt": "x.txt", "values": {"a": {"low": 2, "high": 1}}}, "low must be below high"),
        ({"mode": "rubric", "prompt": "x.txt", "values": {"a": {"low": 0, "hihg": 1}}}, "unknown key 'hihg'"),
        ({"mode": "rubric", "prompt": "x.txt", "values": {"a b": {"low": 0, "high": 1}}}, "is no name"),
        ({"mode": "rubric", "prompt": "absent.txt", "values": {"a": {"low": 0, "high": 1}}}, "cannot be read"),
        ({"mode": "rubric", "prompt": "bare.txt", "values": {"a": {"low": 0, "high": 1}}}, "has no {prediction}"),
        ({"mode": "rubric", "prompt": "typo.txt", "values": {"a": {"low": 0, "high": 1}}}, "has the place {refs}"),
        ({"mode": "pairwise"}, "compares pairs"),
    ],
    ids=str,
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(
    settings: dict, message: str, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "bare.txt").write_text("Rate it.")
    (tmp_path / "typo.txt").write_text("Rate {prediction} by {refs}.")
    with pytest.raises(UserError) as error:
        open_judge(str(write(**settings)))
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_is_named(write: Write) -> None:
    with pytest.raises(UserError, match=r"judge .*judge.yaml: .*http://127.0.0.1:9/v1"):
        judged(write(base_url="http://127.0.0.1:9/v1"), BATCH)
