"""`Corrector`: an Aligner on this machine, with its requests and results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from transformers import GenerationConfig, PreTrainedModel

from aligner.card import objectives_of, prompt_of
from aligner.encoder import Encoder
from aligner.inference.greedy import Decoder, DecoderRow
from aligner.inference.likelihood import log_likelihood
from aligner.inference.sampling import Sampling, generate
from aligner.inference.trials import supports_drafts
from aligner.models import device_map_options, load_model, load_tokenizer, positions_of
from aligner.objectives import sentences
from aligner.prompts import PromptTemplate
from aligner.quality.edits import Edits, edits
from aligner.records import UserError
from aligner.steering.direction_file import read_steering
from aligner.steering.options import NOT_STEERED, SteerOptions

log = logging.getLogger("aligner")
CHUNK = 64  # prompts that are tokenised together
T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CorrectionRequest(NamedTuple):
    """An answer to correct. `feedback`: an instruction for the correction, where the prompt has a slot for it. `prefix`: what was
    said before, where the answer is the next sentence."""

    question: str
    answer: str
    feedback: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Corrected:
    """A corrected answer. `finished`: the Aligner ended it by itself and was not cut off. `nats_ahead`: by how much it is likelier
    under the Aligner than the answer left alone, where the settings ask for that."""

    text: str
    finished: bool
    edits: Edits
    nats_ahead: float | None = None

    @classmethod
    def unchanged(cls, answer: str) -> Corrected:
        """An answer that is its own correction."""
        return cls(answer, True, edits(answer, answer))


class NoRoom(UserError):
    """An answer that is longer than any correction of it could be."""


Outcome = Corrected | UserError  # the error says why this one cannot be corrected


class Aligner(Protocol):
    """Whatever corrects answers: a model here, or one behind a server."""

    def stream(self, requests: Sequence[CorrectionRequest]) -> Iterator[tuple[int, Outcome]]:
        """Yield each request's place and outcome as it is finished, in any order."""


MODEL_ERRORS = (IndexError, ValueError, TypeError, RuntimeError)  # what a model raises for a row that it cannot read


@dataclass(frozen=True)
class Settings:
    """How corrections are decoded: rows at once, tokens of a correction at most, and how tokens are drawn (greedily without
    `sampling`). `max_prompt_tokens`: the longest prompt, where that is less than the model's positions. `whole_only`: an answer
    that a correction has no room for is refused (NoRoom) before it is decoded. `weighed`: each correction is compared with its
    answer left alone, by their likelihoods."""

    batch_size: int = 8
    max_new_tokens: int = 2048
    sampling: Sampling | None = None
    max_prompt_tokens: int | None = None
    whole_only: bool = False
    weighed: bool = False


