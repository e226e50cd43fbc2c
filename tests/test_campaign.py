"""`bash scripts/evaluate.sh`: questions to a table, in one command that goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_evaluate import fair
from test_servers import Told

from aligner import cli
from aligner.commands.campaign import check_flags
from aligner.evaluation.campaign import read_campaign

pytestmark = pytest.mark.usefixtures("quick_commands")


def main(arguments: list[str]) -> int:
    return cli.main(["campaign", *arguments])


@pytest.fixture
def both(told: Told) -> Told:
    """Upstream and judge in one: it judges what is a judge's prompt, and answers the rest in upper case."""
    told.rule = lambda text: fair(text) if "[Response A]" in text else text.upper()
    return told


def config(folder: Path, told: Told, model: Path) -> str:
    questions = folder / "q.json"
    questions.write_text(json.dumps([{"question": f"is {n} good?", "category": "x"} for n in range(3)]))
    upstream = {"upstream_url": told.url, "upstream_model": "m"}
    value = {
        "output": str(folder / "out"),
        "aligner": {"model": str(model), "prompt_template": "correction", "max_new_tokens": 4, "feedback": None},
        "judge": {"judge": "served", "judge_url": told.url, "judge_model": "m"},
        "sets": {"truthfulqa": {"dimensions": ["honest"], "path": str(questions)},
                 "beavertails": {"dimensions": ["helpful", "harmless"], "path": str(questions)}},
        "upstreams": {"one": upstream, "other": upstream},
    }  # fmt: skip
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    return str(file)


@pytest.mark.slow
def test_a_table_of_upstreams_and_nothing_is_done_twice(both, tiny_model, tmp_path, capsys):
    file = config(tmp_path, both, tiny_model)
    assert main([file]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-4].split() == ["truthfulqa", "honest", "beavertails", "helpful", "beavertails", "harmless"]
    assert [line.split()[0] for line in said[-3:]] == ["one", "other", "average"]
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    one, other = table["rows"]["one"], table["rows"]["other"]
    assert table["rows"]["average"] == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert (tmp_path / "out" / "one" / "truthfulqa" / "report.html").is_file()
    asked = len(both.asked)
    assert main([file]) == 0 and len(both.asked) == asked


def test_results_of_another_aligner_or_other_questions_are_not_taken_for_these(both, tiny_model, tmp_path, capsys):
    shutil.copytree(tiny_model, tmp_path / "model")
    file = Path(config(tmp_path, both, tmp_path / "model"))
    value = yaml.safe_load(file.read_text())
    del value["sets"]["truthfulqa"], value["upstreams"]["other"]
    file.write_text(yaml.safe_dump(value))
    assert main([str(file)]) == 0
    value["aligner"]["max_new_tokens"] = 5
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    assert main([str(file)]) == 2 and "was made with other aligner" in capsys.readouterr().err
    value["aligner"]["max_new_tokens"] = 4
    value["aligner"]["batch_size"] = 3
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    assert main([str(file)]) == 0, "how quickly it is made does not matter"
    weights = value["aligner"]["model"] + "/model.safetensors"
    Path(weights).write_bytes(Path(weights).read_bytes()[:-1] + b"\1")
    assert main([str(file)]) == 2 and "was made with other aligner" in capsys.readouterr().err, "trained anew"
    (tmp_path / "q.json").write_text(json.dumps([{"question": "another?"}]))
    assert main([str(file)]) == 2 and "was made with other questions" in capsys.readouterr().err


@pytest.mark.slow
def test_an_upstream_that_is_not_there_leaves_its_cell_empty(both, tiny_model, tmp_path, capsys, quick_commands):
    file = Path(config(tmp_path, both, tiny_model))
    value = yaml.safe_load(file.read_text())
    del value["sets"]["beavertails"]
    value["upstreams"]["one"] = {"upstream_url": "nowhere", "upstream_model": "m"}
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    assert main([str(file)]) == 1 and "error: one, truthfulqa: aligner correct ended with 2" in capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert rows["one"] == [None] and rows["other"] == rows["average"] != [None]
    value["upstreams"]["one"] = value["upstreams"]["other"]
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    assert main([str(file)]) == 0, "an address that was mended goes on"
    value["judge"]["judge_url"] = "nowhere"
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    assert main([str(file)]) == 1
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert rows["one"] == rows["other"] == [None], "an earlier judge's figures are not shown for this one"
    assert not (tmp_path / "out/other/truthfulqa/report.html").exists()


def test_the_papers_campaign_can_be_read():
    campaign = read_campaign(str(ROOT / "configs/evaluation/upstreams.yaml"))
    check_flags("it", campaign)
    assert len(campaign.upstreams) == 11 and sum(len(each.dimensions) for each in campaign.sets) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sets": {"nice": {"dimensions": ["helpful"]}}}, "there is no prompt set 'nice'"),
        ({"sets": {"truthfulqa": {}}}, "none is named"),
        ({"sets": {"truthfulqa": {"dimensions": ["nice"]}}}, "there is no dimension 'nice'"),
        ({"judges": {}}, "'judges' is not known"),
        ({"upstreams": []}, "upstreams holds a list, not names and values"),
        ({"output": 3}, "output holds a number, not text"),
        ({"aligner": None}, "has no aligner"),
        ({"aligner": {"max_new_tokens": 4}}, "aligner: names no model"),
        (
            {"aligner": {"model": "m", "modell": "m"}},
            "aligner: 'modell' is no flag of `aligner correct` to set here. Did you mean 'model'?",
        ),
        ({"upstreams": {"../x": {}}}, "upstreams: '../x' is to be a folder's name"),
        ({"judge": {"output": "x"}}, "judge: 'output' is no flag of `aligner evaluate` to set here"),
        ({"upstreams": {"one": {"upstream_uri": "x"}}}, "upstreams: one: 'upstream_uri' is no flag"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(change, said, both, tiny_model, tmp_path, capsys):
    file = Path(config(tmp_path, both, tiny_model))
    value = {name: each for name, each in (yaml.safe_load(file.read_text()) | change).items() if each is not None}
    file.write_text(yaml.safe_dump(value))
    assert main([str(file)]) == 2
    assert said in capsys.readouterr().err
