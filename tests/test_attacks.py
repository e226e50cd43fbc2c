"""Hostile inputs, by kind, as tables: whatever comes in, one line says what is wrong, and nothing else happens."""

from __future__ import annotations

import json
import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
from attacks import raw_upstream, reply, request, try_all

from aligner import cli
from aligner.card import read_card
from aligner.evaluation.judges.dimensions import DIMENSIONS
from aligner.evaluation.replies import ReplyStore
from aligner.inference.journal import Journal
from aligner.inference.servers import Server
from aligner.known_prompts import find_template
from aligner.prompts import CORRECTION
from aligner.records import UserError
from aligner.serving.app import Limits, application
from aligner.serving.config import ServeConfig
from aligner.serving.exchange import Exchange, Policy
from aligner.serving.upstream import UpstreamClient
from aligner.training.flags import yaml_flags
from aligner.training.train_log import read_log

pytestmark = pytest.mark.attacks
KEY = "sk-abcdefghijklmnop/0123456789"
CONTROLS = [chr(n) for n in (*range(1, 9), 10, 11, 12, 13, *range(14, 32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028)]


def app_before(url: str, key: str | None = KEY, limits: Limits | None = None, **policy: Any) -> Any:
    """The layer before an upstream, with an Aligner that must not be reached."""
    answering: dict[str, Any] = {"template": CORRECTION, "objectives": {}, "steered": {}, "describe": dict}
    worker = SimpleNamespace(**answering, is_alive=lambda: True, waiting=lambda: 0, longest=100_000)
    exchange = Exchange("tiny", UpstreamClient(url, key, 5, 10**6), worker, Policy(**policy))  # type: ignore[arg-type]
    app = application(exchange, limits or Limits())
    app.exchange_for_tests = exchange  # type: ignore[attr-defined]
    return app


def user_error(read: Any) -> str:
    """Nothing where a reader returns, or raises an error of one line that a user can correct; else what it did."""
    try:
        read()
    except UserError as error:
        return (
            ""
            if len(str(error).splitlines()) == 1 and len(str(error)) < 1000
            else f"not one short line: {error!s:.200}"
        )
    return ""


HOSTS = [b"a{b.evil.com", b"a}b.evil.com", b'a"b', b"a`b.evil.com", b"evil.com#@localhost", "ü.evil.com".encode(), b"\xff.com",
         b"evil.com", b"localhost.evil.com", b"localhost@evil.com", b"evil.com@localhost", b"localhost/", b"localhost?x", b"",
         b"localhost:", b"localhost:80:80", b"localhost:x", b"[::1", b"::1]", b"[::1].evil.com", b"[::2]", b"[localhost]",
         b"localhost\\@evil.com", b"local host", b"localhost,evil.com", b"127.0.0.1.evil.com", b"127.1", b"0x7f000001",
         b"2130706433", b"localhost%00.evil.com", b"localhost;evil", b"<localhost>", b"localhost#", b"http://localhost",
         b"localhost.", b"0.0.0.0", b"[::ffff:127.0.0.1]", b"localhost:999999", b"*", b".localhost"]  # fmt: skip


def test_a_host_that_is_not_this_machine_gets_nothing():
    with raw_upstream() as (url, replies):
        replies[0] = reply(b'{"data": []}')
        app = app_before(url)

        def refused(host: bytes) -> str:
            status, _, _ = request(app, "/v1/models", headers=[(b"host", host)])
            return "" if status == 403 else f"status {status}"

        try_all("a Host of another site", {repr(host): host for host in HOSTS}, refused)
        two = [(b"host", b"localhost"), (b"host", b"evil.com")]
        assert request(app, "/v1/models", headers=two)[0] == request(app, "/v1/models", headers=[])[0] == 403
        for host in (b"localhost", b"LOCALHOST:8080", b"127.0.0.1:1", b"[::1]:8080", b"[::1]"):
            assert request(app, "/v1/models", headers=[(b"host", host)])[0] == 200, host


def chat_of(choice: object, **more: object) -> bytes:
    return json.dumps({"id": "1", "choices": [choice], **more}).encode()


MESSAGE = {"message": {"role": "assistant", "content": ""}, "index": 0}
CALLS = [[3], [None], ["x"], {}, "x", 7, True, [[]], [{"id": 1}, 5], 0.5]
ODD = {
    **{f"tool_calls {calls}": reply(chat_of({"message": {"content": None, "tool_calls": calls}})) for calls in CALLS},
    **{f"number {n}": reply(b'{"choices": [{"message": {"content": null}, "x": ' + n.encode() + b"}]}")
       for n in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "[" * 3000 + "]" * 3000)},
    **{f"status {status}": reply(b"{}", status) for status in ("999 X", "100000 X", "600 X", "299 X", "204 No", "206 P",
            "302 F")},
    **{f"header {h!r}": reply(b"{}", "429 No", h) for h in (
        "x-request-id: ü€".encode(), b"x-request-id: \xff", b"retry-after: \xc3\xa9", "retry-after: 明日".encode(),
        b"x-request-id: a\tb", b"x-request-id: \x80\x9b", b"retry-after: \x7f", "x-request-id: \u202e".encode())},
    **{f"body {b[:30]!r}": reply(b) for b in (
        b"", b"null", b"[]", b"{}", b'{"choices": {}}', b'{"choices": [3]}', b'{"choices": [null]}', b"\xff\xfe",
        b'{"choices": [{"message": 3}]}', b'{"choices": [{"message": []}]}', b'{"choices": "ab"}', b'{"choices": null}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}', b"{" * 9000, b"<html><script>alert(1)</script>",
            b"data: {}\n\n")},
    "garbage for HTTP": b"\0\1\2\3 nonsense\r\n\r\n",
    "no answer": b"",
    "half a status line": b"HTTP/1.1 2",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20000,
    "a length that lies": b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}",
    "bad chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}",
    "gzip that is none": reply(b"{}", "200 OK", b"content-encoding: gzip"),
    "too much": reply(b'"' + b"x" * 1_100_000 + b'"'),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstreams_oddities_become_an_error_of_the_protocol(stream):
    with raw_upstream() as (url, replies):
        app = app_before(url)
        body = json.dumps({"messages": [{"role": "user", "content": "q"}], "stream": stream}).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]

        def refused(answer: bytes) -> str:
            replies[0] = answer
            status, named, content = request(app, "/v1/chat/completions", body, headers)
            if status not in (429, 502, 504):
                return f"status {status}: {content[:100]!r}"
            return (
                ""
                if named["content-type"] == "application/json" and isinstance(json.loads(content), dict)
                else "no JSON"
            )

        try_all("an upstream's odd answer", ODD, refused)


