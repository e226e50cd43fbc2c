"""The laws of the house that can be read off the code: imports point down, heavy packages stay in their rooms, and so on."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PACKAGE = ROOT / "aligner"
FILES = sorted(PACKAGE.rglob("*.py"))

RAW = [f"training.datasets.raw.{f.stem}" for f in sorted((PACKAGE / "training/datasets/raw").glob("[a-z]*.py"))]

# Each module imports only from those above it.
ORDER = [
    "records", "file_systems", "files", "locks", "network", "surroundings", "relay", "packages", "hub", "prompts", "encoder",
    "card", "models", "console", "demo", "quality.edits", "plots",
    "training.config", "training.flags", "training.datasets.options", "training.datasets.registry",
    "training.datasets.preference", "training.datasets.raw", *RAW, "training.datasets", "training.datasets.mixture",
    "training.datasets.supervised", "training.datasets.cache", "training.plan", "training.stages",
    "training.distributed.hardware", "training.distributed.hosts", "training.distributed.launcher_variables",
    "training.distributed.stop_signals", "training.distributed.heartbeat", "training.distributed.ranks",
    "training.engine.zero", "training.engine.batching", "training.engine.attention", "training.engine.head_loss",
    "training.engine.loss", "training.engine.engine", "training.checkpoint.resume", "training.checkpoint.tensor_index",
    "training.checkpoint.partitions", "training.checkpoint.save_and_load", "training.checkpoint.export",
    "training.finetune.metrics", "training.finetune.loop", "training.finetune.run", "training.finetune.__main__",
    "training.planning.shapes", "training.planning.memory", "training.planning.memory_plan", "training.planning.report",
    "quality.suspicions", "quality.check", "inference.drafts", "inference.row_cache",
    "inference.greedy", "inference.sampling", "inference.corrector", "inference.servers", "inference.served",
    "inference.journal", "inference.correct_file", "inference.command", "launch.report", "launch.launch", "launch.__main__",
    "launch.prepare_offline", "launch.machine_checks", "launch.doctor",
    "serving.dialogue", "serving.gate", "serving.worker", "serving.protocol", "serving.upstream",
    "serving.shadow", "serving.exchange", "serving.app", "serving.command", "evaluation.rates", "evaluation.pairs",
    "evaluation.dimensions", "evaluation.judges.judge", "evaluation.judges.human", "evaluation.judges.served",
    "evaluation.judges.local", "evaluation.judges.scores", "evaluation.judges.reward_and_cost", "evaluation.judges",
    "evaluation.replies", "evaluation.judging", "evaluation.figures", "evaluation.systems", "evaluation.steps",
    "evaluation.losses", "evaluation.course", "evaluation.report", "evaluation.alpaca_eval", "evaluation.evaluate",
    "evaluation.prompt_sets", "evaluation.campaign", "evaluation.harness", "commands.shared_flags", "commands.check",
    "commands.doctor", "commands.plan",
    "commands.evaluate", "commands.correct", "commands.serve", "commands.calibrate", "commands.export",
    "commands.campaign", "commands", "cli",
    "__main__",
]  # fmt: skip
BARE = {
    "", "training", "training.distributed", "training.engine", "training.checkpoint", "training.finetune",
    "training.planning", "quality", "inference", "launch", "serving", "evaluation",
}  # fmt: skip
ROOMS = {
    "deepspeed": {"training.distributed.ranks", "training.engine.engine"},
    "wandb": {"training.finetune.metrics"},
    "tensorboard": {"training.finetune.metrics"},
    "matplotlib": {"plots"},
    "datasets": {"files", "hub"},
    "openai": {"inference.servers"},
    "aiohttp": {"serving.upstream", "serving.exchange"},
    "uvicorn": {"serving.command"},
}
ALLOWED_BASES = {
    "Protocol",
    "Enum",
    "NamedTuple",
    "Exception",
    "UserError",
    "Failed",
    "nn.Module",
    "torch.nn.Module",
    "torch.autograd.Function",
    "logging.Handler",
    "TorchDispatchMode",
}


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file):
    importer = name_of(file)
    if importer in BARE:
        assert not [name for name in imports_of(file) if name.startswith("aligner.")]
        return
    known = set(ORDER)
    for imported in imports_of(file):
        target = imported.removeprefix("aligner.")
        if imported.startswith("aligner.") and target in known and target != importer:
            assert ORDER.index(target) < ORDER.index(importer), f"{importer} imports {target}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_heavy_packages_stay_in_their_rooms(file):
    for imported in imports_of(file):
        for package, rooms in ROOMS.items():
            parts = imported.split(".")
            at_home = name_of(file) in rooms
            if package in parts and parts[0] not in ("aligner",):
                assert at_home or parts[0] == "transformers", f"{name_of(file)} imports {imported}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_inheritance_for_reuse(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            assert {ast.unparse(base) for base in node.bases} <= ALLOWED_BASES, node.name


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_function_fits_a_screen_and_a_file_is_one_idea(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 310
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{file.name}:{node.name}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_module_and_public_name_says_what_it_is(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            nested = any(
                node in ast.walk(f) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f is not node
            )
            overriding = node.name in ("emit", "forward", "backward")
            assert ast.get_docstring(node) or nested or overriding, f"{file.name}:{node.name}"


def test_the_loop_is_short():
    assert len((PACKAGE / "training/finetune/loop.py").read_text().splitlines()) < 150


def test_every_module_has_its_place_in_the_order():
    assert {name_of(f) for f in FILES} - BARE == set(ORDER)


def test_the_conda_recipe_and_the_constraints_agree_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe = yaml.safe_load((ROOT / "conda-recipe.yaml").read_text())
    assert recipe["name"] == "aligner"
    assert f"python{project['requires-python']}" in recipe["dependencies"]
    assert recipe["dependencies"][-1]["pip"] == project["dependencies"]
    from packaging.requirements import Requirement

    lines = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, [*project["dependencies"], *(r for extra in extras for r in extra)]):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_top_level_is_what_it_should_be():
    known = {"aligner", "scripts", "configs", "tests", "conda-recipe.yaml", "pyproject.toml", "README.md",
             "template-dataset.json", "LICENSE", ".gitignore", ".ci"}  # fmt: skip
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert not listed or {line.split("/")[0] for line in listed.splitlines()} <= known


def test_the_readme_names_every_file_of_the_package_and_each_dependency():
    rooms = (ROOT / "README.md", *PACKAGE.rglob("README.md"), *(ROOT / "scripts").glob("README.md"))
    text = "".join(file.read_text() for file in rooms)
    for file in FILES:
        if file.name not in ("__init__.py", "__main__.py"):
            assert file.name in text, file
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    from packaging.requirements import Requirement

    for requirement in map(Requirement, project["dependencies"]):
        assert f"`{requirement.name}`" in text, requirement.name
