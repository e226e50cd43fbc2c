"""`aligner serve` before the servers and clients of today: what is corrected, what is left alone, what is an error, what passes."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
import requests
from layered import ask, client, exchange, serving
from protocol_tables import ROUTES
from scripted import TEXT, USUAL, Scripted, scripted_upstream, writing_model
from test_correct_file import lines, write

from aligner.cli import main
from aligner.inference.corrector import CorrectionRequest, Corrector, NoRoom, Settings
from aligner.inference.guard import Guard, code_blocks, markers_of, runs_on
from aligner.inference.served import UpstreamModel
from aligner.inference.servers import Server
from aligner.known_prompts import EDIT_PAIR
from aligner.prompts import CORRECTION
from aligner.records import UserError


@pytest.fixture
def upstream():
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def writer(bpe_folder, tmp_path_factory) -> Corrector:
    """An Aligner whose every correction is TEXT, ended."""
    folder = writing_model(bpe_folder, tmp_path_factory.mktemp("writer"), TEXT)
    return Corrector.load(str(folder), "correction", Settings(4, 60, whole_only=True))


@pytest.fixture(scope="module")
def running_on(bpe_folder, tmp_path_factory) -> Corrector:
    """An Aligner that goes on with its prompt's next question."""
    folder = writing_model(bpe_folder, tmp_path_factory.mktemp("running"), "Nobody. USER:", prompt="USER: q | a >")
    (folder / "prompt.yaml").write_text("template: 'USER: {question} | {answer} >'")
    return Corrector.load(str(folder), str(folder / "prompt.yaml"), Settings(4, 60))


@pytest.fixture(scope="module")
def endless(bpe_folder, tmp_path_factory) -> Corrector:
    """An Aligner that never ends."""
    folder = writing_model(bpe_folder, tmp_path_factory.mktemp("endless"), TEXT, ends=False)
    return Corrector.load(str(folder), "correction", Settings(4, 60))


def layer(corrector: Corrector, upstream: Scripted, **policy: Any) -> Any:
    return exchange(corrector, upstream.url, **{"guard": Guard(), **policy})


def streamed(address: str, **more: Any) -> tuple[str, str, Any]:
    """What a client of a stream has: the text, the thought, the last choice."""
    text = thought = ""
    last = None
    for each in ask(address, stream=True, **more):
        for choice in each.choices:
            text += choice.delta.content or ""
            thought += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            last = choice
    return text, thought, last


THINKERS = (  # a message of the upstream, the text of what the caller gets, a word of its thought
    ({"content": "<think>secret</think>\n\nMe."}, TEXT, "secret"),
    ({"content": "secret</think>Me."}, TEXT, "secret"),
    ({"content": "<think>secret"}, "", "secret"),
    ({"content": "Me.", "reasoning_content": "secret"}, TEXT, "secret"),
    ({"content": None, "reasoning_content": "secret"}, "", "secret"),
    ({"content": [{"type": "text", "text": "Me."}]}, TEXT, ""),
)


def test_no_thought_reaches_the_reader_as_the_answer(writer, upstream):
    with serving(layer(writer, upstream)) as address:
        for message, text, thought in THINKERS:
            upstream.says(message)
            got = ask(address).choices[0].message
            content = got.content if not isinstance(got.content, list) else got.content[0]["text"]
            assert (content or "") == text and thought in (got.model_extra.get("reasoning_content") or ""), message
            assert "secret" not in (content or "")
            said, beside, _ = streamed(address)
            assert said == text and thought in beside and "secret" not in said, message


def test_what_must_not_be_rewritten_is_left_alone_and_says_why(writer, upstream):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    form = {"response_format": {"type": "json_object"}}
    schema = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}
    code = "See:\n```py\nx = 1\n```"
    table = (  # the upstream's message, the request, the reason
        ({"content": '{"a": 1}'}, form, "structured output"),
        ({"content": "not JSON"}, schema, "structured"),
        ({"content": "ab"}, {"extra_body": {"guided_regex": "ab"}}, "structured output"),
        ({"content": ' [{"a": 1}]\n'}, {}, "structured (JSON)"),
        ({"content": "<think>no</think>[1]"}, {}, "structured (JSON)"),
        ({"content": "I look.", "tool_calls": [call]}, {}, "tool call"),
        ({"content": "I look.", "function_call": {"name": "f", "arguments": "{}"}}, {}, "tool call"),
        ({"content": code}, {}, "fenced code"),
        ({"content": "~~~\nx\n~~~\nand\n```\ny\n```\n"}, {}, "fenced code"),
        ({"content": "```\nnever closed"}, {}, "fenced code"),
        ({"content": "月亮不是奶酪做的。"}, {}, "letters are Latin"),
    )  # fmt: skip
    with serving(layer(writer, upstream, guard=Guard(scripts=("Latin",)))) as address:
        for message, more, reason in table:
            upstream.says(message)
            choice = ask(address, **more).choices[0]
            note = choice.model_extra["aligner"]
            assert note["action"] == "left_alone" and reason in note["reason"], message
            assert choice.message.content == message["content"].removeprefix("<think>no</think>")
            assert streamed(address, **more)[0] == choice.message.content
        upstream.says({"content": '{"a": 1}'})
        assert requests.get(f"{address}/health").json()["answers"]["left_alone"] == 2 * len(table)
    both = Guard(keep_code=False, correct_structured=True)
    with serving(layer(writer, upstream, guard=both)) as address:
        for message, more, _ in table:
            upstream.says(message)
            assert ask(address, **more).choices[0].message.content == TEXT, "asked for"


