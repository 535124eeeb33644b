"""One thread that keeps an engine working, and asyncio streams of what its answers become.

Requests join while others run (the engine batches them); a reader that goes away cancels its request; an error inside
one step ends the requests of that step with a message, and the thread goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from protea.errors import ProteaError
from protea.serving.engine import Engine
from protea.serving.requests import Handle, Request

log = logging.getLogger(__name__)


class Busy(ProteaError):
    """More requests wait than the server holds."""


@dataclass(eq=False)
class Watch:
    """Someone who waits for the answers to some requests: (which of them, a piece of its text), None at the end."""

    loop: asyncio.AbstractEventLoop
    handles: Sequence[Handle]
    queue: asyncio.Queue[tuple[int, str] | None] = field(default_factory=asyncio.Queue)

    def tell(self) -> bool:
        """Pass on what is new; whether all is said."""
        done = all(h.done for h in self.handles)  # before reading: what a handle says, it says before it is done
        news: list[tuple[int, str] | None] = [(i, p) for i, h in enumerate(self.handles) if (p := h.read())]
        for item in [*news, None] if done else news:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        return done


class Worker:
    """Keeps an engine working.

    Args:
        engine: nobody else may step it.
        most: requests that may be on their way at once; more are refused with `Busy`.
    """

    def __init__(self, engine: Engine, most: int = 256) -> None:
        self.engine, self.most = engine, most
        self._watches: list[Watch] = []
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="protea-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancel what runs and end the thread."""
        with self._news:
            self._stopping = True
            for watch in self._watches:
                for handle in watch.handles:
                    handle.cancel()
            self._news.notify_all()
        self._thread.join(timeout=10)

    @property
    def load(self) -> dict[str, int]:
        """Requests that run and that wait, and steps so far."""
        return {
            "running": len(self.engine.running), "waiting": len(self.engine.waiting), "steps": self.engine.steps,
        }  # fmt: skip

    async def ask(self, requests: Sequence[Request]) -> Watch:
        """Queue requests.

        Raises:
            Busy: too many are on their way.
            DataError, ConfigError: one of them cannot be answered; none is queued then.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._submit, requests, loop)  # compiling a grammar takes a while

    async def read(self, watch: Watch) -> AsyncIterator[tuple[int, str]]:
        """(which answer, a piece of its text) as they come. Whoever stops reading cancels the answers."""
        try:
            while (item := await watch.queue.get()) is not None:
                yield item
        finally:
            for handle in watch.handles:
                handle.cancel()

    def _submit(self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop) -> Watch:
        under_way = sum(self.load[k] for k in ("running", "waiting"))
        if under_way + len(requests) > self.most:
            raise Busy(f"{under_way} requests are on their way, of {self.most} at most.", "Ask again later.")
        watch = Watch(loop, handles := [])
        try:
            handles.extend(self.engine.submit(request) for request in requests)
        except ProteaError:
            for handle in handles:
                handle.cancel()
            raise
        with self._news:
            self._watches.append(watch)
            self._news.notify_all()
        return watch

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._stopping or self._watches or self.engine.busy)
                if self._stopping:
                    return
                watches = list(self._watches)
            try:
                if self.engine.busy:
                    self.engine.step()
            except Exception as error:  # the server stays up; whoever waits is told
                log.exception("a step of the engine failed")
                self._fail(error)
            over = [watch for watch in watches if watch.tell()]
            with self._news:
                self._watches = [watch for watch in self._watches if watch not in over]

    def _fail(self, error: Exception) -> None:
        for handle in [*self.engine.running, *self.engine.waiting]:
            if not handle.done:
                handle.error = ProteaError(f"The engine failed: {type(error).__name__}.", "See the server's log.")
                handle.finish = "error"
