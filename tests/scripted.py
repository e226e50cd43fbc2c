"""An upstream that replies by a rule, and an Aligner that writes one text. Of the project only a prompt is used, so that an earlier
revision can be tried with them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TEXT = "Nobody is there."
USUAL = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}


class Scripted(ThreadingHTTPServer):
    """A server that replies by a rule: the request's path and body -> status, headers, bytes or pieces of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule: Any = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that has left is none."""

    def says(self, message: dict[str, Any], **more: Any) -> None:
        """Every reply is a completion with this message."""
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **more}
        self.replies({**USUAL, "choices": [choice]})

    def replies(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Every reply is this."""
        self.rule = lambda path, body: (status, headers or {}, json.dumps(value).encode())


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size) or b"{}")
        self.server.asked.append((self.path, body))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        status, headers, content = self.server.rule(self.path, body)
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for each in content if isinstance(content, list) else [content]:
            self.wfile.write(each)
            self.wfile.flush()

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted_upstream() -> Iterator[Scripted]:
    """An upstream that runs while the block does."""
    server = Scripted()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def writing_model(bpe_folder: Path, folder: Path, text: str, ends: bool = True, prompt: str = "") -> Path:
    """A real Llama whose weights say for each token which one follows: after the prompt it writes this text, whose tokens differ
    from each other, and ends, or begins it again for ever."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from aligner.prompts import CORRECTION

    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    ids = tokenizer(text)["input_ids"]
    start = tokenizer(prompt or CORRECTION.render("q", "a"))["input_ids"][-1]
    assert len({start, *ids}) == len(ids) + 1, "a token can be followed by one alone"
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_() if weight.dim() > 1 else weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        for before, after in zip([start, *ids], [*ids, 0 if ends else ids[0]], strict=True):
            model.lm_head.weight[after, before] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