def test_what_does_not_end_is_no_correction(running_on, endless, writer, upstream):
    upstream.says({"content": "Me, and nobody else."})
    for corrector, why in ((running_on, "runs on with the prompt's own 'USER:'"), (endless, "did not end")):
        with serving(layer(corrector, upstream)) as address:
            with pytest.raises(openai.APIStatusError, match=why) as caught:
                ask(address)
            assert caught.value.status_code == 503 and caught.value.response.headers["x-should-retry"] == "false"
            with pytest.raises(openai.APIError, match=why):
                streamed(address)
            health = requests.get(f"{address}/health").json()
            assert health["answers"]["unfinished"] == 2 and health["unfinished_share"] == 1
        with serving(layer(corrector, upstream, on_failure="open")) as address:
            choice = ask(address).choices[0]
            assert choice.message.content == "Me, and nobody else." and why in choice.model_extra["aligner"]["error"]
            assert streamed(address)[0] == "Me, and nobody else.", "nothing of it was sent before"
    upstream.says({"content": "long " * 70})
    with (
        serving(layer(writer, upstream)) as address,
        pytest.raises(openai.APIStatusError, match="room for 60") as caught,
    ):
        ask(address)
    assert caught.value.status_code == 503


def test_errors_in_a_reply_of_status_200_have_the_status_they_stand_for(writer, upstream, monkeypatch):
    monkeypatch.setattr("aligner.serving.exchange.GRACE", 30)  # on a busy machine an answer takes longer than a second
    with serving(layer(writer, upstream)) as address:
        upstream.replies({"error": {"message": "slow down", "code": 429}}, headers={"retry-after-ms": "70"})
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="slow down"):
                ask(address, stream=stream)
        upstream.rule = lambda *_: (200, {}, b'data: {"error": {"message": "overloaded"}}\n\n')
        with pytest.raises(openai.APIStatusError, match="overloaded") as caught:
            ask(address)
        assert caught.value.status_code == 503
        for empty in ({"choices": []}, {"choices": [{"index": 0, "finish_reason": "stop"}]}):
            upstream.replies({**USUAL, **empty})
            body = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
            for stream in (False, True):
                reply = requests.post(f"{address}/v1/chat/completions", json={**body, "stream": stream})
                assert reply.status_code == 200, empty
                assert stream or len(reply.json()["choices"]) == len(empty["choices"])


def test_headers_and_the_address_go_both_ways(writer, upstream):
    made = layer(writer, upstream)
    from aligner.serving.upstream import UpstreamClient

    made.upstream = UpstreamClient(f"{upstream.url}?api-version=3", None, 5, 10**6, ["Traceparent"], {"api-key": "k"})
    upstream.says({"content": "Me."})
    rule, limits = upstream.rule, {"x-ratelimit-remaining-requests": "7", "x-request-id": "r", "set-cookie": "no"}
    upstream.rule = lambda path, body: (200, limits, rule(path, body)[2])
    with serving(made) as address:
        raw = client(address).chat.completions.with_raw_response
        reply = raw.create(
            model="m", messages=[{"role": "user", "content": "q"}], extra_headers={"traceparent": "t", "cookie": "c"}
        )
        assert requests.post(f"{address}/v1/chat/completions", data=b'{"messages": [{"role": "user", "content": "q"}]}',
                             headers={"content-type": "Application/JSON"}).status_code == 200  # fmt: skip
    assert reply.headers["x-ratelimit-remaining-requests"] == "7" and "set-cookie" not in reply.headers
    assert upstream.asked[0][0] == "/v1/chat/completions?api-version=3"
    got = upstream.headers[0]
    assert (got["traceparent"], got["api-key"]) == ("t", "k") and "cookie" not in got


