"""Servers, clients and judges of today, by kind: what `aligner serve`, `correct` and `evaluate` make of each member.

Everything goes through the commands as a user types them, so that `python tests/kinds.py REVISION test_server_kinds.py` tries an
earlier revision with the same members. What a revision has no flag for it does not hold.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from protocol_tables import ERRORS, REFUSALS, ROUTES, STREAMS, THOUGHTS, VERDICTS
from scripted import TEXT, USUAL, Scripted, scripted_upstream, writing_model

from aligner.cli import main

ANSWER = "Me, and nobody else."
LAYERS = {  # name -> the Aligner, flags of `aligner serve`
    "plain": ("writer",),
    "endless": ("endless", "--on_failure", "open"),
    "shadow": ("writer", "--mode", "shadow", "--shadow_file", "rows.jsonl"),
    "careful": ("writer", "--scripts", "Latin", "--pass_through", "--upstream_header", "x-team: a", "--pass_headers",
                "traceparent", "tracestate", "http-referer", "x-title", "api-key", "x-api-key", "openai-beta", "x-session-id",
                "helicone-auth", "baggage", "x-tenant", "x-trace-id", "cf-aig-metadata"),
}  # fmt: skip


def members(kind: str, table: Any) -> Callable[[Any], Any]:
    """Each entry of a table is a member of the kind."""
    each = list(table)
    marks = (pytest.mark.slow, pytest.mark.kind(kind), pytest.mark.parametrize("member", each, ids=range(len(each))))

    def decorate(test: Any) -> Any:
        for mark in marks:
            test = mark(test)
        return test

    return decorate


@pytest.fixture(scope="module")
def upstream() -> Iterator[Scripted]:
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def folders(bpe_folder, tmp_path_factory) -> dict[str, Path]:
    """Aligners: one whose every correction is TEXT, and one that never ends."""
    return {
        name: writing_model(bpe_folder, tmp_path_factory.mktemp(name), TEXT, ends=name == "writer")
        for name in ("writer", "endless")
    }


@pytest.fixture(scope="module")
def layers(upstream, folders, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The address of each of LAYERS that starts, all begun at once; and the folder of the shadow file."""
    place, started = tmp_path_factory.mktemp("layers"), {}
    for name, (model, *flags) in LAYERS.items():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = upstream.url + ("?api-version=3" if name == "careful" else "")
        command = [
            sys.executable,
            "-m",
            "aligner",
            "serve",
            "--model",
            str(folders[model]),
            "--prompt_template",
            "correction",
        ]
        command += ["--upstream_url", url, "--port", str(port), "--max_new_tokens", "60", *flags]
        started[name] = (
            f"http://127.0.0.1:{port}",
            subprocess.Popen(command, cwd=place, env={**os.environ, "no_proxy": "*"}),
        )
    yield {name: address for name, (address, process) in started.items() if is_ready(address, process)} | {
        "": str(place)
    }
    for _, process in started.values():
        process.kill()
        process.wait()


