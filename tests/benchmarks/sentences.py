"""Whole answers against sentence by sentence, in front of one real upstream: seconds to the first word and to the last, tokens that
both models read and wrote, and how much was changed.

    python -m tests.benchmarks.sentences WHOLE BY_SENTENCE QUESTIONS.jsonl --upstream DIR [--questions 40] [flags of aligner serve]

WHOLE and BY_SENTENCE are Aligners trained on the same rows, without and with `--sentences`; the upstream: `transformers serve DIR`,
greedy. Every question is streamed through both layers in turn, so that what else the machine does weighs on both. What the upstream
was paid for is noted by a relay before it: the tokens of each prompt, and of the text that went through before the layer left.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import requests

from aligner.card import prompt_of
from aligner.demo import locate
from aligner.encoder import Encoder
from aligner.models import load_tokenizer
from aligner.prompts import PromptTemplate
from tests.benchmarks.serving import layer
from tests.test_real_servers import free_port, serving


@dataclass
class Paid:
    """Requests, and tokens read and written."""

    requests: int = 0
    read: int = 0
    written: int = 0


class Relay(ThreadingHTTPServer):
    """Passes streams on, piece by piece, and notes what they cost."""

    daemon_threads = True

    def __init__(self, behind: str, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.behind, self.tokenizer, self.paid, self.lock = behind, tokenizer, Paid(), threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A layer that left: it had what it wanted."""

    def note(self, body: dict[str, Any], text: str) -> None:
        """Add a request."""
        prompt = body.get("prompt") or self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        with self.lock:
            self.paid.requests += 1
            self.paid.read += len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
            self.paid.written += len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def bill(self) -> Paid:
        """What was paid since the last bill."""
        time.sleep(0.3)  # a stream that was left is noted when the relay hears of it
        with self.lock:
            paid, self.paid = self.paid, Paid()
        return paid


class _Passing(BaseHTTPRequestHandler):
    server: Relay

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = ""
        try:
            with requests.post(self.server.behind + self.path, json=body, stream=True, timeout=600) as reply:
                self.send_response(reply.status_code)
                self.send_header("content-type", reply.headers.get("content-type", "application/json"))
                self.end_headers()
                if not body.get("stream"):
                    self.wfile.write(reply.content)
                    text = reply.json()["choices"][0]["message"]["content"]
                    return
                for line in reply.iter_lines():
                    if line.startswith(b"data: {"):
                        [choice] = json.loads(line[6:])["choices"]
                        text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    self.wfile.write(line + b"\n")
                    self.wfile.flush()
        finally:
            self.server.note(body, text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def relayed(folder: str, tokenizer: Any) -> Iterator[Relay]:
    """`transformers serve` with the relay before it."""
    port = free_port()
    with serving(Path(folder), port):
        relay = Relay(f"http://127.0.0.1:{port}", tokenizer)
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        try:
            yield relay
        finally:
            relay.shutdown()


@dataclass
class Figures:
    """Of one mode, a value for each question."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    upstream: list[Paid] = field(default_factory=list)
    aligner: list[Paid] = field(default_factory=list)
    edits: list[dict[str, float]] = field(default_factory=list)
    failed: int = 0

    def add(
        self,
        first: float,
        last: float,
        note: dict[str, Any],
        paid: Paid,
        encoder: Encoder,
        template: PromptTemplate,
        question: str,
    ) -> None:
        """The figures of one answer; one whose correction failed is counted alone."""
        if "edits" not in note:  # its answer stayed
            self.failed += 1
            return
        self.first.append(first)
        self.last.append(last)
        self.upstream.append(paid)
        self.aligner.append(paid_by_aligner(encoder, template, question, note))
        self.edits.append(note["edits"])


def ask(address: str, model: str, question: str, limit: int) -> tuple[float, float, dict[str, Any], str]:
    """Seconds to the first word and to the end, the field `aligner`, and the text."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": limit}
    began, first, note, text = time.perf_counter(), 0.0, dict[str, Any](), ""
    with requests.post(f"{address}/v1/chat/completions", json=body, stream=True, timeout=900) as reply:
        for line in reply.iter_lines():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event.get("choices", ()):
                piece = (choice.get("delta") or {}).get("content") or ""
                first = first or (time.perf_counter() - began if piece.strip() else 0.0)
                text, note = text + piece, choice.get("aligner") or note
    return first, time.perf_counter() - began, note, text


