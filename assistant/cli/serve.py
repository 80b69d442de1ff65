"""`thumbwise serve`: pages, API and vLLM in one process tree. One Ctrl-C ends all of it."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import click
import uvloop

from thumbwise import logs
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, HomeLock
from thumbwise.settings import Settings
from thumbwise.settings.access import check_oidc
from thumbwise.system.proxies import settle_proxies

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


@click.command()
@click.option("--host", help="Address to listen on; loopback only.")
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
    logs.configure(settings.log_format)
    with HomeLock(home) as lock, listen(settings.host, settings.port) as bound:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{bound.getsockname()[1]}"
        settle_proxies()
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        # Gradio's default is /tmp/gradio, which belongs to the first user of this machine who ran Gradio.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(home.cache / "gradio"))
        from thumbwise.serving.assistant import Assistant

        assistant = Assistant(home, settings)  # before the event loop: it opens the database and runs plugins
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after an orderly shutdown
            uvloop.run(_serve(assistant, lock, bound, url))


def listen(host: str, port: int) -> socket.socket:
    """Bind a loopback socket. Raises ThumbwiseError for any other host, and for a port in use."""
    from thumbwise.settings.values import is_loopback

    if not is_loopback(host):
        raise ThumbwiseError(
            f"{host} is not this machine's loopback, and there are no accounts yet: use --host 127.0.0.1, "
            "and an SSH tunnel to reach it from elsewhere."
        )
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Every connection inherits this. asyncio sets it only if the socket names its protocol, and this one does not.
    # Without it, each chunk of a reply waits until the reader's system acknowledges the chunk before, and that system
    # delays acknowledgements by 40 ms.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # clients that come before the server accepts wait, they are not refused
    except OSError as error:
        bound.close()
        raise ThumbwiseError(f"Port {port} cannot be used ({error.strerror}): choose another with --port.") from None
    return bound


async def _serve(assistant: Assistant, lock: HomeLock, bound: socket.socket, url: str) -> None:
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
    lock.announce(url)
    click.echo(f"Thumbwise is at {url} (home: {assistant.home.root}). Stop it with Ctrl-C.")
    if link := await assistant.store.run(assistant.people.setup_link):
        click.echo(
            "There is no operator yet. This link makes one, once, within an hour; the next start prints a new one:\n"
            + assistant.people.address(url, "setup", link)
        )
    async with watched(assistant.settings.watchdog_seconds):
        await server.serve(sockets=[bound])
