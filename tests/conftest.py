"""What the tests share: records, small real tokenizers and models, and the real DeepSpeed launcher."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads wait for each other longer than they compute
os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # no test asks the hub, which where there is no network costs half a minute

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kinds
import pytest
from warm import LAUNCHES, ROOT, environment, run_aligner

__all__ = ["environment"]
SHARED = ROOT.parent / "shared" / "data"
TEMPLATE = ROOT / "template-dataset.json"
SECRET = "0123456789abcdef0123456789abcdef01234567"
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_configure(config: pytest.Config) -> None:
    """What tests keep goes into a cache of their own; the embedded model, fetched once, stays in the user's."""
    from aligner.demo import FOLDER
    from aligner.files import cache_folder

    config.addinivalue_line("markers", "kind(name): a member of a kind; 'python tests/kinds.py' prints the table")
    config.addinivalue_line("markers", "attacks: hostile inputs or faults by kind, which tests/attacks.py counts")
    model, scratch = cache_folder() / FOLDER, tempfile.TemporaryDirectory()
    config.add_cleanup(scratch.cleanup)
    (Path(scratch.name) / FOLDER).symlink_to(model.absolute())
    os.environ["ALIGNER_CACHE"] = scratch.name
    config.add_cleanup(LAUNCHES.close)


# Where tests run in several processes, those that share something run in the same one; the longest begin first.
SHARED_BY = {
    "ranks": (
        "test_exact_updates",
        "test_resume",
        "test_state_writer",
        "test_launchers",
        "test_objective_check",
        "test_families",
        "test_lora",
        "test_odd_bases",
    ),
    "runs": ("test_state_faults", "test_pipeline", "test_course", "test_export", "test_campaign", "test_cache"),
    "plan": ("test_plan",),
}
# The parts of the slow suite: files, tests of a file by a word in their name. The first part that fits is a test's own.
PARTS = {
    "exact": ("test_exact_updates", "test_no_padding"),
    "stops": ("test_faults::SIGTERM", "test_faults::dies", "test_faults::orphaned", "test_faults::second_run"),
    "faults": ("test_faults", "test_state_faults", "test_state_writer"),
    "disks": ("test_faults_of_disks", "test_scarce"),
    "resume": ("test_resume",),
    "launchers": ("test_launchers", "test_pipeline"),
    "browser": ("test_report_page", "test_real_layer::page", "test_rebinding"),
    "servers": ("test_real_servers", "test_real_layer", "test_scaled_layer", "test_routed_layer"),
    "cluster": ("test_cluster",),
    "clients": ("test_real_clients", "test_litellm"),
    "kinds": ("test_server_kinds",),
    "evaluation": ("test_real_judge", "test_campaign", "test_measures"),
    "environment": ("test_environment_script",),
    "surroundings": ("test_surroundings", "test_doctor"),
    "data": ("test_check", "test_malformed", "test_files_by_kind"),
    "fuzz": ("test_fuzz",),
    "lora": ("test_lora",),
    "objectives": ("test_equal_preference", "test_heard_objectives"),
    "baselines": ("test_alternatives", "test_real_baselines", "test_adding", "test_reproduce"),
    "building": ("test_building", "test_building_killed", "test_building_tools", "test_real_building"),
    "rounds": ("test_trl", "test_whole_rounds"),
    "sentences": ("test_correct_sentences", "test_serve_sentences", "test_real_sentences"),
    "memory": ("test_plan",),
    "families": ("test_families", "test_odd_bases", "test_objective_check"),
    "readers": ("test_read_by_others",),
    "acceptance": ("test_acceptance",),
    "interpretation": ("test_interpretation",),
    "package": ("test_wheel", "test_readme"),
    "whole_run": ("test_benchmarks::whole_run",),
    "benchmarks": ("test_benchmarks",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=PARTS, help="only this part of the slow tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A part needs no other file's imports."""
    part = config.getoption("--part")
    files = {place.partition("::")[0] for place in PARTS.get(part, ())}
    return True if part and collection_path.suffix == ".py" and collection_path.stem not in files else None


def part_of(item: pytest.Item) -> str | None:
    """The part of a slow test; None of a quick one."""
    if not item.get_closest_marker("slow"):
        return None
    for part, places in PARTS.items():
        for file, _, word in (place.partition("::") for place in places):
            if item.path.stem == file and word in item.name:
                return part
    raise pytest.UsageError(f"{item.nodeid} is slow and in no part: name it in PARTS of tests/conftest.py.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests, put the longest groups first, and leave out what `--part` does not name."""
    order, part = list(SHARED_BY), config.getoption("--part")
    parts = {item: part_of(item) for item in items}
    if part:
        config.hook.pytest_deselected(items=[item for item in items if parts[item] != part])
        items[:] = [item for item in items if parts[item] == part]
    items.sort(key=lambda item: order.index(group) if (group := group_of(item.path.stem)) in order else len(order))


def group_of(file: str) -> str:
    """The group of a test file, by default its own."""
    return next((group for group, files in SHARED_BY.items() if file in files), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A group runs in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(Path(nodeid.partition("::")[0]).stem)

    return Groups(config, log)


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


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE tokenizer with a dummy prefix and byte fallback, as Llama-2's, trained here."""
    import sentencepiece
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("spm")
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(row.values()) for row in read_rows(TEMPLATE)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=1200, model_type="bpe", byte_fallback=True,
        add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        split_digits=True, minloglevel=2, user_defined_symbols=[':"', ":("],
    )  # fmt: skip
    LlamaTokenizer.from_pretrained(folder, legacy=True, add_bos_token=True).save_pretrained(folder)
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
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text(json.dumps(read_rows(TEMPLATE, 40)))
    return file


@pytest.fixture(scope="session")
def trained(rows: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], str]:
    """A whole run, identity warm-up and correction, on two ranks; its folder, flags and what it printed."""
    out = tmp_path_factory.mktemp("run") / "sft"
    flags = ["--train_datasets", rows, "--model_name_or_path", tiny_model, "--output_dir", out, "--gpus", "2", "--epochs", "1",
             "--identity_proportion", "0.25", "--eval_split_ratio", "0.1", "--save_interval", "2",
             "--gradient_accumulation_steps", "1", "--show_corrections", "2"]  # fmt: skip
    done = sft(*flags, WANDB_API_KEY=SECRET, WANDB_MODE="offline", HF_TOKEN=f"hf_{SECRET}", COLUMNS="100")
    assert done.returncode == 0, done.stdout + done.stderr
    return out, flags, done.stdout


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
    options.add_argument("--host-resolver-rules=MAP *.elsewhere.test 127.0.0.1")  # names of other sites that point here
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


def launch_program(module: str, ranks: int, *arguments: object, timeout: float = 400, status: int = 0) -> str:
    """Run a module under the real DeepSpeed launcher with CPU ranks; its output. Fails the test if it ends otherwise.

    A launch is kept for the next such test: the ranks are there already, and so are their imports.
    """
    statuses, said = LAUNCHES.of(ranks).run(module, arguments, timeout)
    assert statuses == {status}, said[-8000:]
    return said


@pytest.fixture
def quick_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that an evaluation starts need not import torch anew; they are processes of their own all the same."""
    monkeypatch.setattr("aligner.evaluation.subprocess_step.subprocess", SimpleNamespace(run=run_aligner))


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