def paid_by_aligner(encoder: Encoder, template: PromptTemplate, question: str, note: dict[str, Any]) -> Paid:
    """What the Aligner read and wrote, from what became of the answer."""
    paid, said = Paid(), ""
    turns = note.get("sentences") or [{"upstream": note["original"], "corrected": None}]
    for turn in turns:
        if "kept" in turn and "failed" not in turn:
            said += turn["corrected"]
            continue
        [ids] = encoder.prompts([encoder.render(template, question, turn["upstream"].strip(), "", said.strip())])
        corrected = turn.get("corrected", "")
        written = note["tokens"] if corrected is None else len(encoder._encode([corrected.strip()])[0]) + 1
        paid = Paid(paid.requests + 1, paid.read + len(ids), paid.written + written)
        said += f" {(corrected or '').strip()}"
    return paid


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whole")
    parser.add_argument("by_sentence")
    parser.add_argument("questions_file")
    parser.add_argument("--upstream", default="embedded", metavar="DIR")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--max_tokens", type=int, default=64, help="that a request allows the upstream")
    args, flags = parser.parse_known_args()
    rows = [json.loads(line) for line in Path(args.questions_file).read_text().splitlines()][: args.questions]
    upstream = str(locate(args.upstream))
    encoder, figures = Encoder(load_tokenizer(upstream)), {"whole": Figures(), "by sentence": Figures()}
    templates = {"whole": prompt_of(args.whole, None), "by sentence": prompt_of(args.by_sentence, None)}
    turns = ("--sentences", "--upstream_folder", upstream)
    with (
        relayed(upstream, encoder.tokenizer) as relay,
        layer(args.whole, relay.url, "--on_failure", "open", *flags) as (whole, _),
        layer(args.by_sentence, relay.url, "--on_failure", "open", *turns, *flags) as (by_sentence, _),
    ):
        addresses = {"whole": whole, "by sentence": by_sentence}
        for address in addresses.values():
            ask(address, upstream, "Hello?", 8)  # the first forward passes of all models
        relay.bill()
        with suppress(KeyboardInterrupt):  # Ctrl-C: the table of what there is
            for number, row in enumerate(rows, 1):
                for mode, address in addresses.items():
                    first, last, note, _ = ask(address, upstream, row["question"], args.max_tokens)
                    paid = relay.bill()
                    figures[mode].add(first, last, note, paid, encoder, templates[mode], row["question"])
                print(f"{number} of {len(rows)}", file=sys.stderr, flush=True)
    print("| | first word, p50 | p95 | last word, p50 | p95 | upstream: requests, read, written | Aligner: the same |")
    print("|---|---|---|---|---|---|---|")
    for mode, one in figures.items():
        seconds = [f"{np.percentile(each, q):.1f}" for each in (one.first, one.last) for q in (50, 95)]
        paid = [
            ", ".join(f"{np.mean([getattr(p, name) for p in bills]):.1f}" for name in ("requests", "read", "written"))
            for bills in (one.upstream, one.aligner)
        ]
        print(
            f"| {mode} ({len(one.first)} answers, {one.failed} without a correction) | {' | '.join(seconds + paid)} |"
        )
    for mode, one in figures.items():
        names = ("identical", "copied", "similarity", "length_ratio")
        means = ", ".join(f"{name} {np.mean([each[name] for each in one.edits]):.2f}" for name in names)
        print(f"{mode}: {means}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
