"""What a person mistypes: each is one line that names it and the nearest right one, without a list of all flags before it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from aligner.cli import main
from aligner.demo import locate
from aligner.records import DataError, UserError
from aligner.system_errors import system_error
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import parse_spec, register_files

LINES = {
    "a flag that another needs": ("correct --modle x", "there is no flag '--modle' (did you mean '--model'?)"),
    "a flag among right ones": (
        "correct --model a --input b --output c --max_new_token=4",
        "there is no flag '--max_new_token' (did you mean '--max_new_tokens'?)",
    ),
    "of another command": ("calibrate --model a --input b --gpus 8", "there is no flag '--gpus'"),
    "a word too many": ("export update-5 --output m again", "nothing takes 'again'"),
    "nothing": ("serve", "the following arguments are required: --upstream_url"),
    "no number": (
        "correct --model a --input b --output c --passes two",
        "argument --passes/--rounds: invalid int value: 'two'",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_wrong_command_line_is_one_line_with_the_nearest_flag(name, capsys):
    words, finding = LINES[name]
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert lines == [f"error: {finding}. 'aligner {words.split()[0]} --help' lists the flags."]


@pytest.mark.parametrize(
    ("place", "finding"),
    [
        ("/proc/x", "No such file or directory. Check how it is spelled"),
        ("{file}/x", "Not a directory. A part of the path is a file: name another path."),
        ("{folder}/" + "x" * 300, "File name too long. Name a shorter path."),
    ],
)
def test_an_output_that_cannot_be_written_says_what_to_do(place, finding, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "How?", "answer": "By hand.", "correction": "By machine."}) + "\n")
    output = place.format(file=rows, folder=tmp_path)
    assert main(["pairs", str(rows), "--output", output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert output in line and finding in line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_asks_for_room(number):
    assert str(system_error(OSError(number, "Full", "out.jsonl"))) == (
        "out.jsonl: Full. Make room and run the same command again."
    )


def test_what_is_refused_without_a_path_asks_for_no_other_path():
    assert (
        str(system_error(PermissionError(errno.EACCES, "Permission denied"))) == "the system says: Permission denied."
    )


def test_a_misspelt_model_is_named_before_a_hub_is_asked(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"'embeded': there is no such model\. Did you mean 'embedded'\?"):
        locate("embeded")
    (tmp_path / "output" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["correct", "--model", "./output/stf", "--question", "a", "--answer", "b"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: ./output/stf: there is no such folder. Did you mean 'output/sft'?"
    )


def test_a_name_that_nothing_registered_says_how_to_register_it():
    with pytest.raises(UserError, match=r"'no-such-set': there is no such file.* needs --register FILE\.py"):
        parse_spec("no-such-set")


def test_a_typing_error_in_a_registered_function_is_not_laid_at_the_datas_door(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"ticket": "a", "draft": "b", "sent": "c"}) + "\n")
    (tmp_path / "mine.py").write_text(
        "from aligner import Correction, register\n\n\n@register('typing-error', path=PATH)\n"
        "def tickets(row):\n    return Correction(row['tiket'], row['draft'], row['sent'])\n".replace(
            "PATH", repr(str(tmp_path / "rows.jsonl"))
        )
    )
    register_files([str(tmp_path / "mine.py")])
    [fault] = records_of(parse_spec("typing-error"))
    assert isinstance(fault, DataError)
    assert fault.problem == "the field 'tiket' is missing"
    assert fault.remedy == "Rename 'ticket' to 'tiket', or mend tickets in mine.py"


def test_a_report_on_another_file_is_not_written_over(tmp_path, capsys):
    for name in ("first", "second"):
        row = {"question": "a", "answer": "b", "corrected": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    flags = ["evaluate", "--output", str(tmp_path / "out"), "--after"]
    assert main([*flags, str(tmp_path / "first.jsonl")]) == 0
    assert main([*flags, str(tmp_path / "first.jsonl")]) == 0
    before = Path(tmp_path / "out" / "report.json").read_bytes()
    capsys.readouterr()
    assert main([*flags, str(tmp_path / "second.jsonl")]) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: {tmp_path}/out: holds the report on {tmp_path}/first.jsonl. Name another --output, or remove "
        f"{tmp_path}/out/report.json."
    )
    assert (tmp_path / "out" / "report.json").read_bytes() == before


def test_standard_input_is_called_by_its_name(tmp_path, monkeypatch, capsys):
    from io import BytesIO, TextIOWrapper

    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b'{"question": "a"}\n')))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    flags = ["--model", str(tmp_path / "model"), "--prompt_template", "correction"]
    assert main(["correct", *flags, "--input", "-", "--output", "-"]) == 2
    assert capsys.readouterr().err.strip().startswith("error: standard input row 1: the field 'answer' is missing.")


def test_too_few_rows_of_calibrate_say_what_is_wrong_with_the_others(tmp_path, capsys):
    rows = [{"question": "a", "response": "b"}] * 30
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main(["calibrate", "--model", "unread", "--input", str(tmp_path / "rows.json")]) == 2
    line = capsys.readouterr().err
    assert "0 usable rows" in line and "rows.json row 1: the field 'answer' is missing" in line
    assert "--columns answer=NAME" in line
