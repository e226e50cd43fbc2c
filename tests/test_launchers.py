"""The ways to start the ranks: Slurm (a stand-in srun), torchrun, many hosts over pdsh; and what each tells the ranks."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE, launch_program
from two_hosts import missing, two_hosts

from aligner.launch.command import launch_command, placement
from aligner.launch.watch import launch_and_watch
from aligner.records import UserError
from aligner.training.distributed.hosts import Host, forwarded_variables, launcher_words, read_hostfile, remote_words
from aligner.training.distributed.job_hosts import HOST_FILES, first_host
from aligner.training.distributed.launcher_variables import idle_gpus, rank_variables
from aligner.training.flags import parse

SLURM = {
    "SLURM_JOB_ID": "1000", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_a_launcher_that_is_killed_is_named_and_not_its_ranks(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("aligner"), "propagate", True)
    dies = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert launch_and_watch(dies, {}, tmp_path, tmp_path) not in (0, 2, 75)
    [said] = {record.message for record in caplog.records}
    assert re.match(r"DeepSpeed's launcher \(process \d+\) was killed by SIGKILL \(for memory", said), said


def flags(model: Path, folder: Path, *more: object) -> list[str]:
    """Eight updates of a tiny model in fp32."""
    return [
        "--train_datasets", str(TEMPLATE), "--model_name_or_path", str(model), "--output_dir", str(folder), "--epochs", "1",
        "--records_per_update", "16", "--max_length", "512", "--bf16", "False", "--log_type", "none", *map(str, more),
    ]  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_host(tiny_model, tmp_path_factory) -> list[float]:
    """The losses of two ranks that DeepSpeed's launcher starts on one host."""
    folder = tmp_path_factory.mktemp("one-host") / "out"
    launch_program("aligner.training.finetune", 2, *flags(tiny_model, folder, "--gpus", 2, "--save_interval", 0))
    return losses(folder)


# --- who am I


TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}


@pytest.mark.slow
def test_the_program_itself_trains_all_stages_in_one_launch(rows, tiny_model, tmp_path):
    flags = ["--train_datasets", rows, "--model_name_or_path", tiny_model, "--output_dir", tmp_path / "out", "--epochs", "1",
             "--identity_proportion", "0.25", "--log_type", "none"]  # fmt: skip
    said = launch_program("aligner.training.finetune", 2, *flags)
    assert said.index("identity is complete") < said.index("correction is complete")
    assert said.count("correction: 2 ranks x 4 rows x 8 accumulation = 64 rows per update") == 1
    assert "--stage" not in (tmp_path / "out" / "command.sh").read_text()
    (tmp_path / "new").mkdir()
    (tmp_path / "out" / "identity").rename(tmp_path / "new" / "identity")
    alone = ["--output_dir", tmp_path / "new", "--identity_proportion", "0.5", "--stage", "correction", "--gpus", "2"]
    refused = launch_program("aligner.training.finetune", 2, *flags[:4], *alone, status=2)
    assert "cannot be started from (eval_datasets" not in refused and "identity ([0.25" in refused


def test_torchruns_variables_are_taken_as_they_are():
    assert rank_variables({**TORCHRUN, **SLURM}) == {}


POD = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
       "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "MASTER_ADDR": "n1"}  # fmt: skip