def test_every_field_of_an_answer_that_is_left_alone_is_in_its_stream(writer, upstream):
    more = {"logprobs": {"content": [{"token": "a", "logprob": -1, "bytes": None, "top_logprobs": []}]}, "stop_reason": 3,
            "content_filter_results": {"hate": False}}  # fmt: skip
    message = {"role": "assistant", "content": "[1]", "reasoning_content": "hm", "annotations": [{"a": 1}]}
    choices = [{"index": n, "message": message, "finish_reason": "stop", **more} for n in range(2)]
    upstream.replies(
        {**USUAL, "choices": choices, "citations": ["u"], "service_tier": "x", "usage": {"total_tokens": 3}}
    )
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with serving(layer(writer, upstream)) as address:
        sent = requests.post(f"{address}/v1/chat/completions", json=body).content
    order = [sent.index(b'"reasoning_content"'), sent.index(b'"content": "[1]"')]
    assert order == sorted(order), "what was thought comes first"
    from aligner.chat_api.streams import reply_in

    whole = reply_in(sent)
    assert (whole["citations"], whole["service_tier"], whole["usage"]) == (["u"], "x", {"total_tokens": 3})
    for choice in whole["choices"]:
        assert choice["message"]["annotations"] == [{"a": 1}] and choice["logprobs"]["content"][0]["token"] == "a"
        assert (choice["stop_reason"], choice["content_filter_results"]) == (3, {"hate": False})


def test_a_model_that_only_streams_is_collected_and_a_client_that_waits_hears_something(writer, upstream, monkeypatch):
    monkeypatch.setattr("aligner.serving.exchange.GRACE", 0.1)
    pieces = [b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "M"}}]}\n\n',
              b'data: {"choices": [{"index": 0, "delta": {"content": "e."}, "finish_reason": "stop"}]}\n\n',
              b"data: [DONE]\n\n"]  # fmt: skip

    def rule(path: str, body: dict[str, Any]) -> Any:
        if not body["stream"]:
            return 400, {}, b'{"error": {"message": "non-streaming calls are not supported"}}'
        return 200, {"content-type": "text/event-stream"}, pieces

    upstream.rule = rule
    with serving(layer(writer, upstream)) as address:
        assert [ask(address).choices[0].model_extra["aligner"]["original"] for _ in range(2)] == ["Me."] * 2
        assert [body["stream"] for _, body in upstream.asked] == [False, True, True], "learned once"

        def slow(path: str, body: dict[str, Any]) -> Any:
            time.sleep(0.8)
            return rule(path, body)

        upstream.rule, began = slow, time.monotonic()
        body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}
        with requests.post(f"{address}/v1/chat/completions", json=body, stream=True) as reply:
            parts = reply.iter_content(None)
            assert next(parts).startswith(b": ") and time.monotonic() - began < 0.7
            assert TEXT in "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                                   for line in b"".join(parts).decode().splitlines() if line.startswith("data: {"))  # fmt: skip


def test_shadow_passes_bytes_and_keeps_only_what_is_whole(writer, upstream, tmp_path):
    ends = (  # how a stream ends, how many rows it leaves
        (b'data: {"choices": [{"index": 0, "delta": {"content": "Me."}, "finish_reason": "stop"}]}', 1),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "Me."}, "finish_reason": "length"}]}\n\n', 0),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "Me."}, "finish_reason": "content_filter"}]}\n\n', 0),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "Me."}}]}\n\ndata: {"error": {"message": "broke"}}\n\n', 0),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "Me."}}]}\n\n', 0),
        (b'{"choices": [{"index": 0, "message": {"content": "Me."}, "finish_reason": "stop"}]}', 1),
        (b"no JSON at all", 0),
    )  # fmt: skip
    file, expected = tmp_path / "rows.jsonl", 0
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}
    with serving(layer(writer, upstream, mode="shadow", shadow=file)) as address:
        for content, rows in ends:
            upstream.rule = lambda *_, sent=content: (200, {"content-type": "text/plain"}, sent)
            reply = requests.post(f"{address}/v1/chat/completions", json=body)
            assert (reply.status_code, reply.content, reply.headers["content-type"]) == (200, content, "text/plain")
            expected += rows
    assert [row["correction"] for row in lines(file)] == [TEXT] * expected


