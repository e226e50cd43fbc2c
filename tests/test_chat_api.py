"""OpenAI's protocol as servers really speak it: tables of what was seen, kind by kind."""

from __future__ import annotations

import json

import pytest

from aligner.chat_api.parameters import ModelParameters, refused_in
from aligner.chat_api.replies import error_in, is_whole
from aligner.chat_api.streams import CollectedStream, reply_in
from aligner.chat_api.thoughts import split_message, split_thoughts, with_text
from aligner.evaluation.judges.dimensions import HELPFUL

REQUEST = {
    "model": "m",
    "messages": [],
    "max_tokens": 9,
    "temperature": 0,
    "top_p": 1,
    "seed": 1,
    "presence_penalty": 0,
}
NEW = {"max_tokens": "max_completion_tokens"}
REFUSALS = (  # words of a 400, what is taken instead
    ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", NEW),
    ("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
     {"temperature": None}),
    ("this model has beta-limitations, temperature and top_p are fixed at 1, presence_penalty at 0",
     {"temperature": None, "top_p": None, "presence_penalty": None}),
    ("litellm.UnsupportedParamsError: O-series models don't support temperature=0.0. Only temperature=1 is supported.",
     {"temperature": None}),
    ("m does not support parameters: ['temperature', 'seed'], for model=m", {"temperature": None, "seed": None}),
    ("temperature: Extra inputs are not permitted", {"temperature": None}),
    ("`temperature` is deprecated for this model.", {"temperature": None}),
    ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", {"top_p": None}),
    ("Argument not supported on this model: presencePenalty", {"presence_penalty": None}),
    ("property 'seed' is unsupported", {"seed": None}),
    ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', {"seed": None}),
    ("Unrecognized request argument supplied: top_p", {"top_p": None}),
    ("This model does not accept max_tokens", NEW),
    ("Parameter `seed` is not allowed here", {"seed": None}),
    ("Invalid argument: temperature must be 1 for thinking models; other values are not supported", {"temperature": None}),
    ("This endpoint does not support non-streaming calls", {"stream": True}),
    ("parameter.enable_thinking must be set to false for non-streaming calls", {"stream": True}),
    ("This model only supports streaming. Please set stream=true.", {"stream": True}),
    ("This model only support stream mode, please enable the stream parameter to access the model.", {"stream": True}),
    ("stream must be set to true for this model", {"stream": True}),
    ("max_tokens is too large: 9. This model supports at most 4 completion tokens", {}),
    ("This model's maximum context length is 8 tokens", {}),
    ("The model `m` does not exist", {}),
    ("Invalid value for messages[0].content: not a valid text", {}),
    ("Your account is not allowed to use this model", {}),
    ("the prompt was filtered", {}),
)  # fmt: skip


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


THOUGHTS = (  # text, what is said
    ("<think>no [[A]]</think>\n\nyes [[B]]", "yes [[B]]"),
    ("<think>no", ""),
    ("no\n</think>\n\nyes", "yes"),
    ("  <THINK>\nno\n</THINK> yes", "yes"),
    ("<thinking>no</thinking>yes", "yes"),
    ('<think duration="3">no</think>yes', "yes"),
    ("<thought>no</thought>\nyes", "yes"),
    ("<reasoning>no</reasoning>yes", "yes"),
    ("<think>a<think>b</think>c</think>yes", "yes"),
    ("<think>one</think>yes\n<think>two</think>and yes", "yes\nand yes"),
    ("yes\n<think>no, it is [[A]]", "yes"),
    ("<think>\n\n</think>\n\nyes", "yes"),
    ("<think>```py\nx = '</think>'\n```</think>yes", "yes"),
    ("<think>```\nnever closed\n</think>yes", "yes"),
    ("[THINK]no[/THINK]yes", "yes"),
    ("◁think▷no◁/think▷yes", "yes"),
    ("&lt;think&gt;no&lt;/think&gt;yes", "yes"),
    ("<seed:think>no</seed:think>yes", "yes"),
    ("<|begin_of_thought|>no<|end_of_thought|><|begin_of_solution|>yes<|end_of_solution|>", "yes"),
    ("<|channel|>analysis<|message|>no<|end|><|start|>assistant<|channel|>final<|message|>yes", "yes"),
    ("<|START_THINKING|>no<|END_THINKING|>yes", "yes"),
    ("<unused94>thought\nno<unused95>yes", "yes"),
    ("<think>no</think><answer>yes</answer>", "yes"),
    ('<details type="reasoning" done="true">\n<summary>Thought</summary>\nno</details>\nyes', "yes"),
    ("Here is my thought process: no\nHere is my response: yes", "yes"),
    ("A model writes `<think>` before it answers.", None),
    ("```xml\n<think>shown</think>\n```\nis how it looks", None),
    ("Use the <think> tag to begin.", None),
    ("plain\n", None),
    ("I think [analysis] of a < b > c", None),
    ("", None),
)  # fmt: skip


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


