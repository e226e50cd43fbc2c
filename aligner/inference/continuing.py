"""An upstream that goes on with its own answer from wherever it was corrected: behind a server, or on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from transformers import GenerationConfig, PreTrainedModel

from aligner.chat_api.replies import is_whole
from aligner.chat_prompt import in_user_turn
from aligner.encoder import Encoder
from aligner.inference.corrector import DTYPES, best_dtype
from aligner.inference.greedy import Decoder, DecoderRow
from aligner.inference.sampling import generate
from aligner.inference.servers import REMEDY, Client, Server, ServerGone
from aligner.inference.trials import supports_drafts
from aligner.models import device_map_options, load_model, load_tokenizer, positions_of
from aligner.prompts import PromptTemplate
from aligner.records import UserError
from aligner.sentences import first_sentence

AGAIN = 8  # characters at least of a first sentence by which a server is known that began anew
PLAIN = PromptTemplate("plain", "{question}")


class Place(NamedTuple):
    """Where an answer is to go on: its row, the question, what was said, what is pending behind it, the tokens left for it, and the
    upstream's own first sentence."""

    row: int
    question: str
    said: str
    pending: str
    most: int
    first: str = ""


class Piece(NamedTuple):
    """What the upstream adds. `ended`: nothing comes behind it; `whole`: it ended by itself and not at a limit. `tokens`: written
    for it; of a server, the pieces of its stream."""

    text: str
    ended: bool
    whole: bool
    tokens: int


class Continuing(Protocol):
    """An upstream that goes on with answers."""

    def more(self, places: Sequence[Place]) -> Iterator[tuple[int, Piece | UserError]]:
        """Yield each one's place in the list, and its text to the end of a sentence at least, in any order."""

    def leave(self, row: int) -> None:
        """What was begun for a row is not wanted any more."""


@dataclass(frozen=True)
class ChatPrompt:
    """How the completions of a chat model's server are asked to go on with an answer: its own chat template, and its tokenizer."""

    encoder: Encoder
    template: PromptTemplate

    @classmethod
    def load(cls, folder: str, trust_remote_code: bool = False) -> ChatPrompt:
        """Of a folder or hub id. UserError where its template does not show a question as it is."""
        encoder = Encoder(load_tokenizer(folder, trust_remote_code))
        return cls(encoder, in_user_turn(encoder.tokenizer, PLAIN))

    def ids(self, question: str, said: str) -> list[int]:
        """A user's turn and the begin of the assistant's."""
        [ids] = self.encoder.prompts([self.encoder.render(self.template, question, "") + said])
        return ids

    def sent(self, question: str, said: str) -> str | list[int]:
        """The same as a server takes it: text where it will make these ids of it."""
        ids, text = self.ids(question, said), self.template.render(question, "") + said
        return text if self.encoder.reads_alike(text, ids) else ids


@dataclass(frozen=True)
class ServedContinuing:
    """An upstream behind a server. Its stream is read up to a sentence's end and left open: where the sentence stays as it is, the
    rest of it is paid for already. With `prompt` completions are asked for, else the chat with `continue_final_message`."""

    server: Server
    temperature: float | None = None
    prompt: ChatPrompt | None = None
    streams: dict[int, Iterator[Piece]] = field(default_factory=dict, compare=False)
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)  # a tokenizer is one thread's at a time

    def more(self, places: Sequence[Place]) -> Iterator[tuple[int, Piece | UserError]]:
        """As `Continuing` says."""
        yield from self.server.each(self._read, places)

    def leave(self, row: int) -> None:
        """Close its stream."""
        if stream := self.streams.pop(row, None):
            stream.close()  # type: ignore[attr-defined]

    def _read(self, client: Client, place: Place) -> Piece:
        """On to the end of a sentence. Raises what the client raises, and ServerGone where the server began anew."""
        if place.row not in self.streams:
            self.streams[place.row] = self._pieces(client, place)
        text, tokens = "", 0
        try:
            for piece in self.streams[place.row]:
                text, tokens = text + piece.text, tokens + piece.tokens
                if piece.ended:
                    self.leave(place.row)
                    return piece._replace(text=text, tokens=tokens)
                if first_sentence(place.pending + text, False):
                    return Piece(text, False, True, tokens)
        except BaseException:
            self.leave(place.row)
            raise
        self.leave(place.row)
        return Piece(text, True, False, tokens)  # a stream without an end of its own

    def _pieces(self, client: Client, place: Place) -> Iterator[Piece]:
        path, request = self._request(place)
        begun, first = "", place.first.strip() if place.said and not self.prompt else ""
        for chunk in self.server.chunks(client, path, request):
            choices = chunk.get("choices")
            choice = choices[0] if choices else {}
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            if len(begun.strip()) < len(first) >= AGAIN:
                begun += text
                if begun.strip().startswith(first):
                    raise ServerGone(began_anew(self.server.url))
            reason = choice.get("finish_reason")
            yield Piece(text, reason is not None, is_whole(reason), int(bool(text)))

    def _request(self, place: Place) -> tuple[str, dict[str, Any]]:
        given: dict[str, Any] = {"max_tokens": place.most}
        given |= {} if self.temperature is None else {"temperature": self.temperature}
        if self.prompt:
            with self.lock:
                return "/completions", {"prompt": self.prompt.sent(place.question, place.said), **given}
        return "/chat/completions", {
            **continued_chat([{"role": "user", "content": place.question}], place.said),
            **given,
        }


