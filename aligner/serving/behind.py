"""Shadow mode: what went back untouched is corrected behind it, and only whole answers with whole corrections become rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aligner.chat_api.dialogue import CandidateQuestions, candidate_questions
from aligner.chat_api.thoughts import split_message
from aligner.inference.guard import Guard, markers_of
from aligner.serving.corrections import AnswerCorrector, AnswerRequest, Done, Failed, Unfinished
from aligner.serving.shadow import ShadowLog

log = logging.getLogger("aligner")


class ShadowQueue:
    """Answers whose corrections are still to be written. `backlog`: how many may wait, and `characters` of them and their
    questions together; `count`: told what became of each."""

    def __init__(
        self,
        worker: AnswerCorrector,
        file: ShadowLog | None,
        guard: Guard,
        feedback: str,
        backlog: int,
        characters: int,
        count: Callable[[str, Done | None], None],
    ) -> None:
        self._worker, self._file, self._guard, self._feedback = worker, file, guard, feedback
        self._backlog, self._characters, self._count = backlog, characters, count
        self._tasks = set[asyncio.Task[None]]()
        self._held, self._warned = 0, False

    @property
    def longest(self) -> int:
        """Characters of an answer that is corrected."""
        return self._worker.longest

    def add(self, chat: Mapping[str, Any], message: Any) -> None:
        """Queue the correction of an answer that was already sent back."""
        answer = split_message(message).text if isinstance(message, Mapping) else ""
        if not answer.strip():
            return
        questions = candidate_questions(chat["messages"])
        size = len(questions[0]) + len(answer)
        full = len(self._tasks) >= self._backlog or self._held + size > self._characters
        if full or size > self.longest:
            self.drop()
            return
        task = asyncio.create_task(self._write(questions, answer, chat.get("model")))
        self._tasks.add(task)
        self._held += size

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._held -= size

        task.add_done_callback(ended)

    def drop(self) -> None:
        """An answer is not corrected: it is too long, or too many wait."""
        self._count("dropped", None)
        if not self._warned:
            log.warning("answers come that are too many or too long to correct: they are not in the shadow file")
        self._warned = True

    async def close(self, timeout: float) -> None:
        """Wait for what is under way, as long as one correction may take."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    async def ended(self) -> None:
        """All have ended, for the worker is closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._file:
            self._file.close()

    async def _write(self, questions: CandidateQuestions, answer: str, model: Any) -> None:
        assert self._file
        try:
            done = await self._worker.submit(AnswerRequest(questions, answer, self._feedback)).done()
            if done.left_alone:  # by its route: no Aligner has corrected it
                self._count("left_alone", done)
                return
            corrected = done.corrected
            markers = markers_of(done.template or self._worker.template)
            keep = self._guard.after(corrected, questions[0], answer, markers)
            if keep and keep.failed:
                raise Unfinished(keep.reason)
            self._file.add(questions[0], answer, corrected.text, upstream=model, finished=corrected.finished)
            self._count("shadow", done)
        except Unfinished:
            self._count("unfinished", None)
        except Failed:
            self._count("failed", None)
        except OSError as error:
            self._count("dropped", None)
            log.warning("%s: a row cannot be written (%s)", Path(self._file.file), error.strerror)
