"""Requests per second and seconds per request of `aligner serve`, against its upstream alone, at 1, 8 and 32 clients.

    python -m tests.benchmarks.serving ALIGNER DATA.json… [--requests 64] [--delay 0.5] [flags of aligner serve]

The upstream is a server on this machine that gives the answers of DATA after a delay, as a provider's would; so what is added is
the layer and the Aligner alone. With batching: --batch_size 8; without: 1. The last rows of DATA are used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_servers import Told

from aligner.files import read_json
from aligner.training.distributed.launcher_variables import free_port

CLIENTS = (1, 8, 32)
BATCHES = (1, 8)


@contextmanager
def upstream(answers: dict[str, str], delay: float) -> Iterator[str]:
    """A server that gives the answer of each question after `delay` seconds; its address."""

    def answer(question: str) -> str:
        time.sleep(delay)
        return answers[question]

    server = Told()
    server.rule = answer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


@contextmanager
def layer(aligner: str, url: str, *flags: str, **variables: str) -> Iterator[tuple[str, int]]:
    """`aligner serve`, ready; its address and process."""
    port = free_port()
    command = [sys.executable, "-m", "aligner", "serve", "--model", aligner, "--upstream_url", url, "--port", str(port)]
    process = subprocess.Popen([*command, *flags], env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except requests.RequestException:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


def measure(url: str, questions: list[str], clients: int) -> tuple[float, float, float]:
    """Requests per second, and the median and 95th percentile of seconds per request."""

    def one(question: str) -> float:
        began = time.perf_counter()
        body = {"model": "m", "messages": [{"role": "user", "content": question}]}
        requests.post(f"{url}/chat/completions", json=body, timeout=900).raise_for_status()
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(pool.map(one, questions))
    median, late = np.percentile(seconds, [50, 95])
    return len(questions) / (time.perf_counter() - began), median, late


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.5)
    args, flags = parser.parse_known_args()
    rows = [row for file in args.data for row in read_json(file)[-args.requests // len(args.data) :]]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]  # both files in every part
    answers = {row["question"]: row["answer"] for row in rows}
    questions = list(answers)
    print(f"{'':<26}{'clients':>8}{'requests/s':>12}{'median s':>10}{'95 % s':>9}{'added, median':>15}")
    with upstream(answers, args.delay) as url:
        alone = {}
        for clients in CLIENTS:
            rate, alone[clients], late = measure(url, questions, clients)
            print(f"{'the upstream alone':<26}{clients:>8}{rate:>12.2f}{alone[clients]:>10.2f}{late:>9.2f}", flush=True)
        for size in BATCHES:
            settings = ["--aligner_timeout", "600", "--keep_unfinished", "--batch_size", str(size)]
            with layer(args.aligner, url, *settings, *flags) as (place, _):
                address = f"{place}/v1"
                measure(address, questions[:2], 1)
                for clients in CLIENTS:
                    rate, median, late = measure(address, questions, clients)
                    print(f"{f'aligner serve, batch {size}':<26}{clients:>8}{rate:>12.2f}{median:>10.2f}{late:>9.2f}"
                          f"{median - alone[clients]:>15.2f}", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
