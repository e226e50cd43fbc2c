"""A model on this machine as the upstream: greedy decoding, drawn answers, beam search."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from aligner.baselines.protocol import ChatRequest, Reply, Usage
from aligner.chat_api.thoughts import split_thoughts
from aligner.chat_prompt import in_user_turn
from aligner.encoder import Encoder
from aligner.inference.corrector import DTYPES, best_dtype, in_batches, memory_named
from aligner.inference.sampling import Sampling, generate
from aligner.inference.trials import takes_padding
from aligner.models import device_map_options, load_model, load_tokenizer, positions_of
from aligner.prompts import PromptTemplate
from aligner.records import UserError

SEEDS = 1 << 31
Written = tuple[list[int], Usage]  # the tokens of a reply, and its cost without the seconds


@dataclass(frozen=True)
class LocalModel:
    """A causal language model with its chat template. ends: the tokens that end its turn, or its texts."""

    model: PreTrainedModel
    encoder: Encoder
    template: PromptTemplate
    ends: tuple[int, ...]

    @classmethod
    def load(cls, folder: str, trust_remote_code: bool = False, dtype: str | None = None) -> LocalModel:
        """Open a folder or hub id on the GPUs there are, or on the CPU. UserError where it cannot be opened."""
        kind = DTYPES[dtype or best_dtype()]
        where = device_map_options(folder, kind, trust_remote_code)
        model = load_model(folder, kind, trust_remote_code, **where).eval()
        encoder = Encoder(load_tokenizer(folder, trust_remote_code))
        template = in_user_turn(encoder.tokenizer, PromptTemplate("plain", "{question}"))
        own = model.generation_config.eos_token_id
        ends = dict.fromkeys([encoder.eos, *(own if isinstance(own, list) else [own] if own is not None else [])])
        model.generation_config = GenerationConfig()  # its own would fill in what is not set, penalties for instance
        return cls(model, encoder, template, tuple(ends))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as user turns, up to where the model speaks."""
        return self.encoder.prompts([self.encoder.render(self.template, text, "") for text in texts])


@dataclass(frozen=True)
class LocalUpstream:
    """Replies of a local model, batch by batch. max_new_tokens: of a reply. batch_size: texts, or beams, at once."""

    local: LocalModel
    max_new_tokens: int = 512
    batch_size: int = 8

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says."""
        prompts = self.local.ids([request.prompt for request in requests])
        positions = positions_of(self.local.model.config) or 10**9
        fitting = []
        for place, ids in enumerate(prompts):
            if len(ids) < positions:
                fitting.append(place)
            else:
                yield place, UserError(f"its prompt has {len(ids):,} tokens and the model {positions:,} positions.")
        replies = self._replies(requests, prompts, fitting)
        yield from memory_named(replies, "--batch_size, --width or --max_new_tokens")

    def _replies(
        self, requests: Sequence[ChatRequest], prompts: Sequence[list[int]], places: Sequence[int]
    ) -> Iterator[tuple[int, Reply]]:
        for group in self._batches(requests, prompts, places):
            began = time.perf_counter()
            written = self._write([requests[place] for place in group], [prompts[place] for place in group])
            share = (time.perf_counter() - began) / len(group)
            for place, (tokens, usage) in zip(group, written, strict=True):
                finished = bool(tokens) and tokens[-1] in self.local.ends
                text = str(self.local.encoder.tokenizer.decode(tokens, skip_special_tokens=True))
                yield place, Reply(split_thoughts(text).text, finished, usage + Usage(seconds=share))

    def _batches(
        self, requests: Sequence[ChatRequest], prompts: Sequence[list[int]], places: Sequence[int]
    ) -> Iterator[list[int]]:
        """Places decoded together: alike in how, the longest first, since memory fails at once or never."""
        for kind in sorted({_how(requests[place]) for place in places}):
            some = [place for place in places if _how(requests[place]) == kind]
            size = max(1, self.batch_size // requests[some[0]].beams)
            yield from in_batches(sorted(some, key=lambda place: -len(prompts[place])), size)

    def _write(self, requests: Sequence[ChatRequest], prompts: Sequence[list[int]]) -> list[Written]:
        """The replies to a batch."""
        first, ends = requests[0], self.local.ends
        room = (positions_of(self.local.model.config) or 10**9) - max(map(len, prompts))
        most = min(self.max_new_tokens, room)
        if first.beams > 1:
            return beam_search(self.local.model, prompts, ends, most, first.beams)
        # A batch draws anew: the same seed for two draws of one prompt would draw the same answer.
        seed = zlib.crc32(f"{first.seed} {first.prompt}".encode()) % SEEDS
        drawn = Sampling(first.temperature, first.top_k, first.top_p, seed) if first.temperature else None
        outputs = generate(self.local.model, prompts, ends, most, drawn)
        return [
            (tokens, Usage(1, len(prompt), len(tokens), len(tokens)))
            for prompt, tokens in zip(prompts, outputs, strict=True)
        ]


def _how(request: ChatRequest) -> tuple[float, int, int, float]:
    """How a request is decoded: those of one batch agree in it."""
    return request.temperature, request.beams, request.top_k, request.top_p


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], ends: Sequence[int], most: int, width: int
) -> list[Written]:
    """The best of `width` beams for each prompt, by the mean log-probability of a token, as transformers searches."""
    if len(prompts) > 1 and len(set(map(len, prompts))) > 1 and not takes_padding(model, ends[0]):
        return [beam_search(model, [prompt], ends, most, width)[0] for prompt in prompts]
    longest, passes = max(map(len, prompts)), 0
    ids_BL = torch.tensor([[ends[0]] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask_BL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)

    def count(ids_BL: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return torch.zeros(len(ids_BL), dtype=torch.bool, device=ids_BL.device)

    config = GenerationConfig(
        do_sample=False, num_beams=width, max_new_tokens=most, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    output_BM: list[list[int]] = model.generate(  # type: ignore[operator]
        input_ids=ids_BL, attention_mask=mask_BL, generation_config=config, stopping_criteria=[count]
    )[:, longest:].tolist()
    stops = [next((place + 1 for place, token in enumerate(tokens) if token in ends), None) for tokens in output_BM]
    return [
        (tokens[:stop], Usage(1, len(prompt), width * passes, passes))
        for tokens, stop, prompt in zip(output_BM, stops, prompts, strict=True)
    ]
