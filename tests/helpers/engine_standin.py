"""A stand-in for a server with OpenAI's interfaces on 127.0.0.1: vLLM's, or any other, in good and in bad health.

    with engine_standin() as server:
        server.fail(TOO_MANY, numbered(2))
        main(["--engine", "endpoint", "--base-url", server.base_url, "--model", server.models[0], ...])
    assert server.calls[2].status == 429

Requests that are posted count from 0. A client that tries the server out makes the first of them.
An answer is words from a hash of the prompt, each of them a token. A text has a token for each of its bytes, and one
for a mark such as <|im_end|>, as that of `tiny_tokenizer` has.

To be killed, it runs in a process of its own: python -m tests.helpers.engine_standin PORT
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helpers.engine_answers import BLOCK, Answer, byte_ids, digests_of, lines_of, shape, whole_of
from tests.helpers.engine_faults import (
    CHAT_ALONE,
    HEALTHY,
    KEPT,
    NO_IDS,
    NO_SUCH_PATH,
    OLD_ROOM,
    TOO_LONG_FOR_OPENAI,
    TOO_LONG_FOR_VLLM,
    WRONG_KEY,
    Call,
    Fault,
    When,
    openai_error,
    vllm_error,
)

_OF_OPENAI = {
    *("model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream"),
    *("stream_options", "echo", "logprobs", "best_of", "user", "presence_penalty", "frequency_penalty"),
    "max_completion_tokens",
    "response_format",
}


@dataclass(kw_only=True)
class EngineStandIn:
    """A running stand-in; what it holds may change while it runs.

    Attributes:
        models: Names that it serves.
        max_model_len: Tokens of prompt and answer that it takes, or None; `tells_length` says so of the model.
        engine: `owned_by` of its models; `vllm` has a version too.
        takes: Forms of prompts that it takes.
        is_strict: Refuses fields that OpenAI does not have.
        is_new: Takes `max_completion_tokens` and not `max_tokens`, as OpenAI's newer models.
        key: What it asks for; None asks for none.
        num_extra: Tokens that it puts before a text by itself.
        first_seconds: Time before the first token, `token_seconds` between others.
        gathers: Answers nothing before as many requests are there at the same time.
        faults: What goes wrong, when; the first that holds.
        calls: All requests, in order.
        says: What it answers, instead of words of its own.
        formats: Kinds of `response_format` that it takes.
    """

    port: int = 0
    models: Sequence[str] = ("tiny-instruct",)
    max_model_len: int | None = None
    tells_length: bool = True
    engine: str = "vllm"
    version: str = "0.32.0"
    takes: Sequence[str] = ("ids", "text", "messages")
    is_strict: bool = False
    is_new: bool = False
    key: str | None = None
    num_extra: int = 0
    tells_cached: bool = True
    tells_prompt_losses: bool = True
    first_seconds: float = 0.0
    token_seconds: float = 0.0
    gathers: int = 0
    faults: list[tuple[When, Fault]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    says: Callable[[Call], str] | None = None
    formats: Sequence[str] = ("json_schema", "json_object", "text")
    most_at_once: int = 0
    is_dead: bool = False
    errors: list[BaseException | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Condition()
        self._blocks: set[int] = set()
        self._running = 0

    @property
    def base_url(self) -> str:
        """Return what `--base-url` takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[Call]:
        """Return the requests that were posted."""
        return [call for call in self.calls if call.number is not None]

    def fail(self, fault: Fault, when: When = lambda call: True) -> None:
        """Let something go wrong."""
        self.faults.append((when, fault))

    def receive(self, call: Call) -> None:
        """Keep a request, with its number and what the cache has of it."""
        with self.lock:
            if call.method == "POST":
                call.number = len(self.asked)
                call.cached = self._cached(call.ids)
            self.calls.append(call)

    @contextmanager
    def running(self, call: Call, *, is_probe: bool) -> Iterator[None]:
        """Count a request among those of the moment; one that tries the server out waits for no other."""
        call.is_running = True
        with self.lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.lock.notify_all()
            if not self.lock.wait_for(lambda: is_probe or self.most_at_once >= self.gathers, timeout=30):
                raise AssertionError(f"{self.most_at_once} requests came at the same time, and not {self.gathers}")
        try:
            yield
        finally:
            self.leave(call)

    def leave(self, call: Call) -> None:
        """End the count of a request, before the end of its reply: who has read that may send another one at once."""
        with self.lock:
            self._running -= call.is_running
            call.is_running = False

    def warm(self, ids: Sequence[int]) -> None:
        """Keep the blocks of a prompt, whose first token is made."""
        with self.lock:
            self._blocks.update(digests_of(ids))

    def _cached(self, ids: Sequence[int]) -> int:
        """Return the tokens of a prompt that the cache has; the last one is always computed, as by vLLM."""
        num_blocks = 0
        for digest in digests_of(ids[: max(len(ids) - 1, 0)]):
            if digest not in self._blocks:
                break
            num_blocks += 1
        return num_blocks * BLOCK


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Each word is a packet at once, as a server sends it.
    disable_nagle_algorithm = True

    @property
    def standin(self) -> EngineStandIn:
        return self.server.standin  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        call = Call("GET", self.path, {name.lower(): value for name, value in self.headers.items()})
        self.standin.receive(call)
        one = self.standin
        if not self._has_key(call):
            return
        if self.path == "/v1/models":
            length = {"max_model_len": one.max_model_len} if one.tells_length else {}
            about = {"object": "model", "created": 0, "owned_by": one.engine, **length}
            self._json(call, 200, {"object": "list", "data": [{"id": name, **about} for name in one.models]})
        elif self.path == "/version" and one.engine == "vllm":
            self._json(call, 200, {"version": one.version})
        elif self.path == "/health":
            self._json(call, 200, {})
        else:
            self._refuse(call, NO_SUCH_PATH)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if "max_completion_tokens" in body:
            body["max_tokens"] = body["max_completion_tokens"]
        call = Call(
            "POST", self.path, {name.lower(): value for name, value in self.headers.items()}, body, ids=self._ids(body)
        )
        self.standin.receive(call)
        with suppress(OSError):  # who asks may go away at any time
            if self._has_key(call):
                self._post(call)

    def _has_key(self, call: Call) -> bool:
        key = self.standin.key
        if key is None or call.headers.get("authorization") == f"Bearer {key}":
            return True
        self._refuse(call, WRONG_KEY)
        return False

    def _ids(self, body: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt := body.get("prompt"), list):
            return prompt
        if prompt is None:
            turns = (f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in body.get("messages", []))
            prompt = "".join(turns) + "<|im_start|>assistant\n"
        return [0] * self.standin.num_extra + byte_ids(prompt)

    def _post(self, call: Call) -> None:
        fault = next((fault for when, fault in self.standin.faults if when(call)), HEALTHY)
        refused = fault if fault.status != 200 else self._refusal(call)
        if fault.dies:
            self._die()
        elif fault.close_after == 0:
            self._break_off()
        elif refused is not None:
            self._refuse(call, refused)
        elif isinstance(fault.body, str) and fault.told_after is None:
            self._send(call, 200, fault.body, "text/html", {})
        else:
            with self.standin.running(call, is_probe=call.body.get("max_tokens") == 1):
                self._answer(call, fault)

    def _refusal(self, call: Call) -> Fault | None:
        one, body = self.standin, call.body
        form = "messages" if "messages" in body else "ids" if isinstance(body.get("prompt"), list) else "text"
        path = "/v1/chat/completions" if form == "messages" else "/v1/completions"
        if self.path != path:
            return NO_SUCH_PATH
        if form not in one.takes:
            return NO_IDS if form == "ids" and "text" in one.takes else CHAT_ALONE
        if one.is_new and "max_completion_tokens" not in body:
            return OLD_ROOM
        if body.get("model") not in one.models:
            message = f"The model `{body.get('model')}` does not exist."
            return Fault(status=404, body=vllm_error(message, "NotFoundError", 404))
        if one.is_strict and (unknown := [name for name in body if name not in _OF_OPENAI]):
            message = f"Unrecognized request argument supplied: {unknown[0]}"
            return Fault(status=400, body=openai_error(message, "invalid_request_error"))
        if (kind := body.get("response_format", {}).get("type", "text")) not in one.formats:
            message = f"Invalid value: '{kind}'. Supported values are: {', '.join(one.formats)}."
            return Fault(status=400, body=openai_error(message, "invalid_request_error"))
        # vLLM cuts the room of an answer where a prompt leaves less than is asked for; OpenAI refuses that.
        room = 1 if one.engine == "vllm" else body.get("max_tokens", 16)
        if one.max_model_len is not None and len(call.ids) + room > one.max_model_len:
            return TOO_LONG_FOR_VLLM if one.engine == "vllm" else TOO_LONG_FOR_OPENAI
        return None

    def _refuse(self, call: Call, fault: Fault) -> None:
        longest, room = self.standin.max_model_len, call.body.get("max_tokens", 16)
        names = {"{key}": call.headers.get("authorization", "").removeprefix("Bearer "), "{sent}": str(len(call.ids))}
        names |= {"{longest}": str(longest), "{room}": str(room), "{asked}": str(len(call.ids) + room)}
        text = fault.body if isinstance(fault.body, str) else json.dumps(fault.body or {})
        for name, value in names.items():
            text = text.replace(name, value)
        kind = "text/html" if isinstance(fault.body, str) else "application/json"
        self._send(call, fault.status, text, kind, fault.headers)

    def _answers(self, call: Call, fault: Fault) -> list[Answer]:
        body, ids, one = call.body, call.ids, self.standin
        room = fault.max_tokens or int(body.get("max_tokens", 16))
        if one.max_model_len is not None:
            room = min(room, one.max_model_len - len(ids))
        seed = int(body.get("seed") or 0) if body.get("temperature") else 0
        count = fault.num_choices or int(body.get("n", 1))
        if one.says is not None:
            words = one.says(call).split(" ")
            pieces = [word if place == 0 else f" {word}" for place, word in enumerate(words[:room])]
            reason = "length" if len(words) > room else "stop"
            return [Answer(pieces, reason if fault.finish_reason == KEPT else fault.finish_reason, len(pieces))] * count
        return [shape(ids, body, index, seed, room, fault) for index in range(0 if fault.is_empty else count)]

    def _usage(self, call: Call, answers: Sequence[Answer], fault: Fault) -> dict[str, Any]:
        read, made = max(len(call.ids) - fault.lost_tokens, 0), sum(one.num_tokens for one in answers)
        usage: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        if self.standin.tells_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": call.cached}
        return usage

    def _answer(self, call: Call, fault: Fault) -> None:
        answers = self._answers(call, fault)
        usage = self._usage(call, answers, fault) if fault.has_usage else None
        is_chat = "messages" in call.body
        kind = ("chat.completion" if is_chat else "text_completion") + (".chunk" if is_chat and _streams(call) else "")
        about = {"id": f"cmpl-{call.number}", "object": kind, "created": 0, "model": fault.model or call.body["model"]}
        time.sleep(self.standin.first_seconds)
        if _streams(call):
            self._stream(call, fault, about, answers, usage)
            return
        telling = self.standin.tells_prompt_losses
        choices = [whole_of(call.body, call.ids, index, one, is_telling=telling) for index, one in enumerate(answers)]
        self.standin.warm(call.ids)
        text = json.dumps({**about, "choices": choices, **({} if usage is None else {"usage": usage})})
        self._send(call, 200, text[:-20] if fault.garble_after is not None else text, "application/json", {})

    def _stream(
        self,
        call: Call,
        fault: Fault,
        about: dict[str, Any],
        answers: Sequence[Answer],
        usage: dict[str, Any] | None,
    ) -> None:
        self._start(call, 200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        lines = list(lines_of(call.body, answers))
        if usage is not None and call.body.get("stream_options", {}).get("include_usage"):
            lines.append({"choices": [], "usage": usage})
        for number, line in enumerate(lines):
            if fault.close_after is not None and number >= fault.close_after:
                self._break_off(is_clean=fault.is_clean)
                return
            if fault.silent_after == number:
                time.sleep(fault.silence)
            if fault.garble_after == number:
                self._write(b'data: {"choices": [{"index": 0, "te\n\n', fault)
            if fault.told_after == number:
                self._write(f"data: {json.dumps(fault.body)}\n\n".encode(), fault)
            self._write(f"data: {json.dumps(about | line)}\n\n".encode(), fault)
            if number == 0:
                self.standin.warm(call.ids)
            time.sleep(self.standin.token_seconds)
        self.standin.leave(call)
        self._write(b"data: [DONE]\n\n", fault)
        self.wfile.write(b"0\r\n\r\n")
        call.is_whole = True

    def _write(self, data: bytes, fault: Fault) -> None:
        if self.standin.is_dead:
            self._break_off()
            raise BrokenPipeError
        for piece in [data] if not fault.byte_seconds else (data[place : place + 1] for place in range(len(data))):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(fault.byte_seconds)

    def _start(self, call: Call, status: int, headers: Mapping[str, str]) -> None:
        call.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _json(self, call: Call, status: int, value: object) -> None:
        self._send(call, status, json.dumps(value), "application/json", {})

    def _send(self, call: Call, status: int, text: str, kind: str, headers: Mapping[str, str]) -> None:
        content = text.encode()
        self.standin.leave(call)
        self._start(call, status, {"Content-Type": kind, "Content-Length": str(len(content)), **headers})
        self.wfile.write(content)
        call.is_whole = True

    def _break_off(self, *, is_clean: bool = False) -> None:
        """Close the connection: as at the end of an answer, or in its middle as a killed process does."""
        self.close_connection = True
        with suppress(OSError):
            if is_clean:
                self.wfile.write(b"0\r\n\r\n")
            self.connection.shutdown(socket.SHUT_RDWR)

    def _die(self) -> None:
        self.standin.is_dead = True
        self._break_off()
        threading.Thread(target=_close, args=(self.server,), daemon=True).start()


def _streams(call: Call) -> bool:
    return bool(call.body.get("stream"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # More may come at the same time than a listening socket keeps by itself.
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep an error of the stand-in itself for its test; that a connection was broken off is none."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.standin.errors.append(error)  # type: ignore[attr-defined]


def _close(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


@contextmanager
def engine_standin(**settings: Any) -> Iterator[EngineStandIn]:
    """Serve until the block ends; settings are those of `EngineStandIn`."""
    standin = EngineStandIn(**settings)
    server = _Server(("127.0.0.1", standin.port), _Handler)
    standin.port = server.server_address[1]
    server.standin = standin  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield standin
    finally:
        standin.is_dead = True
        _close(server)
    for error in standin.errors:
        raise AssertionError("the stand-in failed") from error


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--token-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    with engine_standin(port=arguments.port, token_seconds=arguments.token_seconds) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
