"""`aligner evaluate --models`: several Aligners over the same rows, such as the checkpoints of a run."""

from __future__ import annotations

import json

import pytest
from test_correct_file import write

from aligner import cli
from aligner.evaluation.checkpoint_sweep import in_order
from aligner.records import UserError

ROWS = [{"question": f"what is {n}?", "answer": f"it is {n}", "corrected": f"it is {n}, I think",
         "upstream": ("one", "other")[n % 2]} for n in range(4)]  # fmt: skip


def test_states_come_in_order_of_their_updates_and_other_models_after_them():
    """A shell gives update-10 before update-9."""
    models = ["run/checkpoints/update-10", "base", "run/checkpoints/update-9"]
    assert [name for name, _ in in_order(models)] == ["update-9", "update-10", "base"]
    with pytest.raises(UserError, match="two called 'update-9'"):
        in_order(["a/update-9", "b/update-9"])


def test_states_of_two_runs_stand_in_one_table_under_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_order(["mine=a/update-9", "b/update-9"]) == [("update-9", "b/update-9"), ("mine", "a/update-9")]
    (tmp_path / "lr=1e-5").mkdir()
    (tmp_path / "lr=1e-5" / "config.json").write_text("{}")
    assert in_order(["lr=1e-5"]) == [("lr=1e-5", "lr=1e-5")], "a folder that is there is a folder"


def test_a_folder_of_states_is_no_model(tmp_path, capsys):
    after = write(tmp_path / "after.jsonl", ROWS)
    assert cli.main(["evaluate", "--after", after, "--output", str(tmp_path / "out"), "--models", str(tmp_path)]) == 2
    assert "is no model folder and no resume state" in capsys.readouterr().err


def test_a_state_and_its_run_have_the_same_figures_and_nothing_is_corrected_twice(
    trained, tmp_path, capfd, quick_commands
):
    whole = trained[0]
    [state] = (whole / "checkpoints").iterdir()
    after, out = write(tmp_path / "after.jsonl", ROWS), tmp_path / "out"
    command = [
        "evaluate",
        "--after",
        after,
        "--output",
        str(out),
        "--models",
        str(whole),
        str(state),
        "--max_new_tokens",
        "8",
    ]
    assert cli.main(command) == 0
    said = capfd.readouterr().out
    assert "loss copied" in said and said.count("4 of 4 answers corrected") == 2
    first, second = json.loads((out / "report.json").read_text())["course"]
    assert (first["model"], second["model"]) == ("update-5", whole.name)
    assert first["loss"] == second["loss"] and first["copying"] == second["copying"]
    assert list(first["loss"]) == ["all", "one", "other"] and first["loss"]["all"]["end"]["tokens"] == 4
    assert [path.name for path in (out / "models").iterdir() if path.is_dir()] == [], "the exported state is gone"
    assert "Along the Aligners" in (out / "report.html").read_text()
    (out / "models" / "exported-by-a-kill").mkdir()
    assert cli.main(command) == 0 and not (out / "models" / "exported-by-a-kill").exists()
    assert "answers corrected" not in capfd.readouterr().out
