"""Real answers through `aligner serve`, by kind: what is corrected, what is left alone, what has no correction, and whether code
comes back byte for byte.

    python -m tests.benchmarks.real_answers ALIGNER FILE.json… [--answers 200] [--longest 800] [flags of aligner serve]

A quarter of the answers hold fenced code, a table, JSON or Chinese, another twentieth is in other languages; the others are prose.
They are taken from the files in order, one file after the other in turn. Where the files have too few of a kind, answers written
here (WRITTEN) take their place, and the table says how many. The layer runs with `--on_failure open`, so that every answer comes
back, and with batches of eight.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import regex
import requests

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripted import USUAL, scripted_upstream

from aligner.files import read_json
from aligner.inference.guard import code_blocks, is_structured
from tests.benchmarks.serving import layer

SHARES = {
    "code": 0.11,
    "table": 0.06,
    "JSON": 0.04,
    "Chinese": 0.04,
    "other languages": 0.05,
}  # of all; the rest is prose
REAL_SHARES = {"code": 0.2, "table": 0.05}  # with --real: none is written here
CLIENTS = 8
TABLE = regex.compile(r"^\s*\|?(?:\s*:?-{3,}:?\s*\|)+[\s:|-]*$", regex.MULTILINE)
COUNTED = ("corrected", "unchanged", "left alone", "no end", "runs on", "no room", "other failure")
FAILURES = {"did not end": "no end", "runs on": "runs on", "room": "no room"}  # a word of the error -> its column
WRITTEN = {  # kind -> question, answer; answers of the form in which models give them
    "table": (
        ("Three planets as a table.", "| planet | moons |\n|---|---|\n| Mars | 2 |\n| Venus | 0 |\n| Jupiter | 95 |"),
        ("Compare tea and coffee.", "| | tea | coffee |\n|:--|--:|--:|\n| caffeine (mg) | 40 | 95 |\n| minutes | 3 | 4 |"),
        ("My week as a table?", "| day | task |\n|-----|------|\n| Monday | wash |\n| Tuesday | cook |\n| Friday | rest |"),
        ("Truth table of AND.", "Here it is:\n\n| a | b | a AND b |\n|---|---|---|\n| 0 | 0 | 0 |\n| 0 | 1 | 0 |\n| 1 | 1 | 1 |"),
        ("Prices in two shops?", "| item | shop A | shop B |\n|---|---|---|\n| bread | €2.10 | €1.95 |\n| milk | €1.20 | €1.25 |"),
        ("Units of length.", "| unit | in metres |\n|---|---|\n| inch | 0.0254 |\n| foot | 0.3048 |\n| mile | 1,609.344 |"),
    ),
    "JSON": (
        ("Give me Ann's data as JSON.", '{"name": "Ann", "age": 3, "pets": ["cat", "dog"]}'),
        ("List the primes below 20 as a JSON array.", "[2, 3, 5, 7, 11, 13, 17, 19]"),
        ("Extract the city and the date as JSON.", '{\n  "city": "Lyon",\n  "date": "2021-05-04"\n}'),
        ("Three capitals as JSON, please.", '[{"country": "Peru", "capital": "Lima"}, {"country": "Mali", "capital": "Bamako"}]'),
        ("Classify: 'I love it.' Reply in JSON.", '{"label": "positive", "confidence": 0.97}'),
        ("A package.json for a small library?", '{\n  "name": "left",\n  "version": "1.0.0",\n  "type": "module"\n}'),
        ("GeoJSON of a point in Bern.", '{"type": "Point", "coordinates": [7.4474, 46.948]}'),
        ("Return the order as JSON.", '{"id": 17, "items": [{"sku": "A-1", "count": 2}], "total": 11.8, "paid": false}'),
    ),
    "Chinese": (
        ("月亮是奶酪做的吗？", "不是。月亮主要由岩石组成，表面覆盖着一层细细的尘土。"),
        ("怎样泡绿茶？", "先把水烧开，放到八十度左右，再放入三克茶叶，泡两分钟即可。"),
        ("请用一句话介绍北京。", "北京是中国的首都，有三千多年的历史，故宫和长城都在这里。"),
        ("如何学好英语？", "每天坚持听和读，多与人交谈，把新词写在句子里，慢慢就会进步。"),
        ("二加三乘四等于多少？", "先算乘法：三乘四等于十二，再加二，所以答案是十四。"),
        ("为什么天空是蓝色的？", "阳光进入大气后，蓝光比红光更容易被散射，所以我们看到的天空是蓝色的。"),
        ("推荐一道简单的家常菜。", "西红柿炒鸡蛋很简单：先炒鸡蛋，盛出，再炒西红柿，最后放在一起加盐。"),
        ("晚上睡不着怎么办？", "睡前不要看手机，少喝咖啡，房间保持安静和黑暗，每天在同一时间上床。"),
    ),
    "other languages": (
        ("¿Cuál es la capital de Perú?", "La capital de Perú es Lima, una ciudad que está junto al océano Pacífico."),
        ("Wie kocht man Reis?", "Den Reis waschen, mit der doppelten Menge Wasser aufkochen und fünfzehn Minuten quellen lassen."),
        ("Pourquoi la mer est-elle salée ?", "Les rivières y apportent des sels dissous, et l'eau s'évapore sans les emporter."),
        ("Почему небо голубое?", "Воздух рассеивает синий свет сильнее, чем красный, поэтому небо кажется голубым."),
        ("Сколько будет семью восемь?", "Семью восемь будет пятьдесят шесть."),
        ("ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة، وهي أكبر مدينة في البلاد."),
        ("日本で一番高い山は？", "日本で一番高い山は富士山で、高さは三千七百七十六メートルです。"),
        ("한국의 수도는 어디인가요?", "한국의 수도는 서울이며 한강이 도시를 가로질러 흐릅니다."),
        ("भारत की राजधानी क्या है?", "भारत की राजधानी नई दिल्ली है।"),
        ("Qual è il fiume più lungo d'Italia?", "Il fiume più lungo d'Italia è il Po, che attraversa la pianura del nord."),
    ),
}  # fmt: skip


class Given(NamedTuple):
    """An answer that the upstream will give. `written`: by this program, where the files have none."""

    kind: str
    question: str
    answer: str
    written: bool = False


def kind_of(answer: str) -> str:
    """The kind of an answer: the first that it holds."""
    letters = len(regex.findall(r"\p{L}", answer))
    if code_blocks(answer):
        return "code"
    if TABLE.search(answer):
        return "table"
    if is_structured(answer):
        return "JSON"
    if 2 * len(regex.findall(r"\p{Han}", answer)) > letters:
        return "Chinese"
    foreign = len(regex.findall(r"(?=\p{L})\P{Latin}", answer)) * 2 > letters
    accents = len(regex.findall(r"[à-öø-ÿ]", answer.lower())) > 0.015 * letters
    return "other languages" if foreign or accents else "prose"


def choose(files: list[str], count: int, longest: int, real_alone: bool = False) -> list[Given]:
    """The answers: of each kind its share, every question once. `real_alone`: none that is written here."""
    turns = zip_longest(*([(row["question"], row["answer"]) for row in read_json(file)] for file in files))
    real = dict(pair for pair in chain.from_iterable(turns) if pair and 0 < len(pair[1]) <= longest)
    by_kind: dict[str, list[Given]] = {}
    for question, answer in real.items():
        by_kind.setdefault(kind := kind_of(answer), []).append(Given(kind, question, answer))
    chosen = []
    for kind, share in (REAL_SHARES if real_alone else SHARES).items():
        written = [] if real_alone else [Given(kind, *pair, written=True) for pair in WRITTEN.get(kind, ())]
        chosen += [*by_kind.get(kind, []), *written][: round(share * count)]
    return chosen + by_kind["prose"][: count - len(chosen)]


@contextmanager
def upstream(given: list[Given], delay: float = 0) -> Iterator[str]:
    """A server that gives these answers after so many seconds; its address."""
    answers = {each.question: each.answer for each in given}

    def rule(_: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(delay)
        message = {"role": "assistant", "content": answers[body["messages"][-1]["content"]]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {}, json.dumps({**USUAL, "choices": [choice]}).encode()

    with scripted_upstream() as server:
        server.rule = rule
        yield server.url


def column_of(note: dict[str, Any]) -> str:
    """Where an answer is counted, by the field `aligner`."""
    if note["action"] == "failed_open":
        return next((name for word, name in FAILURES.items() if word in note["error"]), "other failure")
    return str(note["action"]).replace("_", " ")


def main() -> int:
    """Print the table, then the reasons and the code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--longest", type=int, default=800, help="characters of an answer")
    parser.add_argument("--real", action="store_true", help="answers of the files alone: code and tables, and prose")
    args, flags = parser.parse_known_args()
    given = choose(args.data, args.answers, args.longest, args.real)
    settings = ["--on_failure", "open", "--batch_size", "8", "--aligner_timeout", "900", *flags]
    with upstream(given) as url, layer(args.aligner, url, *settings) as (address, _):

        def ask(each: Given) -> dict[str, Any]:
            body = {"model": "m", "messages": [{"role": "user", "content": each.question}]}
            reply = requests.post(f"{address}/v1/chat/completions", json=body, timeout=1000)
            reply.raise_for_status()
            choice: dict[str, Any] = reply.json()["choices"][0]
            return choice

        with ThreadPoolExecutor(CLIENTS) as pool:
            choices = list(pool.map(ask, given))
    report(given, choices)
    return 0


