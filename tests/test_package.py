"""The package as it is imported, and its folders: what `from aligner import ...` gives, and no circle between rooms."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "aligner"
TOP = "(cli)"  # cli.py, __main__.py and the interface of the package stand above all rooms


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, aligner; print(sorted({'torch', 'transformers', 'numpy', 'deepspeed', 'yaml'} & set(sys.modules)), "
        "aligner.__version__)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split()[0] == "[]"


def test_help_waits_for_no_torch():
    program = (
        "import sys\nfrom aligner.cli import main\n"
        "try:\n    main(['correct', '--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.splitlines()[-1] == "False"


def test_the_interface_of_the_package_is_three_names():
    import aligner
    from aligner import Correction, Corrector, register
    from aligner.inference import corrector
    from aligner.records import Correction as Record
    from aligner.training import datasets

    assert (Corrector, Correction, register) == (corrector.Corrector, Record, datasets.register)
    assert aligner.__all__ == ["Correction", "Corrector", "register"]
    with pytest.raises(AttributeError, match="module 'aligner' has no attribute 'Correktor'"):
        _ = aligner.Correktor


def room_of(parts: tuple[str, ...]) -> str:
    """The folder of a module, with a name for the files above all folders; how a file is read belongs to the ground, too."""
    if parts[:1] == ("readers",):
        return "(ground)"
    if len(parts) < 2:
        return TOP if parts in ((), ("cli",), ("__main__",), ("__init__",)) else "(ground)"
    return ".".join(parts if (PACKAGE.joinpath(*parts) / "__init__.py").is_file() else parts[:-1])


def module_of(name: str) -> tuple[str, ...]:
    """The module that a dotted name of the package is, or lies in."""
    parts = tuple(name.split(".")[1:])
    path = PACKAGE.joinpath(*parts)
    return parts if path.is_dir() or path.with_suffix(".py").is_file() else parts[:-1]


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    return {room_of(module_of(name)) for name in names if name.startswith("aligner.") and name != "aligner.__version__"}


def test_no_folder_imports_from_one_that_imports_from_it():
    below: dict[str, set[str]] = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        room = room_of(file.relative_to(PACKAGE).with_suffix("").parts)
        below[room] |= imported_rooms(file) - {room}
    order = list(graphlib.TopologicalSorter(below).static_order())  # CycleError names the circle
    assert order[0] == "(ground)" and order[-1] == TOP


def test_starting_a_run_does_not_import_the_code_that_loads_weights():
    """It takes seconds, and neither the launch script nor a look at a finished run loads any."""
    names = "('transformers.core_model_loading', 'torch._dynamo', 'deepspeed')"
    program = f"import sys, aligner.launch.launch; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]"