@pytest.mark.kind("started by an MPI or a job")
@pytest.mark.parametrize(
    ("given", "filled"),
    [
        (POD, {"LOCAL_RANK": "0"}),  # a PyTorchJob's pod holds one rank
        ({**POD, "LOCAL_WORLD_SIZE": "2", "RANK": "3"}, {"LOCAL_RANK": "1"}),
        ({**POD, "SLURM_LOCALID": "3"}, {"LOCAL_RANK": "3"}),
        ({**POD, "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, {"LOCAL_RANK": "2"}),
        ({k: v for k, v in POD.items() if k != "MASTER_PORT"}, {"LOCAL_RANK": "0", "MASTER_PORT": "29500"}),
        ({"RANK": "0", "WORLD_SIZE": "1"}, {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"} | SLURM, {"MASTER_ADDR": "gpu07"}),
        # A variable that is there and empty says nothing.
        ({**POD, "LOCAL_RANK": "", "MASTER_PORT": " "}, {"LOCAL_RANK": "0", "MASTER_PORT": "29500"}),
        ({**POD, "MASTER_ADDR": "", "LOCAL_WORLD_SIZE": "4"}, {"MASTER_ADDR": "127.0.0.1"}),
        # The host's number, and the place on it, are a rank.
        ({"NODE_RANK": "1", "LOCAL_RANK": "1", "NNODES": "2", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"},
         {"RANK": "5", "WORLD_SIZE": "8"}),
        ({"NODE_RANK": "1", "LOCAL_RANK": "3", "NUM_NODES": "2", "WORLD_SIZE": "8", "MASTER_ADDR": "a"}, {"RANK": "7"}),
        ({"GROUP_RANK": "2", "GROUP_WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"},
         {"RANK": "4", "WORLD_SIZE": "6"}),
        ({"PET_NODE_RANK": "1", "PET_NNODES": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}, {"RANK": "4"}),
        # A platform or a scheduler knows the first host.
        ({"RANK": "1", "WORLD_SIZE": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}, {"MASTER_ADDR": "10.0.0.1"}),
        ({"RANK": "1", "WORLD_SIZE": "2", "SM_HOSTS": '["algo-1", "algo-2"]'}, {"MASTER_ADDR": "algo-1"}),
        ({"RANK": "1", "WORLD_SIZE": "2", "PET_MASTER_ADDR": "job-master-0"}, {"MASTER_ADDR": "job-master-0"}),
    ],
)  # fmt: skip
def test_what_a_starter_leaves_out_is_filled_in_where_it_can_be_known(given, filled):
    found = rank_variables(given)
    assert {name: found[name] for name in filled} == filled
    assert not found.keys() & {name for name, value in given.items() if value.strip()}


@pytest.mark.kind("started by an MPI or a job")
@pytest.mark.parametrize(
    ("given", "rank"),
    [
        (MPI, ("5", "8", "1", "n1")),
        ({**MPI, "MASTER_ADDR": "", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, ("5", "8", "1", "127.0.0.1")),
        ({**MPI, "MASTER_ADDR": "", "SLURM_JOB_NODELIST": "gpu[7-8]"}, ("5", "8", "1", "gpu7")),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MASTER_ADDR": "a"}, ("3", "4", "1", "a")),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "3", "PMI_LOCAL_SIZE": "4"}, ("3", "4", "3", "127.0.0.1")),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1",
          "MASTER_ADDR": "a"}, ("1", "2", "1", "a")),
        ({"PALS_RANKID": "2", "PMI_SIZE": "4", "PALS_LOCAL_RANKID": "0", "MASTER_ADDR": "a"}, ("2", "4", "0", "a")),
        ({"JSM_NAMESPACE_RANK": "7", "JSM_NAMESPACE_SIZE": "12", "JSM_NAMESPACE_LOCAL_RANK": "1",
          "LSB_MCPU_HOSTS": "batch1 1 h1 42 h2 42"}, ("7", "12", "1", "h1")),  # no rank runs on the batch script's host
        ({"JSM_NAMESPACE_RANK": "3", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_LOCAL_RANK": "1",
          "LSB_HOSTS": "h1 h1 h2 h2"}, ("3", "4", "1", "h1")),
        ({**MPI, "MASTER_ADDR": "", "SM_CURRENT_HOST": "algo-2", "SM_HOSTS": '["algo-1","algo-2"]'}, ("5", "8", "1", "algo-1")),
        ({**MPI, "MASTER_ADDR": "", "AZ_BATCH_MASTER_NODE": "10.0.0.4:6000"}, ("5", "8", "1", "10.0.0.4")),
        ({"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_JOB_TASKS_PER_NODE": "2", "MASTER_ADDR": "a"}, ("3", "4", "1", "a")),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_TASK_LOCAL_ID": "1", "MASTER_ADDR": "a"}, ("1", "2", "1", "a")),
        ({"PMIX_RANK": "1", "PMIX_SIZE": "2", "PMIX_LOCAL_RANK": "0", "MASTER_ADDR": "a"}, ("1", "2", "0", "a")),
    ],
)  # fmt: skip
def test_ranks_that_an_mpi_starts_are_ranks(given, rank):
    found = {**given, **rank_variables({name: value for name, value in given.items() if value})}
    assert tuple(found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")) == rank
    assert 1024 < int(found["MASTER_PORT"]) < 40000


def test_ranks_of_one_job_agree_on_a_port_and_those_of_another_have_another():
    def port(job: str) -> str:
        return rank_variables({**MPI, "PMIX_NAMESPACE": job})["MASTER_PORT"]

    assert port("one@1") == port("one@1") != port("two@1")


def test_what_cannot_be_known_is_named_with_its_remedy():
    for given in ({k: v for k, v in MPI.items() if k != "MASTER_ADDR"}, {"RANK": "1", "WORLD_SIZE": "4"}):
        with pytest.raises(UserError, match="MASTER_ADDR, the host of the first, is not set"):
            rank_variables(given)


def test_the_first_line_of_a_schedulers_file_is_the_first_host(tmp_path):
    (tmp_path / "nodes").write_text("r1n1\nr1n1\nr1n2\n")
    for variable in HOST_FILES:
        assert rank_variables({**MPI, "MASTER_ADDR": "", variable: str(tmp_path / "nodes")})["MASTER_ADDR"] == "r1n1"
    with pytest.raises(UserError, match="MASTER_ADDR"):
        rank_variables({**MPI, "MASTER_ADDR": "", "PBS_NODEFILE": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE is not"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not"),
        ({"MV2_COMM_WORLD_RANK": "0"}, "MV2_COMM_WORLD_SIZE is not"),
        ({"PMI_RANK": "1"}, "PMI_SIZE is not"),
        ({"PMIX_RANK": "1", "PMIX_NAMESPACE": "x@1"}, "PMIX_SIZE is not"),
        ({"PALS_RANKID": "2", "PALS_LOCAL_RANKID": "0"}, "PMI_SIZE is not"),
        ({"FLUX_TASK_RANK": "2"}, "FLUX_JOB_SIZE is not"),
        ({"JSM_NAMESPACE_SIZE": "4"}, "JSM_NAMESPACE_RANK is not"),
        ({"PMI_RANK": "3", "PMI_SIZE": "8", "MASTER_ADDR": "a"}, "nor LOCAL_RANK is set, so that its GPU is not known"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "nor LOCAL_RANK is set"),
        ({**POD, "PET_NPROC_PER_NODE": "4"}, "this pod is to hold several ranks"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 is set in the environment, and RANK and WORLD_SIZE are not"),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, "RANK and WORLD_SIZE are not"),
        (
            {"WORLD_SIZE": "8", "LOCAL_RANK": "1", "NODE_RANK": "1"},
            "WORLD_SIZE is set in the environment and RANK is not",
        ),
        ({**POD, "RANK": "first"}, "RANK is 'first' in the environment, which is no whole number"),
        ({**POD, "RANK": "4"}, "RANK is 4 and WORLD_SIZE is 4"),
        ({**MPI, "OMPI_COMM_WORLD_SIZE": "many"}, "is 'many' in the environment"),
    ],
)
def test_what_does_not_make_a_rank_is_named(given, words):
    with pytest.raises(UserError) as caught:
        rank_variables(given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.kind("started by an MPI or a job")
@pytest.mark.parametrize(
    "alone",
    [
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"PMIX_RANK": "0"},
        {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"},
        {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"},
        {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "8", "PET_MASTER_ADDR": "m"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "-1"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"},
        {"NNODES": "2"},  # a script's own, from which it makes other commands
        {"JOB_COMPLETION_INDEX": "1"},  # an array of jobs that know nothing of each other
    ],
)
def test_one_process_of_a_job_starts_its_own_ranks(alone):
    assert rank_variables(alone) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"},
         "--nnodes 2 --node_rank 1 --nproc_per_node GPUS --master_addr 10.0.0.1"),
        ({"SM_CURRENT_HOST": "algo-2", "SM_HOSTS": '["algo-1", "algo-2"]'},
         "--nnodes 2 --node_rank 1 --nproc_per_node GPUS --master_addr algo-1 "),
        ({"PET_NODE_RANK": "1", "PET_NNODES": "3", "PET_MASTER_ADDR": "m"}, "--nnodes 3 --node_rank 1"),
        ({"PET_NNODES": "2:4", "PET_RDZV_ENDPOINT": "m:29400"}, "--nnodes 4 --node_rank NUMBER"),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}, "--nnodes 2 --node_rank 1"),
        ({"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"},
         "--node_rank NUMBER --nproc_per_node GPUS --master_addr 10.0.0.1"),
        ({"SM_HOSTS": '["algo-1", "algo-2"]'}, "--node_rank NUMBER --nproc_per_node GPUS --master_addr algo-1"),
        ({"AZUREML_NODE_COUNT": "2", "NODE_RANK": "1", "MASTER_ADDR": "m"}, "--nnodes 2 --node_rank 1"),
        ({"NODE_RANK": "1", "NUM_NODES": "2"}, "--nnodes 2 --node_rank 1"),
        ({"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "--nnodes 2 --node_rank 1"),
        ({"NODE_RANK": "0", "NNODES": "2"}, "--nnodes 2 --node_rank 0 --nproc_per_node GPUS --master_addr HOST"),
    ],
)  # fmt: skip
def test_a_process_a_host_would_train_by_itself_and_is_told_how_to_join(given, words):
    with pytest.raises(UserError, match="each would train by itself") as caught:
        rank_variables(given)
    assert words in str(caught.value)
    assert rank_variables({**given, **TORCHRUN}) == {}


def test_gpus_that_no_rank_uses_are_said():
    pod = {**POD, **rank_variables(POD)}
    assert idle_gpus(pod, 8).startswith("this host has 8 GPUs and 1 rank: 7 would be idle. Start one rank a GPU")
    assert idle_gpus(pod, 1) is None and idle_gpus(pod, 0) is None
    assert idle_gpus({**TORCHRUN, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, 8) is None
    assert "4 ranks: 4 would be idle" in idle_gpus({**MPI, "LOCAL_RANK": "0"}, 8)
    assert idle_gpus({**MPI, "LOCAL_RANK": "1"}, 8) is None  # the first rank of a host says it


def test_a_process_started_alone_is_no_rank():
    assert rank_variables({}) is None
    assert rank_variables({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert rank_variables({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}) is None  # in an sbatch script, outside srun


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_half_of_torchruns_variables_is_an_error(name):
    with pytest.raises(UserError, match=f"{name} is set in the environment"):
        rank_variables({name: "1"})


def test_slurms_variables_become_torchs():
    assert rank_variables(SLURM) == {
        "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "gpu07", "MASTER_PORT": "31002",
    }  # fmt: skip
    assert (
        not {"MASTER_ADDR", "MASTER_PORT"}
        & rank_variables({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}).keys()
    )


@pytest.mark.parametrize(
    ("left_out", "more", "filled"),
    [
        ("SLURM_LOCALID", {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, {"LOCAL_RANK": "1"}),
        ("SLURM_LOCALID", {"SLURM_TASKS_PER_NODE": "1(x16)"}, {"LOCAL_RANK": "0"}),
        ("SLURM_STEP_NODELIST", {"SLURM_JOB_NODELIST": "n[3-4]"}, {"MASTER_ADDR": "n3"}),
        ("SLURM_STEP_NODELIST", {"SLURM_NODELIST": "n[3-4]"}, {"MASTER_ADDR": "n3"}),
        ("SLURM_STEP_NODELIST", {"MASTER_ADDR": "10.0.0.1"}, {"RANK": "9"}),
        ("SLURM_JOB_ID", {"SLURM_JOBID": "1000"}, {"MASTER_PORT": "31002"}),
        ("SLURM_JOB_ID", {"MASTER_PORT": "7"}, {"RANK": "9"}),
        ("SLURM_STEP_NUM_TASKS", {"SLURM_NTASKS": "16"}, {"WORLD_SIZE": "16"}),
    ],
)
def test_what_a_slurm_step_leaves_out_is_filled_in_where_it_can_be_known(left_out, more, filled):
    found = rank_variables({**{k: v for k, v in SLURM.items() if k != left_out}, **more})
    assert {name: found[name] for name in filled} == filled


@pytest.mark.parametrize(
    ("left_out", "more"),
    [
        ("SLURM_PROCID", {}), ("SLURM_LOCALID", {}), ("SLURM_STEP_NODELIST", {}),
        ("SLURM_LOCALID", {"SLURM_STEP_TASKS_PER_NODE": "6,10"}),
        ("SLURM_LOCALID", {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_DISTRIBUTION": "cyclic"}),
    ],
)  # fmt: skip
def test_what_a_slurm_step_must_not_leave_out_is_named_in_one_line(left_out, more):
    with pytest.raises(
        UserError, match=rf"one of 16 tasks of a Slurm step, and {left_out} is not set\. .* srun|torchrun"
    ):
        rank_variables({**{k: v for k, v in SLURM.items() if k != left_out}, **more})


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu[03-05,07],cpu1", "gpu03"),
        ("gpu3", "gpu3"),
        ("a,b", "a"),
        ("n[1,4]-ib,x", "n1-ib"),
        ("rack1-[10-12]", "rack1-10"),
        ("r[1-2]n[1-4],x", "r1n1"),
    ],
)
def test_the_first_node_of_slurms_list(nodelist, first):
    assert first_host(nodelist) == first


# --- hostfiles


def test_a_hostfile_names_hosts_and_slots(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# ours\nworker-1 slots=8\n\n10.0.0.2   slots=4 # half\n")
    assert read_hostfile(str(file)) == [Host("worker-1", 8), Host("10.0.0.2", 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker-1 8\n", "line 1: 'worker-1 8' is not like 'worker-1 slots=8'"),
        ("w[1-] slots=8\n", "line 1: '1-' is not a range"),
        ("w[a-b] slots=8\n", "line 1"),
        ("w[1-2] slots=8\nw2 slots=8\n", "line 2: w2 stands twice"),
        ("w1:x\n", "line 1"),
        ("worker-1 slots=8\nworker-2 slot=8\n", "line 2"),
        ("worker-1 slots=0\n", "line 1"),
        ("a slots=1\na slots=1\n", "line 2: a stands twice"),
        ("# nobody\n", "names no host"),
    ],
)
def test_a_broken_hostfile_is_named_with_its_line(text, message, tmp_path):
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_hostfile(str(file))
    assert message in str(caught.value)


HOSTFILES = {
    "w1\nw1\nw2\n": [("w1", 2), ("w2", 1)],
    "w1:2\nw2:4\n": [("w1", 2), ("w2", 4)],
    "w1 slots=2 max_slots=8\n": [("w1", 2)],
    "w1 slots=2 max-slots=8\n": [("w1", 2)],
    "w1 slots = 2\n": [("w1", 2)],
    "w1 slots= 2 max_slots = 4 # ours\n": [("w1", 2)],
    "\ufeffw1\tslots=2\r\n": [("w1", 2)],
    "w[1-2] slots=2\n": [("w1", 2), ("w2", 2)],
    "w[08-10]-ib slots=8\n": [("w08-ib", 8), ("w09-ib", 8), ("w10-ib", 8)],
    "r[1-2]n[1,3] slots=4\n": [("r1n1", 4), ("r1n3", 4), ("r2n1", 4), ("r2n3", 4)],
    "w[1-2]:2\n": [("w1", 2), ("w2", 2)],
    "w[1-2]\n": [("w1", 1), ("w2", 1)],
    "10.0.0.1:8\n": [("10.0.0.1", 8)],
}


@pytest.mark.kind("hostfile forms")
@pytest.mark.parametrize("text", HOSTFILES, ids=repr)
def test_openmpis_and_slurms_forms_of_a_hostfile_are_read_and_handed_on(text, tmp_path, tiny_model):
    file = tmp_path / "hosts"
    file.write_text(text, newline="")
    assert [(host.name, host.slots) for host in read_hostfile(str(file))] == HOSTFILES[text]
    from deepspeed.launcher.runner import fetch_hostfile

    handed_on = placement(parse(flags(tiny_model, tmp_path / "out", "--hostfile", file)), 2)[1]
    assert dict(fetch_hostfile(handed_on)) == dict(HOSTFILES[text])


@pytest.mark.parametrize("text", ["'unclosed", "--num_gpus 2", "--bogus 3", "train.py", "--include a:0"])
def test_launcher_arguments_that_are_not_about_reaching_hosts_are_refused(text):
    with pytest.raises(UserError, match="--launcher_args"):
        launcher_words(text)


def test_what_ranks_need_reaches_the_other_hosts_and_no_secret_does():
    given = {"HF_HOME": "/h", "NCCL_SOCKET_IFNAME": "ib0", "DEEPSPEED_TIMEOUT": "60", "WANDB_MODE": "offline",
             "HF_TOKEN": "s", "HF_HUB_TOKEN": "s", "TRANSFORMERS_API_KEY": "s", "ALIGNER_SECRET": "s", "TORCH_PASSWORD": "s",
             "WANDB_API_KEY": "s", "AWS_SECRET": "s", "HOME": "/root"}  # fmt: skip
    assert set(forwarded_variables(given)) == {"HF_HOME", "NCCL_SOCKET_IFNAME", "DEEPSPEED_TIMEOUT", "WANDB_MODE"}


@pytest.mark.parametrize(
    "word", ["plain", "", "a b", "it's", 'say "hi" now', "$HOME", "$HOME and `ls` \\ too", "100%h", "*;|"]
)
def test_a_word_reaches_the_other_host_as_it_is_here(word):
    """As DeepSpeed's PDSHRunner, pdsh and the host's shell treat it."""
    (sent,) = remote_words([word])
    by_deepspeed = '"{}"'.format(sent.replace('"', '\\"')) if " " in sent else sent
    by_pdsh = re.sub(
        "%[hnu%]", lambda found: {"%h": "host", "%n": "0", "%u": "root", "%%": "%"}[found[0]], by_deepspeed
    )
    done = subprocess.run(["sh", "-c", f"printf %s {by_pdsh}"], capture_output=True, text=True, check=True)
    assert done.stdout == word


def test_the_command_for_several_hosts(tmp_path, tiny_model, monkeypatch):
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=2\n")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    extra = ["--hostfile", str(file), "--launcher_args", "--master_addr 10.0.0.1 --ssh_port 2222"]
    config = parse(flags(tiny_model, tmp_path / "out", *extra))
    line = shlex.join(launch_command(config, 4))
    assert f"--hostfile {file} --master_port" in line
    assert "--master_addr 10.0.0.1 --ssh_port 2222 --no_python --no_local_rank env" in line
    assert "HF_HOME=/shared/hf" in line and "--launcher_args" not in line


def test_a_single_other_host_is_not_taken_for_this_one(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    lines = []
    for host in ("192.0.2.1", "localhost"):  # the first one is nobody's, by RFC 5737
        (tmp_path / "hosts").write_text(f"{host} slots=2\n")
        config = parse(flags(tiny_model, tmp_path / "out", "--hostfile", tmp_path / "hosts"))
        lines.append(launch_command(config, 2))
    assert "--force_multi" in lines[0] and "--force_multi" not in lines[1]


def test_gpus_named_otherwise_than_by_number_are_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("aligner.launch.command.gpus_here", lambda: 2)
    config = parse(flags(tiny_model, tmp_path / "out"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert placement(config, 2) == ["--include", "localhost:3,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ab12,GPU-cd34")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is GPU-ab12"):
        placement(config, 2)


def test_several_hosts_without_pdsh_are_refused_with_the_other_ways(tmp_path, tiny_model, monkeypatch):
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=2\n")
    monkeypatch.setattr("shutil.which", lambda name: None)
    config = parse(flags(tiny_model, tmp_path / "out", "--hostfile", file))
    with pytest.raises(UserError, match="needs pdsh"):
        launch_command(config, 4)


# --- real launches


def slurm_job(folder: Path, *arguments: str, log: Path) -> subprocess.Popen[str]:
    """The batch script as sbatch runs it: a copy elsewhere, with what sbatch sets."""
    script = folder / "slurm_script"
    script.write_text((ROOT / "scripts/sft-correction.slurm").read_text())
    variables = {
        "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_SUBMIT_DIR": str(ROOT), "SCONTROL_LOG": str(folder / "scontrol.log"),
        "PATH": f"{ROOT / 'tests/programs'}:{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", str(script), *arguments], env={**os.environ, **variables}, stdout=log.open("a"), stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_slurm_trains_to_the_same_losses(tiny_model, tmp_path, one_host):
    log = tmp_path / "log"
    job = slurm_job(tmp_path, *flags(tiny_model, tmp_path / "out", "--save_interval", 0), log=log)
    assert job.wait(300) == 0, log.read_text()
    assert losses(tmp_path / "out") == one_host
    assert "2 ranks" in log.read_text()


@pytest.mark.slow
def test_a_slurm_job_near_its_time_limit_queues_itself_again_and_goes_on(tiny_model, tmp_path):
    log, folder = tmp_path / "log", tmp_path / "out"
    arguments = flags(tiny_model, folder, "--save_interval", 4, "--epochs", 30, "--save_total_limit", 2)
    job = slurm_job(tmp_path, *arguments, log=log)
    for _ in range(600):
        if list(folder.glob("checkpoints/update-*/COMPLETED")):
            break
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGUSR1)  # as '#SBATCH --signal=B:USR1' does
    assert job.wait(120) == 0, log.read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    assert not (folder / "COMPLETED").exists()
    assert "stopped after update" in log.read_text()  # no work is lost: not the state of --save_interval
    assert slurm_job(tmp_path, *arguments, log=log).wait(300) == 0, log.read_text()
    assert "resuming after update" in log.read_text() and len(losses(folder)) == 240


def test_a_slurm_job_whose_step_does_not_end_in_time_is_queued_again_all_the_same(tmp_path):
    """A state that takes longer to write than is left: it goes on from the one before."""
    for name, text in {
        "srun": "trap '' USR1; echo begun; sleep 60 & wait; wait",
        "scontrol": 'echo "$@" > "$SCONTROL_LOG"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script, log = tmp_path / "slurm_script", tmp_path / "log"
    text = (ROOT / "scripts/sft-correction.slurm").read_text()
    script.write_text(text.replace("patience=480", "patience=2"))
    variables = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT), "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
                 "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    job = subprocess.Popen(
        ["bash", str(script)], env={**os.environ, **variables}, stdout=log.open("w"), start_new_session=True
    )
    while "begun" not in log.read_text():
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(30) == 0 and (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    os.killpg(job.pid, signal.SIGKILL)  # the sleep of the stand-in


@pytest.mark.slow
@pytest.mark.parametrize("program", ["module", "script"])
def test_torchrun_trains_to_the_same_losses(program, tiny_model, tmp_path, one_host):
    command = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += {
        "module": ["-m", "aligner.training.finetune"],
        "script": ["--no-python", "bash", str(ROOT / "scripts/sft-correction.sh")],
    }[program]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, *flags(tiny_model, tmp_path / "out", "--save_interval", 0)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "out") == one_host


@pytest.mark.slow
def test_srun_starts_the_training_program_itself_too(tiny_model, tmp_path, one_host):
    """Without the launch script in front of it: only Slurm's variables say which rank is the first."""
    command = ["bash", str(ROOT / "tests/programs/srun"), sys.executable, "-m", "aligner.training.finetune"]
    variables = {"SLURM_JOB_ID": "78", "SLURM_NTASKS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *flags(tiny_model, tmp_path / "out", "--save_interval", 0)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **variables}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "out") == one_host


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"two hosts need {', '.join(missing())}")
def test_two_hosts_train_to_the_same_losses_as_two_ranks_on_one(tiny_model, tmp_path, one_host):
    """And so do two ranks on the one other host, started from this one."""
    folder, found = tmp_path / "out of the way $HOME 100%", []  # words that a shell on the way would change
    with two_hosts(tmp_path / "hosts") as hosts:
        (tmp_path / "other").write_text("10.199.0.2 slots=2\n")
        path = f"{Path(sys.executable).parent}:{hosts.variables['PATH']}"
        for number, hostfile in enumerate((hosts.hostfile, tmp_path / "other")):
            command = [*hosts.on_first, "bash", str(ROOT / "scripts/sft-correction.sh")]
            command += [*flags(tiny_model, folder / str(number), "--save_interval", 0), "--hostfile", str(hostfile)]
            found.append(subprocess.run(
                command, env={**os.environ, **hosts.variables, "PATH": path}, capture_output=True, text=True, timeout=300,
                check=False,
            ))  # fmt: skip
    both, other = found
    assert both.returncode == other.returncode == 0, both.stdout + both.stderr + other.stdout + other.stderr
    assert "10.199.0.1:" in both.stdout and "10.199.0.2:" in both.stdout + both.stderr
    assert "10.199.0.2:" in other.stdout and "10.199.0.1:" not in other.stdout + other.stderr
    assert losses(folder / "0") == losses(folder / "1") == one_host
