"""A server's reply to a prompt: a text's end, its tokens, the likelihood of an echoed prompt, and whose fault an error is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aligner.chat_api.replies import error_in
from aligner.chat_api.streams import reply_in
from aligner.keys import without_keys
from aligner.serving.corrections import Failed
from aligner.terminal import printable

REFUSALS = (400, 404, 413, 422)  # statuses that another replica would answer with as well
NO_LIKELIHOOD = (
    "the Aligner's server gives no log-probabilities of a prompt (echo with logprobs), which the gate needs: "
    "serve without --mode gate."
)


class ReplicaFailed(Exception):
    """A server that gave no whole correction; another may."""


class Ended(NamedTuple):
    """The end of a server's text: the reason that it gave for it, and the tokens where it counts them."""

    reason: str
    tokens: int | None


def checked(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """A completion or a chunk. Raises ReplicaFailed, or Failed, where it is an error."""
    if error := error_in(reply):
        raise _failure(error.status, error.message)
    return reply


def first_choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first choice of a completion or a chunk; empty where it has none."""
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, Mapping) else {}


def tokens_in(reply: Mapping[str, Any]) -> int | None:
    """The tokens of the text, where the server counts them."""
    usage = reply.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) else None


def whole_reply(status: int, content: bytes) -> Mapping[str, Any]:
    """The completion that a body holds. Raises ReplicaFailed where it holds none, Failed where any server would refuse it."""
    try:
        reply = reply_in(content)
    except ValueError:
        reply = {}
    error = error_in(reply)
    if status != 200 or not reply:
        raise _failure(status, error.message if error else f"status {status}")
    return reply


def _failure(status: int, message: str) -> Exception:
    """What an error of a server's means: of its own, or of the request, which another would refuse as well."""
    shown = printable(without_keys(message))[:200]
    if status in REFUSALS:
        return Failed(f"the Aligner's server refuses it ({shown}).")
    return ReplicaFailed(shown)


def mean_log_probability(choice: Mapping[str, Any], before: int, count: int) -> float:
    """The mean of the log-probabilities of `count` tokens of an echoed prompt behind the first `before`. Raises Failed where there
    are none."""
    listed = choice.get("logprobs")
    values = listed.get("token_logprobs") if isinstance(listed, Mapping) else None
    wanted = values[before : before + count] if isinstance(values, list) else []
    if len(wanted) != count or not all(isinstance(value, int | float) for value in wanted):
        raise Failed(NO_LIKELIHOOD)
    return float(sum(wanted)) / count
