"""A soak of `aligner serve`: a fixed load for an hour, while its upstream fails in every way and clients leave; with a picture.

    python -m tests.benchmarks.soak ALIGNER [--minutes 60] [--clients 8] [--output soak.png] [flags of aligner serve]

Every half minute the upstream changes: well, down, slow, garbage, a key that comes back, far too much. Of ten clients one leaves
before its answer and one sends half of its headers. Every answered request must be a completion or an error of the protocol. At
the end, memory, handles and threads of the last third are compared with those of the second. Exit 1: something is not flat, or an
answer was none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.benchmarks.serving import layer

TURN = 30.0  # seconds of a way to fail
PAUSE = 0.4  # seconds of a client between an answer and its next question
WAYS = ("well", "down", "well", "slow", "well", "garbage", "well", "echo", "well", "too much")
KEY = "sk-soak-0123456789abcdef"
FLAT = {
    "memory, MB": (1.10, 30),
    "handles": (1.10, 20),
    "threads": (1.0, 2),
}  # times, and more, than in the second third


class Upstream(ThreadingHTTPServer):
    """A server of the protocol that fails as the time says."""

    daemon_threads, request_queue_size, allow_reuse_address = True, 128, True

    def handle_error(self, *_: Any) -> None:
        """A client that has left is none."""


class Answer(BaseHTTPRequestHandler):
    """An answer, as the time says."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        way = WAYS[int(time.monotonic() / TURN) % len(WAYS)]
        text = json.loads(body)["messages"][-1]["content"].upper()
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        good = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
        status, sent = 200, good.encode()
        if way == "down":
            self.connection.close()
            return
        if way == "slow":
            time.sleep(random.choice((0.5, 4, 8)))
        elif way == "garbage":
            status, sent = random.choice(
                [(200, b"{" * 999), (500, b"<html>"), (200, b"\xff"), (429, b"{}"), (200, b'{"choices": [NaN]}')]
            )
        elif way == "echo":
            status, sent = 400, json.dumps({"error": {"message": str(self.headers)}}).encode()
        elif way == "too much":
            sent = good.replace(text, "x" * 3_000_000).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@dataclass
class Seen:
    """What the clients saw, and the process at each time in seconds."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ("seconds", *FLAT)})
    over: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def minute(self) -> str:
        """When something happened."""
        return f"minute {(time.monotonic() - self.began) / 60:.1f}"


def client(address: str, number: int, seen: Seen) -> None:
    """Ask until it is over; now and then leave early or send half a request."""
    draw = random.Random(number)
    while not seen.over.is_set():
        asked = {
            "model": "m",
            "stream": draw.random() < 0.3,
            "messages": [{"role": "user", "content": f"who is there, {number}?"}],
        }
        chance = draw.random()
        try:
            if chance < 0.1:
                where = urlsplit(address)
                with socket.create_connection((where.hostname, where.port), 5) as half:
                    half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-")
                    time.sleep(0.2)
                seen.answers["half a request"] += 1
                continue
            patience = 0.1 if chance < 0.2 else 60
            reply = requests.post(f"{address}/v1/chat/completions", json=asked, timeout=patience)
        except requests.Timeout:
            seen.answers["left"] += 1
            if chance >= 0.2:
                seen.faults.append(f"{seen.minute()}: no answer within 60 seconds")
            continue
        except requests.RequestException as error:
            if chance < 0.2:  # it left in the middle of its answer
                seen.answers["left"] += 1
                continue
            seen.faults.append(f"{seen.minute()}: {type(error).__name__}: {error}"[:200])
            time.sleep(1)
            continue
        seen.answers[f"status {reply.status_code}"] += 1
        if fault := wrong(reply, bool(asked["stream"])):
            seen.faults.append(f"{seen.minute()}: {fault}")
        time.sleep(PAUSE)


def wrong(reply: requests.Response, stream: bool) -> str:
    """What is wrong with an answer; nothing where it is a completion, or an error of the protocol."""
    if KEY in reply.text or KEY in str(reply.headers):
        return "the key came back"
    if stream and reply.status_code == 200:
        return "" if reply.text.rstrip().endswith("[DONE]") or '"error"' in reply.text else "a stream without an end"
    try:
        value = reply.json()
        whole = reply.status_code >= 400 or bool(value["choices"][0]["message"]["content"])
    except (ValueError, TypeError, LookupError):
        whole = False
    return "" if whole else f"status {reply.status_code}: {reply.text[:100]}"


def watch(process: int, seen: Seen, seconds: float) -> None:
    """Note the process's memory, handles and threads every two seconds."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
        )
        seen.curves["seconds"].append(time.monotonic() - began)
        seen.curves["memory, MB"].append(int(status["VmRSS"].split()[0]) / 1024)
        seen.curves["handles"].append(len(os.listdir(f"/proc/{process}/fd")))  # noqa: PTH208
        seen.curves["threads"].append(int(status["Threads"]))
        time.sleep(2)


def rising(seen: Seen) -> list[str]:
    """The curves whose highest value of the last third is above that of the second by more than is allowed."""
    found = []
    for name, (times, more) in FLAT.items():
        values = seen.curves[name]
        third = len(values) // 3
        second, last = max(values[third : 2 * third]), max(values[2 * third :])
        if last > second * times and last > second + more:
            found.append(f"{name}: {second:.0f} -> {last:.0f}")
    return found


def by_quarter(values: list[float]) -> list[float]:
    """The mean of each quarter of a curve."""
    ends = [len(values) * part // 4 for part in range(5)]
    return [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(ends)]


def draw(seen: Seen, file: str) -> None:
    """The picture: one curve below the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(FLAT), 1, figsize=(9, 7), sharex=True)
    for axis, name in zip(axes, FLAT, strict=True):
        axis.plot([second / 60 for second in seen.curves["seconds"]], seen.curves[name])
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.suptitle("aligner serve under a fixed load, with faults")
    figure.savefig(file, dpi=100)


def main() -> int:
    """Soak; print what was answered, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--output", default="soak.png")
    args, flags = parser.parse_known_args()
    upstream = Upstream(("127.0.0.1", 0), Answer)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    seen, url = Seen(), f"http://127.0.0.1:{upstream.server_port}/v1"
    settings = [
        "--upstream_timeout",
        "6",
        "--aligner_timeout",
        "40",
        "--max_new_tokens",
        "64",
        "--prompt_template",
        "correction",
    ]
    with layer(args.aligner, url, *settings, *flags, OPENAI_API_KEY=KEY) as (address, process):
        threads = [threading.Thread(target=client, args=(address, n, seen), daemon=True) for n in range(args.clients)]
        for thread in threads:
            thread.start()
        watch(process, seen, args.minutes * 60)
        seen.over.set()
        for thread in threads:
            thread.join(70)
    upstream.shutdown()
    draw(seen, args.output)
    high = rising(seen)
    print(*(f"{count:>7,} {name}" for name, count in seen.answers.most_common()), sep="\n")
    for name in FLAT:
        values = seen.curves[name]
        quarters = " ".join(f"{quarter:.0f}" for quarter in by_quarter(values))
        print(
            f"{name}: {values[0]:.0f} at first, {max(values):.0f} at most, {values[-1]:.0f} at last; by quarter {quarters}"
        )
    print(
        f"longest time between two readings: {max(b - a for a, b in pairwise(seen.curves['seconds'])):.0f} seconds (2 asked)"
    )
    print(f"not flat: {high or 'nothing'}; wrong answers: {len(seen.faults):,} {seen.faults[:8] or ''}")
    return 1 if high or seen.faults else 0


if __name__ == "__main__":
    sys.exit(main())
