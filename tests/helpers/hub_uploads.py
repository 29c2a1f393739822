"""The stand-in for the hub with the part of its interface that uploads need: create, preupload, LFS, commit.

    with hub_standin({}, handler=UploadHandler) as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(home), **upload_environment("token-of-owner")})
    assert "config.json" in hub.repos["models/owner/name@main"]

A token `token-of-OWNER` may write to repositories of OWNER, and any other is unknown. Files that end in `.safetensors`
go through LFS, as the hub has it.

Source: `hf_api.py`, `_commit_api.py` and `lfs.py` of huggingface_hub 2.4.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import yaml

from tests.helpers.hub_standin import HubHandler


def upload_environment(token: str) -> dict[str, str]:
    """Return the variables with which huggingface_hub uploads to the stand-in."""
    return {"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}


class UploadHandler(HubHandler):
    """Answers uploads itself, and leaves reading to the stand-in."""

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            owner = self._owner()
            if owner:
                self._send_json({"type": "user", "name": owner, "orgs": []})
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        body = self._body()
        # The store's own address: no token is sent to it.
        self._objects[self.path.rsplit("/")[-1]] = body
        self._send(200, b"", {})

    def do_POST(self) -> None:
        parts = self.path.strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            self._create(json.loads(self._body()))
        elif parts == ["api", "validate-yaml"]:
            content = json.loads(self._body())["content"]
            assert isinstance(yaml.safe_load(content.split("---")[1]), dict)
            self._send_json({"errors": [], "warnings": []})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            self._batch(json.loads(self._body()))
        elif "preupload" in parts:
            if self._may_write(parts[2]):
                files = json.loads(self._body())["files"]
                self._send_json({"files": [_mode(file["path"]) for file in files]})
        elif "commit" in parts:
            if self._may_write(parts[2]):
                self._commit("/".join(parts[1:4]), self._body())
        else:
            super().do_POST()

    @property
    def _objects(self) -> dict[str, bytes]:
        return self.server.__dict__.setdefault("objects", {})

    def _body(self) -> bytes:
        self.hub.requests.append(f"{self.command} {self.path}")
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _owner(self) -> str | None:
        """Return whose token was sent, or answer with 401 and return None."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token.startswith("token-of-"):
            return token.removeprefix("token-of-")
        self._send(401, b'{"error": "Invalid username or password."}', {})
        return None

    def _may_write(self, owner: str) -> bool:
        sender = self._owner()
        if sender is not None and sender != owner:
            self._send(403, b'{"error": "You have no write access."}', {})
        return sender == owner

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._may_write(asked["organization"]):
            return
        name = f"{asked['organization']}/{asked['name']}"
        is_new = f"models/{name}@main" not in self.hub.repos
        if is_new:
            self.hub.repos[f"models/{name}@main"] = {}  # type: ignore[index]
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.requests.append(f"made {name} {'private' if private else 'public'}")
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        self._send(200 if is_new else 409, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/store/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        files = dict(self.hub.repos[f"{repo}@main"])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self._objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repos[f"{repo}@main"] = files  # type: ignore[index]
        oid = self.hub.commit(repo)
        name = repo.removeprefix("models/")
        self._send_json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"})


def _mode(path: str) -> dict[str, object]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
