"""OpenAI's protocol as servers really speak it: tables of what was seen, kind by kind."""

from __future__ import annotations

import json

import pytest
from protocol_tables import ERRORS, NEW, REFUSALS, REQUEST, STREAMS, THOUGHTS, VERDICTS

from aligner.chat_api.parameters import ModelParameters, refused_in
from aligner.chat_api.replies import error_in, is_whole
from aligner.chat_api.streams import CollectedStream, reply_in
from aligner.chat_api.thoughts import split_message, split_thoughts, with_text
from aligner.evaluation.judges.dimensions import HELPFUL


@pytest.mark.parametrize(("words", "taken"), REFUSALS)
def test_a_refusal_says_what_the_model_takes(words, taken):
    assert refused_in(400, {"error": {"message": words, "code": None}}, REQUEST) == taken
    assert refused_in(400, words, REQUEST) == taken
    assert refused_in(429, words, REQUEST) == {}


def test_the_field_param_and_the_place_in_a_list_name_it_too():
    for body, taken in (
        ({"error": {"message": "Not here.", "param": "temperature", "code": "unsupported_value"}}, {"temperature": None}),
        ({"message": "Use another one", "param": "max_tokens", "code": "unsupported_parameter"}, NEW),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "no"}]}, {"seed": None}),
        ({"error": {"message": "temperature is out of range", "code": "unsupported_value", "param": "temperature"}},
         {"temperature": None}),
    ):  # fmt: skip
        assert refused_in(422, body, REQUEST) == taken


def test_what_was_learned_is_said_once_and_holds_for_every_later_request(caplog):
    model = ModelParameters("m at h")
    assert model.learn(400, REFUSALS[0][0], REQUEST) and model.learn(400, REFUSALS[0][0], REQUEST), (
        "another thread was told too"
    )
    assert model.adapt({"max_tokens": 9, "seed": 1}) == {"max_completion_tokens": 9, "seed": 1}
    assert not model.learn(400, REFUSALS[0][0], model.adapt(REQUEST)), (
        "nothing more to leave out: the error is the request's"
    )
    assert model.learn(400, "Unrecognized argument: max_completion_tokens", model.adapt(REQUEST))
    assert "max_tokens" not in model.adapt(REQUEST) and "max_completion_tokens" not in model.adapt(REQUEST)


@pytest.mark.parametrize(("text", "said"), THOUGHTS)
def test_a_thought_is_set_aside_and_text_is_left_as_it_is(text, said):
    assert split_thoughts(text).text == (text if said is None else said)
    assert bool(split_thoughts(text).thought) == (said is not None)
    assert "no" not in split_thoughts(text).text.split()


def test_a_message_is_read_and_written_in_whatever_form_it_comes():
    for message, text, thought in (
        ({"content": "yes", "reasoning_content": "no"}, "yes", "no"),
        ({"content": "yes", "reasoning": "no"}, "yes", "no"),
        ({"content": None, "reasoning_content": "no"}, "", "no"),
        ({"content": "<think>no</think>yes"}, "yes", "<think>no</think>"),
        ({"content": [{"type": "text", "text": "yes"}]}, "yes", ""),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "no"}]}, {"type": "text", "text": "yes"}]},
         "yes", "no"),
        ({"content": [{"type": "reasoning", "text": "no"}, {"type": "output_text", "text": "yes"}]}, "yes", "no"),
        ({"content": [{"text": "no", "thought": True}, {"text": "yes"}]}, "yes", "no"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "", ""),
        ({"content": 3}, "", ""),
        ({}, "", ""),
    ):  # fmt: skip
        assert split_message(message) == (text, thought), message
        assert split_message(with_text(message, "new")).text == "new" or isinstance(message.get("content"), list)
    assert with_text({"content": "<think>no</think>yes", "extra": 1}, "new") == {
        "content": "new", "extra": 1, "reasoning_content": "<think>no</think>"}  # fmt: skip


@pytest.mark.parametrize(("reply", "better"), VERDICTS)
def test_a_verdict_is_what_is_given_as_one_and_never_a_thought(reply, better):
    assert HELPFUL.read(reply) == better


@pytest.mark.parametrize(("body", "status"), ERRORS)
def test_an_error_is_one_whatever_its_status_says(body, status):
    error = error_in(body)
    assert (error.status if error else None) == status and (error is None or error.message)


def test_an_answer_is_whole_or_it_is_not():
    assert all(map(is_whole, ("stop", "STOP", "tool_calls", "function_call", "end_turn", "eos", "COMPLETE", None)))
    assert not any(map(is_whole, ("length", "max_tokens", "content_filter", "SAFETY", "error", "abort", "model_length", "cancelled",
                                  "insufficient_system_resource", "incomplete", "network_error", "what?")))  # fmt: skip


@pytest.mark.parametrize(("content", "text", "whole"), STREAMS)
def test_a_stream_is_put_together_however_it_comes(content, text, whole):
    for size in (1, 7, 10_000):
        stream = CollectedStream()
        for start in range(0, len(content), size):
            stream.feed(content[start : start + size])
        stream.finish()
        assert stream.completion()["choices"][0]["message"]["content"] == text
        assert bool(stream.whole_choices()) == whole


def test_every_field_of_a_stream_is_in_the_whole_reply():
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    events = [
        {"id": "1", "model": "m", "citations": ["u"], "choices": [{"delta": {"role": "assistant", "reasoning": "no"}}]},
        {"choices": [{"delta": {"tool_calls": [call]}, "logprobs": {"content": [1]}}]},
        {"choices": [{"delta": {"tool_calls": [rest]}, "logprobs": {"content": [2]}, "finish_reason": "tool_calls",
                      "stop_reason": 3}]},
        {"choices": [], "usage": {"total_tokens": 5}, "service_tier": "x"},
    ]  # fmt: skip
    whole = reply_in(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events))
    [choice] = whole["choices"]
    assert (whole["citations"], whole["usage"], whole["service_tier"]) == (["u"], {"total_tokens": 5}, "x")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert (choice["message"]["reasoning"], choice["logprobs"]["content"], choice["stop_reason"]) == ("no", [1, 2], 3)
