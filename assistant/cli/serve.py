"""`thumbwise serve`: pages, API and vLLM in one process tree. One Ctrl-C ends all of it."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click
import uvloop

from thumbwise import logs
from thumbwise.home import Home, HomeLock
from thumbwise.serving import listening
from thumbwise.settings import Settings
from thumbwise.settings.access import check_oidc
from thumbwise.system.proxies import settle_proxies

if TYPE_CHECKING:
    import socket

    from thumbwise.serving.assistant import Assistant


@click.command()
@click.option("--host", help="Address to listen on, or unix:/path; other than loopback only with accounts.")
@click.option("--port", type=int, help="Port of the pages and the API; 0 picks a free one.")
@click.option("--model", help="Base model: default, a Hugging Face id or a folder.")
@click.option("--engine-url", help="URL of a vLLM that already runs, or several with commas. Then none is started.")
@click.option("--train-every", help="Train automatically at this interval, such as 24h. [default: never]")
def serve(
    host: str | None, port: int | None, model: str | None, engine_url: str | None, train_every: str | None
) -> None:
    """Start the assistant: the chat page, the API and the engine behind them."""
    home = Home.find()
    settings = Settings.load(home, host=host, port=port, model=model, engine_url=engine_url, train_every=train_every)
    check_oidc(settings)
    listening.check(settings)
    logs.configure(settings.log_format)
    with HomeLock(home) as lock, listening.opened(settings.host, settings.port) as bound:
        settle_proxies()
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        # Gradio's default is /tmp/gradio, which belongs to the first user of this machine who ran Gradio.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(home.cache / "gradio"))
        from thumbwise.serving.assistant import Assistant

        assistant = Assistant(home, settings)  # before the event loop: it opens the database and runs plugins
        listening.check_operator(settings, assistant.users)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after an orderly shutdown
            uvloop.run(_serve(assistant, lock, bound))


async def _serve(assistant: Assistant, lock: HomeLock, bound: list[socket.socket]) -> None:
    import uvicorn

    from thumbwise.serving.connections import TimedProtocol
    from thumbwise.serving.shutdown import DrainingServer
    from thumbwise.system.watchdog import watched
    from thumbwise.web import create_app

    app = create_app(assistant)
    config = uvicorn.Config(
        app, http=TimedProtocol, log_config=None, access_log=False, proxy_headers=False, timeout_graceful_shutdown=3
    )  # the last: see DrainingServer.shutdown
    server = DrainingServer(config, assistant, asyncio.get_running_loop())
    url = listening.url_of(bound)
    lock.announce(url)
    click.echo(
        f"Thumbwise is at {assistant.settings.public_url or url} (home: {assistant.home.root}). Stop it with Ctrl-C."
    )
    if link := await assistant.store.run(assistant.people.setup_link):
        click.echo(
            "There is no operator yet. This link makes one, once, within an hour; the next start prints a new one:\n"
            + assistant.people.address(url, "setup", link)
        )
    async with watched(assistant.settings.watchdog_seconds):
        await server.serve(sockets=bound)
