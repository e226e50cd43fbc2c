"""Corrections by plain greedy decoding, transformers' prompt lookup and this project's: equal, then timed, by what was copied.

    python -m tests.benchmarks.decoding ALIGNER DATA.json [--rows 200] [--max_new_tokens 256] [--dtype float32]
    python -m tests.benchmarks.decoding --replay DATA.json

The first takes the last rows of DATA, corrects each with the three in alternation, and prints forward passes and CPU seconds by
the share that was copied from the answer; then the same rows eight at a time. Rows whose tokens are not plain decoding's are
listed with how near the two best logits are there. The second needs no model: it asks how many tokens a forward pass would
have made of corrections that are already written, for prompt lookup and for the drafts here, where a pass costs what it costs
on a GPU (as much up to 128 tokens), on a CPU in bf16, and in fp32.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from aligner.demo import locate
from aligner.encoder import Encoder
from aligner.files import read_json
from aligner.inference.corrector import DTYPES, Corrector
from aligner.inference.drafts import AcceptanceStats, Drafter, Guess, draft_length
from aligner.inference.greedy import Cost, DecoderRow, accepted
from aligner.models import load_tokenizer, quiet_libraries
from aligner.prompts import DEFAULT
from aligner.quality.edits import copied_share

LOOKUP = 10  # tokens that prompt lookup drafts, transformers' usual number, from the last two or one
MEASURED_COSTS = {
    "GPU": Cost((1, 128, 256), (1, 1, 2)),
    "CPU, bf16": Cost((1, 8, 16, 32, 64), (1, 1, 1.23, 1.71, 2.65)),
    "CPU, fp32": Cost((1, 2, 8, 16), (1, 1.61, 1.91, 2.63)),
}
SHARES = ((0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.01))
LONG = 40  # tokens a row must have to count among those copied whole


def clock() -> float:
    """CPU seconds, or seconds by the clock when a GPU has done what it was given."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Side:
    """What one way of decoding made and took, row by row."""

    made: list[list[int]] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def compare(corrector: Corrector, rows: Sequence[DecoderRow], most: int) -> dict[str, Side]:
    """All rows by all three, one row at a time, each time another one first."""
    model, eos, decoder = corrector.model, corrector.encoder.eos, corrector.decoder
    assert decoder is not None
    count = [0]
    model.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))

    def generate(row: DecoderRow, **more: int) -> list[int]:
        ids = torch.tensor([row.prompt], device=model.device)
        config = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=eos, pad_token_id=eos, **more)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[operator]
        found: list[int] = made[0, len(row.prompt) :].tolist()
        return found

    ways: dict[str, Callable[[DecoderRow], list[int]]] = {
        "plain": generate,
        "lookup": lambda row: generate(row, prompt_lookup_num_tokens=LOOKUP),
        "ours": lambda row: next(decoder.decode([DecoderRow(row.prompt, row.answer, most)], 1)).output,
    }
    ways["ours"](rows[0])  # the first time it measures what a pass costs
    sides = {name: Side() for name in ways}
    for number, row in enumerate(tqdm(rows, unit=" rows", mininterval=1)):
        order = list(ways)[number % 3 :] + list(ways)[: number % 3]
        for name in order:
            count[0], began = 0, clock()
            made = ways[name](row)
            sides[name].seconds.append(clock() - began)
            sides[name].passes.append(count[0])
            sides[name].made.append(made)
    return sides


def report(sides: dict[str, Side], shares: np.ndarray, tokens: np.ndarray) -> list[str]:
    """A line per range of copied shares: passes and CPU seconds of each way, and plain decoding's over ours."""
    lines = [f"{'copied':<22}{'rows':>5}{'tokens':>8}{'passes: plain':>15}{'lookup':>8}{'ours':>7}{'ratio':>7}"
             f"{'CPU s: plain':>14}{'lookup':>9}{'ours':>9}{'plain/ours':>12}{'lookup/ours':>13}"]  # fmt: skip
    groups = {"all": shares >= 0} | {
        f"{low:.0%} to {min(high, 1):.0%}": (shares >= low) & (shares < high) for low, high in SHARES
    }
    groups[f"90 %, {LONG} tokens"] = (shares >= 0.9) & (tokens >= LONG)
    for name, chosen in groups.items():
        if chosen.any():
            passes = {way: int(np.array(side.passes)[chosen].sum()) for way, side in sides.items()}
            seconds = {way: float(np.array(side.seconds)[chosen].sum()) for way, side in sides.items()}
            lines.append(
                f"{name:<22}{chosen.sum():>5}{tokens[chosen].sum():>8}{passes['plain']:>15}{passes['lookup']:>8}{passes['ours']:>7}"
                f"{passes['plain'] / passes['ours']:>7.2f}{seconds['plain']:>14.1f}{seconds['lookup']:>9.1f}{seconds['ours']:>9.1f}"
                f"{seconds['plain'] / seconds['ours']:>12.2f}{seconds['lookup'] / seconds['ours']:>13.2f}"
            )
    return lines


def differences(
    corrector: Corrector, rows: Sequence[DecoderRow], expected: Sequence[list[int]], found: Sequence[list[int]]
) -> list[str]:
    """The rows that differ, and at the first difference the gap between the two best logits of plain decoding."""
    lines = []
    for number, (row, plain, ours) in enumerate(zip(rows, expected, found, strict=True)):
        if plain != ours:
            place = next(i for i, pair in enumerate(zip(plain, ours, strict=False)) if pair[0] != pair[1])
            with torch.inference_mode():
                logits = corrector.model(
                    torch.tensor([row.prompt + plain[:place]], device=corrector.model.device), logits_to_keep=1
                ).logits[0, -1]
            best = logits.float().topk(2).values
            lines.append(
                f"  row {number + 1} differs from token {place + 1} on; the two best logits are {best[0] - best[1]:.1e} apart"
            )
    return lines