@pytest.mark.parametrize(
    ("reply", "better"),
    [
        ("<think>[[A]]</think>I see.\n[[B]]", -1),
        ("<think>surely [[A]]</think>", None),
        ("<think>surely [[A]]", None),
        ("[[A]] it seems</think>\n[[B]]", -1),
        ("Final: [[A]]. Note that [[B]] is longer.", 1),
        ("Final: [[A]].\nNote that [[B]] is longer.", 1),
        ("**Final verdict: [[B]]**\n(I would say [[A]] for style.)", -1),
        ("My final verdict is: [[A]]\nThe other, [[B]], is shorter.", 1),
        ("### [[Equal]] ###\nNeither [[A]] nor [[B]] errs.", 0),
        ("Verdict: [[A]]\nOn reflection:\nVerdict: [[B]]", -1),
        ("[[A]]\n\nThough [[B]] is close.", 1),
        ("Answer: [[A]]", 1),
        ("It is [[A]] and not [[B]].", None),
    ],
)
def test_a_verdict_is_what_is_given_as_one_and_never_a_thought(reply, better):
    assert HELPFUL.read(reply) == better


ERRORS = (  # a body of status 200, the status that it stands for
    ({"error": {"message": "slow down", "code": 429}}, 429),
    ({"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}, 429),
    ({"error": "Too Many Requests"}, 429),
    ({"error": {"message": "x", "status": "RESOURCE_EXHAUSTED"}}, 429),
    ([{"error": {"message": "x", "code": 503, "status": "UNAVAILABLE"}}], 503),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 503),
    ({"object": "error", "message": "no such model", "code": 404}, 404),
    ({"detail": "Invalid API key"}, 401),
    ({"detail": [{"loc": ["body", "n"], "msg": "invalid request"}]}, 400),
    ({"message": "upstream timeout"}, 504),
    ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}, 429),
    ({"error_code": 336501, "error_msg": "requests per minute reached"}, 429),
    ({"choices": [{"error": {"message": "provider died", "code": 502}, "finish_reason": "error"}]}, 502),
    ({"errors": [{"message": "quota exceeded"}]}, 429),
    ({"error": {"message": "maximum context length is 8"}}, 400),
    ({"error": {"message": "what?"}}, 502),
    ({"choices": [], "error": None}, None),
    ({"choices": [{"message": {"content": "error: x"}}], "message": "fine"}, None),
    ({"choices": [{"message": {"content": "x"}}], "error": {}}, None),
    ({"object": "list", "data": []}, None),
    ({}, None),
    ("text", None),
)  # fmt: skip


@pytest.mark.parametrize(("body", "status"), ERRORS)
def test_an_error_is_one_whatever_its_status_says(body, status):
    error = error_in(body)
    assert (error.status if error else None) == status and (error is None or error.message)


def test_an_answer_is_whole_or_it_is_not():
    assert all(map(is_whole, ("stop", "STOP", "tool_calls", "function_call", "end_turn", "eos", "COMPLETE", None)))
    assert not any(map(is_whole, ("length", "max_tokens", "content_filter", "SAFETY", "error", "abort", "model_length", "cancelled",
                                  "insufficient_system_resource", "incomplete", "network_error", "what?")))  # fmt: skip


def piece(**choice):
    return b"data: " + json.dumps({"id": "1", "choices": [{"index": 0, **choice}]}).encode()


STREAMS = (  # bytes of a stream, its text, whether it is whole
    (piece(delta={"content": "a"}) + b"\n\n" + piece(delta={"content": "b"}, finish_reason="stop") + b"\n\ndata: [DONE]\n\n",
     "ab", True),
    (piece(delta={"content": "ab"}, finish_reason="stop"), "ab", True),
    (piece(delta={"content": "ab"}, finish_reason="stop") + b"\r\n\r\n", "ab", True),
    (b"\xef\xbb\xbf" + piece(delta={"content": "ab"}, finish_reason="stop") + b"\n\n", "ab", True),
    (b": hello\n\nevent: message\nid: 3\nretry: 9\n" + piece(delta={"content": "ab"}, finish_reason="stop") + b"\n\n", "ab", True),
    (piece(delta={"content": "a"}) + b"\n" + piece(delta={"content": "b"}, finish_reason="stop") + b"\n", "ab", True),
    (b'data: {"choices":\ndata: [{"delta": {"content": "ab"}, "finish_reason": "stop"}]}\n\n', "ab", True),
    (piece(message={"content": "ab"}, finish_reason="stop") + b"\n\n", "ab", True),
    (piece(delta={"content": "ab"}) + b"\n\n", "ab", False),
    (piece(delta={"content": "ab"}, finish_reason="length") + b"\n\n", "ab", False),
    (piece(delta={"content": "ab"}, finish_reason="content_filter") + b"\n\n", "ab", False),
    (piece(delta={"content": "ab"}, finish_reason="stop") + b'\n\ndata: {"error": {"message": "x", "code": 429}}\n\n', "ab", False),
    (piece(delta={"content": "ab"}) + b'\n\nevent: error\ndata: {"type": "error", "error": {"message": "overloaded"}}\n\n',
     "ab", False),
)  # fmt: skip


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