@dataclass(frozen=True)
class Corrector:
    """An Aligner: its model, its tokenizer, and the prompt it was trained with.

    >>> corrector = Corrector.load("output/sft")
    >>> corrector.correct([("What is the moon made of?", "Cheese.")])[0].text
    """

    model: PreTrainedModel
    encoder: Encoder
    template: PromptTemplate
    decoder: Decoder | None  # None: for this model only transformers' own generation is right
    settings: Settings = Settings()
    objectives: Mapping[str, str] = field(default_factory=dict)  # those that it can be asked for by name
    steered: Mapping[str, Any] | None = None  # what was added to its states, where something was

    @classmethod
    def load(
        cls,
        folder: str,
        prompt_template: str | None = None,
        settings: Settings = Settings(),
        trust_remote_code: bool = False,
        dtype: str | None = None,
        steer: SteerOptions = NOT_STEERED,
    ) -> Corrector:
        """Open a folder or hub id on the GPUs there are, or on the CPU. `dtype`: bfloat16 on a GPU that has it, else float32.
        `steer`: a direction that is added to its states from here on, drafts being verified with it.

        UserError where it cannot be opened, its prompt is not known, or the direction is another model's.
        """
        template, steering = prompt_of(folder, prompt_template), read_steering(steer, folder, trust_remote_code)
        encoder = Encoder(load_tokenizer(folder, trust_remote_code))
        kind = DTYPES[dtype or best_dtype()]
        where = device_map_options(folder, kind, trust_remote_code)
        model = load_model(folder, kind, trust_remote_code, **where).eval()
        model.generation_config = GenerationConfig()  # a folder's own would fill in penalties, for instance
        about = steering.install(model) if steering else None
        decoder = Decoder(model, encoder.eos) if supports_drafts(model) else None
        if decoder is None:
            why = "with drafts its logits are not those without"
            log.warning("%s is decoded by transformers, token by token: %s", folder, why)
        return cls(model, encoder, template, decoder, settings, objectives_of(folder, template), about)

    def correct(
        self,
        pairs: Iterable[tuple[str, str] | CorrectionRequest],
        feedback: str | None = None,
        objectives: Sequence[str] = (),
    ) -> list[Corrected]:
        """The correction of each (question, answer), in order. `feedback` (a text, or an objective's name) holds for all, or
        `objectives` (names and texts).

        UserError where one cannot be corrected: its prompt is longer than the model's positions.
        """
        requests = [CorrectionRequest(*pair) for pair in pairs]
        known = self.objectives
        if wanted := known.get(feedback, feedback) if feedback else sentences(objectives, known):
            requests = [request._replace(feedback=wanted) for request in requests]
        outcomes = dict(self.stream(requests))
        for index in range(len(requests)):
            outcome = outcomes[index]
            if isinstance(outcome, UserError):
                raise UserError(f"request {index + 1}: {outcome}")
        return [outcomes[index] for index in range(len(requests))]  # type: ignore[misc]

    def stream(self, requests: Sequence[CorrectionRequest]) -> Iterator[tuple[int, Outcome]]:
        """Yield each request's place and outcome as it is finished: rows that end early come early."""
        check_feedback(self.template, requests)
        refused: list[tuple[int, UserError]] = []
        begun: dict[int, DecoderRow] = {}  # rows that were handed out and have not ended
        rows = noted(self._rows(requests, refused), begun)
        decode = self.decoded
        while True:
            try:
                for row in memory_named(decode(rows), "--batch_size or --max_new_tokens"):
                    del begun[row.index]
                    yield row.index, self.corrected(row, requests[row.index].answer)
                break
            except MODEL_ERRORS:  # one row's, of those that were read together; the others go on
                if not begun and decode == self.generated:
                    raise
                decode = decode if begun else self.generated  # else the model could not even be timed
                for row in list(begun.values()):
                    yield row.index, self._alone(row, requests[row.index].answer)
                begun.clear()
        yield from refused

    def _alone(self, row: DecoderRow, answer: str) -> Outcome:
        """A row decoded by itself, by transformers' own generation; or why the model cannot read it."""
        sampling = self.settings.sampling
        drawn = sampling and replace(sampling, seed=sampling.seed + row.index)
        try:
            row.output = generate(self.model, [row.prompt], [self.encoder.eos], row.most, drawn)[0]
        except MODEL_ERRORS as error:
            reason = " ".join(str(error).split())[:120]
            return UserError(f"the model fails on its {len(row.prompt):,} tokens ({type(error).__name__}: {reason}).")
        return self.corrected(row, answer)

    def corrected(self, row: DecoderRow, answer: str) -> Corrected:
        """The text of a decoded row, compared with the answer."""
        finished = row.output[-1] == self.encoder.eos
        text = self.text(row.output[: len(row.output) - finished])
        ahead = self._ahead(row) if finished and self.settings.weighed else None
        return Corrected(text, finished, edits(answer, text), ahead)

    def _ahead(self, row: DecoderRow) -> float:
        """By how many nats a decoded correction is likelier than its answer. Greedy decoding may end in one that is less likely:
        after a slip in a copy there is no way back."""
        if row.output == row.answer:
            return 0.0
        correction, answer = (log_likelihood(self.model, row.prompt, tokens) for tokens in (row.output, row.answer))
        return correction - answer

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens of a correction."""
        return str(self.encoder.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def decoded(self, rows: Iterator[DecoderRow]) -> Iterator[DecoderRow]:
        """Decode rows, in the order in which they end."""
        if self.decoder and not self.settings.sampling:
            yield from self.decoder.decode(rows, self.settings.batch_size)
        else:
            yield from self.generated(rows)

    def generated(
        self, rows: Iterator[DecoderRow], dropped: Callable[[DecoderRow], bool] = lambda row: False
    ) -> Iterator[DecoderRow]:
        """The same by transformers' own generation, which goes on until all rows of a batch have ended or are `dropped`."""
        for batch in in_batches(rows, self.settings.batch_size):
            for most in sorted({row.most for row in batch}):  # a row with little room does not cut its neighbours
                group = [row for row in batch if row.most == most]
                sampling = self.settings.sampling
                drawn = sampling and replace(sampling, seed=sampling.seed + group[0].index)  # every batch draws anew
                prompts, ends = [row.prompt for row in group], [self.encoder.eos]
                outputs = generate(self.model, prompts, ends, most, drawn, lambda group=group: all(map(dropped, group)))  # type: ignore[misc]
                for row, tokens in zip(group, outputs, strict=True):
                    row.output = tokens
                    yield row

    def _rows(
        self, requests: Sequence[CorrectionRequest], refused: list[tuple[int, UserError]]
    ) -> Iterator[DecoderRow]:
        """The requests as tokens; those without room for a correction go to `refused`."""
        for places in in_batches(range(len(requests)), CHUNK):
            chunk = [requests[place] for place in places]
            pairs = self.encoder.pairs(
                [self.encoder.render(self.template, *r) for r in chunk], [r.answer for r in chunk]
            )
            for place, (prompt, answer, _) in zip(places, pairs, strict=True):
                row = self.row(prompt, answer, place)
                if isinstance(row, DecoderRow):
                    yield row
                else:
                    refused.append((place, row))

    def row(self, prompt: list[int], answer: list[int], index: int) -> DecoderRow | UserError:
        """A row to decode, or why there is no room for its correction."""
        positions = positions_of(self.model.config) or 10**9
        room = room_for(self.settings, positions, len(prompt), len(answer))
        return room if isinstance(room, UserError) else DecoderRow(prompt, answer, room, index)


