"""`aligner serve --sentences`: the official client reads corrected sentences while the upstream speaks, over real HTTP."""

from __future__ import annotations

import threading
import time

import openai
import pytest
import requests
from layered import ask, client, serving
from scripted import scripted_upstream
from two_writers import CHANGES, CORRECTED, SSE, aligner_rule, streamed, upstream_rule

from aligner.cli import main
from aligner.encoder import Encoder
from aligner.inference.corrector import Settings
from aligner.known_prompts import SENTENCE
from aligner.models import load_tokenizer
from aligner.serving.exchange import Exchange
from aligner.serving.policy import Policy
from aligner.serving.replicas import Replicas
from aligner.serving.served_aligner import ServedAligner
from aligner.serving.upstream import UpstreamClient

pytest.importorskip("sentencex")
QUESTION = "What is the capital of France?"
FAILS = {**CHANGES, "It is on the Seine.": "FAIL"}


@pytest.fixture
def servers():
    with scripted_upstream() as upstream, scripted_upstream() as aligner:
        upstream.rule, aligner.rule = upstream_rule, aligner_rule()
        yield upstream, aligner


def layer(tiny_model, servers, **policy) -> Exchange:
    upstream, aligner = (UpstreamClient(server.url, None, 20, 10**6) for server in servers)
    encoder = Encoder(load_tokenizer(str(tiny_model)))
    corrector = ServedAligner(Replicas([aligner]), "a", SENTENCE, encoder, 2048, Settings(8, 64), {})
    return Exchange("a", upstream, corrector, Policy(sentences=True, **policy))


def texts_of(chunks) -> list[str]:
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


def test_a_stream_is_one_corrected_sentence_after_the_other(tiny_model, servers):
    with serving(layer(tiny_model, servers)) as address:
        chunks = list(ask(address, QUESTION, stream=True, temperature=0.5))
    assert texts_of(chunks) == ["Hello.", " The capital is Paris.", " It is on the Seine.", " Bye."]
    last = chunks[-1].choices[0]
    note = last.model_extra["aligner"]
    assert (last.finish_reason, note["action"], note["upstream_requests"]) == ("stop", "corrected", 3)
    assert [turn["corrected"].strip() for turn in note["sentences"]][:2] == ["Hello.", "The capital is Paris."]
    asked = [body for _, body in servers[0].asked]
    assert [body["messages"][1:] for body in asked][1] == [{"role": "assistant", "content": "Hello."}]
    assert {body["temperature"] for body in asked} == {0.5}


@pytest.mark.slow
def test_the_first_sentence_is_there_before_the_upstream_has_ended(tiny_model, servers):
    ended = threading.Event()

    def slowly(path, body):
        def pieces():
            yield from streamed("It is Paris. And then", "delta")[:-2]
            ended.wait(20)
            yield from streamed(" it ends.", "delta")

        return 200, SSE, Iterated(pieces())

    servers[0].rule = slowly
    with serving(layer(tiny_model, servers)) as address:
        stream = iter(ask(address, QUESTION, stream=True))
        first = next(stream).choices[0].delta.content
        assert first == "It is Paris." and not ended.is_set()
        ended.set()
        assert texts_of(stream) == [" And then it ends."]


class Iterated(list):
    """Pieces of a reply that are made when they are sent."""

    def __init__(self, pieces) -> None:
        super().__init__()
        self.pieces = pieces

    def __iter__(self):
        return self.pieces


@pytest.mark.slow
def test_a_whole_answer_is_written_in_turns_too(tiny_model, servers):
    with serving(layer(tiny_model, servers)) as address:
        choice = ask(address, QUESTION).choices[0]
    assert choice.message.content == CORRECTED and choice.finish_reason == "stop"
    assert choice.model_extra["aligner"]["original"].startswith("You fool! The capital is Rome")


@pytest.mark.slow
def test_after_the_first_byte_a_failure_ends_the_stream_with_an_error_and_takes_nothing_back(tiny_model, servers):
    servers[1].rule = aligner_rule(FAILS)
    with serving(layer(tiny_model, servers)) as address:
        read: list[str] = []
        with pytest.raises(openai.APIError, match="refuses it"):
            for chunk in ask(address, QUESTION, stream=True):
                read += texts_of([chunk])
        assert read == ["Hello.", " The capital is Paris."]
        body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
        assert requests.post(f"{address}/v1/chat/completions", json=body, timeout=20).status_code == 503
    servers[1].rule = aligner_rule({"You fool!": "FAIL"})
    with serving(layer(tiny_model, servers)) as address, pytest.raises(openai.InternalServerError):
        ask(address, QUESTION, stream=True)


