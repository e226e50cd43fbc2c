"""A server of known speed, a process of its own: an upstream's answers to chats, an Aligner's completions of prompts.

Arguments: a port, seconds of a reply, how many are worked on at once (more wait in turn, as in a server that is full), and a JSON
file of answers by question where each has its own. The id of an answer says how many seconds it took here.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from aiohttp import web

ANSWER = "An answer of a few words, which is what most answers are not."
CORRECTION = "An answer of a few words, which is what few answers are."


def application(seconds: float, slots: int, answers: dict[str, str]) -> web.Application:
    """Its routes."""
    free = asyncio.Semaphore(slots)

    async def work() -> None:
        async with free:
            await asyncio.sleep(seconds)

    async def chat(request: web.Request) -> web.Response:
        began = time.monotonic()
        question = (await request.json())["messages"][-1]["content"] if answers else ""
        await work()
        answer = answers.get(question, ANSWER)
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return web.json_response(
            {
                "id": f"{time.monotonic() - began:.6f}",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [choice],
            }
        )

    async def completion(request: web.Request) -> web.StreamResponse:
        await request.read()
        await work()
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        half = len(CORRECTION) // 2
        for text, reason in ((CORRECTION[:half], None), (CORRECTION[half:], "stop")):
            chunk = {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}
            await reply.write(f"data: {json.dumps(chunk)}\n\n".encode())
        usage = {"choices": [], "usage": {"prompt_tokens": 60, "completion_tokens": 15}}
        await reply.write_eof(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        return reply

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/completions", completion)
    app.router.add_get("/v1/models", models)
    return app


if __name__ == "__main__":
    web.run_app(
        application(
            float(sys.argv[2]), int(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text()) if sys.argv[4:] else {}
        ),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        print=None,
        access_log=None,
    )