def test_an_upstreams_page_is_not_served_as_one():
    page = b"<html><script>fetch('/v1/models')</script></html>"
    kinds = [b"text/html", b"TEXT/HTML; charset=utf-8", b"application/xhtml+xml", b"image/svg+xml", b"text/plain", b"",
            b"text/xml",
             b"application/javascript", b"multipart/mixed", b"application/json", b"text/html\t", b"x"]  # fmt: skip
    members = {f"{kind!r} {status}": (kind, status) for kind in kinds for status in ("200 OK", "404 No", "500 No")}
    with raw_upstream() as (url, replies):
        app = app_before(url)

        def harmless(member: tuple[bytes, str]) -> str:
            replies[0] = reply(page, member[1], kind=member[0])
            status, headers, content = request(app, "/v1/models")
            json.loads(content)
            good = headers["content-type"] == "application/json" and headers["x-content-type-options"] == "nosniff"
            return (
                ""
                if good and "default-src 'none'" in headers["content-security-policy"] and status != 200
                else "served"
            )

        try_all("an upstream's page", members, harmless)


def test_the_layers_key_does_not_come_back():
    spelt = {"plain": KEY, "JSON": KEY.replace("/", "\\/"), "percent": KEY.replace("/", "%2F"), "Percent": KEY.replace("/",
            "%2f"),
             "unicode": "".join(f"\\u{ord(c):04x}" for c in KEY), "UNICODE": "".join(f"\\u{ord(c):04X}" for c in KEY),
             "entity": KEY.replace("/", "&#47;"), "hex entity": KEY.replace("/", "&#x2F;"), "twice": KEY + KEY,
             "some": "".join(f"\\u{ord(c):04x}" if n % 3 else c for n, c in enumerate(KEY))}  # fmt: skip
    members = {
        f"{name} {status}": (text, status) for name, text in spelt.items() for status in ("400 No", "200 OK", "401 No")
    }
    members |= {f"echo {status}": ("{asked}", status) for status in ("400 No", "200 OK", "500 No")}
    with raw_upstream() as (url, replies):
        app = app_before(url)

        def kept(member: tuple[str, str]) -> str:
            text, status = member
            replies[0] = reply(
                b'{"error": {"message": "you sent ' + text.encode() + b'"}}', status, b"x-request-id: " + KEY.encode()
            )
            if text == "{asked}":
                replies[0] = reply(b"{asked}", status)
            _, headers, content = request(app, "/v1/models")
            said = json.dumps(headers) + content.decode() + str(json.loads(content))
            return "it came back" if any(each in said for each in (KEY, KEY[:16], *spelt.values())) else ""

        try_all("a key that comes back", members, kept)


