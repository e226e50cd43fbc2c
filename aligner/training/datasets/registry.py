"""The registry of raw data sets, and the specs `NAME[:PROPORTION[:PATH]]` that name one on a command line.

A raw data set is one function from a row to a record; reading, counting and checking are done here for all of them.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import inspect
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from aligner.files import read_text, sha256_of
from aligner.hub import commit_of, is_hub_address, parse_address
from aligner.readers.paths import data_files, home_expanded, names_data
from aligner.records import Correction, Skipped, UserError
from aligner.training.datasets.formats import QAC as QAC_ROWS
from aligner.training.datasets.formats import format_of_file
from aligner.training.datasets.options import NO_OPTIONS, Options, parse_columns, split_columns
from aligner.training.datasets.original_names import instead_of

log = logging.getLogger("aligner")
Formatter = Callable[..., Correction | Skipped | list[Correction | Skipped]]  # of a row; rated ones give several


# Formatters by the hash of their source, and of the one in 0.1.0 that gives the same records: runs of then go on.
SAME_RECORDS = {
    "b4811b2f3b31": "a74977992ff9",  # correction-json
    "d00b7839fd49": "d87721cb1716",  # empathy-json
    "3db77a4115f5": "ab6beeff58e5",  # aligner-20k
    "cec8ebdc21ed": "b260acaf7f66",  # alignertails
}


@dataclass(frozen=True)
class RawDataset:
    """A registered data set: its formatter, the default path of its rows, and the prompt that its records take.

    sources: files besides the formatter that decide its records. together: the field whose equal values make neighbouring rows
    one, which the formatter then has as a list. anew: the formatter takes `copy`, how often the rows were taken before, and gives
    other records each time.
    """

    name: str
    formatter: Formatter
    path: str | None = None
    template: str | None = None
    sources: tuple[Path, ...] = ()
    together: str | None = None
    anew: bool = False

    def choices(self) -> set[str]:
        """The options that the formatter takes: its keyword-only arguments."""
        parameters = inspect.signature(self.formatter).parameters.values()
        return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - ({"copy"} if self.anew else set())

    def version(self, options: Options) -> str:
        """The name, a hash of the formatter's source and its options: another formatter gives other records."""
        source = "".join([inspect.getsource(self.formatter), *map(read_text, self.sources)])
        chosen = [f"{name}={value}" for name, value in options.chosen_for(self.name, self.choices()).items()]
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        return " ".join([self.name, SAME_RECORDS.get(digest, digest), *chosen])


@dataclass(frozen=True)
class Spec:
    """A data set on a command line. `proportion` of its rows, or `count` of them where that is given."""

    text: str
    dataset: RawDataset
    proportion: Fraction
    count: int | None
    path: str

    def files(self) -> dict[str, str]:
        """The files that are read, each with its sha256; none for the hub, whose commit says it."""
        return {} if is_hub_address(self.path) else {str(file): sha256_of(file) for file in data_files(self.path)}

    def sha256(self, files: Mapping[str, str]) -> str:
        """What the rows are: the file's sha256, or one over those of several; the commit on the hub."""
        if is_hub_address(self.path):
            return commit_of(parse_address(self.path))
        if len(files) == 1:
            return next(iter(files.values()))
        return hashlib.sha256("".join(files.values()).encode()).hexdigest()

    def size(self, rows: int) -> int:
        """How many of `rows` rows to take; more than there are means up-sampling."""
        return self.count if self.count is not None else round(rows * self.proportion)


REGISTERED: dict[str, RawDataset] = {}


def register(
    name: str,
    path: str | None = None,
    template: str | None = None,
    sources: Sequence[Path] = (),
    together: str | None = None,
    anew: bool = False,
) -> Callable[[Formatter], Formatter]:
    """Register a formatter under a name that specs can use; the other arguments as in RawDataset.

    UserError where the name is taken or holds a colon.
    """
    if ":" in name or not name.strip():
        raise UserError(f"a data set cannot be called '{name}': a name has no colon and is not empty.")

    def keep(formatter: Formatter) -> Formatter:
        earlier = REGISTERED.get(name)
        if earlier and earlier.formatter.__code__.co_filename != formatter.__code__.co_filename:
            raise UserError(
                f"the data set name '{name}' is already registered in {earlier.formatter.__code__.co_filename}."
            )
        dataset = RawDataset(name, formatter, path, template, tuple(sources), together, anew)
        if unknown := dataset.choices() - set(Options.__dataclass_fields__):
            known = ", ".join(Options.__dataclass_fields__)
            raise UserError(f"data set '{name}' takes '{min(unknown)}', which no flag sets. There are {known}.")
        REGISTERED[name] = dataset
        return formatter

    return keep


