"""Trainings with a teacher: what it says, that it stays as it was, and that it is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from eval.config.finetune import TrainConfig
from eval.finetune import main
from eval.training.job import folder_of, open_training
from eval.training.launch import start_training
from eval.training.lora import add_adapters, trainable_names
from eval.training.sequences import chosen_rows
from eval.training.teacher import make_teacher
from masformer import SpanPlan, apply_plan
from masformer.loss import IGNORED
from tests.helpers.forks import run_forked, run_ranks
from tests.helpers.texts import read
from tests.helpers.tiny_models import save_tiny_checkpoint
from tests.helpers.trainings import expect_error

PLAN = "local span=24 sinks=2"

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def distilled(least: list[str]) -> list[str]:
    """Arguments of a training on the teacher's predictions alone."""
    return [*least, "--plan", PLAN, "--distill", "1"]


@torch.no_grad()
def expected_losses(arguments: list[str], model: Path, teacher_plan: str) -> tuple[float, float]:
    """Return likelihood and divergence of the untrained model a held-out target, from logits of all tokens."""
    config = TrainConfig.from_command_line([*arguments, "--resume"] if "--resume" in arguments else arguments)
    process, dtype = start_training(config)
    job = open_training(config, process, dtype)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(model).double().eval() for _ in range(2))
    apply_plan(ours, SpanPlan.parse(PLAN, 3))
    apply_plan(theirs, SpanPlan.parse(teacher_plan, 3))
    likelihood = divergence = count = 0.0
    for (piece,) in chosen_rows(job.held_out, config.held_out_limit, config.seed):
        inputs, following = torch.tensor([piece.token_ids[:-1]]), torch.tensor(piece.next_tokens())
        asked = following != IGNORED
        student, teacher = (one(inputs, use_cache=False).logits[0, asked].log_softmax(dim=1) for one in (ours, theirs))
        likelihood += float(F.nll_loss(student, following[asked], reduction="sum"))
        divergence += float((teacher.exp() * (teacher - student)).sum())
        count += int(asked.sum())
    AcceleratorState._reset_state(True)
    return likelihood / count, divergence / count


@pytest.mark.parametrize("weights", [[], ["--lora-rank", "4"]], ids=["all", "lora"])
def test_a_model_comes_nearer_to_what_it_predicted_with_full_attention(
    weights: list[str], distilled: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    likelihood, divergence = expected_losses(distilled, model, "full")
    assert main([*distilled, "--max-steps", "12", "--eval-every", "6", "--learning-rate", "5e-3", *weights]) == 0
    steps, evals = (read(tmp_path / "run", name) for name in ("steps.jsonl", "evals.jsonl"))
    assert evals[0]["loss"] == pytest.approx(likelihood, rel=1e-4)
    assert evals[0]["kl_divergence"] == pytest.approx(divergence, rel=1e-3)
    assert divergence > 0.05
    assert evals[-1]["kl_divergence"] < 0.98 * evals[0]["kl_divergence"]
    assert all(line["mixture"] == line["kl_divergence"] for line in (*steps, *evals))
    # The best is that of the loss that is trained on.
    best = min(evals[1:], key=lambda line: line["kl_divergence"])["step"]
    assert (tmp_path / "run" / "best").resolve().name == f"step-{best:06}"
    record = read(tmp_path / "run", "run.json")
    assert (record["identity"]["distill"], record["identity"]["teacher_plan"]) == (1, "full")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "teacher: the model before the training, with the spans 'full'; KL(teacher" in report
    assert f"| {evals[-1]['kl_divergence']:.4f} |" in report
    printed = capsys.readouterr().out
    assert f"and KL {evals[0]['kl_divergence']:.4f} at step 0" in printed
    assert "Held-out KL" in (tmp_path / "run" / "curves.svg").read_text()
    # What is trained is saved, and the teacher is not.
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "last")
    assert str(saved.span_plan) == PLAN
    assert saved.num_parameters() == AutoModelForCausalLM.from_pretrained(model).num_parameters()


def test_the_teacher_has_the_spans_that_the_model_ships(distilled: list[str], tmp_path: Path) -> None:
    own = save_tiny_checkpoint(tmp_path / "mistral", kind="mistral", sliding_window=40)
    arguments = [*distilled, "--model", str(own), "--max-steps", "1", "--eval-every", "1"]
    expected = expected_losses(arguments, own, "local span=40 sinks=0")
    assert main(arguments) == 0
    first = read(tmp_path / "run", "evals.jsonl")[0]
    assert (first["loss"], first["kl_divergence"]) == pytest.approx(expected, rel=1e-3)
    assert read(tmp_path / "run", "run.json")["identity"]["teacher_plan"] == "local span=40 sinks=0"