@pytest.mark.slow
def test_with_on_failure_open_the_sentence_stays_and_the_answer_goes_on(tiny_model, servers):
    servers[1].rule = aligner_rule(FAILS)
    with serving(layer(tiny_model, servers, on_failure="open")) as address:
        choice = ask(address, QUESTION).choices[0]
    assert choice.message.content == CORRECTED
    note = choice.model_extra["aligner"]
    assert note["action"] == "failed_open" and note["sentences"][2]["failed"]


@pytest.mark.slow
def test_a_limit_of_the_request_holds_for_all_turns_together(tiny_model, servers):
    with serving(layer(tiny_model, servers)) as address:
        choice = ask(address, QUESTION, max_tokens=8).choices[0]
    assert choice.finish_reason == "length"
    assert [body["max_tokens"] for _, body in servers[0].asked] == [8, 5], "less by the pieces that were read"


@pytest.mark.slow
def test_thoughts_are_no_sentences(tiny_model, servers):
    thought = "<think>Is it Rome? No. It is Paris.</think>"
    servers[0].rule = lambda path, body: (200, SSE, streamed(thought + "The capital is Paris. It is big.", "delta"))
    with serving(layer(tiny_model, servers)) as address:
        assert texts_of(ask(address, QUESTION, stream=True)) == ["The capital is Paris.", " It is big."]


@pytest.mark.slow
def test_json_and_code_are_one_piece_that_stays(tiny_model, servers):
    text = '{"a": "You fool!",\n "b": 2}'
    servers[0].rule = lambda path, body: (200, SSE, streamed(text, "delta"))
    with serving(layer(tiny_model, servers)) as address:
        assert texts_of(ask(address, QUESTION, stream=True)) == [text]
    code = "```\nYou fool!\nx = 1\n```"
    servers[0].rule = lambda path, body: (200, SSE, streamed(f"See:\n{code}\nDone.", "delta"))
    servers[1].rule = aligner_rule({code: "nothing"})
    with serving(layer(tiny_model, servers)) as address:
        assert texts_of(ask(address, QUESTION, stream=True)) == ["See:", f"\n{code}", "\nDone."]


@pytest.mark.slow
def test_what_is_no_plain_text_is_asked_for_as_a_whole_and_corrected_by_sentences(tiny_model, servers):
    servers[0].says({"content": "You fool! It is Rome."})
    with serving(layer(tiny_model, servers)) as address:
        choice = ask(address, QUESTION, n=2).choices[0]
    assert choice.message.content == "Hello. It is Rome."
    assert "stream" not in servers[0].asked[0][1] or not servers[0].asked[0][1]["stream"]


@pytest.mark.slow
def test_the_upstreams_error_and_its_refusal_to_go_on_reach_the_client(tiny_model, servers):
    servers[0].rule = lambda path, body: (429, {"retry-after": "3"}, b'{"error": {"message": "slow down"}}')
    with serving(layer(tiny_model, servers)) as address, pytest.raises(openai.RateLimitError, match="slow down"):
        ask(address, QUESTION, stream=True)
    servers[0].rule = lambda path, body: (
        (400, {}, b'{"error": {"message": "unknown field"}}')
        if "continue_final_message" in body
        else upstream_rule(path, body)
    )
    with serving(layer(tiny_model, servers)) as address, pytest.raises(openai.APIError, match="--upstream_folder"):
        list(ask(address, QUESTION, stream=True))


@pytest.mark.slow
def test_a_client_that_leaves_ends_the_upstreams_work(tiny_model, servers):
    left = threading.Event()

    def endless(path, body):
        def pieces():
            try:
                while True:
                    yield from streamed("On and on. ", "delta")[:-2]
                    time.sleep(0.02)
            finally:
                left.set()

        return 200, SSE, Iterated(pieces())

    servers[0].rule = endless
    with serving(layer(tiny_model, servers)) as address, client(address).with_options(timeout=20) as caller:
        stream = caller.chat.completions.create(
            model="m", messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        next(iter(stream))
        stream.close()
        assert left.wait(20)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sentences", "--mode", "shadow", "--shadow_file", "x"], "--mode always or gate"),
        (["--upstream_folder", "x"], "--upstream_folder needs --sentences"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, capsys, flags, said):
    assert main(["serve", "--model", str(tmp_path), "--upstream_url", "http://localhost:1/v1", *flags]) == 2
    assert said in capsys.readouterr().err