ADDRESSES = ["http://:sk-x@host/v1", "http://host/v1#sk-x", "http://sk-x@host/v1", "http://me:sk-x@host/v1",
             "http://me:sk-x@host/v1?key=sk-x", "http://@host/v1", "http://:@host/v1", "http://host#sk-x", "http://host/v1#",
             "http://host/v1?key=sk-x#", "ftp://host/v1?key=sk-x", "http:///v1?key=sk-x", "host/v1?key=sk-x",
             "http://host/v1?key=sk-x y", "http://host:x/v1?key=sk-x",
             "http://a@b@host/v1", "http://host:99999/v1", "http://host:x/v1", "http://[::1/v1", "ftp://host/v1",
             "http:///v1", "host/v1", "http://", "", "javascript:alert(1)", "file:///etc/passwd"]  # fmt: skip
QUERIES = ["http://host/v1?key=sk-x", "http://host/v1?sk-x", "http://host?"]  # where a server of today wants one


def test_an_address_holds_no_secret():
    def layer(url: str) -> str:
        try:
            ServeConfig("m", url, SimpleNamespace(batch_size=1, max_new_tokens=1))  # type: ignore[arg-type]
        except UserError as error:
            return "said" if "sk-x" in str(error) else ""
        return "taken"

    def client(url: str) -> str:
        try:
            Server(url, "m")
        except UserError as error:
            return "said" if "sk-x" in str(error) else ""
        return "taken"

    try_all("an address with a secret", {f"serve {url}": url for url in ADDRESSES}, layer)
    try_all("an address with a secret", {f"client {url}": url for url in (*ADDRESSES, *QUERIES)}, client)


SECRETS = {"api-key": "q-0123456789/abc+x==", "code": "plain-0123456789", "sig": "s%2F0123456789%3D", "token": "t-0123456789",
           "subscription-key": "u-0123456789"}  # fmt: skip


def test_a_secret_of_the_address_or_of_a_fixed_header_does_not_come_back():
    with raw_upstream() as (url, replies):
        query = "&".join(f"{name}={value}" for name, value in SECRETS.items())
        ServeConfig("m", f"{url}?{query}", SimpleNamespace(batch_size=1, max_new_tokens=1))  # type: ignore[arg-type]
        app = app_before(url, None)
        fixed = {"x-api-key": "h-0123456789", "proxy-authorization": "Bearer b-0123456789"}
        app.exchange_for_tests.upstream = UpstreamClient(f"{url}?{query}", None, 5, 10**6, (), fixed)

        def kept(secret: str) -> str:
            replies[0] = reply(b"{asked}", "400 No")
            echoed = request(app, "/v1/models")[2].decode()
            replies[0] = reply(json.dumps({"error": secret}).encode(), "401 No")
            return "it came back" if secret in echoed + request(app, "/v1/models")[2].decode() else ""

        values = [
            *(value for name, value in SECRETS.items() if name != "code"),
            "s/0123456789=",
            "h-0123456789",
            "b-0123456789",
        ]
        try_all("a secret beside the key", {value: value for value in values}, kept)


def posted(app: Any, path: str, **body: Any) -> tuple[int, dict[str, str], bytes]:
    return request(
        app, path, json.dumps(body).encode(), [(b"host", b"localhost"), (b"content-type", b"application/json")]
    )


