"""Several Aligners over the same rows, such as the checkpoints of one training run: losses by kind of token, and copying.

Each one's losses are of the corrections in the rows; its copying is of corrections that it makes itself. A resume state is
exported for the time it takes.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.evaluation.figures import KINDS, copying
from aligner.evaluation.judging import Progress
from aligner.evaluation.pairs import Pair, read_pairs
from aligner.evaluation.subprocess_step import Flags, command
from aligner.files import remove_folder, sha256_of, write_lines
from aligner.readers.rows import read_rows
from aligner.records import Row, UserError
from aligner.routing.config import read_routes
from aligner.steering.options import SteerOptions
from aligner.terminal import print_lines

if TYPE_CHECKING:
    from aligner.evaluation.losses import Shares

EXPORTED = "exported-"
STATE = "state.json"  # what a resume state has in its folder
_UPDATE = re.compile(r"update-(\d+)")


@dataclass(frozen=True)
class CheckpointSweep:
    """The Aligners to measure, [NAME=]model folders or resume states; `flags`: of `aligner correct`, for how they decode;
    `steering`: of the one Aligner there then is; `route`: a routes.yaml, measured like one more Aligner, of which each row has its
    own."""

    models: tuple[str, ...]
    flags: Flags
    steering: SteerOptions = SteerOptions()
    route: str | None = None

    def measure(self, pairs: Sequence[Pair], folder: Path, progress: Progress) -> list[dict[str, Any]]:
        """For each Aligner in order: its name, losses by upstream and kind, and copying figures by upstream.

        Its corrections are kept in `folder`, named by a digest of all that decides them, and used again by a later run.
        """
        rows = folder / "rows.jsonl"
        write_lines(rows, ({"question": p.question, "answer": p.before, "upstream": p.upstream} for p in pairs))
        for left in folder.glob(f"{EXPORTED}*"):  # left by a kill
            remove_folder(left)
        results = []
        for name, model in in_order(self.models):
            print_lines(f"{name}: losses and corrections of {len(pairs):,} answers")
            with as_model_folder(model, folder) as place:
                corrected = folder / f"{name}-{self._digest(rows, place)}.jsonl"
                if not corrected.exists():
                    command("correct", {"model": place, "input": rows, "output": corrected, **self._flags()})
                shares = self._losses(place, pairs, partial(progress, desc=name))
            steered = {"steered": self.steering.flags()} if self.steering.steer else {}
            results.append({"model": name, **steered, **_figures(pairs, shares, corrected)})
        return [*results, self._routed(pairs, rows, folder, progress)] if self.route else results

    def _routed(self, pairs: Sequence[Pair], rows: Path, folder: Path, progress: Progress) -> dict[str, Any]:
        """The figures of a route: each row's losses are its own Aligner's; rows that it leaves alone have none."""
        from aligner.demo import locate
        from aligner.routing.router import open_router

        routes = read_routes(str(self.route))
        print_lines(
            f"{routes.file}: losses and corrections of {len(pairs):,} answers, each by the Aligner of its route"
        )
        router = open_router(routes, self._trusted())
        choices = router.choose([pair.question for pair in pairs], [pair.before for pair in pairs])
        shares: dict[int, Shares] = {}
        digests = [sha256_of(routes.file), *([sha256_of(routes.classifier)] if routes.rows else [])]
        for name, each in routes.aligners.items():
            place = locate(each.model)
            digests.append(self._digest(rows, place, each.prompt_template))
            own = [number for number, choice in enumerate(choices) if choice.aligner == name]
            bar = partial(progress, desc=name)
            some = self._losses(place, [pairs[number] for number in own], bar, each.prompt_template) if own else {}
            shares |= {own[number]: share for number, share in some.items()}
        corrected = folder / f"routed-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:12]}.jsonl"
        if not corrected.exists():
            command("correct", {"route": routes.file, "input": rows, "output": corrected, **self._flags()})
        given = Counter(choice.aligner for choice in choices)
        return {"model": "routed", "routes": dict(given), **_figures(pairs, shares, corrected)}

    def _flags(self) -> dict[str, Any]:
        return {**self.flags, **self.steering.flags()}

    def _trusted(self) -> bool:
        return bool(self.flags.get("trust_remote_code"))

    def _digest(self, rows: Path, place: str, prompt: str | None = None) -> str:
        """A digest of all that decides an Aligner's corrections."""
        from aligner.card import prompt_of
        from aligner.models import fingerprint

        parts = [
            sha256_of(rows),
            fingerprint(place, self._trusted()),
            prompt_of(place, prompt or self.flags.get("prompt_template")).text,
            *sorted(f"{k}={v}" for k, v in self._flags().items()),
            *self.steering.digests(),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def _losses(
        self, place: str, pairs: Sequence[Pair], progress: Progress, prompt: str | None = None
    ) -> dict[int, Shares]:
        import torch

        from aligner.evaluation.losses import losses
        from aligner.inference.corrector import Corrector

        prompt, trusted = prompt or self.flags.get("prompt_template"), self._trusted()
        aligner = Corrector.load(place, prompt, trust_remote_code=trusted, steer=self.steering)
        shares = losses(aligner.model, aligner.encoder, aligner.template, pairs, progress)
        del aligner
        torch.cuda.empty_cache()  # the next one corrects in a process of its own, and needs the room
        return shares


def _figures(pairs: Sequence[Pair], shares: Mapping[int, Shares], corrected: Path) -> dict[str, Any]:
    """What became of the rows, their losses, and what was copied of the answers."""
    from aligner.evaluation.losses import means  # imports torch, for which other evaluations need not wait

    corrected_pairs, faults = read_pairs(str(corrected))
    cut = sum(isinstance(row, Row) and row.value.get("finished") is False for row in read_rows(corrected))
    counts = {"cut_off": cut, "left_out": len(pairs) - len(shares), "failed": len(faults)}
    return {**counts, "loss": means(shares, pairs), "copying": copying(corrected_pairs)}


def in_order(models: Sequence[str]) -> list[tuple[str, str]]:
    """Names and places: resume states by their update, for a shell sorts update-10 before update-9; then the others.

    UserError where one is a folder of something else, or two have one name.
    """
    named = [_named(model) for model in models]
    for _, model in named:
        if Path(model).is_dir() and not any((Path(model) / file).is_file() for file in ("config.json", STATE)):
            raise UserError(f"{model}: is no model folder and no resume state; those are RUN/checkpoints/update-N.")
    if twice := next((name for name, _ in named if [n for n, _ in named].count(name) > 1), None):
        raise UserError(f"--models has two called '{twice}': write NAME=DIR for one of them.")
    numbers = {name: int(match[1]) for name, _ in named if (match := _UPDATE.fullmatch(name))}
    return sorted(named, key=lambda each: (each[0] not in numbers, numbers.get(each[0], 0)))


def _named(model: str) -> tuple[str, str]:
    """NAME=DIR, or a place that is called by its last part. A folder may have an equals sign in its own name."""
    name, _, place = model.partition("=")
    if name and place and "/" not in name and not Path(model).exists():
        return name, place
    return Path(model).name or model, model


@contextmanager
def as_model_folder(model: str, folder: Path) -> Iterator[str]:
    """A model's folder; of a resume state one under `folder` that is gone afterwards."""
    if not (Path(model) / STATE).is_file():
        yield model
        return
    with tempfile.TemporaryDirectory(prefix=EXPORTED, dir=folder) as place:
        command("export", {"output": Path(place) / "model"}, model)
        yield str(Path(place) / "model")


def sweep_lines(sweep: Sequence[dict[str, Any]]) -> list[str]:
    """The table for a terminal: over all rows, a line for each Aligner."""
    if not sweep:
        return []
    width = max(len("Aligner"), *(len(each["model"]) for each in sweep))
    heads = [f"loss {kind}" for kind in KINDS] + ["identical", "copied", "similarity"]
    table = [f"{'Aligner':<{width}}  " + "  ".join(f"{head:>11}" for head in heads)]
    for each in sweep:
        loss, copied = each["loss"]["all"], each["copying"]["all"]
        cells = ["-" if loss[kind]["loss"] is None else f"{loss[kind]['loss']:.3f}" for kind in KINDS]
        cells += [
            f"{copied['identical'] / copied['pairs']:.1%}",
            f"{copied['copied']:.1%}",
            f"{copied['similarity']:.2f}",
        ]
        table.append(f"{each['model']:<{width}}  " + "  ".join(f"{cell:>11}" for cell in cells))
    if cut := max(each["cut_off"] for each in sweep):
        table.append(
            f"up to {cut:,} corrections did not end by themselves: a larger --max_new_tokens may change what was copied"
        )
    return table
