"""`aligner correct --engine ray`: shards through the workers of a cluster give what one machine gives, whoever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_correct_file import QUIET, ROWS, Rewriter, lines, work, write
from test_servers import Told

from aligner.cli import main
from aligner.inference.cluster import Worker, shared_job, workers_of
from aligner.inference.config import AlignerOptions, ClusterOptions, CorrectConfig
from aligner.inference.correct_file import CorrectionJob, correct_file
from aligner.inference.servers import ServerGone
from aligner.inference.shards import correct_shard, cut, folder_of, join, left
from aligner.records import UserError

HAS_RAY = importlib.util.find_spec("ray") is not None
MIXED = [
    *ROWS,
    {"question": "Q", "answer": ["no text"]},
    {"id": 7, "question": "Q7", "answer": "refused", "more": None},
]


def by_shards(job: CorrectionJob, size: int = 2) -> Any:
    """The job, shard by shard, in no particular order; its summary."""
    shards = cut(job, size)
    for shard in reversed(left(shards)):
        correct_shard([job], shard)
    return join(job, shards)


def elsewhere(job: CorrectionJob) -> CorrectionJob:
    return replace(job, output=f"{job.output}.other")


@pytest.mark.parametrize("passes", [1, 2])
def test_shards_joined_are_the_output_and_the_summary_of_one_machine(passes, tmp_path):
    job = work(tmp_path, MIXED, Rewriter(lambda text: text + "!"), passes=passes)
    whole, parts = correct_file(elsewhere(job), QUIET), by_shards(job)
    assert Path(job.output).read_bytes() == Path(elsewhere(job).output).read_bytes()
    assert [str(fault) for fault in parts.faults] == [str(fault) for fault in whole.faults] and len(whole.faults) == 2
    assert replace(parts, faults=[], drift=[]) == replace(whole, faults=[], drift=[])
    for ours, theirs in zip(parts.drift, whole.drift, strict=True):
        assert ours.name == theirs.name and ours.length == pytest.approx(theirs.length)
    assert not folder_of(job).exists()


def test_columns_of_parquet_that_json_lacks_come_out_as_on_one_machine(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"question": "q", "answer": "a", "at": datetime(2026, 1, n), "x": float("nan"), "b": b"\xff"} for n in (1, 2, 3)
    ]
    job = replace(work(tmp_path, ROWS, Rewriter(str.upper)), input=str(tmp_path / "rows.parquet"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), job.input)
    correct_file(elsewhere(job), QUIET)
    by_shards(job)
    assert lines(Path(job.output)) == lines(Path(elsewhere(job).output))
    assert lines(Path(job.output))[2]["at"] == "2026-01-03 00:00:00"


def test_what_was_stopped_goes_on_where_it_was_and_no_row_is_corrected_twice(tmp_path):
    stopped = Rewriter(str.upper, fail_after=3)
    with pytest.raises(KeyboardInterrupt):
        by_shards(work(tmp_path, MIXED[:5], stopped))
    after = Rewriter(str.upper)
    assert by_shards(work(tmp_path, MIXED[:5], after)).corrected == 5
    assert [row["corrected"] for row in lines(tmp_path / "out.jsonl")] == ["A0", "A1", "A2", "A3", "A4"]
    assert sorted(request.answer for request in stopped.asked + after.asked) == ["a0", "a1", "a2", "a3", "a4"]


def test_shards_of_another_job_are_not_mixed_with_this_one(tmp_path):
    job = work(tmp_path, ROWS, Rewriter(str.upper))
    correct_shard([job], cut(job, 2)[0])
    with pytest.raises(UserError, match=r"was begun with another feedback\. Use the same"):
        cut(replace(job, feedback="shorter"), 2)
    with pytest.raises(UserError, match="another shard_rows"):
        cut(job, 3)
    with pytest.raises(UserError, match="the model of a worker is another one"):
        correct_shard([replace(job, about={"model": "another"})], left(cut(job, 2))[0])


def test_what_one_machine_refuses_is_refused(tmp_path):
    (tmp_path / "out.jsonl").write_text("{}")
    with pytest.raises(UserError, match="is already there"):
        cut(work(tmp_path, ROWS, Rewriter(str.upper)), 2)
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(UserError, match="row 1: 'answer' is a list"):
        cut(work(tmp_path, MIXED[5:6], Rewriter(str.upper)), 2)
    assert not list(tmp_path.glob("out*"))


def test_where_a_server_of_the_aligner_is_gone_the_next_one_goes_on(tmp_path):
    class Gone(Rewriter):
        def stream(self, requests: Any) -> Iterator[Any]:
            yield from super().stream(requests[:0])
            raise ServerGone("it is gone.")

    job, gone = work(tmp_path, ROWS, Rewriter(str.upper)), work(tmp_path, ROWS, Gone(str.upper))
    [shard] = cut(job, 10)
    with pytest.raises(ServerGone):
        correct_shard([gone], shard)
    correct_shard([gone, job], shard)
    assert [row["corrected"] for row in lines(shard.corrected)] == ["A0", "A1", "A2", "A3", "A4"]


def test_a_shard_that_kills_its_workers_is_named_and_tried_again_by_the_next_run(tmp_path):
    job = work(tmp_path, ROWS, Rewriter(str.upper))
    [shard] = cut(job, 10)
    shard.starts.write_bytes(b".....")
    with pytest.raises(
        UserError, match=r"00000000\.rows\.jsonl: 5 workers died of it.*lower --workers or --batch_size"
    ):
        correct_shard([job], shard)
    assert by_shards(job, 10).corrected == 5


def config(workers: int | None = None, **more: Any) -> CorrectConfig:
    return CorrectConfig("in", "out", AlignerOptions(), cluster=ClusterOptions("ray", workers), model="m", **more)


def test_workers_share_what_the_machines_have():
    cpus, gpus = [{"CPU": 16.0}, {"CPU": 4.0}], [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}]
    assert workers_of(config(), gpus) == (8, {"num_gpus": 1, "num_cpus": 0})
    assert workers_of(config(16), gpus) == (16, {"num_gpus": 0.5, "num_cpus": 0})
    assert workers_of(config(), cpus) == (2, {"num_cpus": 4}), "one a machine, and each fits into the smallest"
    assert workers_of(config(6), cpus) == (6, {"num_cpus": 1})
    assert workers_of(config(16), cpus) == (16, {"num_cpus": 0.5})
    assert workers_of(config(), [{"memory": 1.0}, *cpus]) == (2, {"num_cpus": 4}), "a head without cores has no worker"
    assert workers_of(config(aligner_url=("http://h/v1",)), gpus) == (2, {"num_cpus": 8}), (
        "a served one needs no GPU here"
    )


def test_a_worker_finds_what_the_command_names_and_no_two_shards_draw_alike(tiny_model, tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", [{"question": "Q", "answer": "a"}] * 4)
    (tmp_path / "model").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    options = AlignerOptions(max_new_tokens=12, prompt_template="correction")
    settings = CorrectConfig(
        "rows.jsonl", "out.jsonl", options, cluster=ClusterOptions("ray", shard_rows=2), model="model", sample=True,
        keep_unfinished=True,
    )  # fmt: skip
    shards = cut(shared_job(settings), 2)
    monkeypatch.chdir("/")  # where Ray happened to be started
    worker = Worker(settings, str(tmp_path))
    assert [worker({"shard": number})["error"] for number in (1, 0)] == ["", ""]
    texts = [row["corrected"] for shard in shards for row in lines(shard.corrected)]
    assert texts[:2] != texts[2:]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "2"], "--workers is for --engine ray"),
        (["--shard_rows", "2"], "--shard_rows is for --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers is 0"),
        (["--engine", "ray", "--retry_failed"], "--retry_failed is for one machine"),
        (["--engine", "ray", "--output", "-"], "name some in place of '-'"),
        (["--engine", "ray", "--question", "q", "--answer", "a"], "--engine is for files of answers"),
        (["--aligner_url", "http://a/v1", "http://b/v1"], "several servers with --engine ray alone"),
    ],
)
def test_flags_that_cannot_be_meant(flags, message, tmp_path, capsys):
    assert main(["correct", "--model", "m", "--input", "in", "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_the_package_one_line_says_how_to_get_it_and_one_machine_does_not_need_it(
    tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "ray", None)
    rows = write(tmp_path / "in.jsonl", ROWS[:1])
    command = ["correct", "--model", str(tiny_model), "--prompt_template", "correction", "--max_new_tokens", "2"]
    command += ["--input", rows, "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--engine", "ray"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--engine ray needs the package ray" in line and "pip install 'ray[data]==" in line
    assert main(command) == 0 and lines(tmp_path / "out.jsonl")[0]["id"] == 0


# With Ray itself: workers are processes, and some are killed.

needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs ray (pip install 'qac-aligner[cluster]')")


class Cluster:
    """A run of `aligner correct --engine ray` with two workers on a cluster of its own."""

    def __init__(self, model: Path, source: str, target: Path, *flags: object) -> None:
        self.folder, self.log = Path(f"{target}.shards"), target.with_suffix(".log")
        variables = {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        variables["RAY_worker_niceness"] = "0"  # else a busy machine gives them nothing
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [
            sys.executable,
            "-m",
            "aligner",
            *command_of(model, source, target),
            "--engine",
            "ray",
            "--workers",
            2,
            *flags,
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env={**os.environ, **variables, "PYTHONPATH": path}, stdout=log, stderr=log
            )

    def until(self, whole: int) -> None:
        """Wait until so many shards are whole and another one is under way."""
        while len(list(self.folder.glob("*.summary.json"))) < whole or not list(self.folder.glob("*.journal")):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """The processes that correct."""
        return [pid for pid in descendants(self.process.pid) if b"MapWorker" in name_of(pid)]

    def end(self) -> int:
        """Wait for it; its exit status."""
        return self.process.wait(1200)


def command_of(model: Path, source: str, target: Path) -> list[object]:
    decoding = ["--prompt_template", "correction", "--max_new_tokens", 4, "--keep_unfinished", "--batch_size", 32]
    return ["correct", "--model", model, "--input", source, "--output", target, *decoding, "--dtype", "float32"]


def name_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    try:
        children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except OSError:
        return []
    return children + [each for child in children for each in descendants(child)]


def short_row(number: int) -> dict[str, Any]:
    """A row of few tokens; some cannot be corrected, and the fields are not of one kind."""
    fields: dict[str, Any] = {"id": number, "question": f"What is {number}?", "answer": f"It is {number * 7 % 1000}."}
    fields["more"] = {"kept": [number]} if number % 3 else number
    return {**fields, "answer": ["no text"]} if number % 997 == 5 else fields


@needs_ray
@pytest.mark.slow
def test_two_workers_give_the_rows_of_one_machine_though_one_is_killed(tiny_model, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [short_row(number) for number in range(20_000)])
    run = Cluster(tiny_model, rows, tmp_path / "two.jsonl", "--shard_rows", 500)
    run.until(8)
    first, second = run.workers()
    os.kill(first, signal.SIGKILL)
    assert run.end() == 1, "some rows cannot be corrected\n" + run.log.read_text()[-4000:]
    assert main(list(map(str, command_of(tiny_model, rows, tmp_path / "one.jsonl")))) == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert [row["id"] for row in lines(tmp_path / "two.jsonl")] == list(range(20_000))
    assert not run.folder.exists() and second != first


@needs_ray
@pytest.mark.slow
def test_a_killed_run_goes_on_and_asks_served_aligners_nothing_twice_but_what_was_under_way(tiny_model, tmp_path):
    servers = [Told(), Told()]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = write(tmp_path / "rows.jsonl", [short_row(number + 1000) for number in range(600)])
    flags = ["--shard_rows", 50, "--concurrency", 4, "--aligner_url", *(server.url for server in servers)]
    run = Cluster(tiny_model, rows, tmp_path / "out.jsonl", *flags)
    run.until(2)
    os.kill(run.workers()[0], signal.SIGKILL)  # Ray starts another one
    run.until(5)
    started = descendants(run.process.pid)
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 60
    while any(b"MapWorker" in name_of(pid) for pid in started):  # Ray's own end when their driver is gone
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again = Cluster(tiny_model, rows, tmp_path / "out.jsonl", *flags)
    assert again.end() == 1, again.log.read_text()[-4000:]
    corrected = lines(tmp_path / "out.jsonl")
    good = [row["id"] for row in corrected if not row.get("error")]
    assert [row["id"] for row in corrected] == list(range(1000, 1600)) and 0 < 600 - len(good) < 3
    prompts = Counter(json.dumps(request["prompt"]) for server in servers for request in server.asked)
    assert len(prompts) == len(good), "nothing was lost"
    assert sum(prompts.values()) - len(good) <= 3 * 4, (
        "four under way in the worker that was killed, and in both of the run"
    )
    assert min(len(server.asked) for server in servers) > 150, "both servers work"
    for server in servers:
        server.shutdown()
        server.server_close()