def room_for(settings: Settings, positions: int, prompt: int, needed: int) -> int | UserError:
    """How many tokens a correction may have behind so many of the prompt, or why there is no room for it. `needed`: what the
    answer would take."""
    if prompt >= positions:
        return UserError(f"its prompt has {prompt:,} tokens and the model {positions:,} positions: shorten it.")
    most = settings.max_prompt_tokens
    if most and prompt > most:
        return UserError(f"its prompt has {prompt:,} tokens, and at most {most:,} are read: shorten it.")
    room = min(settings.max_new_tokens, positions - prompt)
    return no_room(settings, needed, room) or room


def no_room(settings: Settings, needed: int, room: int) -> NoRoom | None:
    """Why an answer of so many tokens cannot be rewritten in this room, where the settings ask for whole corrections alone."""
    if not settings.whole_only or room >= needed:
        return None
    return NoRoom(
        f"its answer has {needed:,} tokens and the correction room for {room:,}: raise --max_new_tokens or shorten it."
    )


def best_dtype() -> str:
    """The dtype by default: bfloat16 on a GPU that has it, else float32."""
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def memory_named(items: Iterator[T], flags: str) -> Iterator[T]:
    """The items one by one; UserError with the flags to lower where a GPU's memory does not suffice."""
    try:
        yield from items
    except torch.OutOfMemoryError:
        raise UserError(f"the GPU's memory is full. Lower {flags}.") from None


def noted(rows: Iterator[DecoderRow], begun: dict[int, DecoderRow]) -> Iterator[DecoderRow]:
    """The rows, each written down as it is handed out."""
    for row in rows:
        begun[row.index] = row
        yield row


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def check_feedback(template: PromptTemplate, requests: Iterable[CorrectionRequest]) -> None:
    """UserError where feedback is given and the prompt has no slot for it."""
    if not template.takes_feedback and any(request.feedback for request in requests):
        raise UserError(
            f"the prompt '{template.name}' has no slot for feedback. Train an Aligner with --prompt_template feedback, or "
            "try that prompt on this one."
        )