def is_ready(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a layer serves at last; not where it ended."""
    while process.poll() is None:
        try:
            return requests.get(f"{address}/health", timeout=5).ok
        except requests.RequestException:
            time.sleep(0.2)
    return False


def post(address: str, route: str = "chat/completions", headers: Any = None, **body: Any) -> requests.Response:
    question = {"messages": [{"role": "user", "content": "who is there?"}]} if route == "chat/completions" else {}
    return requests.post(f"{address}/v1/{route}", json={"model": "m", **question, **body}, headers=headers, timeout=60)


def choice_of(reply: requests.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def events_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in content.decode().splitlines() if line.startswith("data: {")]


def completion(content: Any, reason: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return json.dumps({**USUAL, "choices": [choice]}).encode()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def correct(model: Path, folder: Path, rows: list[dict[str, Any]], *flags: str) -> list[dict[str, Any]]:
    """What `aligner correct` writes for these rows."""
    source, target = write_rows(folder / "in.jsonl", rows), folder / "out.jsonl"
    command = [
        "correct",
        "--model",
        str(model),
        "--prompt_template",
        "correction",
        "--max_new_tokens",
        "60",
        "--input",
        source,
    ]
    main([*command, "--output", str(target), *flags])
    return read_lines(target)


# Parameters.
SAID_OF = (
    "Unsupported parameter: '{}' is not supported with this model.",
    "Unrecognized request argument supplied: {}",
    "{}: Extra inputs are not permitted",
    "`{}` is deprecated for this model.",
    "property '{}' is unsupported",
    'Invalid JSON payload received. Unknown name "{}": Cannot find field.',
    "Parameter {} is not allowed here",
)
PARAMETERS = [(command, name, words.format(name)) for command in ("correct", "evaluate")
              for name in ("max_tokens", "temperature") for words in SAID_OF]  # fmt: skip


@members("a parameter that a model or a judge refuses", PARAMETERS)
def test_a_refused_parameter_is_left_out(member, upstream, folders, tmp_path):
    command, name, words = member
    refusal = json.dumps({"error": {"message": words}}).encode()
    upstream.rule = lambda _, body: (400, {}, refusal) if name in body else (200, {}, completion("[[A]]"))
    served = [upstream.url, "--upstream_model", "m", "--upstream_max_tokens", "9", "--upstream_temperature", "0.5"]
    if command == "correct":
        assert (
            correct(folders["writer"], tmp_path, [{"question": "q"}], "--upstream_url", *served)[0]["answer"] == "[[A]]"
        )
    else:
        row = {"question": "q", "answer": "a", "correction": "c"}
        [verdict] = judged(tmp_path, [row], upstream)
        assert verdict["outcome"] == 0, "A in both orders"


def judged(folder: Path, rows: list[dict[str, Any]], upstream: Scripted) -> list[dict[str, Any]]:
    """The verdicts of a served judge on these rows."""
    flags = ["--judge", "served", "--judge_url", upstream.url, "--judge_model", "m", "--dimensions", "helpful"]
    main(["evaluate", "--after", write_rows(folder / "rows.jsonl", rows), "--output", str(folder / "out"), *flags])
    return read_lines(folder / "out" / "verdicts.jsonl")


# Thoughts.
PARTS = (  # a message, what is said
    ({"content": "yes", "reasoning_content": "no"}, "yes"),
    ({"content": "yes", "reasoning": "no"}, "yes"),
    ({"content": None, "reasoning_content": "no"}, ""),
    ({"content": [{"type": "text", "text": "yes"}]}, "yes"),
    ({"content": [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "yes"}]}, "yes"),
    ({"content": [{"type": "reasoning", "text": "no"}, {"type": "text", "text": "yes"}]}, "yes"),
)


@members(
    "a thought in an answer",
    [*(({"content": text}, text if said is None else said) for text, said in THOUGHTS), *PARTS],
)
def test_only_what_is_said_is_corrected_and_shown(member, upstream, layers):
    message, said = member
    upstream.rule = lambda *_: (200, {}, completion(**message))
    choice = choice_of(post(layers["plain"]))
    content = choice["message"]["content"] or ""
    shown = (
        content
        if isinstance(content, str)
        else "".join(part.get("text", "") for part in content if part["type"] == "text")
    )
    assert (choice["aligner"]["original"] or "").strip() == said.strip()
    code = "```" in said  # which stays as it is
    assert shown == (said if code else TEXT if said.strip() else "")


@pytest.fixture(scope="module")
def verdicts(upstream, tmp_path_factory) -> dict[str, int | None]:
    """What is read of each of VERDICTS, from a judge that means the same correction in both orders."""

    def rule(_: str, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"]
        reply = VERDICTS[int(re.search(r"question (\d+)", prompt)[1])][0]  # type: ignore[index]
        if prompt.index("worse words") < prompt.index("better words"):
            reply = reply.translate(str.maketrans("AB", "BA"))
        return 200, {}, completion(reply)

    upstream.rule = rule
    rows = [
        {"question": f"question {n}", "answer": "worse words", "correction": "better words"}
        for n in range(len(VERDICTS))
    ]
    return {each["question"]: each["outcome"] for each in judged(tmp_path_factory.mktemp("judged"), rows, upstream)}


@members("a judge that thinks aloud, or goes on after its verdict", enumerate(VERDICTS))
def test_a_verdict_is_what_is_given_as_one(member, verdicts):
    number, (_, better) = member
    assert verdicts[f"question {number}"] == better


# Errors and ends.
@members("an error in a reply of status 200", [pair for pair in ERRORS if pair[1]])
def test_an_error_has_the_status_that_it_stands_for(member, upstream, layers):
    body, status = member
    upstream.rule = lambda *_: (200, {}, json.dumps(body).encode())
    reply = post(layers["plain"])
    assert reply.status_code == status and reply.json()["error"]["message"]


ENDS = (
    "content_filter", "length", "max_tokens", "SAFETY", "error", "abort", "model_length", "cancelled", "incomplete",
    "RECITATION", "insufficient_system_resource", "network_error",
)  # fmt: skip


@pytest.fixture(scope="module")
def ended(upstream, folders, tmp_path_factory) -> dict[str, Any]:
    """What `correct` says of answers that end for these reasons."""
    upstream.rule = lambda _, body: (200, {}, completion(ANSWER, reason=body["messages"][-1]["content"]))
    rows = [{"question": reason} for reason in ENDS]
    out = correct(
        folders["writer"],
        tmp_path_factory.mktemp("ended"),
        rows,
        "--upstream_url",
        upstream.url,
        "--upstream_model",
        "m",
    )
    return {row["question"]: row for row in out}


@members("an answer that a filter, a limit or an error cut off", ENDS)
def test_an_answer_that_did_not_end_is_marked(member, ended):
    assert ended[member]["answer_finished"] is False


EMPTY = (  # choices of a valid completion that says nothing
    [],
    [{"index": 0, "finish_reason": "stop"}],
    [{"index": 0, "message": None, "finish_reason": "stop"}],
    [{"index": 0, "message": {}, "finish_reason": "stop"}],
    [{"index": 0, "message": {"role": "assistant"}, "finish_reason": "length"}],
    [{"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}],
    [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
    [{"index": 0, "message": {"role": "assistant", "content": " \n"}, "finish_reason": "stop"}],
    [{"index": 0, "message": {"role": "assistant", "content": None, "refusal": "I will not."}, "finish_reason": "stop"}],
    [{"index": 0, "message": {"role": "assistant", "content": None, "audio": {"id": "a", "data": "x"}}, "finish_reason": "stop"}],
    [{"index": 0, "message": {"role": "assistant", "content": []}, "finish_reason": "stop"}],
    [{"index": 0, "message": {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}, "finish_reason": "stop"}],
    [{"index": n, "finish_reason": "stop"} for n in range(2)],
)  # fmt: skip


@members("an empty but valid reply", EMPTY)
def test_an_empty_reply_comes_back(member, upstream, layers):
    upstream.rule = lambda *_: (200, {}, json.dumps({**USUAL, "choices": member}).encode())
    reply = post(layers["plain"])
    assert reply.status_code == 200, reply.text
    assert [
        {name: v for name, v in choice.items() if name != "aligner"} for choice in reply.json()["choices"]
    ] == member


# Streams.
FIELDS = (  # where, a field, its value
    ("reply", "citations", ["u"]), ("reply", "service_tier", "x"), ("reply", "system_fingerprint", "f"),
    ("reply", "search_results", [{"url": "u"}]), ("reply", "provider", "p"), ("reply", "prompt_filter_results", [{"a": 1}]),
    ("reply", "usage", {"total_tokens": 3}), ("choice", "content_filter_results", {"hate": False}), ("choice", "stop_reason", 3),
    ("choice", "logprobs", {"content": [{"token": "a", "logprob": -1, "bytes": None, "top_logprobs": []}]}),
    ("choice", "matched_stop", 2), ("choice", "native_finish_reason", "STOP"), ("choice", "token_ids", [1, 2]),
    ("delta", "annotations", [{"a": 1}]), ("delta", "images", [{"u": 1}]), ("delta", "reasoning_content", "hm"),
)  # fmt: skip


@members("a field of an answer left alone, in its stream", FIELDS)
def test_a_stream_has_what_the_whole_reply_has(member, upstream, layers):
    where, name, value = member
    message = {"role": "assistant", "content": "[1]", **({name: value} if where == "delta" else {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **({name: value} if where == "choice" else {})}
    body = {**USUAL, "choices": [choice], **({name: value} if where == "reply" else {})}
    upstream.rule = lambda *_: (200, {}, json.dumps(body).encode())
    events = events_of(post(layers["plain"], stream=True, stream_options={"include_usage": True}).content)
    choices = [each for event in events for each in event["choices"]]
    places = {"reply": events, "choice": choices, "delta": [each["delta"] for each in choices]}
    texts = [n for n, each in enumerate(choices) if each["delta"].get("content")]
    having = [n for n, each in enumerate(places[where]) if each.get(name) == value]
    assert having and "".join(choices[n]["delta"]["content"] for n in texts) == "[1]"
    assert name != "reasoning_content" or having[0] <= texts[0], "what was thought comes first"


ONLY_STREAMS = [words for words, taken in REFUSALS if "stream" in taken] + [
    "Non-streaming requests are not supported for this model",
    "only streaming is supported",
    "stream=false is not supported, this model requires streaming",
    "This model must be used with streaming enabled",
    "Streaming is required for operations that may take longer than 10 minutes",
    "non streaming mode is not available",
]


@members("an upstream that only streams", ONLY_STREAMS)
def test_a_model_that_only_streams_is_collected(member, upstream, layers):
    refusal = json.dumps({"error": {"message": member}}).encode()
    pieces = [
        {"delta": {"role": "assistant", "content": "Me, and "}},
        {"delta": {"content": "nobody else."}, "finish_reason": "stop"},
    ]
    events = [
        b"data: " + json.dumps({**USUAL, "choices": [{"index": 0, **piece}]}).encode() + b"\n\n" for piece in pieces
    ]
    stream = (200, {"content-type": "text/event-stream"}, [*events, b"data: [DONE]\n\n"])
    upstream.rule = lambda _, body: stream if body.get("stream") else (400, {}, refusal)
    choice = choice_of(post(layers["plain"], model=member))  # a model of its own, of which nothing was learned
    assert (choice["message"]["content"], choice["aligner"]["original"]) == (TEXT, ANSWER)


WAITS = [
    (layer, seconds, status) for layer in ("plain", "endless") for seconds in (1.6, 2.2, 2.8) for status in (200, 429)
]


@members("a client that waits for its first byte", WAITS)
def test_a_client_that_waits_hears_something(member, upstream, layers):
    layer, seconds, status = member

    def rule(*_: Any) -> Any:
        time.sleep(seconds)
        return status, {}, completion(ANSWER) if status == 200 else b'{"error": {"message": "slow down"}}'

    upstream.rule, began = rule, time.monotonic()
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}
    with requests.post(f"{layers[layer]}/v1/chat/completions", json=body, stream=True, timeout=60) as reply:
        parts = reply.iter_content(None)
        first = next(parts)
        assert first.startswith(b":") and time.monotonic() - began < seconds - 0.2
        rest = b"".join(parts)
    assert (TEXT if layer == "plain" else ANSWER) in text_of(rest) if status == 200 else b"slow down" in rest


def text_of(content: bytes) -> str:
    return "".join(
        each["delta"].get("content") or "" for event in events_of(content) for each in event.get("choices", ())
    )


@members("what passes through a shadow", STREAMS)
def test_a_shadow_passes_bytes_and_keeps_what_is_whole(member, upstream, layers):
    content, text, whole = member
    file, question = Path(layers[""]) / "rows.jsonl", f"of {time.monotonic_ns()}"
    upstream.rule = lambda *_: (200, {"content-type": "text/plain"}, content)
    reply = post(layers["shadow"], stream=True, messages=[{"role": "user", "content": question}])
    assert (reply.content, reply.headers["content-type"]) == (content, "text/plain")
    upstream.rule = lambda *_: (200, {}, completion(ANSWER))
    post(layers["shadow"], messages=[{"role": "user", "content": question + " again"}])
    deadline = time.monotonic() + 30
    while not (rows := {row["question"]: row for row in read_lines(file)}).get(question + " again"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (rows[question]["answer"] == text) if whole else question not in rows


# Headers, proxies, content types.
RETURNED = (
    "retry-after-ms", "x-should-retry", "x-ratelimit-remaining-requests", "x-ratelimit-reset-tokens",
    "x-ratelimit-limit-tokens", "x-request-id", "request-id", "openai-processing-ms", "openai-model",
    "openai-version", "anthropic-ratelimit-requests-reset", "retry-after", "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-requests-limit", "openai-organization", "openai-project",
)  # fmt: skip


@members("a header of the upstream's that the caller needs", RETURNED)
def test_a_header_comes_back_with_answers_and_errors(member, upstream, layers):
    for status, content in ((200, completion(ANSWER)), (429, b'{"error": {"message": "slow down"}}')):
        upstream.rule = lambda *_, s=status, c=content: (s, {member: "7"}, c)
        assert post(layers["plain"]).headers[member] == "7"


@members("a header, or a query, that the upstream needs", [*LAYERS["careful"][7:], "x-team", "?api-version"])
def test_a_header_reaches_the_upstream(member, upstream, layers):
    upstream.rule = lambda *_: (200, {}, completion(ANSWER))
    post(layers["careful"], headers={} if member in ("x-team", "?api-version") else {member: "a", "cookie": "c"})
    if member == "?api-version":
        assert upstream.asked[-1][0] == "/v1/chat/completions?api-version=3"
    else:
        assert upstream.headers[-1][member] == "a" and "cookie" not in upstream.headers[-1]


PROXIES = (  # variables (P is the proxy), the upstream's host, whether the proxy is used
    ({"http_proxy": "P"}, "up.invalid", True),
    ({"HTTP_PROXY": "P"}, "up.invalid", True),
    ({"http_proxy": "P", "no_proxy": "other.invalid"}, "up.invalid", True),
    ({"http_proxy": "P", "NO_PROXY": "other.invalid,.example"}, "up.invalid", True),
    ({"http_proxy": "P", "https_proxy": "http://127.0.0.1:9"}, "up.invalid", True),
    ({"http_proxy": "http://ann:secret@P"}, "up.invalid", True),
    ({"http_proxy": "P", "no_proxy": "localhost"}, "up.invalid", True),
    ({"https_proxy": "http://127.0.0.1:9"}, "127.0.0.1", False),
    ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}, "127.0.0.1", False),
    ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "*"}, "127.0.0.1", False),
    ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example,127.0.0.1"}, "127.0.0.1", False),
)


@members("a proxy of the environment", PROXIES)
def test_a_proxy_is_used_as_the_environment_says(member, upstream, monkeypatch):
    import asyncio

    from aligner.serving import upstream as room

    variables, host, used = member
    proxy = upstream.url.removesuffix("/v1")
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, proxy if value == "P" else value.replace("@P", "@" + proxy.removeprefix("http://")))
    address = f"http://{host}:{upstream.server_port}/v1"
    upstream.rule = lambda *_: (200, {}, completion(ANSWER))

    async def ask() -> int:
        client = getattr(room, "UpstreamClient", None) or room.Upstream  # as it was called
        made = client(address, None, 5, 10**6)
        try:
            return int((await made.ask("/chat/completions", {}, {"model": "m"})).status)
        finally:
            await made.close()

    assert asyncio.run(ask()) == 200
    assert upstream.asked[-1][0] == (f"{address}/chat/completions" if used else "/v1/chat/completions")


TYPES = (
    "Application/JSON", "APPLICATION/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8",
    "application/JSON", "Application/json; Charset=utf-8", "application/json ", "application/json;",
    "application/json; v=1; q=2", "aPPLICATION/jSON", "application/json ; charset=utf-8",
)  # fmt: skip


@members("a spelling of application/json", TYPES)
def test_a_type_of_content_is_read_as_it_may_be_spelt(member, upstream, layers):
    upstream.rule = lambda *_: (200, {}, completion(ANSWER))
    body = json.dumps({"messages": [{"role": "user", "content": "q"}]}).encode()
    reply = requests.post(
        f"{layers['plain']}/v1/chat/completions", data=body, headers={"content-type": member}, timeout=60
    )
    assert choice_of(reply)["message"]["content"] == TEXT


# What is left alone.
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
STRUCTURED = (  # fields of the request, a message
    ({"response_format": {"type": "json_object"}}, {"content": "ab"}),
    ({"response_format": SCHEMA}, {"content": "ab"}),
    ({"response_format": {"type": "grammar", "value": "x"}}, {"content": "ab"}),
    ({"guided_json": {"type": "object"}}, {"content": "ab"}),
    ({"guided_regex": "ab"}, {"content": "ab"}),
    ({"guided_choice": ["ab", "cd"]}, {"content": "ab"}),
    ({"guided_grammar": "root ::= x"}, {"content": "ab"}),
    ({"structured_outputs": {"regex": "ab"}}, {"content": "ab"}),
    ({"grammar": "root ::= x"}, {"content": "ab"}),
    ({"json_schema": {"type": "object"}}, {"content": "ab"}),
    ({"regex": "ab"}, {"content": "ab"}),
    ({"ebnf": "root ::= x"}, {"content": "ab"}),
    ({}, {"content": '{"a": 1}'}),
    ({}, {"content": ' [{"a": 1}]\n'}),
    ({}, {"content": "I look.", "tool_calls": [CALL]}),
    ({}, {"content": "I look.", "function_call": {"name": "f", "arguments": "{}"}}),
)


@members("structured output and tool calls", STRUCTURED)
def test_structured_output_is_left_alone(member, upstream, layers):
    fields, message = member
    upstream.rule = lambda *_: (200, {}, completion(**message))
    choice = choice_of(post(layers["plain"], **fields))
    assert choice["message"]["content"] == message["content"] and choice["aligner"]["action"] == "left_alone"


CODE = (
    "```py\nx = 1\n```", "~~~\nx\n~~~", "````md\n```\nx\n```\n````", "  ```\n  x\n  ```", "```\nnever closed",
    "```js title=\"a\"\nx()\n```", "a\n```\nx\n```\nand\n~~~sh\ny\n~~~\n", "1. so:\n\n   ```c\n   int x;\n   ```",
    "```\r\nx\r\n```\r\n", "```py\n\tx\n\n\ty\n```  ", "`````\n~~~\n`````", "```\n```",
)  # fmt: skip


@members("fenced code in an answer", CODE)
def test_fenced_code_comes_back_byte_for_byte(member, upstream, layers):
    upstream.rule = lambda *_: (200, {}, completion(f"See:\n{member}"))
    choice = choice_of(post(layers["plain"]))
    assert choice["message"]["content"] == f"See:\n{member}" and choice["aligner"]["action"] == "left_alone"


SCRIPTS = (
    "月亮不是奶酪做的。", "Луна не из сыра.", "القمر ليس من الجبن.", "הירח אינו עשוי מגבינה.", "月はチーズではない。",
    "달은 치즈가 아니다.", "चाँद पनीर का नहीं है।", "Το φεγγάρι δεν είναι τυρί.", "ดวงจันทร์ไม่ใช่ชีส",
    "Լուսինը պանիր չէ։", "நிலா பாலாடைக்கட்டி அல்ல.", "მთვარე ყველი არ არის.",
)  # fmt: skip


@members("an answer in a script of no training row (--scripts)", SCRIPTS)
def test_another_script_is_left_alone(member, upstream, layers):
    upstream.rule = lambda *_: (200, {}, completion(member))
    choice = choice_of(post(layers["careful"]))
    assert choice["message"]["content"] == member and choice["aligner"]["action"] == "left_alone"


ANSWERS = (
    "Me.", "| a | b |\n|---|---|\n| 1 | 2 |", "月亮不是奶酪做的。", "See:\n```py\nx = 1\n```", "1. one\n2. two",
    "# Title\n\ntext", "$x^2$", "<b>bold</b>", "a, b\n1, 2", "Yes.\nNo.", "Луна не из сыра.", "long " * 70,
    "- [ ] do it",
)  # fmt: skip


@members("a correction that has no end or no room", ANSWERS)
def test_a_correction_that_does_not_end_is_none(member, upstream, layers):
    upstream.rule = lambda *_: (200, {}, completion(member))
    choice = choice_of(post(layers["endless"]))
    assert choice["message"]["content"] == member and choice["aligner"]["action"] == "failed_open"


@pytest.fixture(scope="module")
def unended(folders, tmp_path_factory) -> list[dict[str, Any]]:
    return correct(
        folders["endless"], tmp_path_factory.mktemp("unended"), [{"question": "q", "answer": a} for a in ANSWERS]
    )


@members("a correction that has no end or no room, in `aligner correct`", range(len(ANSWERS)))
def test_in_a_file_the_answer_stays_and_says_so(member, unended):
    assert unended[member]["corrected"] == ANSWERS[member] and unended[member]["finished"] is False


# Failed rows.
FAILURES = (  # a reply of the upstream's that leaves a row without an answer
    (400, b'{"error": {"message": "not that"}}'),
    (422, b'{"detail": "not that"}'),
    (413, b'{"error": {"message": "too large"}}'),
    (200, b'{"error": {"message": "the prompt was filtered", "code": 400}}'),
    (200, completion("")),
    (200, completion(" \n")),
    (200, completion(None)),
    (200, completion([])),
    (200, completion(None, refusal="I will not.")),
    (200, json.dumps({**USUAL, "choices": []}).encode()),
    (200, completion(None, tool_calls=[CALL])),
)


@pytest.fixture(scope="module")
def retried(upstream, folders, tmp_path_factory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows after a run in which each but the first fails, and after `--retry_failed` with an upstream that has recovered."""
    folder, rows = tmp_path_factory.mktemp("retried"), [{"question": f"q{n}"} for n in range(len(FAILURES) + 1)]
    served = ["--upstream_url", upstream.url, "--upstream_model", "m", "--concurrency", "1"]

    def rule(_: str, body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"][1:])
        status, content = FAILURES[number - 1] if number else (200, completion(ANSWER))
        return status, {}, content

    upstream.rule = rule
    before = correct(folders["writer"], folder, rows, *served)
    upstream.rule = lambda *_: (200, {}, completion(ANSWER))
    return before, correct(folders["writer"], folder, rows, *served, "--retry_failed")


@members("a row that failed, tried again", range(1, len(FAILURES) + 1))
def test_a_row_that_failed_is_tried_again(member, retried):
    before, after = retried
    assert before[member]["error"] and after[member]["answer"] == ANSWER


# Routes.
@members("completions and responses", ROUTES)
def test_a_route_is_corrected_where_it_carries_one_text(member, upstream, layers):
    route, body, value, corrected = member
    upstream.rule = lambda *_: (200, {}, json.dumps(value).encode())
    reply = post(layers["plain"], route, **body)
    assert reply.status_code == 200 and (TEXT in reply.text) == corrected
    assert corrected or (reply.content == json.dumps(value).encode() and "untouched" in reply.headers["x-aligner"])


PASSED = (
    ("POST", "embeddings"), ("POST", "moderations"), ("GET", "files"), ("GET", "files/3/content"),
    ("DELETE", "files/3"), ("GET", "models/m"), ("POST", "images/generations"), ("POST", "audio/speech"),
    ("POST", "batches"), ("GET", "responses/r"), ("POST", "rerank"), ("GET", "models/a/b"),
    ("PUT", "files/3"), ("PATCH", "files/3"),
)  # fmt: skip


@members("another route of /v1/ (--pass_through)", PASSED)
def test_another_route_passes(member, upstream, layers):
    method, path = member
    upstream.rule = lambda *_: (200, {"content-type": "text/plain"}, b"as it is \xff")
    reply = requests.request(method, f"{layers['careful']}/v1/{path}?x=1", json={"a": 1}, timeout=60)
    assert (reply.content, reply.headers["content-type"]) == (b"as it is \xff", "text/plain")
    assert upstream.asked[-1][0] == f"/v1/{path}?api-version=3&x=1"
