"""A server of a real model, a process of its own: completions of prompts, and the log-probabilities of an echoed one.

Arguments: an Aligner's folder, a port, how many prompts are decoded together, and the name of its prompt where it has no card. What
waits is decoded as the next batch, greedily by transformers, without drafts. It tells what the gate asks for, as vLLM does and
`transformers serve` does not.
"""

import asyncio
import json
import sys
from typing import Any

import torch
from aiohttp import web

from aligner.inference.corrector import Corrector
from aligner.inference.sampling import generate


class Batches:
    """Requests that wait, each with the future of its reply; one thread decodes them, a batch after the other."""

    def __init__(self, corrector: Corrector, size: int) -> None:
        self.model, self.encoder, self.size = corrector.model, corrector.encoder, size
        self.waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[Any]]] = asyncio.Queue()

    async def ask(self, request: dict[str, Any]) -> Any:
        """The reply to a request: tokens, or log-probabilities."""
        reply = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((request, reply))
        return await reply

    async def work(self) -> None:
        """Reply to all, for ever."""
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.size and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            replies = await asyncio.to_thread(self._replies, [request for request, _ in batch])
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.cancelled():
                    future.set_result(reply)

    def _replies(self, requests: list[dict[str, Any]]) -> list[Any]:
        ids = [self._ids(request["prompt"]) for request in requests]
        plain = [place for place, request in enumerate(requests) if not request.get("echo")]
        longest = max((requests[place]["max_tokens"] for place in plain), default=0)
        texts = generate(self.model, [ids[p] for p in plain], [self.encoder.eos], longest, None) if plain else []
        replies: dict[int, Any] = {
            place: self._log_probabilities(each) for place, each in enumerate(ids) if place not in plain
        }
        return [{**replies, **dict(zip(plain, texts, strict=True))}[place] for place in range(len(requests))]

    def _ids(self, prompt: str | list[int]) -> list[int]:
        return self.encoder.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt

    @torch.inference_mode()
    def _log_probabilities(self, ids: list[int]) -> list[float | None]:
        logits_LV = self.model(torch.tensor([ids])).logits[0, :-1].float()
        chosen_L = logits_LV.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return [None, *chosen_L.tolist()]


def application(batches: Batches) -> web.Application:
    """Its routes."""

    async def completion(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        reply = await batches.ask(body)
        if body.get("echo"):
            return web.json_response(
                {"choices": [{"text": "", "finish_reason": "length", "logprobs": {"token_logprobs": reply}}]}
            )
        tokens = reply[: body["max_tokens"]]
        ended = tokens[-1:] == [batches.encoder.eos]
        text = batches.encoder.tokenizer.decode(tokens, skip_special_tokens=True)
        choice = {"choices": [{"index": 0, "text": text, "finish_reason": "stop" if ended else "length"}]}
        return web.Response(text=f"data: {json.dumps(choice)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m"}]})

    async def start(app: web.Application) -> None:
        app["work"] = asyncio.create_task(batches.work())

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/completions", completion)
    app.router.add_get("/v1/models", models)
    app.on_startup.append(start)
    return app


if __name__ == "__main__":
    loaded = Batches(Corrector.load(sys.argv[1], sys.argv[4] if len(sys.argv) > 4 else None), int(sys.argv[3]))
    web.run_app(application(loaded), host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