def register_files(files: list[str]) -> None:
    """Run the user's Python files so that they register their data sets (`--register`)."""
    for file in files:
        location = home_expanded(file)
        if not location.is_file():
            raise UserError(f"--register {file}: there is no such file.")
        digest = hashlib.sha256(str(location.resolve()).encode()).hexdigest()[:12]
        specification = importlib.util.spec_from_file_location(f"aligner_registered_{digest}", location)
        if specification is None or specification.loader is None:
            raise UserError(f"--register {file}: is not a Python file.")
        try:
            specification.loader.exec_module(importlib.util.module_from_spec(specification))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"--register {file}: fails with {type(error).__name__}: {error}") from error


def parse_spec(text: str, options: Options = NO_OPTIONS) -> Spec:
    """Read `NAME[:PROPORTION[:PATH]]` or a bare path: `correction-json::PATH`, or the data set of the format that its rows have.

    PROPORTION is a decimal, a fraction `a/b`, or a count `N/-1`; above 1 it repeats rows. UserError otherwise.
    """
    name, colon, rest = text.partition(":")
    dataset = REGISTERED.get(name)
    if dataset is None:
        if not names_data(text):
            raise UserError(_unknown(text, name))
        return Spec(text, REGISTERED[_format(text, options)], Fraction(1), None, text)
    share, _, path = rest.partition(":")
    if colon and ":" in rest and not path:
        raise UserError(f"'{text}': the path behind the second colon is empty.")
    proportion, count = _parse_share(text, name, share.strip())
    path = path or dataset.path or ""
    if not path:
        raise UserError(f"'{text}': {name} needs a path. Write {name}::PATH.")
    place = str(parse_address(path, dataset.path)) if is_hub_address(path) else str(home_expanded(path))
    return Spec(text, dataset, proportion, count, place)


def _format(path: str, options: Options) -> str:
    """The data set that a bare path means: the one of `--format`, the one whose fields `--columns` names, or what it holds."""
    if options.format or parse_columns(options.columns, QAC_ROWS):
        return options.format or QAC_ROWS
    name = format_of_file(path)
    if name != QAC_ROWS:
        _tell(f"{path}: read as rows of '{name}' (--format names another)")
    return name


@functools.cache
def _tell(text: str) -> None:
    """Say it once, however often a file is opened."""
    log.info(text)


def _unknown(text: str, name: str) -> str:
    if remedy := instead_of(name):
        return f"'{text}': '{name}' is a name of the original's; {remedy}."
    near = difflib.get_close_matches(name, REGISTERED, n=1)
    if ":" in text and near:
        return f"'{text}': there is no data set '{name}'. Did you mean '{near[0]}'?"
    problem = (
        f"'{text}': there is no such file, nor a data set of that name (known: {', '.join(sorted(REGISTERED))}). One of your "
        "own needs --register FILE.py (of a build: register: [FILE.py])."
    )
    if re.fullmatch(r"(?:hub:)?[\w.-]+/[\w.-]+", text):
        repo = text.removeprefix("hub:")
        known = [d.name for d in REGISTERED.values() if (d.path or "").startswith(f"hub:{repo}@")]
        problem += f" For the hub's {repo} write {known[0] if known else f'correction-json::hub:{repo}'}."
    return problem


def _parse_share(text: str, name: str, share: str) -> tuple[Fraction, int | None]:
    if not share:
        return Fraction(1), None
    left, slash, right = share.partition("/")
    try:
        if slash and int(right) == -1:
            if int(left) < 1:
                raise ValueError
            return Fraction(1), int(left)
        value = Fraction(left.strip()) / Fraction(right.strip()) if slash else Fraction(share)
    except (ValueError, ZeroDivisionError):
        problem = f"'{text}': '{share}' is not a proportion (0.5, 1/3, or 1000/-1 for a count)."
        remedy = f" For a path write {name}::{share}." if home_expanded(share).exists() else ""
        raise UserError(problem + remedy) from None
    if value <= 0 or not math.isfinite(float(value)):
        raise UserError(f"'{text}': the proportion must be above 0.")
    return value, None


def check_options(specs: Sequence[Spec], options: Options) -> None:
    """UserError where an option was given that none of the data sets takes, or columns for one that is not there."""
    for option in options.names():
        if not any(option in spec.dataset.choices() for spec in specs):
            names = ", ".join(sorted({spec.dataset.name for spec in specs}))
            takers = ", ".join(sorted(name for name, known in REGISTERED.items() if option in known.choices()))
            raise UserError(f"--{option} is read by none of the data sets here ({names}). It is for {takers}.")
    for spec in specs:
        options.chosen_for(spec.dataset.name, spec.dataset.choices())  # says what is wrong with the columns
    for text in options.columns:
        name, _ = split_columns(text)
        if name and name not in {spec.dataset.name for spec in specs}:
            raise UserError(f"--columns {text} speaks of '{name}', which is not among the data sets of this run.")
