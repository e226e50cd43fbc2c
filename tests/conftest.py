"""What the tests share: records, small real tokenizers and models, and the real DeepSpeed launcher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kinds
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
TEMPLATE = ROOT / "template-dataset.json"
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_configure(config: pytest.Config) -> None:
    """What tests keep goes into a cache of their own; the embedded model, fetched once, stays in the user's."""
    from aligner.demo import FOLDER
    from aligner.files import cache_folder

    model, scratch = cache_folder() / FOLDER, tempfile.TemporaryDirectory()
    config.add_cleanup(scratch.cleanup)
    (Path(scratch.name) / FOLDER).symlink_to(model.absolute())
    os.environ["ALIGNER_CACHE"] = scratch.name


def read_rows(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of a JSON array, read without the project."""
    return json.loads(path.read_text(encoding="utf-8"))[:count]


@pytest.fixture(scope="session")
def real_rows() -> list[dict[str, str]]:
    """500 real rows of several kinds where the shared data is there; else the project's own 120, several times."""
    if not SHARED.is_dir():
        return (read_rows(TEMPLATE) * 5)[:500]
    files = {"qac_truthfulqa": 150, "qac_pandalm": 150, "qac_hh_rlhf": 150, "qac_aligner2b_alpacaeval": 50}
    rows = [row for name, count in files.items() for row in read_rows(SHARED / f"{name}.json", count)]
    return [{key: row[key] for key in ("question", "answer", "correction")} for row in rows]


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 600 tokens with eos and no pad, trained on the project's own records."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(row.values()) for row in read_rows(TEMPLATE)), trainer)
    folder = tmp_path_factory.mktemp("bpe")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    return folder


def save_llama(
    tokenizer_folder: Path, folder: Path, *, tied: bool = True, hidden: int = 32, vocab: int = 600, dropout: float = 0.0
) -> Path:
    """A random Llama of two layers beside its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(bpe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tied Llama of 50,000 parameters, in fp32."""
    return save_llama(bpe_folder, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that nothing disturbs: 30 updates."""
    from disturbed import Run

    out = tmp_path_factory.mktemp("whole") / "out"
    run = Run(tiny_model, out, "--epochs", 2).start()
    assert run.end() == 0 and run.made() == 30, run.said
    return out


@pytest.fixture
def told() -> Iterator[Any]:
    """A real HTTP server that answers as it is told."""
    from test_servers import Told

    server = Told()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real headless browser."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not (driver and chromium):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Count the members of a kind of surroundings."""
    report = yield
    marker = item.get_closest_marker("kind")
    if marker and (report.when == "call" or report.outcome == "skipped" or (report.when == "setup" and report.failed)):
        kinds.record(marker.args[0], report.outcome)
    return report


def pytest_sessionfinish() -> None:
    """Leave the counts where `tests/kinds.py` reads them."""
    if file := os.environ.get("KINDS_OUTCOMES"):
        Path(file).write_text(json.dumps(kinds.OUTCOMES))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tables of surroundings and of faults, where tests of them ran."""
    for line in kinds.lines():
        terminalreporter.write_line(line)
    if rows := getattr(sys.modules.get("disturbed"), "TABLE", []):
        terminalreporter.write_line("| what was done | exit | what the user saw | what survived |\n|---|---|---|---|")
        for done, saw, status, survived in rows:
            terminalreporter.write_line(f"| {done} | {status} | {saw} | {survived} |")


def environment(ranks: int) -> dict[str, str]:
    """The environment of CPU ranks, and the project on their path."""
    variables = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **variables, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def launch_program(module: str, ranks: int, *arguments: object, timeout: float = 400) -> str:
    """Run a module under the real DeepSpeed launcher with CPU ranks; its output. Fails the test if it fails."""
    from aligner.training.distributed.launcher_variables import free_port

    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(ranks)]
    command += ["--master_port", str(free_port()), "--module", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment(ranks), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def sft(*arguments: object, timeout: float = 400, **variables: str) -> subprocess.CompletedProcess[str]:
    """`bash scripts/sft-correction.sh` with this environment active."""
    command = ["bash", str(ROOT / "scripts" / "sft-correction.sh"), *map(str, arguments)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    return subprocess.run(
        command,
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
