"""`aligner correct --sentences` with `transformers serve`, a real server: the turns are those of the same model on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import sft
from test_correct_file import lines, write
from test_real_servers import free_port, serving

from aligner.cli import main

pytest.importorskip("sentencex")
pytestmark = pytest.mark.slow
QUESTIONS = ["What is the moon?", "Who are you?", "Why is the sky blue?"]


@pytest.fixture(scope="module")
def chatting(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with a chat template, which its text ends."""
    folder = tmp_path_factory.mktemp("chatting") / "model"
    shutil.copytree(tiny_model, folder)
    template = "Q: {% for m in messages %}{{ m['content'] }}{% endfor %} A:"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_served_upstream_and_one_on_this_machine_write_the_same_turns(tiny_model, chatting, tmp_path):
    rows, port = write(tmp_path / "in.jsonl", [{"question": question} for question in QUESTIONS]), free_port()
    aligner = [
        "correct",
        "--sentences",
        "--model",
        str(tiny_model),
        "--prompt_template",
        "sentence",
        "--keep_unfinished",
    ]
    common = ["--max_new_tokens", "8", "--upstream_max_tokens", "24", "--input", str(rows)]
    folder = ["--upstream_folder", str(chatting)]
    assert main([*aligner, *common, *folder, "--output", str(tmp_path / "here.jsonl")]) == 0
    with serving(chatting, port):
        served = ["--upstream_url", f"http://127.0.0.1:{port}/v1", "--upstream_model", str(chatting)]
        flags = ["--upstream_temperature", "0", "--output", str(tmp_path / "served.jsonl")]
        assert main([*aligner, *common, *folder, *served, *flags]) == 0
    here, there = lines(tmp_path / "here.jsonl"), lines(tmp_path / "served.jsonl")
    assert [row["by_sentence"][0]["corrected"] for row in there] == [row["by_sentence"][0]["corrected"] for row in here]
    assert all(row["corrected"].strip() for row in there)


def test_any_data_trains_an_aligner_of_sentences_and_its_card_says_so(tiny_model, tmp_path):
    good = "A cat sat on the mat. It is {} years old. Nobody knows why it sits there."
    rows = [
        {"question": f"Tell me of cat {n}.", "answer": good.format(n), "correction": good.format(n + 1)}
        for n in range(16)
    ]
    rows += [
        {
            "question": "Who?",
            "answer": "One two. Three four.",
            "correction": "Entirely different. Something else. More.",
        }
    ]
    data, out = write(tmp_path / "train.jsonl", rows), tmp_path / "out"
    flags = [
        "--train_datasets",
        data,
        "--model_name_or_path",
        tiny_model,
        "--output_dir",
        out,
        "--gpus",
        "1",
        "--epochs",
        "1",
    ]
    done = sft(*flags, "--sentences", "--identity_proportion", "0.25", "--save_interval", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--sentences" in done.stdout, "the next command corrects by sentences"
    card = json.loads((out / "aligner.json").read_text())
    assert "{prefix}" in card["prompt"]["text"]
    [source] = card["data"]["train"]
    assert (source["taken"], source["skipped"]) == (48, 2) and "sentences=sentencex" in source["dataset"]
    assert json.loads((out / "identity" / "aligner.json").read_text())["prompt"] == card["prompt"]
    files = ["--input", str(data), "--output", str(tmp_path / "corrected.jsonl"), "--max_new_tokens", "16"]
    assert main(["correct", "--model", str(out), "--sentences", *files]) == 0
    assert all(row["by_sentence"] for row in lines(tmp_path / "corrected.jsonl"))
