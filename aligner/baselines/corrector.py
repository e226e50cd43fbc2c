"""An Aligner behind a method: its corrections with their cost, and what `aligner correct` would keep."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aligner.baselines.protocol import AlignerRequest, Reply, Usage
from aligner.inference.corrector import Corrected, Corrector, in_batches, memory_named
from aligner.inference.greedy import DecoderRow
from aligner.inference.guard import Guard, markers_of
from aligner.records import UserError


@dataclass(frozen=True)
class AlignerStage:
    """A local Aligner, and the guard of `aligner correct` with its defaults."""

    corrector: Corrector
    guard: Guard = Guard()

    def stream(self, requests: Sequence[AlignerRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says. An answer that is left alone costs nothing, or what its correction took that was not kept."""
        corrector = self.corrector
        for places in in_batches(range(len(requests)), corrector.settings.batch_size):
            rows = {}
            for place in places:
                request = requests[place]
                kept = self.guard.before(request.answer)
                row = None if kept else self._row(request, place)
                if isinstance(row, DecoderRow):
                    rows[place] = row
                else:  # left alone on purpose, or without room for a correction
                    yield place, Reply(request.answer, row is None, Usage())
            if rows:
                yield from self._corrected(rows, requests)

    def _row(self, request: AlignerRequest, place: int) -> DecoderRow | UserError:
        encoder = self.corrector.encoder
        text = encoder.render(self.corrector.template, request.question, request.answer)
        [(prompt, answer, _)] = encoder.pairs([text], [request.answer])
        return self.corrector.row(prompt, answer, place)

    def _corrected(
        self, rows: dict[int, DecoderRow], requests: Sequence[AlignerRequest]
    ) -> Iterator[tuple[int, Reply]]:
        began = time.perf_counter()
        decoded = list(memory_named(self.corrector.decoded(iter(rows.values())), "--batch_size or --max_new_tokens"))
        share = (time.perf_counter() - began) / len(decoded)
        for row in decoded:
            request = requests[row.index]
            corrected = self.corrector.corrected(row, request.answer)
            usage = Usage(1, len(row.prompt), len(row.output), row.passes or len(row.output), share)
            yield row.index, self._reply(corrected, request, usage)

    def _reply(self, corrected: Corrected, request: AlignerRequest, usage: Usage) -> Reply:
        markers = markers_of(self.corrector.template)
        kept = self.guard.after(corrected, request.question, request.answer, markers)
        if kept:
            return Reply(request.answer, not kept.failed, usage)
        return Reply(corrected.text, True, usage)
