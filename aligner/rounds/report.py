"""The report over rounds: rounds.json, and out of it a page without scripts or network, a picture and the lines for a terminal."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aligner.evaluation.measures.page import STYLE
from aligner.files import is_completed, read_json, write_json, write_text
from aligner.plots import draw_rounds
from aligner.rounds.config import RoundsConfig
from aligner.rounds.course import place
from aligner.rounds.figures import falls, help_and_harm, round_figures
from aligner.rounds.work import ANSWERS, CORRECTED, LIKELIHOODS, rows_in

HEADS = ("round", "trained on", "lead, nats (95 %)", "rise", "rise, other questions' corrections", "rise beyond those")
UNIT = (
    "lead: log p(correction) - log p(answer) given the question, in nats, on held-out questions, whose answers are those of the "
    "upstream as it was and whose corrections are the Aligner's; rise: over the round before, paired by question"
)


def report_of(config: RoundsConfig) -> dict[str, Any]:
    """The figures of all rounds that are measured. best: the round whose upstream leads most."""
    rounds: list[dict[str, Any]] = []
    before = None
    for number in range(config.rounds + 1):
        folder = place(config, number, "measured")
        if not is_completed(folder):
            break
        rows = rows_in(folder / LIKELIHOODS)
        counts = _counts(config, number) if number else {}
        rounds.append({"round": number, **counts, **round_figures(rows, before), **_help_and_harm(config, number)})
        before = rows
    best = max(rounds, key=lambda each: each["lead"]["value"])["round"]
    about = {"method": config.method, "aligner_each_round": config.aligner_each_round, "shuffled": config.shuffled}
    return {**about, "asked": config.rounds, "best": best, "rounds": rounds}


def _counts(config: RoundsConfig, number: int) -> dict[str, Any]:
    pairs = read_json(place(config, number, "pairs") / "rows" / "pairs.json")
    return {"supervised": pairs["supervised"], "preferences": pairs["preference"]}


def _help_and_harm(config: RoundsConfig, number: int) -> dict[str, Any]:
    replies, aligned = place(config, number, "replies"), place(config, number, "aligned")
    if not (config.help_and_harm and is_completed(aligned)):
        return {}
    own = help_and_harm(rows_in(replies / ANSWERS), "answer")
    behind = help_and_harm([row for row in rows_in(aligned / CORRECTED) if row["corrected"] is not None], "corrected")
    return {"upstream": own, "with_aligner": behind}


def fell(report: Mapping[str, Any]) -> bool:
    """Whether the last round that was measured fell behind the one before."""
    return len(report["rounds"]) > 1 and falls(report["rounds"][-1])


def write_report(config: RoundsConfig) -> list[str]:
    """Write the report of the rounds so far; returns the lines for a terminal."""
    report, folder = report_of(config), Path(config.output)
    write_json(folder / "rounds.json", report)
    draw_rounds(report["rounds"], folder / "rounds.png")
    write_text(folder / "rounds.html", page(report, (folder / "rounds.png").read_bytes()))
    lines = [f"{config.method}, {len(report['rounds']) - 1} of {config.rounds} rounds: {verdict(report)}"]
    for each in report["rounds"]:
        cells = cells_of(each)
        risen = f"; rose {cells[3]}, with other questions' corrections {cells[4]}" if cells[3] else ""
        lines.append(f"  round {cells[0]}: lead {cells[2]}{risen}")
        lines += [f"    {line}" for line in _help_lines(each)]
    return [*lines, f"{folder / 'rounds.html'}"]


def verdict(report: Mapping[str, Any]) -> str:
    """What can be said of the rounds in one line."""
    later = report["rounds"][1:]
    if not later:
        return "nothing is trained yet"
    if fell(report):
        return f"the held-out measure fell in round {later[-1]['round']}: round {report['best']} is the best"
    beyond = all(each["rise_beyond_shuffled"]["low"] > 0 for each in later)
    if all(each["rise"]["low"] > 0 for each in later):
        rises = "the held-out measure rose in every round, each time with its interval above zero"
        return rises + ("" if beyond else "; but so it does, as far as can be told, with other questions' corrections")
    chance = "the held-out measure did not rise in every round by more than chance"
    return chance + ("; beyond other questions' corrections it did" if beyond else "")


def _help_lines(each: Mapping[str, Any]) -> list[str]:
    names = {"upstream": "upstream", "with_aligner": "upstream + Aligner"}
    return [
        f"{name}: help {_share(each[key].get('help'))}, harmless {_share(each[key].get('harmless'))}"
        for key, name in names.items()
        if key in each
    ]


def cells_of(each: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    names = ("lead", "rise", "shuffled_rise", "rise_beyond_shuffled")
    rows = f"{each['supervised']:,} + {each['preferences']:,}" if "supervised" in each else "as it is"
    return [str(each["round"]), rows, *(_interval(each.get(name)) for name in names)]


def _interval(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate['value']:+.2f} ({estimate['low']:+.2f} to {estimate['high']:+.2f})"


def _share(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['value']:.0%} ({max(0.0, estimate['low']):.0%} to {min(1.0, estimate['high']):.0%})"


def page(report: Mapping[str, Any], picture: bytes) -> str:
    """The page: the verdict first, the picture, the tables, and what the figures are."""
    rounds: Sequence[Mapping[str, Any]] = report["rounds"]
    tables = _table(HEADS, [cells_of(each) for each in rounds])
    if "upstream" in rounds[0]:
        heads = ("round", "help", "harmless", "help, with the Aligner", "harmless, with the Aligner")
        sides = [(key, name) for key in ("upstream", "with_aligner") for name in ("help", "harmless")]
        rows = [[str(each["round"]), *(_share(each[key].get(name)) for key, name in sides)] for each in rounds]
        tables += f"<h2>Help against harm</h2>{_table(heads, rows)}"
        tables += "<p>help: safe prompts that are answered; harmless: unsafe ones that are declined, by the strings of XSTest.</p>"
    kind = "fooled" if fell(report) else "helps" if "each time" in verdict(report) else ""
    notes = [UNIT, "trained on: supervised rows + preferences"]
    if report["shuffled"]:
        notes.append("this run is a control: the corrections that it trained on belong to other questions")
    title = f"Rounds by {report['method']}"
    image = f"<img alt='rounds' src='data:image/png;base64,{b64encode(picture).decode()}'>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>'
        f"<p class='verdict {kind}'>{escape(verdict(report))}.</p>{image}{tables}"
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul></html>\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
