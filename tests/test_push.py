"""`aligner push`: what others need of a finished Aligner, with its model card, and nothing else of the run."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from aligner.card import Card, read_card, write_card
from aligner.cli import main
from aligner.inference.corrector import Corrector, Settings
from aligner.known_prompts import EDIT_PAIR
from aligner.prompts import PromptTemplate
from aligner.training.checkpoint.model_card import model_card
from aligner.training.checkpoint.push import publishable

HOME = "/home/ada/secret-project"
SOURCE = {"spec": f"hh-rlhf:0.5:{HOME}/pairs.jsonl", "dataset": "hh-rlhf 0123", "path": f"{HOME}/pairs.jsonl", "sha256": "0" * 64,
          "rows": 1217, "skipped": 3, "taken": 600, "files": {f"{HOME}/pairs.jsonl": "0" * 64}}  # fmt: skip
DATA = {
    "train": [SOURCE],
    "eval": [],
    "tally": {"train": {"rows": 9, "places": {"cut": {f"{HOME}/a.json": [3]}}}},
    "deciding": {},
}
FLAGS = {"epochs": 3, "lr": 2e-5, "output_dir": f"{HOME}/output", "train_datasets": [SOURCE["spec"]]}
CARD = Card(EDIT_PAIR, "correction", "meta-llama/Llama-2-7b-hf", "0" * 64, 2048, 256, DATA, {}, FLAGS)


@pytest.fixture
def finished(tiny_model, tmp_path) -> Path:
    """A finished folder with all that a run leaves in it."""
    folder = tmp_path / "sft"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_card(folder, CARD)
    for name in ("COMPLETED", "command.sh", "train.log", "train_log.jsonl", "loss.png", "evaluation.lock"):
        (folder / name).write_text(HOME)
    (folder / "checkpoints" / "update-2").mkdir(parents=True)
    return folder


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers to an upload; every file goes by the commit itself."""

    def __init__(self, commits: list, *arguments) -> None:
        self.commits = commits
        super().__init__(*arguments)

    def log_message(self, *_) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            answer = {
                "url": f"http://{self.headers['Host']}/{json.loads(body)['organization']}/{json.loads(body)['name']}"
            }
        elif "/preupload/" in self.path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]}
        elif "/commit/" in self.path:
            self.commits.append((self.headers["Authorization"], [json.loads(line) for line in body.splitlines()]))
            commit = "a" * 40
            url = f"http://{self.headers['Host']}/ada/aligner/commit/{commit}"
            answer = {"commitOid": commit, "commitUrl": url, "hookOutput": ""}
        else:
            answer = {}
        self.reply(answer)

    def do_GET(self) -> None:
        self.reply({"id": "ada/aligner", "siblings": [], "sha": "a" * 40})

    def reply(self, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch):
    """The commits that a hub on this machine has got."""
    commits: list = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, commits))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield commits
    server.shutdown()
    server.server_close()


def test_what_is_published_is_the_model_its_prompt_and_a_card_and_it_corrects(finished):
    with publishable(finished, "ada/aligner", None) as staged:
        names = {file.name for file in staged.iterdir()}
        assert {"README.md", "aligner.json", "config.json", "model.safetensors", "tokenizer.json"} <= names
        assert not names & {
            "COMPLETED",
            "command.sh",
            "train.log",
            "train_log.jsonl",
            "loss.png",
            "evaluation.lock",
            "checkpoints",
        }
        assert not [name for name in names if "secret" in (staged / name).read_bytes().decode(errors="ignore")]
        assert read_card(staged).prompt == EDIT_PAIR
        settings = Settings(1, 4)
        [there], [here] = (Corrector.load(str(f), settings=settings).correct([("a", "b")]) for f in (staged, finished))
        assert there == here
    assert not list(finished.glob(".push-*"))


def test_the_card_names_base_prompt_data_licence_and_figures(tmp_path):
    (tmp_path / "measure.md").write_text("| the Aligner | 300 |\n")
    text = model_card(CARD, "ada/aligner", tmp_path)
    assert "base_model: meta-llama/Llama-2-7b-hf\n" in text
    assert json.dumps(EDIT_PAIR.text) in text
    assert "| hh-rlhf: pairs.jsonl | 1,217 | 600 | mit |" in text
    assert "Recipe: 256 records an update, at most 2,048 tokens a record; epochs 3, lr 2e-05." in text
    assert text.endswith("## Measured\n\n| the Aligner | 300 |\n") and HOME not in text
    assert "base_model:" not in model_card(replace(CARD, base_model=f"{HOME}/base"), "ada/aligner")


def test_the_card_of_a_prompt_without_an_answer_speaks_of_questions_alone_and_adapters_are_in_the_recipe():
    plain = replace(CARD, prompt=PromptTemplate("plain", "USER: {question} ASSISTANT:"))
    text = model_card(
        replace(plain, settings={"lora_rank": 8, "lora_alpha": 16, "lora_target": "all-linear"}), "ada/upstream"
    )
    assert "trained with question and correction." in text and "renders it\nfrom a user's question):" in text
    assert "epochs 3, lr 2e-05, lora_rank 8, lora_alpha 16, lora_target all-linear." in text
    assert "trained with question, answer and correction." in model_card(CARD, "ada/aligner")


def test_without_a_token_nothing_is_uploaded(finished, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(finished / "none"))
    assert main(["push", str(finished), "ada/aligner"]) == 0
    assert "nothing was uploaded: there is no token" in capsys.readouterr().out and hub == []


def test_with_a_token_one_commit_holds_it_all(finished, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    assert main(["push", str(finished), "ada/aligner"]) == 0
    [(key, lines)] = hub
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert key == "Bearer hf_0123456789" and sent["model.safetensors"] == (finished / "model.safetensors").read_bytes()
    assert sent["README.md"].startswith(b"---\nlibrary_name: transformers\n") and HOME.encode() not in b"".join(
        sent.values()
    )
    assert "uploaded: http" in capsys.readouterr().out


def test_what_is_no_finished_aligner_is_refused(tiny_model, capsys):
    AutoTokenizer.from_pretrained(tiny_model)
    assert main(["push", str(tiny_model), "ada/aligner", "--dry_run"]) == 2
    assert "is no finished Aligner" in capsys.readouterr().err
