"""Seconds that `aligner serve` adds to an answer, and until its first byte: of this checkout and of another one, side by side.

    python -m tests.benchmarks.added_time ALIGNER FILE.json… --before CHECKOUT [--answers 30] [--delay 3] [flags of aligner serve]

Both layers stand before one upstream that answers after a delay, as a model does. Every answer is requested from each in turn,
whole and as a stream, one request at a time, so that what else the machine does weighs on all alike. `first text`: until the first
word of the answer, or the error in its place. CHECKOUT: `git worktree add --detach CHECKOUT REVISION`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import requests

from tests.benchmarks.real_answers import Given, choose, upstream
from tests.benchmarks.serving import layer

HERE = str(Path(__file__).parents[2])
WAYS = ((False, "whole"), (True, "streamed"))


def times_of(address: str, given: Given, stream: bool) -> tuple[float, float, float]:
    """Seconds until the first byte, the first text and the end of a reply."""
    body = {"model": "m", "messages": [{"role": "user", "content": given.question}], "stream": stream}
    began, content, first, text = time.perf_counter(), b"", 0.0, 0.0
    with requests.post(f"{address}/v1/chat/completions", json=body, stream=True, timeout=900) as reply:
        for part in reply.iter_content(None):
            now = time.perf_counter() - began
            content += part
            first, text = first or now, text or (now if not stream or has_text(content) else 0.0)
    end = time.perf_counter() - began
    return first, text or end, end


def has_text(content: bytes) -> bool:
    """Whether the whole lines of a stream so far hold a word of the answer, or the error in its place."""
    for line in content.splitlines():
        if line.startswith(b"data: {") and line.endswith(b"}"):
            event = json.loads(line[6:])
            if "error" in event or any((each.get("delta") or {}).get("content") for each in event.get("choices", ())):
                return True
    return False


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--before", required=True, metavar="CHECKOUT")
    parser.add_argument("--answers", type=int, default=30)
    parser.add_argument("--longest", type=int, default=300, help="characters of an answer")
    parser.add_argument("--delay", type=float, default=3, help="seconds until the upstream's answer")
    args, flags = parser.parse_known_args()
    given = [each for each in choose(args.data, 10 * args.answers, args.longest) if each.kind == "prose"][
        : args.answers
    ]
    places = {
        name: {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"} for name, path in (("before", args.before), ("now", HERE))
    }
    with (
        upstream(given, args.delay) as url,
        layer(args.aligner, url, *flags, **places["before"]) as (before, pid_before),
        layer(args.aligner, url, *flags, **places["now"]) as (now, pid_now),
    ):
        addresses = {"before": before, "now": now}
        for address in addresses.values():
            times_of(address, given[0], stream=False)  # the first correction measures the device
        started = {pid: cpu_seconds(pid) for pid in (pid_before, pid_now)}
        seconds: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for each in given:  # in turn
            for stream, way in WAYS:
                for name, address in addresses.items():
                    seconds.setdefault((way, name), []).append(times_of(address, each, stream))
        used = {pid: cpu_seconds(pid) - began for pid, began in started.items()}
    print("| | added, p50 | p95 | first byte, p50 | p95 | first text, p50 | p95 |\n|---|---|---|---|---|---|---|")
    for (way, name), times in seconds.items():
        rows = np.array(times)
        columns = (rows[:, 2] - args.delay, rows[:, 0], rows[:, 1])
        print(
            f"| {way}, {name} | {' | '.join(f'{value:.1f}' for one in columns for value in np.percentile(one, [50, 95]))} |"
        )
    each = [used[pid] / (2 * len(given)) for pid in (pid_before, pid_now)]
    print(f"CPU seconds of an answer: before {each[0]:.2f}, now {each[1]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
