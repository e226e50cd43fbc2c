"""Clients of today, each from its package in an environment of its own, against the layer in its three modes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from layered import exchange, serving
from scripted import TEXT, USUAL, scripted_upstream
from test_serve_today import writer

from aligner.inference.guard import Guard

__all__ = ["writer"]  # a fixture
PERSON = {"name": "Ann", "age": 3}
BEGIN = "import json, sys\nurl = sys.argv[1] + '/v1'\nmessages = [{'role': 'user', 'content': 'who is there?'}]\nfound = {}\n"
MODEL = "from pydantic import BaseModel\nclass Person(BaseModel):\n    name: str\n    age: int\n"
PROGRAMS = {  # a client's packages, and a program that prints what it got
    "openai-python": (["openai"], BEGIN + MODEL + """
import openai
client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
found["text"] = client.chat.completions.create(model="m", messages=messages).choices[0].message.content
with client.chat.completions.stream(model="m", messages=messages) as stream:
    found["helper"] = "".join(event.delta for event in stream if event.type == "content.delta")
    found["final"] = stream.get_final_completion().choices[0].message.content
parsed = client.chat.completions.parse(model="m", messages=messages, response_format=Person)
found["person"] = parsed.choices[0].message.parsed.model_dump()
found["response"] = client.responses.create(model="m", input="who is there?").output_text
found["completion"] = client.completions.create(model="m", prompt="who is there?").choices[0].text
"""),
    "langchain": (["langchain-openai"], BEGIN + MODEL + """
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=url, api_key="k", model="m", max_retries=0)
found["text"] = chat.invoke("who is there?").content
found["streamed"] = "".join(piece.content for piece in chat.stream("who is there?"))
found["person"] = chat.with_structured_output(Person).invoke("who is there?").model_dump()
found["person by tool"] = chat.with_structured_output(Person, method="function_calling").invoke("who is there?").model_dump()
"""),
    "litellm": (["litellm"], BEGIN + """
import litellm
more = {"model": "openai/m", "api_base": url, "api_key": "k", "num_retries": 0, "messages": messages}
found["text"] = litellm.completion(**more).choices[0].message.content
found["streamed"] = "".join(piece.choices[0].delta.content or "" for piece in litellm.completion(stream=True, **more))
"""),
    "instructor": (["instructor", "openai"], BEGIN + MODEL + """
import instructor, openai
for name, mode in (("person by tool", instructor.Mode.TOOLS), ("person", instructor.Mode.JSON)):
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="k", max_retries=0), mode=mode)
    found[name] = client.chat.completions.create(model="m", messages=messages, response_model=Person, max_retries=0).model_dump()
"""),
}  # fmt: skip
NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "k", maxRetries: 0 });
const messages = [{ role: "user", content: "who is there?" }], found = {};
found.text = (await client.chat.completions.create({ model: "m", messages })).choices[0].message.content;
found.helper = await client.chat.completions.stream({ model: "m", messages }).finalContent();
console.log(JSON.stringify(found));
"""


def rule(path: str, body: dict[str, Any]) -> Any:
    """An upstream that calls the tool it is given, keeps to the form it is asked for, and otherwise says "Me."."""
    if path.endswith("/responses"):
        said = {"type": "message", "id": "i", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Me.", "annotations": []}]}  # fmt: skip
        reply = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": [said],
                 "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
        return 200, {}, json.dumps(reply).encode()
    if path.endswith("/completions") and "prompt" in body:
        choice = {"index": 0, "text": "Me.", "finish_reason": "stop", "logprobs": None}
        return 200, {}, json.dumps({**USUAL, "object": "text_completion", "choices": [choice]}).encode()
    message: dict[str, Any] = {"role": "assistant", "content": "Me."}
    reason = "stop"
    if body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(PERSON)}
        message = {
            **message,
            "content": None,
            "tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}],
        }
        reason = "tool_calls"
    elif body.get("response_format"):
        message["content"] = json.dumps(PERSON)
    if not body.get("stream"):
        return (
            200,
            {},
            json.dumps({**USUAL, "choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode(),
        )
    chunk = {**USUAL, "object": "chat.completion.chunk"}
    deltas = [{"index": 0, "delta": message, "finish_reason": None}, {"index": 0, "delta": {}, "finish_reason": reason}]
    events = [b"data: " + json.dumps({**chunk, "choices": [delta]}).encode() + b"\n\n" for delta in deltas]
    return 200, {"content-type": "text/event-stream"}, [*events, b"data: [DONE]\n\n"]


def installed(name: str, packages: list[str], folder: Path) -> Path:
    """The Python of an environment with these packages. The test is skipped by name where they cannot be had."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{name}: pip cannot get {' '.join(packages)}")
    return python


def run_in_modes(command: list[str], corrector: Any, tmp_path: Path) -> None:
    """Run a client's program against the layer in each mode, and compare what it got with what it should get."""
    modes: dict[str, dict[str, Any]] = {
        "always": {},
        "gate": {"mode": "gate", "threshold": 0.0},
        "shadow": {"mode": "shadow", "shadow": tmp_path / "rows.jsonl"},
    }
    with scripted_upstream() as upstream:
        upstream.rule = rule
        for mode, policy in modes.items():
            with serving(exchange(corrector, upstream.url, guard=Guard(), **policy)) as address:
                done = subprocess.run([*command, address], capture_output=True, text=True, timeout=200, check=False)
            assert done.returncode == 0, f"{mode}: {done.stdout}{done.stderr}"
            found = json.loads(done.stdout.splitlines()[-1])
            print(mode, json.dumps(found))
            expected = "Me." if mode == "shadow" else TEXT
            for name, value in found.items():
                assert value == (PERSON if "person" in name else expected), (mode, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_python_client_works_in_all_modes(name, writer, tmp_path):
    packages, program = PROGRAMS[name]
    python = installed(name, packages, tmp_path / "environment")
    file = tmp_path / "client.py"
    file.write_text(program + "print(json.dumps(found))\n")
    run_in_modes([str(python), str(file)], writer, tmp_path)


@pytest.mark.slow
def test_openai_node_works_in_all_modes(writer, tmp_path):
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("openai-node: needs node and npm")
    done = subprocess.run(
        [npm, "install", "--silent", "openai"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if done.returncode or not (tmp_path / "node_modules" / "openai").is_dir():
        pytest.skip("openai-node: npm cannot get openai")
    (tmp_path / "client.mjs").write_text(NODE)
    run_in_modes([node, str(tmp_path / "client.mjs")], writer, tmp_path)
