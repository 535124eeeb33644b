"""Who may ask: the holder of the token, from a page of this server or from none, under a name the server answers to.

A web page elsewhere can make a browser send requests to this machine. `Origin` gives away such a page, `Host` a name
that was pointed here to pass for one's own (DNS rebinding), and a body that is not declared as JSON a plain form.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from protea.serving.http.errors import refusal

OPEN = ("/health",)


class Guard:
    """Refuses before anything is read.

    Args:
        app: an ASGI application.
        token: that every request must bear, but of `/health`.
        hosts: names the server answers to, without a port.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts
        self.secret = b"bearer " + token.encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.lower(): v for k, v in scope["headers"]}
        refused = self._refuse(scope["method"], scope["path"], headers)
        await (self.app if refused is None else refused)(scope, receive, send)

    def _refuse(self, method: str, path: str, headers: dict[bytes, bytes]) -> Any:
        host = headers.get(b"host", b"").decode("latin-1")
        if name_of(f"//{host}") not in self.hosts:
            return refusal(421, f"This server is not {host!r}.", "Start it with --allow-host, or use its address.")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != host:
            return refusal(403, f"Pages of {origin} may not ask this server.", "Ask from a program, or its own pages.")
        if method not in ("GET", "HEAD", "POST"):
            return refusal(405, f"{method} is not answered.", "Use GET or POST.")
        if method == "POST" and not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
            return refusal(415, "The body is not declared as JSON.", "Send Content-Type: application/json.")
        given = headers.get(b"authorization", b"")
        scheme, _, rest = given.partition(b" ")
        if path not in OPEN and not hmac.compare_digest(scheme.lower() + b" " + rest, self.secret):
            return refusal(401, "The token is missing or wrong.", "Send Authorization: Bearer TOKEN, as printed.")
        return None


def name_of(url: str) -> str:
    """The host of an address, in lower case; empty for none.

    >>> name_of("//LOCALHOST:8000"), name_of("//[::1]:80"), name_of("//a b["), name_of("")
    ('localhost', '::1', '', '')
    """
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
