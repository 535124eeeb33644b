"""`protea serve RUN`: a language model behind HTTP, in OpenAI's protocol."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Annotated

import typer

from protea.cli.options import Json, RunFolder


def serve(
    run: RunFolder,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name the server answers to (repeatable).")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", help="Requests that are worked on at once.")] = 8,
    waiting: Annotated[int, typer.Option("--waiting", help="Requests on their way before others get 429.")] = 256,
    json: Json = False,
) -> None:
    """Serve a language model over HTTP (OpenAI's protocol).

    Every request bears the token that is printed at the start (PROTEA_TOKEN sets it). Ctrl-C ends it.
    """
    from protea import api
    from protea.cli.console import print_json, stderr
    from protea.errors import ConfigError, MissingExtra
    from protea.serving.engine import Engine
    from protea.serving.http.app import application

    try:
        import uvicorn
    except Exception as error:
        raise MissingExtra("uvicorn", "serve", error) from error
    token = os.environ.get("PROTEA_TOKEN") or secrets.token_urlsafe(24)
    hosts = frozenset({"127.0.0.1", "localhost", "::1", host, *(allow_host or ())} - {"0.0.0.0", "::"})
    name = run.resolve().name
    app = application(Engine(api.load(run).model, slots=slots), name, token, hosts, waiting)  # type: ignore[arg-type]
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host} port {port} ({error}).", "Choose another --port (0: any)."
        ) from None
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}/v1"
    console = stderr()
    if json:
        print_json({"url": url, "token": token, "model": name})
    else:
        console.print(f"{name} answers at {url}\ntoken: {token}", highlight=False)
    if host not in ("127.0.0.1", "localhost", "::1"):
        console.print("Other machines can reach it, and nothing is encrypted.", style="yellow")
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])