def test_completions_and_responses_are_corrected_where_they_carry_one_text(writer, upstream):
    with serving(layer(writer, upstream)) as address:
        for route, body, value, corrected in ROUTES:
            upstream.replies(value)
            reply = requests.post(f"{address}/v1/{route}", json={"model": "m", **body})
            assert reply.status_code == 200 and (TEXT in reply.text) == corrected, (body, reply.text)
            assert corrected or (
                reply.content == json.dumps(value).encode() and "untouched" in reply.headers["x-aligner"]
            )
            assert not corrected or '"action": "corrected"' in reply.text.replace('":"', '": "')
        upstream.rule = lambda *_: (200, {"content-type": "text/event-stream"}, b"data: x\n\n")
        reply = requests.post(f"{address}/v1/responses", json={"input": "q", "stream": True})
        assert reply.content == b"data: x\n\n" and "stream" in reply.headers["x-aligner"]
        assert requests.post(f"{address}/v1/embeddings", json={}).status_code == 404
    upstream.replies({"data": [1]})
    with serving(layer(writer, upstream), pass_through=True) as address:
        assert requests.post(f"{address}/v1/embeddings?x=1", json={"input": "q"}).json() == {"data": [1]}
        assert requests.delete(f"{address}/v1/files/3").json() == {"data": [1]}
        assert (
            requests.post(f"{address}/v1/files", data=b"x", headers={"content-type": "text/plain"}).status_code == 415
        )
    assert [path for path, _ in upstream.asked[-2:]] == ["/v1/embeddings?x=1", "/v1/files/3"]


def test_a_judge_and_an_upstream_of_today_are_asked_as_they_can_be(upstream, tmp_path):
    """Refuses max_tokens and temperature, streams alone, then a 429 with status 200, thinks aloud."""
    replies = [b'{"error": {"message": "slow down", "code": 429}}']

    def rule(path: str, body: dict[str, Any]) -> Any:
        for name, words in (("max_tokens", "is not supported with this model. Use 'max_completion_tokens' instead."),
                            ("temperature", "does not support 0.0 with this model.")):  # fmt: skip
            if name in body:
                return (
                    400,
                    {},
                    json.dumps({"error": {"message": f"Unsupported: '{name}' {words}", "param": name}}).encode(),
                )
        if not body.get("stream"):
            return 400, {}, b'{"error": {"message": "non-streaming calls are not supported"}}'
        if replies:
            return 200, {}, replies.pop()
        delta = {"content": "<think>[[A]]</think>So:\n[[B]]"}
        return 200, {}, b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": "stop"}]}).encode()

    upstream.rule = rule
    answers = dict(UpstreamModel(Server(upstream.url, "m", concurrency=1), 9, 0.5).stream(["q", "r"]))
    assert [answers[n].text for n in range(2)] == ["So:\n[[B]]"] * 2 and answers[0].finished
    assert {name for name in upstream.asked[-1][1] if name not in ("model", "messages")} == {
        "max_completion_tokens",
        "stream",
    }
    rows = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a", "correction": "c"}])
    flags = ["--judge", "served", "--judge_url", upstream.url, "--judge_model", "m", "--dimensions", "helpful"]
    assert main(["evaluate", "--after", rows, "--output", str(tmp_path / "out"), *flags]) == 0
    [verdict] = lines(tmp_path / "out" / "verdicts.jsonl")
    assert verdict["outcome"] == 0 and verdict["replies"] == ["So:\n[[B]]"] * 2, "B in both orders: a tie"


def test_an_answer_without_room_is_said_before_it_is_decoded(writer):
    outcomes = dict(writer.stream([CorrectionRequest("q", "Me."), CorrectionRequest("q", "long " * 70)]))
    assert outcomes[0].text == TEXT and isinstance(outcomes[1], NoRoom) and "room for 60" in str(outcomes[1])


def test_markers_and_fences_are_those_that_they_look_like():
    marks = markers_of(CORRECTION)
    assert {"##Question:", "##Answer:", "##Correction:", "USER:", "ASSISTANT:"} <= set(marks)
    assert runs_on("Yes.\n##Question: no?", "q a", marks) and runs_on("Yes. USER: no?", "q a", marks)
    assert not runs_on("The user: he asks.", "q a", marks) and not runs_on("##Answer: x", "say ##Answer: x", marks)
    assert not runs_on("Edit the following", "q a", markers_of(EDIT_PAIR))
    assert code_blocks("a\n```py\nx\n```\nb\n  ~~~\ny\n  ~~~") == ["```py\nx\n```", "  ~~~\ny\n  ~~~"]
    with pytest.raises(UserError, match="--scripts Klingonish"):
        Guard(scripts=("Klingonish",))