PLACES = {  # where what comes from the upstream passes as it is
    "a file": lambda app: request(app, "/v1/files/1/content"),
    "a completion": lambda app: posted(app, "/v1/completions", prompt=["q"]),
    "a response": lambda app: posted(app, "/v1/responses", input="q"),
    "a stream of a completion": lambda app: posted(app, "/v1/completions", prompt="q", stream=True),
}  # fmt: skip


def test_what_passes_through_is_no_page_and_holds_no_key():
    page = (
        b"<html><script>fetch('/v1/models')</script>you sent "
        + KEY.encode()
        + b" or "
        + KEY.replace("/", "%2F").encode()
    )
    kinds = [b"text/html", b"TEXT/HTML; charset=utf-8", b"application/xhtml+xml", b"image/svg+xml", b"text/xml", b"", b"\xff",
             b"application/javascript", b"application/pdf", KEY.encode(), b"text/plain"]  # fmt: skip
    members = {f"{place}: {kind!r} {status}": (ask, kind, status) for place, ask in PLACES.items() for kind in kinds
               for status in ("200 OK", "404 No")}  # fmt: skip
    with raw_upstream() as (url, replies):
        app = app_before(url, limits=Limits(pass_through=True))

        def harmless(member: tuple[Any, bytes, str]) -> str:
            ask, kind, status = member
            replies[0] = reply(page, status, b"x-request-id: " + KEY.encode(), kind=kind)
            got, headers, content = ask(app)
            if KEY[:12].encode() in content or KEY[:12] in str(headers):
                return "the key came back"
            run = any(word in headers["content-type"].lower() for word in ("html", "xml", "script", "svg"))
            hard = (
                headers["x-content-type-options"] == "nosniff"
                and "default-src 'none'" in headers["content-security-policy"]
            )
            return f"{headers}" if run or not hard or got != int(status[:3]) else ""

        try_all("an upstream's page that passes", members, harmless)
        replies[0] = reply(b"\0\1\n" * 9, "206 Part", kind=b"audio/mpeg")
        assert request(app, "/v1/audio/1")[::2] == (206, b"\0\1\n" * 9)


def test_a_path_stays_within_the_upstreams_address():
    paths = ["/v1/../admin", "/v1/files/../../admin", "/v1/./x", "/v1/a/..", "/v1/..\\admin", "/v1/.."]
    with raw_upstream() as (url, replies):
        app = app_before(url, limits=Limits(pass_through=True, key="k" * 9))

        def refused(path: str) -> str:
            status, _, _ = request(
                app, path, headers=[(b"host", b"x/v1/y?"), (b"authorization", b"Bearer " + b"k" * 9)]
            )
            return "" if status == 400 else f"status {status}"

        replies[0] = reply(b"{asked}", kind=b"text/plain")
        try_all("a path that leads away", {path: path for path in paths}, refused)
        for path, sent in (
            ("/v1/files/a b?c#d", b"GET /v1/files/a%20b%3Fc%23d HTTP"),
            ("/v1/files/1", b"GET /v1/files/1 HTTP"),
        ):
            headers = [(b"host", b"x/v1/y?"), (b"authorization", b"Bearer " + b"k" * 9)]
            assert request(app, path, headers=headers)[2].startswith(sent)


ONE_TEXT = {"type": "message", "content": [{"type": "output_text", "text": "x"}]}
ODD_TEXTS = {
    **{f"output {value!r}": {"output": value} for value in (3, "x", {}, [3], [[]], [{"type": "message", "content": 3}], None,
        [{"type": "message", "content": [3]}], [{"type": "message", "content": [{"text": 3}]}], [{"type": []}])},
    **{f"type {value!r}": {"output": [{"type": value}]} for value in ("a\r\nx: y", "明日", "\x1b[31m", "x" * 10_000, KEY)},
    **{f"status {value!r}": {"status": value, "output": [ONE_TEXT]} for value in ("a\r\nx: y", "ü", 3, [], {}, KEY)},
    **{f"choices {value!r}": {"choices": value} for value in (3, "x", {}, [3], [{}], [{"text": 3}], [[]], [None])},
}  # fmt: skip


