"""Shadow mode: what went back untouched is corrected behind it, and only whole answers with whole corrections become rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.chat_api.thoughts import said_in
from aligner.inference.guard import Guard, markers_of
from aligner.serving.dialogue import CandidateQuestions, candidate_questions
from aligner.serving.shadow import ShadowLog
from aligner.serving.worker import Endless, Failed, Worker

log = logging.getLogger("aligner")


class ShadowQueue:
    """Answers whose corrections are still to be written. `backlog`: how many may wait; `counts`: the layer's, of what became of
    them."""

    def __init__(
        self, worker: Worker, file: ShadowLog | None, guard: Guard, feedback: str, backlog: int, counts: dict[str, int]
    ) -> None:
        self._worker, self._file, self._guard, self._feedback = worker, file, guard, feedback
        self._backlog, self._counts = backlog, counts
        self._tasks = set[asyncio.Task[None]]()

    def add(self, chat: Mapping[str, Any], message: Any) -> None:
        """Queue the correction of an answer that was already sent back."""
        answer = said_in(message).text if isinstance(message, Mapping) else ""
        if not answer.strip():
            return
        if len(self._tasks) >= self._backlog:
            self._counts["dropped"] += 1
            if self._counts["dropped"] == 1:
                log.warning("more answers come than the Aligner corrects: some are not written to the shadow file")
            return
        task = asyncio.create_task(self._write(candidate_questions(chat["messages"]), answer, chat.get("model")))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
            corrected = (await self._worker.submit(questions, answer, self._feedback).done()).corrected
            markers = markers_of(self._worker.corrector.template)
            kept = self._guard.after(corrected, questions[0], answer, markers)
            if kept and kept.failed:
                raise Endless(kept.reason)
            self._file.add(questions[0], answer, corrected.text, upstream=model, finished=corrected.finished)
            self._counts["shadow"] += 1
        except Endless:
            self._counts["unfinished"] += 1
        except Failed:
            self._counts["failed"] += 1
        except OSError as error:
            self._counts["dropped"] += 1
            log.warning("%s: a row cannot be written (%s)", Path(self._file.file), error.strerror)
