"""Requests per second of `aligner serve` before 1, 2 and 4 servers of known speed, and requests per CPU second of the layer itself.

    python -m tests.benchmarks.replicas ALIGNER [--seconds 15] [flags of aligner serve]

Upstream and Aligner are stand-ins on this machine: the upstream answers at once, each server of the Aligner works on SLOTS requests
at a time, SERVICE seconds each, so that N of them could give N times SLOTS / SERVICE a second. Of ALIGNER only prompt and tokenizer
are used. Then with servers that answer at once, by one client and then by as many as keep it busy: what the layer itself costs.
Exit 1: less than SHARE of the sum, or fewer than LEAST requests a CPU second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
import requests

from aligner.training.distributed.launcher_variables import free_port
from tests.benchmarks.serving import layer

PROGRAMS = Path(__file__).parents[1] / "programs"
SLOTS, SERVICE = 4, 0.2  # of a server of the Aligner: 20 requests a second
SHARE, LEAST = 0.95, 300
TICKS = os.sysconf("SC_CLK_TCK")
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Say something in a few words, please, whatever it is."}],
}


@contextmanager
def program(name: str, *arguments: object) -> Iterator[str]:
    """A server of tests/programs whose arguments have its port where they have PORT; its address."""
    port = free_port()
    command = [sys.executable, str(PROGRAMS / name), *(str(port if each == "PORT" else each) for each in arguments)]
    process = subprocess.Popen(command)
    try:
        until_there(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def until_there(url: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            requests.get(url, timeout=5)
            return
        except requests.RequestException:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and those that it started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(cpu_seconds(int(child)) for child in children)


async def load(address: str, clients: int, seconds: float) -> int:
    """How many chats so many clients got answered, one after the other each."""
    count, end = 0, time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.monotonic() < end:
            async with session.post(f"{address}/v1/chat/completions", json=BODY) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()
            count += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return count


def measure(
    aligner: str, servers: int, service: float, clients: int, seconds: float, flags: Sequence[str]
) -> tuple[float, float]:
    """Requests per second, and per CPU second of the layer's processes."""
    with ExitStack() as stack:
        upstream = stack.enter_context(program("stand_in.py", "PORT", 0, 1000))
        urls = [
            stack.enter_context(program("stand_in.py", "PORT", service, SLOTS if service else 1000))
            for _ in range(servers)
        ]
        served = ["--aligner_url", *urls, "--max_requests", "1000", *flags]
        address, process = stack.enter_context(layer(aligner, upstream, *served, OMP_NUM_THREADS="1"))
        asyncio.run(load(address, clients, 2))  # connections, and whatever is done once
        before, began = cpu_seconds(process), time.monotonic()
        count = asyncio.run(load(address, clients, seconds))
        return count / (time.monotonic() - began), count / (cpu_seconds(process) - before)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner")
    parser.add_argument("--seconds", type=float, default=15)
    args, flags = parser.parse_known_args()
    print("servers  could give  through the layer  share  requests a CPU second")
    shares, each = [], SLOTS / SERVICE
    for servers in (1, 2, 4):
        rate, per_cpu = measure(args.aligner, servers, SERVICE, 2 * SLOTS * servers, args.seconds, flags)
        shares.append(rate / (servers * each))
        print(f"{servers:>7}{servers * each:>10.0f} /s{rate:>15.1f} /s{shares[-1]:>8.0%}{per_cpu:>14.0f}", flush=True)
    rate, per_cpu = measure(args.aligner, 4, 0, 32, args.seconds, flags)
    print(f"{4:>7}     at once{rate:>15.1f} /s{per_cpu:>22.0f}")
    return 0 if min(shares) >= SHARE and per_cpu >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