def run(args: argparse.Namespace) -> list[str]:
    """The comparison with a model."""
    corrector = Corrector.load(locate(args.aligner), args.prompt_template, dtype=args.dtype)
    values = [value for file in args.data for value in read_json(file)[-args.rows // len(args.data) :]]
    prompts = [corrector.template.render(value["question"], value["answer"]) for value in values]
    pairs = corrector.encoder.pairs(prompts, [value["answer"] for value in values])
    rows = [DecoderRow(prompt, answer, args.max_new_tokens) for prompt, answer, _ in pairs]
    sides = compare(corrector, rows, args.max_new_tokens)
    texts = [corrector.encoder.tokenizer.decode(made, skip_special_tokens=True) for made in sides["plain"].made]
    shares = np.array([copied_share(value["answer"], text) for value, text in zip(values, texts, strict=True)])
    lines = report(sides, shares, np.array([len(made) for made in sides["plain"].made]))
    decoder = corrector.decoder
    assert decoder is not None
    fresh = [DecoderRow(row.prompt, row.answer, args.max_new_tokens, place) for place, row in enumerate(rows)]
    decoder.passes, began = 0, clock()
    made = {row.index: row.output for row in decoder.decode(fresh, 8)}
    lines.append(f"eight at a time: {decoder.passes} passes, {clock() - began:.1f} s")
    for name, found in (
        ("one at a time", sides["ours"].made),
        ("eight at a time", [made[i] for i in range(len(rows))]),
    ):
        apart = differences(corrector, rows, sides["plain"].made, found)
        lines += [
            f"{name}: {len(rows) - len(apart)} of {len(rows)} rows are plain greedy decoding's, token for token",
            *apart,
        ]
    return lines


def lookup_passes(prompt: list[int], correction: list[int]) -> list[int]:
    """The tokens of each pass that prompt lookup would need: the first place of the last two tokens, else of the last."""
    text, passes, end = prompt + correction, [], len(prompt)
    while end < len(text):
        draft: list[int] = []
        for size in (2, 1):
            last = text[end - size : end]
            place = next((i for i in range(end - size) if text[i : i + size] == last), None)
            if place is not None:
                draft = text[place + size : min(place + size + LOOKUP, end)]
                break
        passes.append(1 + len(draft))
        end += len(accepted(draft, [*text[end : end + len(draft) + 1], -1], -2)) if draft else 1
    return passes


def our_passes(
    prompt: list[int], answer: list[int], correction: list[int], habits: AcceptanceStats, cost: Cost
) -> list[int]:
    """The tokens of each pass that the drafts here would need."""
    drafter, passes, end = Drafter(prompt, answer), list[int](), 0
    while end < len(correction):
        guesses = drafter.guesses()
        guess = habits.best(guesses) if guesses else Guess(0, 0, [])
        length = draft_length([habits.survival(guess)], 1 if end else len(prompt), cost)
        draft = guess.tokens[: min(length, len(correction) - end - 1)]
        made = accepted(draft, correction[end : end + len(draft) + 1], -2)
        for each in guesses:
            habits.learn(each, made)
        drafter.extend(made)
        passes.append(1 + len(draft))
        end += len(made)
    return passes


def replay(file: str) -> list[str]:
    """Tokens per pass and the speed against plain decoding, over corrections that are already written."""
    encoder, values = Encoder(load_tokenizer(locate("embedded"))), read_json(file)
    prompts = [DEFAULT.render(value["question"], value["answer"]) for value in values]
    answers = [ids for _, ids, _ in encoder.pairs(prompts, [value["answer"] for value in values])]
    pairs = [(prompt, ids) for prompt, ids, _ in encoder.pairs(prompts, [value["correction"] for value in values])]
    shares = np.array([copied_share(value["answer"], value["correction"]) for value in values])
    tokens = np.array([len(ids) for _, ids in pairs])
    looked_up = [lookup_passes(*pair) for pair in pairs]
    lines = []
    for name, cost in MEASURED_COSTS.items():
        habits = AcceptanceStats()
        ours = [our_passes(p, a, c, habits, cost) for (p, c), a in zip(pairs, answers, strict=True)]
        lines.append(
            f"{name:<12}{'rows':>6}{'tokens a pass: lookup':>23}{'ours':>7}{'speed over plain: lookup':>27}{'ours':>7}"
        )
        for low, high in ((0, 1.01), *SHARES):
            chosen = np.flatnonzero((shares >= low) & (shares < high))
            made, line = tokens[chosen].sum(), f"{low:.0%} to {min(high, 1):.0%}"
            counts = [sum(len(side[i]) for i in chosen) for side in (looked_up, ours)]
            taken = [sum(float(cost(np.array(side[i])).sum()) for i in chosen) for side in (looked_up, ours)]
            lines.append(f"{line:<12}{len(chosen):>6}{made / counts[0]:>23.2f}{made / counts[1]:>7.2f}"
                         f"{made / taken[0]:>27.2f}{made / taken[1]:>7.2f}")  # fmt: skip
    return lines


def main(arguments: list[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aligner", nargs="?", help="an Aligner's folder")
    parser.add_argument("data", nargs="*", help="JSON arrays of Q-A-C rows")
    parser.add_argument("--replay", metavar="DATA.json")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--prompt_template")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    quiet_libraries()
    print(*(replay(args.replay) if args.replay else run(args)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
