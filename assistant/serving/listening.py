"""Where `serve` listens, and when it may: loopback always, anything else only where people have to log in.

On another address, or on a Unix socket (`unix:/path`), it listens on loopback too. The job, the command line and health
checks use that, so they need to know nothing of the network.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from thumbwise.errors import ThumbwiseError
from thumbwise.settings.values import is_loopback

if TYPE_CHECKING:
    from thumbwise.accounts.users import Users
    from thumbwise.settings import Settings

UNIX = "unix:"
LOOPBACK = "127.0.0.1"
ANY = {"0.0.0.0": LOOPBACK, "::": "::1"}
"""Addresses that stand for all of this machine's, and the loopback among them."""


def check(settings: Settings) -> None:
    """Raise ThumbwiseError if these settings would open the assistant to people who do not log in."""
    auth, host = settings.auth, settings.host
    if auth == "local":
        if not is_loopback(host):
            raise ThumbwiseError(
                f"{host} is not this machine's loopback, and without accounts everybody there could chat as you. Set "
                'auth = "accounts" and public_url, make an operator (`thumbwise users create NAME --role operator`), '
                "and start again; or use --host 127.0.0.1, and an SSH tunnel to reach it from elsewhere."
            )
        if settings.public_url:
            raise ThumbwiseError(
                'public_url is set and auth is local, where nobody logs in: set auth = "accounts" (or "proxy"), or '
                "remove public_url."
            )
        return
    if auth == "proxy" and not settings.proxy.peers:
        raise ThumbwiseError(
            'auth = "proxy" believes listed proxies only, and none is listed: set proxy.peers, such as 127.0.0.1 or '
            "unix."
        )
    if not is_loopback(host) and not settings.public_url:
        raise ThumbwiseError(
            f"To listen on {host}, set public_url to the address that people use, such as https://chat.example.org."
        )


def check_operator(settings: Settings, users: Users) -> None:
    """Raise ThumbwiseError if other machines could reach an assistant with accounts that nobody operates yet."""
    if settings.auth == "accounts" and not is_loopback(settings.host) and not users.has_operator():
        raise ThumbwiseError(
            f"There is no operator yet, so {settings.host} is not opened: run `thumbwise users create NAME --role "
            "operator`, or start once with --host 127.0.0.1 and open the link that it prints."
        )


@contextmanager
def opened(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Listen on `host`. The first socket is loopback, for programs of this machine; often people use the same.

    Raises ThumbwiseError if an address cannot be used.
    """
    with ExitStack() as stack:
        if host in ANY or is_loopback(host):
            yield [stack.enter_context(bind(host, port))]
            return
        found = [stack.enter_context(bind(LOOPBACK, port))]
        if host.startswith(UNIX):
            path = Path(host.removeprefix(UNIX))
            found.append(stack.enter_context(unix(path)))
            stack.callback(path.unlink, missing_ok=True)
        else:
            found.append(stack.enter_context(bind(host, found[0].getsockname()[1])))
        yield found


def url_of(sockets: list[socket.socket]) -> str:
    """Return the loopback URL of what `opened` gave."""
    host, port = sockets[0].getsockname()[:2]
    name = ANY.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP socket. Raises ThumbwiseError for a port in use, and for an address that is not this machine's."""
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
        where = f"Port {port}" if is_loopback(host) else f"{host}, port {port},"
        raise ThumbwiseError(f"{where} cannot be used ({error.strerror}): choose another with --port.") from None
    return bound


def unix(path: Path) -> socket.socket:
    """Bind a Unix socket that its owner and group may use. Replaces the one that a dead process left."""
    if not path.is_absolute():
        raise ThumbwiseError(f"unix:{path} is not an absolute path: write unix:/run/thumbwise/thumbwise.sock.")
    try:
        if path.parent.stat().st_mode & stat.S_IWOTH:
            raise ThumbwiseError(
                f"{path.parent} can be written by others, who could put their own socket there: `chmod o-w` it, or use "
                "another folder."
            )
        _remove_dead(path)
        bound = socket.socket(socket.AF_UNIX)
        before = os.umask(0o117)  # 0660 from the first moment on
        try:
            bound.bind(str(path))
        except OSError:
            bound.close()
            raise
        finally:
            os.umask(before)
    except OSError as error:
        raise ThumbwiseError(f"{path} cannot be used ({error.strerror or error}): name another with --host.") from None
    bound.listen()
    return bound


def _remove_dead(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ThumbwiseError(f"{path} is there and is no socket: name another with --host.")
    with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError):
        probe.settimeout(5)
        probe.connect(str(path))
        raise ThumbwiseError(f"Another process listens on {path}: stop it, or name another socket with --host.")
    path.unlink(missing_ok=True)
