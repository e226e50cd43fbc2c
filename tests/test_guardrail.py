"""`aligner serve --guardrail`: the calls of LiteLLM's generic guardrail API, the answer's paired with its question's."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from layered import ANSWER, QUESTION, correction, corrector, exchange, serving

from aligner.serving import guardrail
from aligner.serving.guardrail import PATH, AskedBefore

__all__ = ["corrector"]  # a fixture


def call(address: str, kind: str, texts: list[str], name: str | None = "1", **more: Any) -> dict[str, Any]:
    body = {"input_type": kind, "texts": texts, "litellm_call_id": name, "request_data": {}, **more}
    reply = requests.post(address + PATH, json=body, timeout=30, headers=more.pop("headers", {}))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_an_answer_is_corrected_with_the_question_of_its_call(corrector, told):
    with serving(exchange(corrector, told.url), guardrail=True) as address:
        assert call(address, "request", [QUESTION]) == {"action": "NONE"}
        call(address, "request", ["another one?"], "2")
        reply = call(address, "response", [ANSWER, ""])
    assert reply == {"action": "GUARDRAIL_INTERVENED", "texts": [correction(corrector), ""]}, (
        "no text, nothing to correct"
    )


def test_a_dialogue_is_taken_as_it_is(corrector, told):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with serving(exchange(corrector, told.url), guardrail=True) as address:
        call(address, "request", ["a", "b", "c"], structured_messages=turns)
        [text] = call(address, "response", ["d"])["texts"]
    assert text == correction(corrector, "Human: a\n\nAssistant: b\n\nHuman: c", "d")


@pytest.mark.parametrize(("on_failure", "action"), [("closed", "BLOCKED"), ("open", "NONE")])
def test_an_answer_without_its_question_is_no_correction(on_failure, action, corrector, told):
    with serving(exchange(corrector, told.url, on_failure=on_failure), guardrail=True) as address:
        assert call(address, "response", [ANSWER], "of nobody")["action"] == action


def test_a_correction_that_fails_blocks_with_the_reason(corrector, told):
    with serving(exchange(corrector, told.url, timeout=0.0001), guardrail=True) as address:
        call(address, "request", [QUESTION])
        reply = call(address, "response", [ANSWER])
    assert reply["action"] == "BLOCKED" and "did not finish" in reply["blocked_reason"]


def test_what_is_no_call_is_refused_and_without_the_flag_there_is_no_route(corrector, told):
    with serving(exchange(corrector, told.url), guardrail=True) as address:
        for body in (
            {},
            {"texts": "x", "input_type": "request"},
            {"texts": [1], "input_type": "response"},
            {"texts": ["x"]},
        ):
            assert requests.post(address + PATH, json=body, timeout=30).status_code == 400
    with serving(exchange(corrector, told.url)) as address:
        assert requests.post(address + PATH, json={}, timeout=30).status_code == 404


def test_the_key_may_come_as_the_gateway_sends_it(corrector, told):
    with serving(exchange(corrector, told.url), guardrail=True, key="sesame") as address:
        body = {"input_type": "request", "texts": [QUESTION]}
        statuses = [
            requests.post(address + PATH, json=body, timeout=30, headers=headers).status_code
            for headers in ({}, {"x-api-key": "wrong"}, {"x-api-key": "sesame"}, {"Authorization": "Bearer sesame"})
        ]
    assert statuses == [401, 401, 200, 200]


def test_questions_are_held_so_many_so_long_and_so_large(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("aligner.serving.guardrail.time.monotonic", lambda: now[0])
    monkeypatch.setattr(guardrail, "MOST", 2)
    held = AskedBefore()
    for name in "abc":
        held.keep(name, [{"role": "user", "content": name}])
    assert held.of("a") is None and held.of("b") and held.of("c")
    monkeypatch.setattr(guardrail, "CHARACTERS", 10)
    held.keep("d", [{"role": "user", "content": "x" * 10}])
    assert held.of("b") is None and held.of("d")
    now[0] = guardrail.SECONDS + 1
    assert held.of("d") is None and held._characters == 0
