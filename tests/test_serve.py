"""`aligner serve`: the official client against the layer, over real HTTP, in front of an upstream that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from typing import Any

import openai
import pytest
import requests
from layered import ANSWER, QUESTION, ask, client, correction, corrector, exchange, serving
from test_correct_file import lines

from aligner import cli
from aligner.chat_api.dialogue import CandidateQuestions, candidate_questions
from aligner.chat_api.streams import CollectedStream
from aligner.inference.corrector import Corrector
from aligner.inference.greedy import DecoderRow
from aligner.inference.guard import Guard
from aligner.records import UserError
from aligner.serving.corrections import AnswerRequest
from aligner.serving.shadow import ShadowLog
from aligner.serving.worker import Ticket, Worker

__all__ = ["corrector"]  # a fixture


def test_the_answer_comes_back_corrected_and_says_what_was_done(corrector, told):
    with serving(exchange(corrector, told.url)) as address:
        choice = ask(address).choices[0]
    assert choice.message.content == correction(corrector)
    note = choice.model_extra["aligner"]
    assert (note["action"], note["original"], note["mode"]) == ("corrected", ANSWER, "always")
    assert (note["model"], note["prompt"]) == ("tiny", "correction")
    assert set(note["edits"]) == {"identical", "copied", "similarity", "length_ratio"}
    assert choice.finish_reason == "length", "the tiny model never ends by itself within 12 tokens"


def test_a_stream_says_the_same_piece_by_piece(corrector, told):
    with serving(exchange(corrector, told.url)) as address:
        chunks = list(ask(address, stream=True, stream_options={"include_usage": True}))
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == correction(corrector) and sum(map(bool, texts)) > 2
    last = next(c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason)
    assert last.model_extra["aligner"]["original"] == ANSWER
    assert told.asked[0]["stream"] is False and "stream_options" not in told.asked[0]


def test_what_the_upstream_is_asked_is_what_the_caller_asked(corrector, told):
    with serving(exchange(corrector, told.url)) as address:
        ask(address, temperature=0.5, extra_body={"top_k": 3}, extra_headers={"cookie": "mine", "openai-project": "p"})
    [asked] = told.asked
    assert (asked["temperature"], asked["top_k"], asked["model"]) == (0.5, 3, "m")
    assert told.keys == {"Bearer the caller's key"}
    assert "openai-project" in told.headers and not {"cookie", "x-stainless-lang"} & told.headers, (
        "no more than it needs"
    )


def test_the_last_turn_is_corrected_with_the_dialogue_as_its_question(corrector, told):
    """As `hh-rlhf --multi_turn` trains it."""
    dialogue = "Human: hello\n\nAssistant: hi\n\nHuman: who is there?"
    with serving(exchange(corrector, told.url)) as address:
        found = ask(address, "hello", "hi", QUESTION).choices[0].message.content
    assert found == correction(corrector, dialogue)


def test_where_the_model_has_no_room_the_oldest_turns_are_left_out(corrector, told):
    long = "word " * 2000
    with serving(exchange(corrector, told.url)) as address:
        assert ask(address, long, long, QUESTION).choices[0].message.content == correction(corrector)
        with pytest.raises(openai.APIStatusError, match="shorten it") as caught:
            ask(address, long)
    assert (caught.value.status_code, caught.value.code) == (400, "context_length_exceeded"), "again would be the same"


def test_many_at_once_each_get_their_own(corrector, told):
    found: dict[int, str] = {}
    with serving(exchange(corrector, told.url, seconds=60)) as address:
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: ask(address, f"q{n}").choices[0].message.content}))
            for n in range(20)
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert found == {n: correction(corrector, f"q{n}", f"Q{n}") for n in range(20)}


def test_the_gate_leaves_alone_what_the_aligner_would_have_written(corrector, told):
    with serving(exchange(corrector, told.url, mode="gate", threshold=-1e9)) as address:
        open_ = ask(address).choices[0]
    with serving(exchange(corrector, told.url, mode="gate", threshold=0.0)) as address:
        shut = ask(address).choices[0]
    assert (open_.message.content, open_.model_extra["aligner"]["action"]) == (ANSWER, "left_alone")
    assert (shut.message.content, shut.model_extra["aligner"]["action"]) == (correction(corrector), "corrected")
    assert shut.model_extra["aligner"]["confidence"] == open_.model_extra["aligner"]["confidence"] < 0


def test_a_shadow_changes_nothing_and_its_rows_can_be_checked(corrector, told, tmp_path, capsys):
    file = tmp_path / "shadow.jsonl"
    file.write_text('{"question": "a line that a kill cut')
    with serving(exchange(corrector, told.url, file, mode="shadow")) as address:
        choice = ask(address).choices[0]
        ask(address, "hello", "hi", QUESTION)
    assert choice.message.content == ANSWER and choice.model_extra["aligner"]["action"] == "shadow"
    first, second = lines(file)
    assert (first["question"], first["answer"], first["correction"]) == (QUESTION, ANSWER, correction(corrector))
    assert second["question"].startswith("Human: hello\n\nAssistant: hi")
    assert cli.main(["check", str(file)]) == 0
    assert "2 of 2 rows are usable" in capsys.readouterr().out


def test_what_a_stream_says_is_put_together_by_choice():
    events = b""
    for index, text in ((0, "a"), (1, "x"), (0, "\u00e4"), (1, None)):
        events += (
            b"data: " + json.dumps({"choices": [{"index": index, "delta": {"content": text}}]}).encode() + b"\r\n\n"
        )
    events += b': a comment\n\ndata: {"choices": [3]}\n\ndata: [DONE]\n\n'
    for size in (1, 7, 10_000):
        heard = CollectedStream()
        for start in range(0, len(events), size):
            heard.feed(events[start : start + size])
        heard.finish()
        assert [choice["message"]["content"] for choice in heard.completion()["choices"]] == ["a\u00e4", "x"]


def test_an_answer_without_text_is_passed_on(corrector, told):
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [{}]}}]}
    made = exchange(corrector, told.url)
    with serving(made) as address:
        made.upstream.ask = lambda *_: _reply(whole)  # type: ignore[method-assign]
        body = requests.post(
            f"{address}/v1/chat/completions", json={"messages": [{"role": "user", "content": "q"}]}
        ).json()
    assert body["choices"][0]["message"]["tool_calls"] == [{}]
    assert body["choices"][0]["aligner"]["action"] == "no_text"


def test_an_empty_correction_is_none(corrector, told, monkeypatch):
    monkeypatch.setattr(Corrector, "text", lambda self, tokens: "")
    with (
        serving(exchange(corrector, told.url)) as address,
        pytest.raises(openai.InternalServerError, match="empty correction"),
    ):
        ask(address)
    with serving(exchange(corrector, told.url, on_failure="open")) as address:
        choice = ask(address).choices[0]
    assert (choice.message.content, choice.model_extra["aligner"]["action"]) == (ANSWER, "failed_open")


def test_what_the_upstream_cut_off_is_still_said_to_be(corrector, told):
    told.odd = "cut"
    with serving(exchange(corrector, told.url)) as address:
        assert ask(address, "an odd one").choices[0].finish_reason == "length"


def test_who_calls_tools_says_so_after_the_correction_too(corrector, told):
    """An agent ends its loop where the finish reason is another, and cannot put pieces together that have no number."""
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    message = {"role": "assistant", "content": ANSWER, "tool_calls": [call, {**call, "id": "c2"}]}
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
             "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}  # fmt: skip
    made = exchange(corrector, told.url, guard=Guard(keep_unfinished=True, correct_structured=True))
    with serving(made) as address:
        made.upstream.ask = lambda *_: _reply(whole)  # type: ignore[method-assign]
        choice = ask(address).choices[0]
        pieces = [piece.choices[0] for piece in ask(address, stream=True)]
    assert choice.model_extra["aligner"]["action"] == "corrected" and choice.finish_reason == "tool_calls"
    assert [call.id for call in choice.message.tool_calls] == ["c1", "c2"]
    assert pieces[-1].finish_reason == "tool_calls"
    assert [(call.index, call.id) for piece in pieces for call in piece.delta.tool_calls or ()] == [
        (0, "c1"),
        (1, "c2"),
    ]


def test_of_a_long_dialogue_a_few_beginnings_are_tried_and_the_longest_with_room_is_taken(corrector, told):
    turns = [f"turn {n} of them" for n in range(201)]
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    worker = Worker(replace(corrector, settings=replace(corrector.settings, max_prompt_tokens=300)))
    tried = []
    plain = worker._with
    worker._with = lambda ticket, question: (tried.append(question), plain(ticket, question))[1]  # type: ignore[method-assign]
    found = candidate_questions(messages)
    row = worker._row(Ticket(AnswerRequest(found, ANSWER), None, None))
    fitting = [
        text for text in found if isinstance(plain(Ticket(AnswerRequest([text], ANSWER), None, None), text), DecoderRow)
    ]
    assert corrector.template.render(fitting[0], ANSWER, "") == corrector.encoder.tokenizer.decode(row.prompt)
    assert 200 < len(row.prompt) <= 300 and len(tried) <= 9, "of 101"


def test_answers_that_are_left_alone_take_their_turns(corrector):
    """Each takes a forward pass of its own: however many come, those under way are not kept waiting for all of them."""
    worker = Worker(corrector)

    async def five() -> None:
        for _ in range(5):
            question = CandidateQuestions([("user", QUESTION)], [0])
            worker._waiting.put(
                Ticket(AnswerRequest(question, ANSWER, threshold=-1e9), asyncio.Queue(), asyncio.get_running_loop())
            )
        assert worker._new(2) == []

    asyncio.run(five())
    assert worker._waiting.qsize() == 3


async def _reply(whole: dict[str, Any]) -> Any:
    from aligner.serving.upstream import Reply

    return Reply(200, {}, json.dumps(whole).encode())


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "who is there?"}],
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure,"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}],
        [{"role": "user", "content": ""}],
    ],
)
def test_no_answer_goes_back_uncorrected_for_want_of_a_question(corrector, told, messages):
    told.rule = lambda text: ANSWER
    with serving(exchange(corrector, told.url)) as address:
        choice = client(address).chat.completions.create(model="m", messages=messages).choices[0]
    assert choice.model_extra["aligner"]["action"] == "corrected" and choice.message.content != ANSWER


def test_health_speaks_of_counts_and_of_no_text(corrector, told):
    with serving(exchange(corrector, told.url)) as address:
        ask(address)
        said = requests.get(f"{address}/health")
    assert said.json()["answers"]["corrected"] == 1 and said.json()["status"] == "ok"
    assert QUESTION not in said.text and ANSWER not in said.text


def test_what_stood_in_a_shadow_file_stays(tmp_path):
    rows, notes = tmp_path / "rows.jsonl", tmp_path / "notes.txt"
    rows.write_text('{"question": "q", "answer": "a", "correction": "c"}')
    ShadowLog(str(rows)).close()
    assert rows.read_text() == '{"question": "q", "answer": "a", "correction": "c"}\n', "an end, and nothing lost"
    notes.write_text("buy milk")
    with pytest.raises(UserError, match="is no file of rows"):
        ShadowLog(str(notes))
    assert notes.read_text() == "buy milk"


def test_a_shadow_file_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        ShadowLog(str(tmp_path))
