"""What happens to an answer, and the error for a caller whose answer has no correction."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.inference.guard import Guard
from aligner.serving.corrections import TooLong, Unfinished
from aligner.serving.protocol import Refused


@dataclass(frozen=True)
class Policy:
    """What happens to an answer. `mode`: always, gate, shadow. `threshold`: the gate's, in nats a token. `on_failure`: closed
    (an error) or open (the upstream's answer, flagged). `timeout`: seconds that a correction may take. `backlog`: answers that may
    wait for their shadow, `backlog_characters` their characters together. `guard`: what stays as it is. `sentences`: whether
    upstream and Aligner write in turns."""

    mode: str = "always"
    threshold: float | None = None
    on_failure: str = "closed"
    feedback: str = ""
    timeout: float = 60
    backlog: int = 256
    backlog_characters: int = 8_000_000
    guard: Guard = Guard()
    sentences: bool = False

    @property
    def gate(self) -> float | None:
        """The threshold, where there is a gate."""
        return self.threshold if self.mode == "gate" else None


def refusal(error: Exception, why: str) -> Refused:
    """The error for a caller whose answer has no correction; whether to try again stands in it."""
    if isinstance(error, TooLong):  # again would be the same
        return Refused(400, why, "context_length_exceeded")
    again = {"x-should-retry": "false"} if isinstance(error, Unfinished) else None
    return Refused(503, why, headers=again)
