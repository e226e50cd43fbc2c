"""Three upstreams and an annotator behind one real HTTP server, which counts every reply that it is paid for."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zlib import crc32

UPSTREAMS = ("plain", "polite", "brief")
ANNOTATOR = "annotator"


class StandInModels(ThreadingHTTPServer):
    """Replies by rule. paid: how often each request (model and prompt) got a reply. hold_after: from this many replies of a
    model on its requests wait, unpaid, until `let_go`. waiting: how many do."""

    daemon_threads = True

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paid: Counter[tuple[str, str]] = Counter()
        self.by_model: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.hold_after: dict[str, int] = {}
        self.released = threading.Event()
        self.lock, self.delay, self.waiting = threading.Lock(), delay, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is none."""

    def may_reply(self, model: str, prompt: str) -> bool:
        """Pay for a request, or let it wait."""
        with self.lock:
            if self.by_model[model] < self.hold_after.get(model, 1 << 60):
                self.by_model[model] += 1
                self.paid[model, prompt] += 1
                return True
            self.waiting += 1
        self.released.wait()
        return False

    def let_go(self) -> None:
        """End what waits without a reply, and hold nothing any more."""
        with self.lock:
            self.hold_after = {}
            self.waiting = 0
        self.released.set()
        self.released = threading.Event()

    @property
    def paid_twice(self) -> int:
        """Replies beyond the first one of a request."""
        return sum(count - 1 for count in self.paid.values())


class _Handler(BaseHTTPRequestHandler):
    server: StandInModels

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": name, "object": "model"} for name in (*UPSTREAMS, ANNOTATOR)]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        model, prompt = body["model"], body["messages"][-1]["content"]
        time.sleep(self.server.delay)
        if not self.server.may_reply(model, prompt):
            self.close_connection = True
            return
        self.server.bodies.append(body)
        text, reason = correction(prompt) if model == ANNOTATOR else answer(model, prompt)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        self._send(
            {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}
        )

    def _send(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def answer(model: str, question: str) -> tuple[str, str]:
    """An upstream's answer and how it ended: of a hundred questions some are empty, cut off, or the same for two upstreams."""
    kind = crc32(question.encode()) % 100
    words = " ".join(question.split()[:12])
    if kind < 2 and model == "brief":
        return "", "stop"
    if kind < 5 and model == "plain":
        return f"To answer this, one has to begin with {words}", "length"
    if kind < 15:
        return f"You ask about this: {words}. It depends on where you are.", "stop"
    texts = {
        "plain": f"Well, obviously everybody knows that. About '{words}' I can say that it is so, and has always been so, I guess.",
        "polite": f"Thank you for asking. Concerning '{words}', there are several views, and each of them has something for it.",
        "brief": f"It depends: {words}. Look it up, you lazy person.",
    }
    return texts[model], "stop"


def correction(prompt: str) -> tuple[str, str]:
    """The annotator's reply: mostly JSON, sometimes unreadable at first, rarely twice; some answers stay, some are refused."""
    question = prompt.split("[Question]\n")[1].split("\n[End of question]")[0]
    text = prompt.split("[Answer]\n")[1].split("\n[End of answer]")[0]
    kind, again = crc32(prompt.split("\n\nYour earlier reply")[0].encode()) % 50, "Your earlier reply" in prompt
    if kind < 2 or (kind < 5 and not again):
        return "Here is my correction: it is fine.", "stop"
    fields: dict[str, Any] = {"critique": "It is rude in places.", "harmful": "kill" in question.lower()}
    if kind < 10:
        fields["correction"] = None
    elif kind == 10:
        fields["correction"] = "I'm sorry, but I can't help with that."
    else:
        better = text.replace("obviously everybody knows that. ", "").replace(
            "Look it up, you lazy person.", "An atlas may help."
        )
        fields["correction"] = f"{better} Please ask again if that was not what you meant."
    return json.dumps(fields), "stop"


@contextmanager
def stand_in_models(delay: float = 0.0) -> Iterator[StandInModels]:
    """The server, while the block runs."""
    server = StandInModels(delay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.let_go()
        server.shutdown()
        server.server_close()
