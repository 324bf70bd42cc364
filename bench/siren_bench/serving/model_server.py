"""A model server of the loopback that takes the time of one, and no processor's.

It speaks OpenAI's chat API, streamed alone. A request's `metadata` says how long it takes.
"""

import asyncio
import json
import sys
from typing import Any

import uvicorn

_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "waits"}
_WORDS = ("The", " quick", " brown", " fox", " jumps", " over", " a", " lazy", " dog", ".")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with ten words, the first after `first_ms` and each other after `next_ms`."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    asked = json.loads(body)["metadata"]
    headers = [(b"content-type", b"text/event-stream")]
    await asyncio.sleep(float(asked["first_ms"]) / 1000)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number, word in enumerate(_WORDS):
        if number:
            await asyncio.sleep(float(asked["next_ms"]) / 1000)
        await _send(send, json.dumps(_chunk({"content": word}, None)))
    await _send(send, json.dumps(_chunk({}, "stop")))
    await _send(send, "[DONE]")
    await send({"type": "http.response.body", "body": b""})


def _chunk(delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {**_CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


async def _send(send: Any, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), lifespan="off", log_level="error", interface="asgi3")
