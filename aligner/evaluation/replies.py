"""Replies of judges, kept by content: what was paid for once is not asked again, after a kill or in another evaluation."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from aligner.evaluation.judges.judge import Asked, Judge, Said
from aligner.files import json_line
from aligner.records import UserError


class Replies:
    """A file of JSON lines, (key, reply), that only grows. Who opens it holds its folder."""

    def __init__(self, file: str) -> None:
        self.file, self._kept = Path(file), dict[str, Said]()
        if self.file.exists():
            self._read()
        self._stream = self.file.open("a", encoding="utf-8")

    def _read(self) -> None:
        text = self.file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                kept = json.loads(line)
                said = Said(kept["reply"], *map(int, kept["tokens"]))
                if not isinstance(said.text, str):
                    raise TypeError("a reply is text")
                self._kept[kept["key"]] = said
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.file} line {number}: is damaged. Remove that line; its reply is asked for anew."
                ) from None
        if len(whole) < len(text):
            os.truncate(self.file, len(whole))

    @staticmethod
    def key(judge: Judge, asked: Asked) -> str:
        """What a reply is kept under: who was asked, and what."""
        return hashlib.sha256(f"{judge.identity}\0{judge.prompt(asked)}".encode()).hexdigest()

    def get(self, judge: Judge, asked: Asked) -> Said | None:
        """The reply that was given before, or None."""
        return self._kept.get(self.key(judge, asked))

    def add(self, judge: Judge, asked: Asked, said: Said) -> None:
        """Keep a reply."""
        key = self.key(judge, asked)
        self._kept[key] = said
        line = {"key": key, "reply": said.text, "tokens": [said.tokens_in, said.tokens_out]}
        self._stream.write(json_line(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()
