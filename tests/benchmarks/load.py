"""Time that `aligner serve` adds to an answer, by load: p50, p95 and p99, with and without the gate, the Aligner in its process and
behind a server.

    python -m tests.benchmarks.load ALIGNER DATA.json... [--rates 1 2 4 8] [--seconds 60] [--delay 0.5] [--picture FILE.png]
        [flags of aligner serve]

Open loop: requests come by a schedule (Poisson, the same one for every side) and wait for no reply, and each counts from when it
was due, so that what waits while the layer is behind is not left out (no coordinated omission).

The upstream is a process that gives the answers of DATA after a delay and says how long each took it; the rest of a request's time
is what is added. Of the upstream alone that is the generator's and the machine's own share. Behind a server the same model is
decoded by transformers (programs/served_model.py), in batches and without drafts. The gate's threshold is the median confidence of
these answers, so that it leaves half of them alone. Of a load that a side cannot carry the times grow with --seconds: the table
says how long after the last request its last reply came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from aligner.files import read_json
from aligner.inference.corrector import Corrector
from aligner.plots import canvas, save
from aligner.serving.gate import confidence
from tests.benchmarks.replicas import program
from tests.benchmarks.serving import layer

ALONE = "upstream alone"
PERCENTILES = (50, 95, 99)
TOGETHER = 8  # prompts that the server decodes at once, and the layer in its process
COLOURS = {
    ALONE: "#999999",
    "in process": "#4c72b0",
    "in process, gate": "#55a868",
    "behind a server": "#dd8452",
    "behind a server, gate": "#c44e52",
}


class Side(NamedTuple):
    """What a load did to one side: seconds of every answer from when its request was due, less the upstream's own; how many got
    none; seconds from the last request to the last reply; seconds by which the generator itself was late at most."""

    seconds: list[float]
    failed: int
    rest: float
    late: float


def schedule(rate: float, seconds: float) -> np.ndarray:
    """When requests are due: the arrivals of a Poisson process of this rate, the same ones every time."""
    return np.sort(np.random.default_rng(0).uniform(0, seconds, round(rate * seconds)))


async def load(url: str, questions: Sequence[str], due: Sequence[float]) -> Side:
    """Send a request at each of these times, whatever became of those before it."""
    seconds, late, failed, began = [], [], 0, time.monotonic() + 0.1
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)  # servers' is 5
    async with httpx.AsyncClient(limits=limits, timeout=900) as client:

        async def one(number: int, at: float) -> None:
            nonlocal failed
            late.append(time.monotonic() - began - at)
            body = {"model": "m", "messages": [{"role": "user", "content": questions[number % len(questions)]}]}
            try:
                reply = (await client.post(f"{url}/chat/completions", json=body)).raise_for_status()
                seconds.append(time.monotonic() - began - at - float(reply.json()["id"]))
            except httpx.HTTPError:
                failed += 1

        async with asyncio.TaskGroup() as requests:
            for number, at in enumerate(due):
                await asyncio.sleep(max(0, began + at - time.monotonic()))
                requests.create_task(one(number, at))
    return Side(seconds, failed, time.monotonic() - began - due[-1], max(late))


def median_confidence(aligner: str, template: str | None, answers: dict[str, str]) -> float:
    """What half of the answers have, in nats a token."""
    corrector = Corrector.load(aligner, template)
    prompts = [corrector.encoder.render(corrector.template, *pair, "") for pair in answers.items()]
    pairs = corrector.encoder.pairs(prompts, list(answers.values()))
    return float(np.median([confidence(corrector.model, prompt, answer) for prompt, answer, _ in pairs]))


def percentiles(results: dict[str, dict[float, Side]]) -> dict[str, dict[float, list[float]]]:
    """Of each side and load the seconds added, by PERCENTILES."""
    return {
        name: {rate: np.percentile(side.seconds, PERCENTILES).tolist() for rate, side in by_rate.items()}
        for name, by_rate in results.items()
    }


def table(results: dict[str, dict[float, Side]]) -> Iterator[str]:
    """A line for each side and load."""
    yield "| side | requests/s | added p50 | p95 | p99 (s) | no answer | last reply after (s) | generator late (ms) |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, by_rate in percentiles(results).items():
        for rate, values in by_rate.items():
            side = results[name][rate]
            answered = f"{side.failed} of {side.failed + len(side.seconds)} | {side.rest:.1f}"
            figures = " | ".join(f"{value:.3f}" for value in values)
            yield f"| {name} | {rate:g} | {figures} | {answered} | {1000 * side.late:.0f} |"


def draw(figures: dict[str, dict[float, list[float]]], path: str) -> None:
    """The percentiles against load, one below the other, as a PNG."""
    figure, plots = canvas((8, 9), len(PERCENTILES))
    for place, axes in enumerate(plots):
        for name, by_rate in figures.items():
            values = [each[place] for each in by_rate.values()]
            axes.plot(range(len(values)), values, "o-", color=COLOURS[name], label=name, linewidth=1.4)
        axes.set(ylabel=f"added, p{PERCENTILES[place]} (s)", ylim=(0, None))
        axes.set_xticks(range(len(by_rate)), [f"{rate:g}" for rate in by_rate])
        axes.grid(alpha=0.25)
    plots[0].set(title="Time that aligner serve adds to an answer")
    plots[-1].set(xlabel="requests a second")
    save(figure, plots[0], path)


def main() -> int:
    """Print the table, and draw it where that is asked for. Exit 1: a request got no answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--delay", type=float, default=0.5)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--picture")
    parser.add_argument("--prompt_template")
    args, flags = parser.parse_known_args()
    rows = [row for file in args.data for row in read_json(file)[-args.answers // len(args.data) :]]
    answers = {row["question"]: row["answer"] for row in rows}
    template = ["--prompt_template", args.prompt_template] if args.prompt_template else []
    gate = ["--mode", "gate", "--threshold", str(median_confidence(args.aligner, args.prompt_template, answers))]
    flags += ["--aligner_timeout", "900", "--max_requests", "100000", "--keep_unfinished", *template]
    results: dict[str, dict[float, Side]] = {}
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "answers.json"
        file.write_text(json.dumps(answers))
        upstream = stack.enter_context(program("stand_in.py", "PORT", args.delay, 100_000, file))
        measure(results, ALONE, upstream, list(answers), args)
        for name, more in (("in process", []), ("in process, gate", gate)):
            with layer(args.aligner, upstream, "--batch_size", str(TOGETHER), *more, *flags) as (address, _):
                measure(results, name, f"{address}/v1", list(answers), args)
        server = stack.enter_context(program("served_model.py", args.aligner, "PORT", TOGETHER, *template[1:]))
        for name, more in (("behind a server", []), ("behind a server, gate", gate)):
            with layer(args.aligner, upstream, "--aligner_url", server, *more, *flags) as (address, _):
                measure(results, name, f"{address}/v1", list(answers), args)
    print("\n".join(table(results)))
    print(f"{os.cpu_count()} cores, load average {before:.1f} at the begin and {os.getloadavg()[0]:.1f} at the end")
    if args.picture:
        draw(percentiles(results), args.picture)
    return int(any(side.failed for by_rate in results.values() for side in by_rate.values()))


def measure(
    results: dict[str, dict[float, Side]], name: str, url: str, questions: Sequence[str], args: argparse.Namespace
) -> None:
    """Every load on a side, after a few requests that are not counted: the first correction measures the device."""
    asyncio.run(load(url, questions, schedule(1, 3)))
    results[name] = {rate: asyncio.run(load(url, questions, schedule(rate, args.seconds))) for rate in args.rates}
    print(
        f"{name}: {', '.join(f'{np.median(each.seconds):.2f}' for each in results[name].values())} s", file=sys.stderr
    )


if __name__ == "__main__":
    sys.exit(main())