def test_an_odd_text_comes_back_as_it_is():
    with raw_upstream() as (url, replies):
        app = app_before(url)

        def passes(member: tuple[str, Any]) -> str:
            replies[0] = reply(json.dumps(member[1]).encode())
            status, headers, content = posted(app, member[0], input="q", prompt="q")
            kept = content == json.dumps(member[1]).replace(KEY, "[key]").encode() and KEY not in str(headers)
            return (
                ""
                if status == 200 and kept and headers["x-aligner"].isascii()
                else f"{status} {headers} {content[:99]!r}"
            )

        routes = ("/v1/completions", "/v1/responses")
        try_all("an odd text", {f"{r} {name}": (r, value) for r in routes for name, value in ODD_TEXTS.items()}, passes)


def test_control_characters_are_shown_and_not_obeyed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def harmless(control: str) -> str:
        key = f"X{control}[31mX\nerror: fake"
        (tmp_path / "rows.jsonl").write_text(json.dumps({key: 1})[:-1] + f", {json.dumps(key)}: 2}}\n")
        cli.main(["check", "rows.jsonl"])
        cli.main(["check", f"no{control}such\nerror: fake.json"])
        user_error(lambda: find_template(f"no{control}such"))
        for flag in ("--prompt_template", "--no" + control):
            with pytest.raises(SystemExit):
                cli.main(["check", flag, f"{control}\nerror: fake"])
        said = "".join(capsys.readouterr())
        forged = [line for line in said.splitlines() if line.startswith("error: fake")]
        return "obeyed" if forged or (control != "\n" and control in said) else ""

    try_all("a control character", {f"U+{ord(c):04X}": c for c in CONTROLS}, harmless)


BAD_YAML = ["2024-13-45", '!!int "abc"', "[" * 5000, "{" * 5000, "- " * 3000, "!!float x", "!!bool x", "!!timestamp x", "0x",
            "!!binary ü",
            "*a", "&a [*a]", "!!python/object/apply:os.system [ls]", "!x y", "? [a]\n: b", "{[a]: b}", "!!set {a, b}",
            "!!null x", "'", '"\\x"',
            "\0", "\x1b", "a: b: c", "%YAML 9.9\n---\na", "!!omap [a]", "!!pairs [a]", "1" * 5000, "2024-02-30", "99999-01-01",
            "2024-01-01T99:99:99", "&a {<<: *a}", "{<<: 3}", "!!int ''", "!!float ''", "0b2", "1:99:99:99x", "\ud7ff",
            "---\n---\n"]  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_whatever_yaml_holds_one_line_says_what_is_wrong(tmp_path):
    file = tmp_path / "x.yaml"
    members = {text[:20]: text for text in (*BAD_YAML, BOMB, "x" * 2_000_000)}

    def template(text: str) -> str:
        file.write_text(f"template: {text}" if len(text) < 6000 else text, encoding="utf-8", errors="surrogatepass")
        return user_error(lambda: find_template(str(file)))

    def flags(text: str) -> str:
        file.write_text(f"epochs: {text}" if len(text) < 6000 else text, encoding="utf-8", errors="surrogatepass")
        return user_error(lambda: yaml_flags(str(file)))

    try_all("broken YAML", {f"template {name}": text for name, text in members.items()}, template)
    try_all("broken YAML", {f"config {name}": text for name, text in members.items()}, flags)


BAD_JSON = ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, f'{{"a": {"9" * 5000}}}', "", "{", "NaN", "nul", "[]", "3", '"x"',
            "null", "{}",
            '{"prompt": 5}', '{"prompt": []}', '{"prompt": {"name": 1}}', '{"prompt": {"name": "x", "text": []}}', "\x00",
            "\ufeff{}",
            '{"prompt": {"name": "x", "text": "{answer}"}, "data": 3}', '{"prompt": {"name": "x", "text": "{answer}"}, "data": []}',
            '{"prompt": null}', '{"prompt": {"name": "x", "text": "{answer}"}, "no": 1}', '{"kind": 1, "row": 2}',
            '{"key": [], "reply": "x", "tokens": [1, 1]}', '{"key": "k", "reply": 3, "tokens": [1, 1]}',
            '{"key": "k", "reply": "x", "tokens": [1e999, 1]}', '{"key": "k", "reply": "x", "tokens": 5}',
            '{"kind": [], "row": {}, "value": 1}', '{"kind": "a", "row": [], "value": 1}']  # fmt: skip


