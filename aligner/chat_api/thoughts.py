"""What is thought and what is said: in a text, in a message's parts, and in the fields beside it.

A model that reasons marks its thought by tags in the text, by parts of another type, or by a field (`reasoning`,
`reasoning_content`, `thinking`). Nothing of it is ever the answer. Tags inside code are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

NAMES = "think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|inner_monologue|seed:think"
_LT, _GT = r"(?:<|&lt;|◁)", r"(?:>|&gt;|▷)"
PAIRS = (  # what opens a thought, and what closes it
    (rf"{_LT}\s*(?:{NAMES})(?:\s+[^<>\n]{{0,200}})?\s*{_GT}", rf"{_LT}\s*/\s*(?:{NAMES})\s*{_GT}"),
    (r"\[\s*think\s*\]", r"\[\s*/\s*think\s*\]"),
    (r"<details\b[^>]*\btype=[\"']?reasoning[^>]*>", r"</details>"),
    (
        r"<\|(?:begin_of_thought|start_thinking|inner_prefix|think(?:_start)?)\|>",
        r"<\|(?:end_of_thought|end_thinking|inner_suffix|/think|think_end)\|>",
    ),
    (r"<unused94>(?:thought)?", r"<unused95>"),
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>",
        r"<\|end\|>|(?=<\|start\|>|<\|channel\|>)",
    ),
    (r"\AHere(?:'s| is) my thought process:", r"Here(?:'s| is) my response:"),
)
_OPEN = re.compile("|".join(f"({start})" for start, _ in PAIRS), re.IGNORECASE)
_CLOSE = [re.compile(end, re.IGNORECASE) for _, end in PAIRS]
_STRAY = re.compile(
    "|".join(PAIRS[number][1] for number in (0, 1, 3)), re.IGNORECASE
)  # closes what a prompt's template opened
_CODE = re.compile(r"(?:^|(?<=>))(`{3,}|~{3,})[^\n]*\n.*?(?:^\1|\Z)|(`+)(?!`)[^\n]*?\2", re.DOTALL | re.MULTILINE)
_WRAPPERS = re.compile(
    r"\A\s*<answer>(?P<answer>.*?)(?:</answer>\s*)?\Z|<\|(?:begin_of_solution|start_response)\|>(?P<solution>.*?)"
    r"(?:<\|(?:end_of_solution|end_response)\|>|\Z)|"
    r"(?:<\|start\|>assistant)?<\|channel\|>final[^<]*<\|message\|>(?P<final>.*?)(?:<\|(?:return|end)\|>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
TEXTS = (None, "text", "output_text", "input_text")  # types of parts that are said
FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")  # fields beside the content


class SplitText(NamedTuple):
    """A text in its two halves. `text`: what is said, `thought`: what is not."""

    text: str
    thought: str


def split_thoughts(text: str) -> SplitText:
    """A text without its thoughts, and the thoughts. A thought that is opened at the begin of a line and never closed has no end:
    nothing after it is said. What a stray closing tag ends was opened by the prompt. Text without thoughts comes back as it is."""
    code = [match.span() for match in _CODE.finditer(text)]
    spans = list(_spans(text, code))
    if not spans:
        return SplitText(text, "")
    visible, thought, at = "", [], 0
    for start, end in spans:
        visible += text[at:start]
        thought.append(text[start:end])
        at = end
    return SplitText(_unwrapped(visible + text[at:]).strip(), "\n".join(thought).strip())


def _spans(text: str, code: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Where the thoughts of a text are."""
    opening = next(_outside(_OPEN, text, 0, code), None)
    stray = next(_outside(_STRAY, text, 0, code), None)
    at = 0
    if stray and (not opening or stray.start() < opening.start()):
        at = stray.end()
        yield 0, at
    while opening := next(_outside(_OPEN, text, at, code), None):
        end = _end_of(text, opening, code)
        if end is None and text[: opening.start()].rpartition("\n")[2].strip():  # a tag that a sentence speaks of
            at = opening.end()
            continue
        at = len(text) if end is None else end
        yield opening.start(), at


def _end_of(text: str, opening: re.Match[str], code: list[tuple[int, int]]) -> int | None:
    """Where an opened thought ends, thoughts in it included; None where it has no end.

    Code inside a thought may be cut off with it, so a closing tag counts wherever code is not closed before it.
    """
    kind = next(number for number, tag in enumerate(opening.groups()) if tag is not None)
    starts, depth, at = re.compile(PAIRS[kind][0], re.IGNORECASE), 1, opening.end()
    inside = [span for span in code if span[1] < len(text)]
    while depth:
        close = next(_outside(_CLOSE[kind], text, at, inside), None)
        if close is None:
            return None
        depth += sum(1 for _ in starts.finditer(text, at, close.start())) - 1
        at = close.end()
    return at


def _outside(pattern: re.Pattern[str], text: str, at: int, code: list[tuple[int, int]]) -> Iterator[re.Match[str]]:
    """The matches that are not in code."""
    return (m for m in pattern.finditer(text, at) if not any(start <= m.start() < end for start, end in code))


def _unwrapped(text: str) -> str:
    """An answer without the tags that a reasoning model puts around it."""
    match = _WRAPPERS.search(text)
    return next((inner for inner in match.groups() if inner is not None), text) if match else text


def split_message(message: Mapping[str, Any]) -> SplitText:
    """What a message says and what it thinks: of its content (text, or parts), and of the fields beside it."""
    content = message.get("content")
    thoughts = [text for name in FIELDS if (text := _text(message.get(name))).strip()][:1]
    if isinstance(content, list):
        parts = [each for each in content if isinstance(each, Mapping)]
        spoken = "\n".join(_text(each.get("text")) for each in parts if is_said(each) and each.get("text"))
        thoughts += [
            _text(each.get(name)) for each in parts if not is_said(each) for name in ("thinking", "reasoning", "text")
        ]
    else:
        spoken = content if isinstance(content, str) else ""
    text, thought = split_thoughts(spoken)
    return SplitText(text, "\n".join(text for text in (*thoughts, thought) if text.strip()))


def is_said(piece: Mapping[str, Any]) -> bool:
    """Whether a part of a message's content is text for the reader."""
    return piece.get("type") in TEXTS and not piece.get("thought")


def _text(value: Any) -> str:
    """Text of a field: itself, or of its parts."""
    if isinstance(value, list):
        return "\n".join(_text(each.get("text")) for each in value if isinstance(each, Mapping))
    return value if isinstance(value, str) else ""


def with_text(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A message that says this instead. Thoughts in its text go into `reasoning_content`; its other parts and fields stay."""
    content = message.get("content")
    if not isinstance(content, list):
        inside = split_thoughts(content).thought if isinstance(content, str) else ""
        thought = "\n".join(t for t in (_text(message.get("reasoning_content")), inside) if t)
        return {**message, "content": text, **({"reasoning_content": thought} if inside else {})}
    places = [n for n, each in enumerate(content) if isinstance(each, Mapping) and is_said(each) and "text" in each]
    inside = split_thoughts("\n".join(_text(content[n].get("text")) for n in places)).thought
    first = places[0] if places else None
    parts = [
        {**each, "text": text} if n == first else each
        for n, each in enumerate(content)
        if n == first or n not in places
    ]
    return {**message, "content": parts, **({"reasoning_content": inside} if inside else {})}
