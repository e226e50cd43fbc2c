"""Malformed data, flags, YAML, model folders and cards: each is one clear line with place and remedy, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner import cli
from aligner.launch import launch
from aligner.quality.check import examine

GOOD = '{"question": "q", "answer": "a", "correction": "c"}'

DATA = {
    "missing field": ('[{"question": "q", "correction": "c"}]', "row 1", "'answer' is missing"),
    "misspelt field": ('[{"question": "q", "anwser": "a", "correction": "c"}]', "row 1", "Rename 'anwser' to 'answer'"),
    "no fields": ("[{}]", "row 1", "no fields"),
    "number": ('[{"question": 5, "answer": "a", "correction": "c"}]', "row 1", "'question' is a number"),
    "null": ('[{"question": "q", "answer": null, "correction": "c"}]', "row 1", "'answer' is null"),
    "list": ('[{"question": "q", "answer": ["a"], "correction": "c"}]', "row 1", "'answer' is a list"),
    "object": ('[{"question": "q", "answer": {"a": 1}, "correction": "c"}]', "row 1", "'answer' is an object"),
    "truth": ('[{"question": true, "answer": "a", "correction": "c"}]', "row 1", "a truth value"),
    "empty": ('[{"question": "q", "answer": "a", "correction": ""}]', "row 1", "'correction' is empty"),
    "blank": ('[{"question": " \\n", "answer": "a", "correction": "c"}]', "row 1", "'question' is empty"),
    "surrogate": ('[{"question": "q\\ud800", "answer": "a", "correction": "c"}]', "row 1", "half a surrogate pair"),
    "NUL": ('[{"question": "q", "answer": "a\\u0000", "correction": "c"}]', "row 1", "a NUL character, at character 2"),
    "10 MB": ('[{"question": "q", "answer": "a", "correction": "' + "x" * 10_000_000 + '"}]', "row 1", "10,000,000 characters"),
    "key twice": ('[{"question": "q", "question": "r", "answer": "a", "correction": "c"}]', "row 1", "stands in it twice"),
    "row is text": ('["q"]', "row 1", "text where an object should be"),
    "row is a list": (f"[{GOOD}, [1]]", "row 2", "a list where an object should be"),
    "object for a list": (json.dumps({"data": [json.loads(GOOD)]}, indent=1), "broken.json", "one JSON object where a list"),
    "one object": (json.dumps(json.loads(GOOD), indent=1), "broken.json", "Wrap the rows in [ ]"),
    "broken array": (f"[{GOOD},\n {{]", "line 2 column 3", "Correct the file there"),
    "open array": (f"[{GOOD}", "line 1 column 53", "Correct the file there"),
    "two arrays": (f"[{GOOD}][{GOOD}]", "line 1 column 54", "Extra data"),
    "broken line": (f"{GOOD}\n{{\n{GOOD}", "row 2", "broken JSON at column 2"),
    "two on a line": (f"{GOOD}{GOOD}", "row 1", "Extra data"),
    "deep": ("[" * 100_000, "broken.json", "nested too deeply"),
    "a number of 5,000 digits": (f'[{{"question": {"9" * 5000}}}]', "broken.json", "thousands of digits"),
    "a line of 5,000 digits": (f'{GOOD}\n{{"question": {"9" * 5000}}}', "row 2", "thousands of digits"),
    "deep line": (f"{GOOD}\n" + '{"a":' * 100_000, "row 2", "nested too deeply"),
    "empty file": ("", "broken.json", "has no rows"),
    "only blanks": ("\n \n", "broken.json", "has no rows"),
    "empty array": ("[]", "broken.json", "has no rows"),
    "just text": ("hello", "row 1", "broken JSON"),
    "latin-1 array": (f'[{GOOD},\n{{"question": "\xe9"}}]'.encode("latin-1"), "line 2 is not UTF-8", "Save the file as UTF-8"),
    "latin-1 line": (f'{GOOD}\n{{"question": "\xe9"}}'.encode("latin-1"), "row 2", "not UTF-8 at byte 15"),
    "UTF-16": (f"[{GOOD}]".encode("utf-16"), "broken.json", "not UTF-8"),
    "binary": (bytes(range(256)), "broken.json", "UTF-8"),
}  # fmt: skip

YAML = {
    "not a mapping": ("- lr\n- 1", "must hold 'flag: value' lines"),
    "broken": ("lr: [1", "config.yaml"),
    "unknown key": ("learning: 1", "learning"),
    "near key": ("epoch: 3", "epochs"),
    "text for a number": ("epochs: three", "epochs"),
    "list for a number": ("epochs: [1, 2]", "epochs"),
    "mapping for a number": ("epochs: {a: 1}", "epochs"),
    "misspelt truth": ("bf16: yess", "bf16"),
    "bad choice": ("offload: everything", "offload"),
    "key twice": ("epochs: 1\nepochs: 2", "epochs"),
    "code": ("epochs: !!python/object/apply:os.system ['touch hacked']", "config.yaml"),
    "not UTF-8": (b"lr: \xff", "config.yaml"),
    "negative": ("epochs: -1", "at least 1"),
    "infinite": ("lr: .inf", "lr"),
    "tab": ("lr:\t- 1\n\tb: 2", "config.yaml"),
}  # fmt: skip

FLAGS = {
    "unknown flag": (["--learning_rte", "1"], "learning_rate"),
    "abbreviated": (["--epoch", "1"], "epochs"),
    "no number": (["--epochs", "many"], "epochs"),
    "not finite": (["--lr", "nan"], "lr"),
    "no value": (["--output_dir"], "output_dir"),
    "share above 1": (["--eval_split_ratio", "2"], "between 0 and 1"),
    "two precisions": (["--bf16", "--fp16"], "choose one"),
    "bad stage": (["--zero_stage", "4"], "zero_stage"),
    "offload at the wrong stage": (["--zero_stage", "1", "--offload", "parameter"], "works at ZeRO stage 3"),
    "length zero": (["--max_length", "0"], "at least 1"),
    "unknown prompt": (["--prompt_template", "corection"], "correction"),
    "no such data": (["--train_datasets", "no-such.json"], "no such file"),
    "bad proportion": (["--train_datasets", "correction-json:x:a.json"], "not a proportion"),
    "no such config": (["--config", "no-such.yaml"], "no such file"),
    "no such file to register": (["--register", "no-such.py"], "no such file"),
    "output is a file": (["--output_dir", str(TEMPLATE)], "template-dataset.json"),
}


def harmed(folder: Path, name: str) -> Path:
    """A model folder with one thing wrong."""
    config = folder / "config.json"
    values = json.loads(config.read_text())
    if name == "no config":
        config.unlink()
    elif name == "broken config":
        config.write_text("{")
    elif name == "config is a list":
        config.write_text("[]")
    elif name == "unknown type":
        config.write_text(json.dumps({**values, "model_type": "no-such-type"}))
    elif name == "foreign code":
        (folder / "evil.py").write_text("import pathlib; pathlib.Path('hacked').touch()")
        foreign = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        config.write_text(json.dumps({**values, "model_type": "evil", "auto_map": foreign}))
    elif name == "no tokenizer":
        for file in [
            *folder.glob("tokenizer*"),
            *folder.glob("special*"),
            *folder.glob("vocab*"),
            *folder.glob("merges*"),
        ]:
            file.unlink()
    elif name == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif name == "climbing template":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        names = ("default", "../../hacked")
        settings["chat_template"] = [{"name": name, "template": "x"} for name in names]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    elif name == "negative positions":
        config.write_text(json.dumps({**values, "max_position_embeddings": 1}))
    return folder


FOLDERS = {
    "no config": "config.json", "broken config": "config.json", "config is a list": "config", "unknown type": "no-such-type",
    "foreign code": "trust_remote_code", "no tokenizer": "tokenizer", "broken tokenizer": "tokenizer",
    "negative positions": "positions", "climbing template": "Invalid chat template name",
}  # fmt: skip

CARDS = {
    "broken": ("{", "aligner.json"),
    "list": ("[]", "aligner.json"),
    "no prompt": ("{}", "prompt"),
    "prompt without slots": ('{"prompt": {"name": "x", "text": "no slots"}}', "aligner.json"),
    "prompt is a number": ('{"prompt": 5}', "aligner.json"),
    "text is a list": ('{"prompt": {"name": "x", "text": []}}', "aligner.json"),
    "slot with an attribute": ('{"prompt": {"name": "x", "text": "{question.__class__} {answer}"}}', "aligner.json"),
    "not UTF-8": (b"\xff", "aligner.json"),
}  # fmt: skip


def one_line(said: str, *parts: str) -> None:
    """What a user reads: one line holds all of it, and no traceback is near."""
    assert "Traceback" not in said, said
    assert any(all(part in line for part in parts) for line in said.splitlines()), said
    assert not Path("hacked").exists()


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def status_of(name: str) -> int:
    """Of `aligner check`: 1 where rows cannot be used, 2 where the file cannot be read."""
    return 1 if DATA[name][1].startswith("row") or name == "binary" else 2


@pytest.mark.parametrize("name", DATA)
def test_unusable_data(name, capsys, tmp_path):
    content, place, finding = DATA[name]
    file = write(tmp_path / "broken.json", content)
    assert cli.main(["check", str(file)]) == status_of(name)
    said = capsys.readouterr().out
    one_line(said, "broken.json", place, finding)
    assert len(said) < 2000, "a report that a person can read"
    assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode()), "nothing is lost"
    # and training refuses it, too, naming file and finding
    assert (
        launch.main(
            ["--train_datasets", str(file), "--model_name_or_path", "embedded", "--output_dir", "o", "--dry_run"]
        )
        == 2
    )
    one_line(capsys.readouterr().err, "broken.json")


@pytest.mark.parametrize("name", YAML)
def test_bad_yaml(name, capsys, tmp_path):
    content, finding = YAML[name]
    write(tmp_path / "config.yaml", content)
    assert status(["--config", "config.yaml", "--dry_run"]) == 2
    one_line(capsys.readouterr().err, finding)


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags(name, capsys):
    flags, finding = FLAGS[name]
    assert (
        status(
            [
                "--model_name_or_path",
                "embedded",
                "--train_datasets",
                str(TEMPLATE),
                "--output_dir",
                "o",
                "--dry_run",
                *flags,
            ]
        )
        == 2
    )
    one_line(capsys.readouterr().err, finding)
    assert not Path("o").exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_bad_model_folders(name, capsys, tiny_model, tmp_path):
    folder = harmed(Path(shutil.copytree(tiny_model, tmp_path / "model")), name)
    assert (
        status(
            ["--model_name_or_path", str(folder), "--train_datasets", str(TEMPLATE), "--output_dir", "o", "--dry_run"]
        )
        == 2
    )
    one_line(capsys.readouterr().err, FOLDERS[name])


@pytest.mark.parametrize("name", CARDS)
def test_bad_cards(name, capsys, tiny_model, tmp_path):
    content, finding = CARDS[name]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    write(folder / "aligner.json", content)
    write(tmp_path / "in.jsonl", GOOD)
    assert cli.main(["correct", "--model", str(folder), "--input", "in.jsonl", "--output", "out.jsonl"]) == 2
    one_line(capsys.readouterr().err, finding)
    assert not Path("out.jsonl").exists()


def test_weights_in_a_pickle_are_not_opened_unless_asked(capsys, tiny_model, tmp_path):
    import torch

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    write(tmp_path / "in.jsonl", GOOD)
    command = [
        "correct",
        "--model",
        str(folder),
        "--input",
        "in.jsonl",
        "--output",
        "out.jsonl",
        "--prompt_template",
        "paper",
    ]
    assert cli.main(command) == 2
    one_line(capsys.readouterr().err, "safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 60), st.integers(0, 8), st.binary(max_size=4))))
def test_whatever_the_bytes_every_row_is_a_record_or_a_fault(tmp_path, drawn):
    """Any bytes, and a good file with a few bytes put in the place of others."""
    good = f"{GOOD}\n{GOOD}".encode()
    content = drawn if isinstance(drawn, bytes) else good[: drawn[0]] + drawn[2] + good[drawn[0] + drawn[1] :]
    report = examine([str(write(tmp_path / "rows.json", content))])
    for record in report.records:
        for text in (record.question, record.answer, record.correction):
            assert isinstance(text, str) and text.strip() and text.encode()
    for fault in report.faults:
        assert fault.file.endswith("rows.json") and fault.problem and fault.remedy
        assert "\n" not in str(fault) and (fault.row is None or fault.row >= 1)


def status(flags: list[str]) -> int | str | None:
    try:
        return launch.main(flags)
    except SystemExit as end:
        return end.code


COMMANDS = [("check", name) for name in ("misspelt field", "broken array", "latin-1 line", "deep", "10 MB")]
COMMANDS += [
    ("yaml", "near key"),
    ("yaml", "code"),
    ("flags", "unknown flag"),
    ("flags", "no such data"),
    ("flags", "not finite"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), COMMANDS)
def test_ten_of_them_through_the_command_line(kind, name, tmp_path):
    run = [sys.executable, "-m", "aligner.launch", "--dry_run"]
    if kind == "check":
        content, place, finding = DATA[name]
        command = [sys.executable, "-m", "aligner", "check", str(write(tmp_path / "broken.json", content))]
        expected, parts = status_of(name), (place, finding)
    elif kind == "yaml":
        content, finding = YAML[name]
        command = [*run, "--config", str(write(tmp_path / "config.yaml", content))]
        expected, parts = 2, (finding,)
    else:
        flags, finding = FLAGS[name]
        data = ["--model_name_or_path", "embedded", "--train_datasets", str(TEMPLATE), "--output_dir", "o"]
        command, expected, parts = [*run, *data, *flags], 2, (finding,)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == expected, done.stdout + done.stderr
    one_line(done.stdout + done.stderr, *parts)
