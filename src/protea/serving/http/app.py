"""The routes:

| | |
|---|---|
| `GET /health` | whether it works, and how much it has to do (needs no token) |
| `GET /v1/models` | the one model |
| `POST /v1/completions` | a text goes on; `prompt` is text, ids, or a list of either |
| `POST /v1/chat/completions` | a conversation goes on, of models with a chat template |
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from protea.errors import DataError, MissingExtra, ProteaError
from protea.models.autoregressive.language import LanguageModel
from protea.serving.engine import Engine
from protea.serving.http import bodies
from protea.serving.http.answers import Answer, Chat, Completion, Shape
from protea.serving.http.errors import refusal, shape, status
from protea.serving.http.guard import Guard
from protea.serving.http.worker import Worker

if TYPE_CHECKING:
    from starlette.requests import Request as Call
    from starlette.responses import Response

LARGEST = 4 * 2**20  # bytes of a body


def application(engine: Engine, name: str, token: str, hosts: frozenset[str], most: int = 256) -> Any:
    """An ASGI application that answers for one model.

    Args:
        engine: of a language model whose tokens stand for text.
        name: that the model goes by.
        token: that requests must bear.
        hosts: names it answers to.
        most: requests on their way at once; more get 429.

    Raises:
        DataError: the model's tokens stand for no text.
        MissingExtra: starlette is not there.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, StreamingResponse
        from starlette.routing import Route
    except Exception as error:
        raise MissingExtra("starlette", "serve", error) from error
    model, codec = engine.model, engine.codec
    if not isinstance(model, LanguageModel) or codec is None:
        raise DataError("The model's tokens stand for no text: nobody can ask it.", "Use `protea sample`.")
    worker = Worker(engine, most)

    async def health(call: Call) -> Response:
        return JSONResponse({"status": "ok", "model": name, **worker.load})

    async def models(call: Call) -> Response:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "protea", "context": engine.longest}
        return JSONResponse({"object": "list", "data": [entry]})

    def route(kind: Shape, read: Callable[[Any, LanguageModel], bodies.Asked]) -> Callable[..., Any]:
        async def answer(call: Call) -> Response:
            try:
                asked = read(bodies.parse(await whole_body(call)), model)
                watch = await worker.ask(asked.requests)
            except ProteaError as error:
                return JSONResponse(shape(error), status(error))
            said = Answer(kind, name, asked)
            if asked.stream:
                return StreamingResponse(events(worker, watch, said), media_type="text/event-stream")
            pieces = worker.read(watch)
            async for _ in pieces:
                if await call.is_disconnected():
                    await pieces.aclose()  # type: ignore[attr-defined]
            wrong = next((h.error for h in watch.handles if h.error is not None), None)
            if wrong is not None:
                return JSONResponse(shape(wrong), status(wrong))
            return JSONResponse(said.whole(watch.handles, codec))

        return answer

    async def missing(call: Call, error: Exception) -> Response:
        return refusal(404, f"There is no {call.url.path}.", "See /v1/models, /v1/completions, /v1/chat/completions.")

    @asynccontextmanager
    async def alive(app: Any) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            worker.stop()

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/completions", route(Completion(), bodies.completion), methods=["POST"]),
        Route("/v1/chat/completions", route(Chat(), bodies.chat), methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, lifespan=alive, exception_handlers={404: missing}), token, hosts)


async def whole_body(call: Call) -> bytes:
    """The body, of what size is allowed.

    Raises:
        DataError: it is larger.
    """
    body = bytearray()
    async for chunk in call.stream():
        body += chunk
        if len(body) > LARGEST:
            raise DataError(f"The body has more than {LARGEST} bytes.", "Send less at once.")
    return bytes(body)


async def events(worker: Worker, watch: Any, said: Answer) -> AsyncIterator[str]:
    """Server-sent events: each piece as it comes, the ends, what was used, `[DONE]`."""
    begun: set[int] = set()
    async for index, text in worker.read(watch):
        yield event(said.piece(index, text, index not in begun))
        begun.add(index)
    for index, handle in enumerate(watch.handles):
        yield event(shape(handle.error) if handle.error is not None else said.end(index, handle))
    if said.asked.usage:
        yield event(said.last(watch.handles))
    yield "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
