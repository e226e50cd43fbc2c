"""Files that come with the project: the configurations and the template data.

They stand at the top of a checkout, where people look for them. The links beside this file lead there, and a wheel holds copies
in their place, so that an installed package has them too.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped(name: str) -> Path:
    """The file of this name, such as 'template-dataset.json': the checkout's own, or the installed package's copy."""
    return (FOLDER / name).resolve()


def find_config(file: str) -> str:
    """A YAML file as it was given; where there is no such file and the project ships one of that name
    ('configs/llama-2-7b.yaml'), the path of that one."""
    ours = FOLDER / file
    return str(ours.resolve()) if not Path(file).exists() and ours.is_file() else file
