"""A converted checkpoint to the hub and back, against a stand-in on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from masformer import PushError, SaveError, SpanPlan, apply_plan, push_to_hub, save_checkpoint
from masformer.checkpoints import publish
from masformer.checkpoints.card import with_scores
from masformer.model_type import untyped
from tests.helpers.hub_standin import hub_standin
from tests.helpers.hub_uploads import UploadHandler, upload_environment
from tests.helpers.tiny_models import LAYERS, save_tiny_checkpoint, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[3]
PLAN = "full@1 span=16 sinks=2"
# The endpoint and the switches are read when huggingface_hub is imported, hence a process of its own.
SCRIPT = """
import json, sys
import torch
from masformer import PushError, apply_plan, push_to_hub
from masformer.__main__ import main
from masformer.checkpoints.open import open_checkpoint

base, folder, plan = sys.argv[1:]
status = main(["convert", base, "--plan", plan, "--output", folder, "--no-measure", "--push-to-hub", "owner/mas",
               "--private"])
(open(folder + "/secret.json", "w")).write("{}")
push_to_hub(folder, "owner/second")
again = push_to_hub(folder, "owner/mas")
errors = {}
for repo_id, token in (("other/mas", None), ("owner/mas", "unknown")):
    try:
        push_to_hub(folder, repo_id, token=token)
    except PushError as error:
        errors[repo_id] = str(error)
logits = []
for reference in ("owner/mas", folder):
    checkpoint = open_checkpoint(reference)
    model = checkpoint.load_model(torch.float32)
    applied = str(apply_plan(model))
    with torch.no_grad():
        logits.append(model(torch.arange(3, 93)[None]).logits)
print(json.dumps({"status": status, "again": again, "errors": errors, "plan": applied,
                  "source": open_checkpoint("owner/mas").provenance["source"], "equal": torch.equal(*logits),
                  "foreign": [name for name in sys.modules if name.split(".")[0] == "eval"]}))
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    apply_plan(model, SpanPlan.parse(PLAN, LAYERS))
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "mas")
    return tmp_path / "mas"


def test_what_is_pushed_loads_by_its_hub_id_with_its_plan(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "tiny")
    # Of an earlier upload in two files, which would be loaded in place of one.
    parts = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    former = {"models/owner/second": {**dict.fromkeys(parts, b"old"), "notes.md": b"mine"}}
    with hub_standin(former, handler=UploadHandler) as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), **upload_environment("token-of-owner")}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "mas"), PLAN],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last)
    assert (result["status"], result["plan"], result["source"], result["equal"]) == (0, PLAN, "hub", True)
    assert result["foreign"] == []
    assert "made owner/mas private" in hub.requests
    url = next(line for line in lines if line.startswith("pushed")).split()[1]
    assert url == result["again"] == f"{hub.endpoint}/owner/mas/commit/{hub.commit('models/owner/mas')}"
    files = hub.repos["models/owner/mas@main"]
    # Exactly the checkpoint: not what else lies in the folder.
    assert set(files) == {path.name for path in (tmp_path / "mas").iterdir()} - {"secret.json"}
    assert 'from_pretrained("owner/mas")' in files["README.md"].decode()
    assert 'from_pretrained("owner/second")' in hub.repos["models/owner/second@main"]["README.md"].decode()
    assert set(hub.repos["models/owner/second@main"]) == {*files, "notes.md"}
    assert any("lfs/objects/batch" in request for request in hub.requests)
    assert "the token may not write to other/mas (HTTP 403)" in result["errors"]["other/mas"]
    assert f"masformer push '{tmp_path / 'mas'}' other/mas" in result["errors"]["other/mas"]
    assert "the hub does not accept the token (HTTP 401)" in result["errors"]["owner/mas"]


def test_a_folder_without_a_whole_converted_checkpoint_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="holds no converted checkpoint"):
        push_to_hub(save_tiny_checkpoint(tmp_path / "plain"), "owner/mas")
    (saved / "model.safetensors").unlink()
    with pytest.raises(SaveError, match=r"lacks model.safetensors"):
        push_to_hub(saved, "owner/mas")


# What earlier versions wrote on the card of a plan, and the line that they loaded it with.
FORMER_CARD = """\
Attention spans of the layers (MASFormer plan): `full@1 span=16 sinks=2`

The plan is stored in `config.json` under `masformer`. **Plain `from_pretrained` ignores it without a warning and
computes the architecture's own attention: full attention in every layer, but for models with windows of their own.**
The line with `apply_plan` applies it:

```python
model = AutoModelForCausalLM.from_pretrained("mas")
import masformer; masformer.apply_plan(model)
```

`model.generate` then works as before. A plan changes what the model computes, so its quality has to be measured:
nothing on this page does.
"""


@pytest.mark.parametrize("scores", ["", "| RLsum |"])
def test_a_folder_of_an_earlier_version_goes_to_the_hub_under_the_type_of_today_and_stays_as_it_is(
    scores: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(untyped(values)))
    former = f"# mas\n\n{FORMER_CARD}\n## Origin\n"
    (saved / "README.md").write_text(with_scores(former, scores) if scores else former)
    before = (saved / "config.json").read_bytes()
    sent: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, *_: object, **__: object) -> None:
            pass

        def upload_folder(self, folder_path: Path, allow_patterns: list[str], **_: object) -> SimpleNamespace:
            sent.update({name: (folder_path / name).read_bytes() for name in allow_patterns})
            return SimpleNamespace(commit_url="url")

    monkeypatch.setattr(publish, "HfApi", lambda **_: Hub())
    monkeypatch.setattr(publish, "check_push", lambda *_: None)
    assert push_to_hub(saved, "owner/mas") == "url"
    assert json.loads(sent["config.json"]) == values
    assert sent["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert card.startswith("# mas\n\nAttention spans of the layers (MASFormer plan): `full@1 span=16 sinks=2`\n")
    if scores:
        assert card.endswith("the [scores](#scores) below are of runs.\n\n## Origin\n\n## Scores\n\n| RLsum |\n")
    else:
        assert card.endswith("nothing on this page does.\n\n## Origin\n")
    assert "ignores it" not in card
    assert "import masformer\nfrom transformers import" in card
    assert 'from_pretrained("owner/mas")' in card
    assert (saved / "config.json").read_bytes() == before
    assert "ignores it" in (saved / "README.md").read_text()


def test_files_outside_the_folder_are_never_named_by_a_config(saved: Path) -> None:
    (saved.parent / "private.txt").write_text("mine")
    config = json.loads((saved / "config.json").read_text())
    config["masformer"]["files"].append("../private.txt")
    (saved / "config.json").write_text(json.dumps(config))
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    save_checkpoint(model, tiny_tokenizer(), saved)
    assert (saved.parent / "private.txt").read_text() == "mine"


def test_without_token_or_with_the_offline_switch_nothing_is_asked(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "HfApi", lambda **_: pytest.fail("the hub was asked"))
    monkeypatch.setattr(publish.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(PushError, match="there is no hub token; set HF_TOKEN"):
        push_to_hub(saved, "owner/mas")
    monkeypatch.setattr(publish.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(saved, "owner/mas")


def test_a_hub_that_never_answers_ends_in_one_line(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def whoami(self) -> None:
            time.sleep(30)

    monkeypatch.setattr(publish.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(publish, "HUB_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(publish, "HfApi", lambda **_: Silent())
    with pytest.raises(PushError, match=r"cannot be reached or failed \(no answer within 0 s\)"):
        push_to_hub(saved, "owner/mas", token="token-of-owner")
    assert (saved / "config.json").is_file()
