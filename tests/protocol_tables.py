"""What servers and models of today send, as tables: `test_chat_api.py` reads them one by one, `test_server_kinds.py` sends them
through the layer. Nothing of the project is imported, so that an earlier revision can be tried with them."""

from __future__ import annotations

import json

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

VERDICTS = (  # a judge's reply, the verdict in it
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
)

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

_MESSAGE = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Me.", "annotations": []}],
}
_TOOL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
_NOTED = {"type": "output_text", "text": "Me.", "annotations": [{"start_index": 0}]}
_THOUGHT = {"type": "reasoning", "summary": []}
ROUTES = (  # route, request, reply, whether it is corrected
    ("completions", {"prompt": "q"}, {"choices": [{"text": "Me.", "index": 0, "finish_reason": "stop"}]}, True),
    ("completions", {"prompt": ["q", "r"]}, {"choices": [{"text": "Me.", "index": 0}]}, False),
    ("completions", {"prompt": [1, 2]}, {"choices": [{"text": "Me.", "index": 0}]}, False),
    ("completions", {"prompt": "q", "n": 2}, {"choices": [{"text": "Me."}, {"text": "Me."}]}, False),
    ("completions", {"prompt": "q", "echo": True}, {"choices": [{"text": "qMe."}]}, False),
    ("completions", {"prompt": "q", "suffix": "x"}, {"choices": [{"text": "Me."}]}, False),
    ("completions", {"prompt": "q"}, {"choices": []}, False),
    ("responses", {"input": "q"}, {"status": "completed", "output": [_THOUGHT, _MESSAGE]}, True),
    ("responses", {"input": [{"role": "user", "content": "q"}]}, {"output": [_MESSAGE]}, True),
    ("responses", {"input": "q"}, {"output": [_MESSAGE, _TOOL]}, False),
    ("responses", {"input": "q"}, {"output": [_MESSAGE, _MESSAGE]}, False),
    ("responses", {"input": "q"}, {"output": [{**_MESSAGE, "content": [_NOTED]}]}, False),
    ("responses", {"input": "q", "background": True}, {"status": "in_progress", "output": []}, False),
    ("responses", {"input": "q"}, {"status": "incomplete", "output": [_MESSAGE]}, False),
)  # fmt: skip