def test_a_model_without_its_adapters_is_what_it_was_and_is_itself_again(model: Path, least: list[str]) -> None:
    config = TrainConfig.from_command_line([*least, "--plan", PLAN, "--lora-rank", "2", "--distill", "0.5"])
    process, dtype = start_training(config)
    job = open_training(config, process, dtype)
    trained = AutoModelForCausalLM.from_pretrained(model)
    apply_plan(trained, SpanPlan.parse(PLAN, 3))
    adapters = add_adapters(trained, 2, 4, config.lora_targets, job.identity.model)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter += 0.3
    trained.train()
    names, tokens = trainable_names(trained), torch.arange(3, 80)[None]
    with torch.no_grad():
        adapted = trained(tokens, use_cache=False).logits
        as_it_was = AutoModelForCausalLM.from_pretrained(model)(tokens, use_cache=False).logits
    teacher = make_teacher(0.5, job.model, job.teacher_plan, trained, adapters)
    with torch.no_grad(), teacher.running():
        assert not trained.training
        torch.testing.assert_close(trained(tokens, use_cache=False).logits, as_it_was, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(trained(tokens, use_cache=False).logits, adapted)
    assert not torch.allclose(adapted, as_it_was, atol=0.1)
    assert trained.training
    assert trainable_names(trained) == names
    assert str(trained.span_plan) == PLAN


@pytest.mark.parametrize("extra", [[], ["--lora-rank", "4", "--gradient-checkpointing"]], ids=["all", "lora"])
def test_packed_rows_and_accumulation_teach_what_rows_alone_do(
    extra: list[str], distilled: list[str], tmp_path: Path
) -> None:
    found = {}
    for name, layout in {
        "four": ["--batch-size", "4"],
        "two": ["--batch-size", "2", "--gradient-accumulation", "2"],
    }.items():
        arguments = [*distilled, *extra, *layout, "--distill", "0.5", "--output", str(tmp_path / name)]
        assert main([*arguments, "--max-steps", "3", "--eval-every", "3"]) == 0
        assert read(tmp_path / name, "run.json")["identity"]["packing"]
        found[name] = read(tmp_path / name, "steps.jsonl")
        AcceleratorState._reset_state(True)
    for one, other in zip(found["four"], found["two"], strict=True):
        assert one["mixture"] == pytest.approx((one["loss"] + one["kl_divergence"]) / 2)
        for key in ("loss", "kl_divergence"):
            assert one[key] == pytest.approx(other[key], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("weights", [[], ["--lora-rank", "4"]], ids=["all", "lora"])
def test_two_processes_learn_what_one_does(weights: list[str], distilled: list[str], tmp_path: Path) -> None:
    common = [*distilled, *weights, "--max-steps", "3", "--eval-every", "3"]
    assert main([*common, "--batch-size", "2"]) == 0
    two = run_ranks("eval.finetune", [*common, "--output", str(tmp_path / "two")])
    assert two.returncode == 0, two.stderr
    for name in ("steps.jsonl", "evals.jsonl"):
        for ours, theirs in zip(read(tmp_path / "run", name), read(tmp_path / "two", name), strict=True):
            for key in ("loss", "kl_divergence"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3)


def test_another_share_is_another_training(
    distilled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*distilled, "--max-steps", "1", "--eval-every", "1"]) == 0
    again = [*distilled, "--max-steps", "1", "--eval-every", "1", "--resume", "--distill", "0.5"]
    expect_error(again, capsys, "distill is 1.0 there and 0.5 now")


def test_a_training_without_a_teacher_says_nothing_of_one(least: list[str], tmp_path: Path) -> None:
    assert main([*least, "--max-steps", "1", "--eval-every", "1"]) == 0
    texts = [path.read_text() for path in (tmp_path / "run").glob("*.*") if path.is_file()]
    assert len(texts) >= 4
    assert not any(word in text for text in texts for word in ("distill", "teacher", "kl_divergence", "KL"))
    one, other = (
        folder_of(TrainConfig.from_command_line([*least[: least.index("--output")], *more])).path
        for more in ([], ["--distill", "0.5"])
    )
    assert one != other


@pytest.mark.usefixtures("no_weights")
def test_what_cannot_be_taught_is_refused_before_weights_load(
    least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, parts in (
        ([*least, "--distill", "0"], ("--distill: 0 must be above 0 and at most 1",)),
        ([*least, "--distill", "2"], ("--distill: 2 must be above 0 and at most 1",)),
        ([*least, "--distill", "1"], ("--distill 1 leaves nothing to learn", "have the spans 'untouched'", "--plan")),
        ([*least, "--distill", "1", "--plan", "full"], ("both have the spans 'full'",)),
        (
            [*least, "--distill", "0.5", "--maxlen", "3000", "--extend-positions", "yarn"],
            ("on positions that it was not trained on", "lower --maxlen"),
        ),
    ):
        expect_error(arguments, capsys, *parts)
        AcceleratorState._reset_state(True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_weights_are_refused(variable: str, distilled: list[str], tmp_path: Path) -> None:
    done = run_forked("eval.finetune", distilled, **{variable: "true"}, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "--distill 1 needs whole weights in each process" in done.stderr
    assert not (tmp_path / "run").exists()
