"""Several Aligners from the command that trains their route to files and a served layer, with real models."""

from __future__ import annotations

import json

import pytest
from layered import ANSWER, ask, corrector, exchange, serving, until
from test_correct_file import lines
from test_routing import read

from aligner.cli import main
from aligner.inference.config import AlignerOptions
from aligner.routing.config import NONE
from aligner.routing.router import open_router
from aligner.serving.command import routed_aligners
from aligner.serving.config import ServeConfig
from aligner.serving.routed import RoutedCorrector
from aligner.serving.worker import Worker

__all__ = ["corrector"]  # a fixture
pytestmark = pytest.mark.slow


@pytest.fixture
def routed(corrector, told, tmp_path):
    """The layer before two Aligners, which rules choose between."""
    text = "aligners: {a: x, b: x}\nrules: [{words: [there], to: a}, {at_most: 1, to: none}]\notherwise: b"
    several = exchange(corrector, told.url)
    router = open_router(read(tmp_path, text))
    several.worker = RoutedCorrector(router, {"a": Worker(corrector), "b": Worker(corrector)})
    with serving(several) as address:
        yield address, several


def test_a_served_answer_says_which_aligner_corrected_it(routed, corrector):
    address, several = routed
    notes = [
        ask(address, question).choices[0].model_extra["aligner"] for question in ("who is there?", "and who else?")
    ]
    assert [(note["action"], note["model"], note["route"]) for note in notes] == [
        ("corrected", "a", {"aligner": "a", "by": "rule 1"}),
        ("corrected", "b", {"aligner": "b", "by": "otherwise"}),
    ]
    assert {name: each["chosen"] for name, each in several.describe()["routes"].items()} == {"a": 1, "b": 1, NONE: 0}


def test_what_is_routed_to_none_goes_back_as_it_came_whole_and_as_a_stream(routed):
    address, _ = routed
    choice = ask(address, "Hello").choices[0]
    note = choice.model_extra["aligner"]
    assert (choice.message.content, note["action"], note["model"]) == ("HELLO", "left_alone", None)
    assert note["reason"] == "the route is to no Aligner" and choice.finish_reason == "stop"
    chunks = list(ask(address, "Hello", stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == "HELLO"
    assert chunks[-1].choices[0].model_extra["aligner"]["route"] == {"aligner": NONE, "by": "rule 2"}


def test_what_is_routed_to_none_is_no_row_of_the_shadow_file(corrector, told, tmp_path):
    file = tmp_path / "rows.jsonl"
    several = exchange(corrector, told.url, file, mode="shadow")
    routes = read(tmp_path, "aligners: {a: x}\nrules: [{words: [there], to: a}]\notherwise: none")
    several.worker = several.behind._worker = RoutedCorrector(open_router(routes), {"a": Worker(corrector)})
    with serving(several) as address:
        for question in ("who is there?", "Hello"):
            ask(address, question)
        until(lambda: several.counts["shadow"] == several.counts["left_alone"] == 1)
    assert [row["question"] for row in lines(file)] == ["who is there?"]


def test_the_whole_way_with_a_real_model(tiny_model, tmp_path, monkeypatch, capsys):
    """Trained by the command on the Aligner's own states, then used by correct, for a file and one answer, and by serve."""
    monkeypatch.chdir(tmp_path)
    for name, of in (("plants", "leaves and roots of a tree"), ("stars", "the light of 7 suns")):
        rows = [{"question": f"Tell me of {of}, part {n}", "answer": ANSWER} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = f"{{model: {tiny_model}, prompt_template: correction, rows"
    routes = read(tmp_path, f"aligners:\n  plants: {model}: plants.jsonl}}\n  stars: {model}: stars.jsonl}}\n")
    assert main(["route", "routes.yaml", "--train"]) == 0
    assert "of 16 questions that nothing was chosen on" in capsys.readouterr().out
    flags = ["--route", "routes.yaml", "--max_new_tokens", "4", "--keep_unfinished"]
    assert main(["correct", *flags, "--input", "stars.jsonl", "--output", "out.jsonl"]) == 0
    by = [row["route"]["aligner"] for row in lines(tmp_path / "out.jsonl")]
    assert by.count("stars") >= 36 and all(row["corrected"] for row in lines(tmp_path / "out.jsonl"))
    capsys.readouterr()
    one = [
        "--route",
        "routes.yaml",
        "--max_new_tokens",
        "4",
        "--question",
        "Tell me of leaves and roots of a tree, part 7",
    ]
    assert main(["correct", *one, "--answer", "No."]) == 0
    assert "route: plants: by classifier, probability" in capsys.readouterr().out
    options = AlignerOptions(max_new_tokens=4)
    _, several = routed_aligners(ServeConfig("", "http://127.0.0.1:1/v1", options, route="routes.yaml"), routes)
    assert several.router.choose([rows[0]["question"]], [""])[0].aligner == "stars"


def test_routed_losses_are_each_rows_own_aligners_by_set_and_beside_corrections(
    trained, tmp_path, monkeypatch, capsys, quick_commands
):
    """Two stages of one run stand for two Aligners: the identity stage and the whole one."""
    monkeypatch.chdir(tmp_path)
    folder = trained[0]
    rows = [{"question": f"{'Long ' * (n % 2)}thing {n}?", "answer": "No.", "correction": "Yes."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    aligners = f"aligners: {{whole: {folder}, copies: {folder / 'identity'}}}\n"
    read(tmp_path, f"{aligners}rules: [{{words: [long], to: copies}}]\notherwise: whole\n")
    sets = ["--sets", "one=rows.jsonl", "--models", f"before={folder / 'identity'}", f"after={folder}"]
    assert main(["evaluate", *sets, "--route", "routes.yaml", "--output", "sets"]) == 0
    figures = json.loads((tmp_path / "sets" / "sets.json").read_text())["figures"]["one"]
    assert figures["routed"]["given"] == {"whole": 6, "copies": 6, NONE: 0}
    before, after = (row["loss"] for row in figures["systems"])
    assert figures["systems"][1]["change"]["value"] == pytest.approx(after - before)
    assert figures["routed"]["alone"] == pytest.approx({"whole": after, "copies": before})
    whole = ["--after", "rows.jsonl", "--route", "routes.yaml", "--max_new_tokens", "4"]
    capsys.readouterr()
    assert main(["evaluate", *whole, "--output", "out"]) == 0
    [course] = json.loads((tmp_path / "out" / "report.json").read_text())["course"]
    assert course["model"] == "routed" and course["routes"] == {"whole": 6, "copies": 6}
    tokens = sum(each["tokens"] for each in course["loss"]["all"].values())
    nll = sum(each["tokens"] * (each["loss"] or 0) for each in course["loss"]["all"].values())
    assert nll / tokens == pytest.approx(figures["routed"]["loss"], abs=1e-4)
