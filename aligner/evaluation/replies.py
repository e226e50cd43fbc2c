"""Replies of judges, kept by content: a reply that was paid for is never requested again, after a kill or in another evaluation."""

from __future__ import annotations

import hashlib
from pathlib import Path

from aligner.evaluation.judges.judge import Judge, JudgeReply, JudgeRequest
from aligner.jsonl import LineLog
from aligner.parsing import json_value
from aligner.records import UserError


class ReplyStore:
    """A file of JSON lines, (key, reply), that only grows. Who opens it holds the lock of its folder.

    UserError where a line is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._log, self._replies = file, LineLog(file), dict[str, JudgeReply]()
        for number, line in enumerate(self._log.lines, 1):
            try:
                fields = json_value(line)
                reply = JudgeReply(fields["reply"], *map(int, fields["tokens"]))
                if not isinstance(reply.text, str):
                    raise TypeError("a reply is text")
                self._replies[fields["key"]] = reply
            except (ValueError, KeyError, TypeError, OverflowError):
                raise UserError(
                    f"{file} line {number}: is damaged. Remove that line; its reply is requested again."
                ) from None
        self._log.start()

    @staticmethod
    def key(judge: Judge, request: JudgeRequest) -> str:
        """The key of a reply: a digest of the judge's identity and its prompt."""
        return hashlib.sha256(f"{judge.identity}\0{judge.prompt(request)}".encode()).hexdigest()

    def get(self, judge: Judge, request: JudgeRequest) -> JudgeReply | None:
        """The reply to an earlier request that was the same, or None."""
        return self._replies.get(self.key(judge, request))

    def add(self, judge: Judge, request: JudgeRequest, reply: JudgeReply) -> None:
        """Keep a reply."""
        key = self.key(judge, request)
        self._replies[key] = reply
        self._log.append({"key": key, "reply": reply.text, "tokens": [reply.tokens_in, reply.tokens_out]})

    def close(self) -> None:
        """Close the file."""
        self._log.close()