def test_whatever_this_programs_own_files_hold_one_line_says_what_is_wrong(tmp_path):
    """Cards, journals, kept replies and logs."""

    def card(text: str) -> str:
        (tmp_path / "aligner.json").write_text(text)
        return user_error(lambda: read_card(tmp_path))

    def journal(text: str) -> str:
        (tmp_path / "j").write_text(f"{{}}\n{text}\n")
        return user_error(lambda: Journal(tmp_path / "j", {}).close())

    def replies(text: str) -> str:
        (tmp_path / "r").write_text(f"{text}\n")
        return user_error(lambda: ReplyStore(tmp_path / "r").close())

    def log(text: str) -> str:
        (tmp_path / "train_log.jsonl").write_text(f"{text}\n")
        return "" if all(isinstance(line, dict) for line in read_log(tmp_path)) else "no objects"

    for name, read in {"card": card, "journal": journal, "replies": replies, "log": log}.items():
        try_all(f"broken JSON: {name}", {f"{text[:30]}": text for text in BAD_JSON}, read)


def test_whatever_a_judge_replies_it_is_a_verdict_or_none():
    parts = [
        "[[A]]",
        "[[B]]",
        "[[Equal]]",
        "[[",
        "]]",
        "[[C]]",
        "\n",
        "A",
        "\0",
        "\x1b[31m",
        "[[a]]",
        "[[A]][[B]]",
        "\ud800",
        "[[A\n]]",
    ]
    draw = random.Random(0)
    texts = ["", *parts, "[" * 10_000, "[[A]]" * 10_000, *("".join(draw.choices(parts, k=5)) for _ in range(25))]

    def read(text: str) -> str:
        return "" if all(d.read(text) in (1, 0, -1, None) for d in DIMENSIONS.values()) else "no verdict"

    try_all("a judge's odd reply", {f"{number} {text[:20]!r}": text for number, text in enumerate(texts)}, read)


def test_an_odd_stream_is_bounded_and_breaks_nothing():
    from aligner.serving.untouched import PassingChoices

    ends = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    piece = b'data: {"choices": [{"index": 0, "delta": {"content": "abc"}}]}\n\n'
    odd = [b"", b"\0" * 100, b"\xff\xfe\n", b"data: " + b"[" * 100_000 + b"\n", b"data: NaN\n", b'data: {"choices": 3}\n',
            b"\n" * 1000,
           b'data: {"choices": [{"delta": 3}]}\n', b'data: {"choices": [{"delta": {"content": 5}}]}\n', b"data:\n",
            b"event: x\n",
           b'data: {"choices": [{"index": [], "delta": {"content": "x"}}]}\n',
            b'data: {"choices": [{"index": {}, "delta": {}}]}\n',
           b'data: {"choices": [null]}\n', b"x" * 3_000_000, b"data: " + b"9" * 5000 + b"\n", b'data: "\\ud800"\n',
            b"data: {}\r\n",
           b'data: {"choices": [{"delta": {"content": ["x"]}}]}\n', b": comment\n"]  # fmt: skip

    def passes(part: bytes) -> str:
        choices_seen = PassingChoices(1000)
        choices_seen.feed(piece)
        choices_seen.feed(part)
        choices_seen.feed(b"\n" + piece + ends)
        return "" if texts_of(choices_seen) == ["abcabc"] else f"{choices_seen.whole_choices()}"

    try_all("an odd stream", {repr(part[:30]): part for part in odd}, passes)
    choices_seen, began = PassingChoices(1000), time.process_time()
    for _ in range(20_000):
        choices_seen.feed(piece)
    choices_seen.feed(ends)
    assert choices_seen.is_too_long and texts_of(choices_seen) == [] and time.process_time() - began < 5
    slow = PassingChoices(1000)
    for byte in piece * 100 + ends:
        slow.feed(bytes([byte]))
    assert texts_of(slow) == ["abc" * 100]


def texts_of(choices_seen: Any) -> list[str]:
    return [choice["message"]["content"] for choice in choices_seen.whole_choices()]
