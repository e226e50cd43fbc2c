"""The laws of the house that can be read off the code: imports point down, heavy packages stay in their rooms, and so on."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import yaml
from conftest import ROOT

PACKAGE = ROOT / "aligner"
FILES = sorted(PACKAGE.rglob("*.py"))

RAW = [f"training.datasets.raw.{f.stem}" for f in sorted((PACKAGE / "training/datasets/raw").glob("[a-z]*.py"))]

# Each module imports only from those above it.
ORDER = [
    "keys", "terminal", "parsing", "records", "system_errors", "refusals", "texts", "questions", "shipped",
    "chat_api.thoughts", "chat_api.dialogue", "chat_api.replies", "chat_api.parameters", "chat_api.streams",
    "readers.paths", "readers.content", "readers.json_rows", "readers.delimited", "readers.columnar",
    "readers.rows",
    "file_systems", "files", "jsonl", "locks", "network", "surroundings", "relay", "packages",
    "hub", "prompts", "known_prompts", "objectives", "chat_prompt", "encoder", "card", "models", "quantised", "console", "demo",
    "sentences", "quality.edits", "plots", "flow_plot",
    "training.flag_fields", "training.preference_config",
    "training.config", "training.config_check", "training.flags", "training.train_log", "training.datasets.damage",
    "training.datasets.options", "training.datasets.built",
    "training.datasets.formats", "training.datasets.original_names", "training.datasets.registry",
    "training.datasets.by_sentence", "training.datasets.read_records",
    "training.datasets.preference", "training.datasets.rated",
    "training.datasets.raw", *RAW, "training.datasets", "training.datasets.run_prompts",
    "training.datasets.mixture",
    "training.datasets.tally", "training.datasets.supervised", "training.datasets.token_table",
    "training.datasets.cache", "training.plan", "training.stages",
    "training.distributed.hardware", "training.distributed.hosts", "training.distributed.job_hosts",
    "training.distributed.launcher_variables",
    "training.distributed.stop_signals", "training.distributed.heartbeat", "training.distributed.ranks",
    "training.engine.zero", "training.engine.adapters", "training.engine.recompute", "training.engine.batching",
    "training.engine.attention",
    "training.engine.head_loss",
    "training.engine.loss", "training.engine.objective", "training.engine.rotations", "training.engine.engine",
    "training.engine.objective_check", "training.engine.build",
    "training.checkpoint.chat_template", "training.checkpoint.older_readers", "training.checkpoint.folder_writer",
    "training.checkpoint.resume", "training.checkpoint.tensor_index", "training.checkpoint.checksums",
    "training.checkpoint.partitions", "training.checkpoint.state_writer", "training.checkpoint.save_and_load",
    "training.checkpoint.export",
    "training.checkpoint.model_card", "training.checkpoint.push",
    "training.planning.shapes", "training.planning.memory", "training.planning.memory_plan", "training.planning.here",
    "training.planning.report",
    "training.finetune.metrics", "training.finetune.loop", "training.finetune.announce", "training.finetune.run",
    "training.finetune.rank", "training.finetune.__main__",
    "training.preference.rows", "training.preference.weights", "training.preference.trl_trainer", "training.preference.run",
    "training.preference.__main__",
    "steering.options", "steering.hooks", "steering.direction_file",
    "routing.config", "routing.rules", "routing.features", "routing.classifier", "routing.router", "routing.train",
    "routing.command",
    "quality.suspicions", "quality.check", "quality.config", "quality.command", "inference.drafts", "inference.row_cache",
    "inference.greedy", "inference.text_stream", "inference.trials", "inference.sampling", "inference.likelihood",
    "inference.corrector", "inference.guard", "inference.servers", "inference.served",
    "inference.journal", "inference.published_answers",
    "inference.items", "inference.summary", "inference.correct_file", "inference.shards", "inference.turns",
    "inference.continuing", "inference.correct_sentences", "inference.config", "inference.one_answer",
    "inference.command", "inference.cluster",
    "serving.hosts", "serving.connections", "serving.config", "serving.corrections", "serving.gate", "serving.worker",
    "serving.protocol", "serving.policy", "serving.turns", "serving.upstream", "serving.metrics",
    "serving.completions", "serving.replicas", "serving.served_aligner", "serving.routed",
    "serving.shadow", "serving.behind", "serving.waiting", "serving.untouched",
    "serving.exchange", "serving.by_sentence", "serving.requested", "serving.other_routes", "serving.guardrail", "serving.app",
    "serving.command", "serving.processes",
    "evaluation.rates", "evaluation.pairs",
    "evaluation.judges.dimensions", "evaluation.judges.judge", "evaluation.judges.human", "evaluation.judges.served",
    "evaluation.judges.local", "evaluation.judges.scores", "evaluation.judges.reward_and_cost", "evaluation.judges",
    "evaluation.replies", "evaluation.judging", "evaluation.figures", "evaluation.systems", "evaluation.subprocess_step",
    "evaluation.losses", "evaluation.checkpoint_sweep", "evaluation.report", "evaluation.alpaca_eval", "evaluation.evaluate",
    "evaluation.prompt_sets", "evaluation.campaign", "evaluation.config", "evaluation.command",
    "evaluation.measures.controls", "evaluation.measures.gain", "evaluation.measures.items", "evaluation.measures.matrix",
    "evaluation.measures.table", "evaluation.measures.text_scores", "evaluation.measures.ratings",
    "evaluation.measures.measure", "evaluation.measures.objectives",
    "evaluation.measures.plain_words", "evaluation.measures.own_words",
    "evaluation.measures.preference", "evaluation.measures.held_out", "evaluation.measures.page",
    "evaluation.measures.config", "evaluation.measures.command", "evaluation.harness",
    "evaluation.sets",
    "interpretation.statistics", "interpretation.directions", "interpretation.scan",
    "interpretation.effect", "interpretation.page", "interpretation.pictures",
    "interpretation.config", "interpretation.rows", "interpretation.report", "interpretation.command",
    "baselines.protocol", "baselines.prompts", "baselines.methods", "baselines.local", "baselines.served",
    "baselines.rewards", "baselines.corrector", "baselines.converse", "baselines.answer_file", "baselines.config",
    "baselines.command", "baselines.help_per_cost",
    "launch.guard", "launch.command", "launch.report",
    "launch.dry_run", "launch.watch", "launch.launch", "launch.__main__",
    "launch.prepare_offline", "launch.machine_checks", "launch.doctor",
    "rounds.training_rows", "rounds.filters", "rounds.pairs", "rounds.config", "rounds.stage", "rounds.questions", "rounds.figures",
    "rounds.work", "rounds.course", "rounds.report", "rounds.plan", "rounds.run", "rounds.__main__",
    "building.config", "building.config_check", "building.config_file", "building.stage",
    "building.read_questions", "building.near", "building.embeddings", "building.leaks",
    "building.questions", "building.asking", "building.answers", "building.principles", "building.corrections",
    "building.agreement", "building.label_tools", "building.people", "building.filters", "building.last_check", "building.flow",
    "building.card", "building.result", "building.push", "building.places", "building.build", "building.command",
    "reproduce.comparison", "reproduce.experiment", "reproduce.rows", "reproduce.steps", "reproduce.compare", "reproduce.adding",
    "reproduce.summary", "reproduce.run",
    "commands.pipes", "commands.push", "commands.shared_flags", "commands.check", "commands.baseline",
    "commands.reproduce", "commands.route", "commands.doctor", "commands.build", "commands.interpret",
    "commands.plan", "commands.evaluate", "commands.correct", "commands.serve", "commands.calibrate", "commands.export",
    "commands.campaign", "commands.pairs", "commands.rounds", "commands.train", "commands", "cli",
    "__main__", "",
]  # fmt: skip
BARE = {
    "readers", "chat_api", "training", "training.distributed", "training.engine", "training.checkpoint", "training.finetune",
    "training.planning", "training.preference", "quality", "inference", "launch", "serving", "evaluation",
    "evaluation.measures", "baselines", "reproduce", "rounds", "building", "steering", "routing", "interpretation",
}  # fmt: skip
ROOMS = {
    "deepspeed": {"training.distributed.ranks", "training.engine.engine"},
    "peft": {"training.engine.adapters"},
    "bitsandbytes": {"quantised"},
    "wandb": {"training.finetune.metrics"},
    "tensorboard": {"training.finetune.metrics"},
    "matplotlib": {"plots", "flow_plot"},
    "datasets": {"readers.columnar", "hub", "training.preference.trl_trainer"},
    "trl": {"training.preference.trl_trainer"},
    "pyarrow": {"readers.content", "readers.columnar"},
    "openai": {"inference.servers"},
    "aiohttp": {"serving.upstream", "serving.untouched"},
    "uvicorn": {"serving.processes"},
    "prometheus_client": {"serving.metrics"},
    "sentencex": {"sentences"},
    "rensa": {"building.near"},
    "ray": {"inference.cluster"},
    "py3langid": {"building.questions"},
}
ALLOWED_BASES = {
    "Protocol",
    "Mapping[str, Any]",
    "Sequence[Tokens]",
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
    "TrainerCallback",
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


# Each law is one test over all files, which names every place that breaks it.


def test_imports_point_down():
    wrong, place = [], {name: number for number, name in enumerate(ORDER)}
    for file in FILES:
        importer = name_of(file)
        inside = [name.removeprefix("aligner.") for name in imports_of(file) if name.startswith("aligner.")]
        if importer in BARE:
            wrong += [f"{importer or 'aligner'} imports {target}" for target in inside]
        else:
            wrong += [
                f"{importer} imports {target}"
                for target in inside
                if target in place and target != importer and place[target] >= place[importer]
            ]
    assert not wrong


def test_heavy_packages_stay_in_their_rooms():
    wrong = []
    for file in FILES:
        for imported in imports_of(file):
            parts = imported.split(".")
            if parts[0] not in ("aligner", "transformers"):
                strange = [
                    package for package, rooms in ROOMS.items() if package in parts and name_of(file) not in rooms
                ]
                wrong += [f"{name_of(file)} imports {imported}" for _ in strange]
    assert not wrong


def test_no_inheritance_for_reuse():
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not {ast.unparse(base) for base in node.bases} <= ALLOWED_BASES:
                wrong.append(f"{name_of(file)}: {node.name}")
    assert not wrong


def test_the_main_path_is_read_in_half_an_hour():
    """Record, prompt, tokens, loss, update, run: in this order at most 650 lines."""
    training = ("datasets/raw/correction", "datasets/supervised", "engine/loss", "finetune/loop", "finetune/run")
    files = ["records", "prompts", *(f"training/{name}" for name in training)]
    assert sum(len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in files) <= 650


def test_a_function_fits_a_screen_and_a_file_is_one_idea():
    wrong = []
    for file in FILES:
        text = file.read_text()
        wrong += [name_of(file)] * (len(text.splitlines()) > 310)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                wrong.append(f"{name_of(file)}: {node.name}")
    assert not wrong


def test_every_module_and_public_name_says_what_it_is():
    wrong = []
    for file in FILES:
        tree = ast.parse(file.read_text())
        wrong += [name_of(file)] * (not ast.get_docstring(tree))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        nested = {id(node) for f in functions for node in ast.walk(f) if node is not f}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                overriding = node.name in ("emit", "forward", "backward")
                if not (ast.get_docstring(node) or id(node) in nested or overriding):
                    wrong.append(f"{name_of(file)}: {node.name}")
    assert not wrong


def test_what_leaves_and_what_comes_in_passes_one_place():
    """Lines reach the screen through `terminal`, JSON and YAML are parsed by `parsing`, keys are read by `keys`."""
    guarded = {
        "print": {"terminal"},
        "json.loads": {
            "parsing",
            "files",
            "readers.json_rows",
            "training.datasets.cache",
        },  # their own JSON, or rows by place
        "yaml.safe_load": {"parsing"},
        "yaml.load": set(),
    }
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in guarded and name_of(file) not in guarded[name]:
                wrong.append(f"{name_of(file)} line {node.lineno}: {name}")
    assert not wrong


def test_the_loop_is_short():
    assert len((PACKAGE / "training/finetune/loop.py").read_text().splitlines()) < 160


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
    text = (PACKAGE / "README.md").read_text()
    for file in FILES:
        if file.name not in ("__init__.py", "__main__.py"):
            assert file.name in text, file
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    from packaging.requirements import Requirement

    for requirement in map(Requirement, project["dependencies"]):
        assert f"`{requirement.name}`" in text, requirement.name