def began_anew(url: str) -> str:
    """What is wrong with a server that answers with its first sentence again."""
    return f"{url} begins its answer anew where it was to go on with it. {REMEDY}"


CONTINUE = "continue_final_message"


def continued_chat(messages: Sequence[Any], said: str) -> dict[str, Any]:
    """The fields of a chat request that goes on with an answer; that of a plain one where nothing was said."""
    if not said:
        return {"messages": list(messages)}
    begun = [*messages, {"role": "assistant", "content": said}]
    return {"messages": begun, CONTINUE: True, "add_generation_prompt": False}


@dataclass(frozen=True)
class LocalContinuing:
    """An upstream on this machine: greedy. `ends`: the tokens that end its turn. `begun`: of rows that go on as they were, the text
    and its tokens, which its text alone would not always give again."""

    model: PreTrainedModel
    prompt: ChatPrompt
    ends: tuple[int, ...]
    decoder: Decoder | None
    batch_size: int = 8
    begun: dict[int, tuple[str, list[int]]] = field(default_factory=dict, compare=False)

    @classmethod
    def load(
        cls, folder: str, trust_remote_code: bool = False, dtype: str | None = None, batch_size: int = 8
    ) -> LocalContinuing:
        """Open a folder or hub id on the GPUs there are, or on the CPU. UserError where it cannot be opened."""
        kind = DTYPES[dtype or best_dtype()]
        where = device_map_options(folder, kind, trust_remote_code)
        model = load_model(folder, kind, trust_remote_code, **where).eval()
        prompt = ChatPrompt.load(folder, trust_remote_code)
        own = model.generation_config.eos_token_id
        ends = dict.fromkeys(
            [prompt.encoder.eos, *(own if isinstance(own, list) else [own] if own is not None else [])]
        )
        model.generation_config = GenerationConfig()  # its own would fill in what is not set, penalties for instance
        decoder = Decoder(model, prompt.encoder.eos) if supports_drafts(model) else None
        return cls(model, prompt, tuple(ends), decoder, batch_size)

    def leave(self, row: int) -> None:
        """Forget its tokens."""
        self.begun.pop(row, None)

    def _ids(self, place: Place) -> list[int]:
        """The tokens up to where an answer goes on."""
        text = place.said + place.pending
        known, ids = self.begun.get(place.row, ("", []))
        return ids if ids and known == text.strip() else self.prompt.ids(place.question, text)

    def more(self, places: Sequence[Place]) -> Iterator[tuple[int, Piece | UserError]]:
        """As `Continuing` says."""
        positions = positions_of(self.model.config) or 10**9
        rows = []
        for at, place in enumerate(places):
            ids = self._ids(place)
            if len(ids) < positions:
                rows.append(DecoderRow(ids, [self.ends[0]], min(place.most, positions - len(ids)), at))
            elif place.said:
                yield at, Piece("", True, False, 0)
            else:
                yield at, UserError(f"its prompt has {len(ids):,} tokens and the model {positions:,} positions.")
        for row in self._decoded(rows, places):
            stop = next((n for n, token in enumerate(row.output) if token in self.ends), None)
            text = str(self.prompt.encoder.tokenizer.decode(row.output[:stop], skip_special_tokens=True))
            place = places[row.index]
            cut = stop is None and len(row.output) >= min(place.most, positions - len(row.prompt))
            self.begun[place.row] = (place.said + place.pending + text).strip(), row.prompt + row.output
            yield row.index, Piece(text, stop is not None or cut, not cut, len(row.output))

    def _decoded(self, rows: Sequence[DecoderRow], places: Sequence[Place]) -> Iterator[DecoderRow]:
        if self.decoder is None:  # all of the answer: what is not corrected of it is there already
            for row in rows:
                row.output = generate(self.model, [row.prompt], self.ends, row.most, None)[0]
                yield row
            return
        waiting, decode = iter(rows), self.prompt.encoder.tokenizer.decode
        for read in self.decoder.advance(
            lambda most: [r for _, r in zip(range(most), waiting, strict=False)], self.batch_size
        ):
            for row in read:
                if not row.has_ended(self.decoder.eos):
                    text = str(decode(row.output, skip_special_tokens=True))
                    ended = row.output[-1] in self.ends
                    if ended or first_sentence(places[row.index].pending + text, False):
                        row.most = len(row.output)
                if row.has_ended(self.decoder.eos):
                    yield row