def report(given: list[Given], choices: list[dict[str, Any]]) -> None:
    """The table by kind; why answers stay; the code."""
    notes = [choice["aligner"] for choice in choices]
    print(f"| kind | answers | of them written here | {' | '.join(COUNTED)} |\n|{'---|' * (3 + len(COUNTED))}")
    for kind in (*SHARES, "prose", "all"):
        places = [n for n, each in enumerate(given) if kind in (each.kind, "all")]
        counts = Counter(column_of(notes[n]) for n in places)
        written = sum(given[n].written for n in places)
        print(f"| {kind} | {len(places)} | {written} | {' | '.join(str(counts[name]) for name in COUNTED)} |")
    for reason, count in Counter(note.get("reason") or note.get("error") for note in notes).most_common():
        if reason:
            print(f"{count} x {reason}")
    blocks = same = 0
    for each, choice in zip(given, choices, strict=True):
        before, after = code_blocks(each.answer), code_blocks(choice["message"]["content"])
        blocks += len(before)
        same += (
            sum(block == other for block, other in zip(before, after, strict=False)) if len(before) == len(after) else 0
        )
    print(f"fenced code: {same} of {blocks} blocks come back byte for byte ({100 * same / max(blocks, 1):.0f} %)")


if __name__ == "__main__":
    sys.exit(main())
