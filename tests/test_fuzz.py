"""Whatever a parser is given, it returns or says in one line what is wrong: drawn at random for minutes, with what was found kept
as quick examples."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aligner.card import card_from
from aligner.evaluation.judges.dimensions import DIMENSIONS
from aligner.evaluation.replies import ReplyStore
from aligner.inference.journal import Journal
from aligner.keys import remember, without_keys
from aligner.known_prompts import find_template
from aligner.parsing import json_value, yaml_value
from aligner.prompts import PromptTemplate
from aligner.records import UserError
from aligner.serving.hosts import hostname
from aligner.serving.protocol import Refused, completion, parse_request
from aligner.serving.untouched import PassingChoices
from aligner.terminal import printable
from aligner.training.checkpoint.resume import read_state
from aligner.training.datasets.registry import parse_spec
from aligner.training.flags import yaml_flags

SECONDS = float(os.environ.get("ALIGNER_FUZZ_SECONDS", "300"))  # of all targets together
KEY = remember("sk-0123456789/abcdef")
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_like = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
CARD = {
    "prompt": {"name": "x", "text": "{question} {answer}"},
    "stage": "s",
    "base_model": "b",
    "base_model_sha256": "",
    "max_length": 1,
    "records_per_update": 1,
    "data": {"deciding": {}},
    "settings": {},
}
STATE = {"update": 1, "card": {}, "shapes": {}, "moves": 1, "schedule": 1, "scaler": None}
words = st.sampled_from(
    [
        "[[A]]",
        "[[B]]",
        "data: ",
        "\n",
        '{"choices": [{"delta": {"content": "x"}}]}',
        "::",
        ":",
        "0.5",
        "template: ",
        "- ",
        "&a",
        "*a",
        "!!int ",
        "{answer}",
        "{question}",
        "{",
        "}",
        "localhost",
        "[::1]",
        "@",
        "\x1b[31m",
        "\ud800",
    ]
)
texts = st.text(max_size=200) | st.lists(words | st.text(string.printable, max_size=10), max_size=12).map("".join)
raw = st.binary(max_size=300) | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
mutated = (
    st.tuples(st.sampled_from([CARD, STATE]), st.text(max_size=10), json_like).map(lambda m: {**m[0], m[1]: m[2]})
    | json_like
)
changed = st.tuples(st.sampled_from(sorted(CARD)), json_like).map(lambda c: {**CARD, c[0]: c[1]}) | mutated


def tolerant(read: Callable[[], object]) -> None:
    """A UserError is of one line; nothing else is raised."""
    try:
        read()
    except UserError as error:
        assert len(str(error).splitlines()) <= 1 or "\n" not in printable(error)


def check_text(folder: Path, text: str) -> None:
    """Specs, templates, judge replies, hosts, what is printed."""
    tolerant(lambda: parse_spec(text))
    tolerant(lambda: PromptTemplate("x", text).render("q", "a", ""))
    assert all(d.read(text) in (1, 0, -1, None) for d in DIMENSIONS.values())
    name = hostname([text])
    assert name is None or (name.isascii() and name.isprintable() and not set(name) & set("@/\\ {}"))
    shown = printable(text)
    assert shown.splitlines() in ([], [shown]) and not any(ord(c) < 32 and c != "\t" for c in shown)
    assert KEY not in without_keys(f"{text}{KEY}{text}")


def check_bytes(folder: Path, content: bytes) -> None:
    """YAML, journals, kept replies, streams, requests, completions, states."""
    for read in (json_value, lambda text: yaml_value(text.decode("utf-8", "replace"))):
        try:
            read(content)
        except ValueError as error:
            assert str(error)
    for read in (parse_request, completion):
        try:
            read(content)
        except Refused as error:
            assert 400 <= error.status < 600
    (folder / "x.yaml").write_bytes(content)
    tolerant(lambda: find_template(str(folder / "x.yaml")))
    tolerant(lambda: yaml_flags(str(folder / "x.yaml")))
    (folder / "j").write_bytes(content)
    tolerant(lambda: Journal(folder / "j", {}).close())
    (folder / "r").write_bytes(content)
    tolerant(lambda: ReplyStore(folder / "r").close())
    choices_seen = PassingChoices(1000)
    choices_seen.feed(content)
    assert all(isinstance(choice, dict) for choice in choices_seen.whole_choices())
    (folder / "state.json").write_bytes(content)
    (folder / "COMPLETED").touch()
    tolerant(lambda: read_state(folder))


def check_value(folder: Path, value: object) -> None:
    """Cards and states of the right outline with anything in them."""
    tolerant(lambda: card_from(value, "aligner.json"))
    (folder / "state.json").write_text(json.dumps(value))
    (folder / "COMPLETED").touch()
    tolerant(lambda: read_state(folder))


TARGETS = {"text": (texts, check_text), "bytes": (raw, check_bytes), "value": (changed, check_value)}
SEEDS = {  # what was found, and what is alike
    "text": [
        "~0",
        "[[A]]\u2028[[B]]",
        "::",
        ":::x",
        "{",
        "{question.__class__}",
        "[::1]",
        "a\ud800",
        "\x85",
        "correction-json:nan:x",
        "a:1e999:b",
        "\ud800/[[A]]",
        "a/\0/*",
    ],
    "bytes": [
        b"0",
        b"~",
        b"[]",
        b"false",
        b"epochs: &a [*a]",
        b"!!timestamp x: 1",
        b"[" * 9999,
        b"\xff",
        b'{"kind": [], "row": {}, "value": 1}',
        b"{}\n[]\n",
        b"a: !!bool x",
        b"3\n4\n",
        b'{"choices": [{"message": {"tool_calls": 3}}]}',
        b'data: {"choices": [{"index": {}, "delta": {"content": 3}}]}\n',
        b'data: {"choices": [{"text": 3, "logprobs": {"a": 3}}, {"logprobs": {"a": [3]}}]}\n',
        b'{"detail": [{"loc": 3, "msg": 4}]}',
        b'data: {"choices": [{"delta": {"tool_calls": 3}}, {"delta": {"tool_calls": [{"index": 0}]}}]}\n',
        b'data: {"choices": [{"delta": ' + b'{"a": ' * 400 + b"1" + b"}" * 400 + b"}]}\n",
        b'{"error": ' + b"[" * 450 + b"]" * 450 + b"}",
        b"? [a]\n: b",
        b"{[]: 1}",
        b"1: 2\n1: 3",
        b"- a",
        b"\0",
    ],
    "value": [
        {**CARD, "data": 3},
        {**CARD, "data": {"deciding": [1]}},
        {**CARD, "settings": 3},
        {**CARD, "prompt": 3},
        {**CARD, "settings": None},
        {**STATE, "card": 3},
        {**STATE, "checksums": "sha256"},
        [],
        3,
        None,
    ],
}


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_is_said_in_one_line(target, tmp_path):
    for seed in SEEDS[target]:
        TARGETS[target][1](tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_is_read_or_refused_for_minutes(target, tmp_path):
    import time

    strategy, check = TARGETS[target]
    ends, tried = time.monotonic() + SECONDS / len(TARGETS), 0

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    @example(SEEDS[target][0])
    def once(drawn):
        nonlocal tried
        tried += 1
        check(tmp_path, drawn)

    while time.monotonic() < ends:
        once()
    assert tried > 500
    print(f"{target}: {tried:,} inputs")
