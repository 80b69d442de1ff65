"""Where a request was sent, and from where: `public_url`, its path prefix, and the proxies in front of us.

`Address.settle` turns a request that came through a proxy into what the browser sent: its scheme and host are those of
`public_url`, its address is the browser's. The rest of the program then needs to know nothing of proxies. No header
that says where a request came from is believed, except `X-Forwarded-For` of a peer in `proxy.peers`. The others are
removed, because Gradio believes them from anybody.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from thumbwise.settings.values import is_loopback

if TYPE_CHECKING:
    from starlette.types import Scope

    from thumbwise.settings import Settings

UNIX = "unix"
"""The peer of a request that came over our Unix socket."""
FORGED = {
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix",
    b"x-forwarded-proto", b"x-forwarded-server", b"x-gradio-server", b"x-real-ip",
}  # fmt: skip
"""Headers that anybody can send, and that others than `Address` must not see."""
_PORTS = {"http": 80, "https": 443}


class Address:
    """How people reach the assistant, by its settings."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.public_url if settings.auth != "local" else "")
        self.local = settings.auth == "local"
        self.scheme, self.name = parts.scheme, parts.hostname or ""
        self.prefix = parts.path
        port = None if parts.port == _PORTS.get(parts.scheme) else parts.port
        name = f"[{self.name}]" if ":" in self.name else self.name
        self.host = name if port is None else f"{name}:{port}"
        """The Host header of browsers at `public_url`."""
        peers = [] if self.local else [each for each in settings.proxy.peers.split(",") if each]
        self._unix = UNIX in peers
        self._networks = [ipaddress.ip_network(each) for each in peers if each != UNIX]

    def cookie(self) -> str:
        """The attributes of our cookies: where browsers send them."""
        secure = "; Secure" if self.scheme == "https" else ""
        return f"Path={self.prefix or '/'}; HttpOnly; SameSite=Lax{secure}"

    def trusts(self, peer: str) -> bool:
        """Whether a peer is one of our proxies."""
        if peer == UNIX:
            return self._unix
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def admits(self, host: str, peer: str) -> bool:
        """Whether we are called by one of our names. This stops DNS rebinding.

        Loopback names are for the job, the command line and health checks, all on this machine.
        """
        name = name_of(host)
        if name and name == self.name:
            return True
        return is_loopback(name) and (self.local or peer == UNIX or is_loopback(peer))

    def settle(self, scope: Scope) -> Scope:
        """Return a request as the browser sent it. `state` gets its peer: an address, `unix`, or an empty text."""
        peer = peer_of(scope)
        headers = scope["headers"]
        settled = {**scope, "headers": [each for each in headers if each[0] not in FORGED]}
        settled["state"] = {**scope.get("state", {}), "peer": peer}
        forwarded = [value for name, value in headers if name == b"x-forwarded-for"] if self.trusts(peer) else []
        settled["client"] = (self._client(b",".join(forwarded).decode("latin-1")) or peer, 0)
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if self.name and len(hosts) == 1 and name_of(hosts[0]) == self.name:
            settled["scheme"] = self.scheme
            settled["headers"] = [
                (name, self.host.encode() if name == b"host" else value) for name, value in settled["headers"]
            ]
        if self.prefix:
            settled["root_path"] = self.prefix
            if not f"{scope['path']}/".startswith(f"{self.prefix}/"):  # the proxy took it away
                settled["path"] = self.prefix + scope["path"]
                settled["raw_path"] = self.prefix.encode() + (scope.get("raw_path") or scope["path"].encode())
        return settled

    def _client(self, forwarded: str) -> str:
        """Return the last address of a list that is none of our proxies: who talked to the first of them."""
        for each in reversed(forwarded.split(",")):
            address = _plain(each.strip())
            if not address:
                return ""
            if not self.trusts(address):
                return address
        return ""


def peer_of(scope: Scope) -> str:
    """Return who opened the connection: an address, `unix`, or an empty text if that is not known any more.

    A connection that is closed already has no peer, as one over a Unix socket has none. So our own side decides.
    """
    server = scope.get("server")
    if server is not None and server[1] is None and str(server[0]).startswith("/"):
        return UNIX
    client = scope.get("client")
    return _plain(str(client[0])) if client else ""


def path_of(scope: Scope) -> str:
    """Return the path of a request below `public_url`, as our routes name it."""
    path: str = scope["path"]
    prefix = scope.get("app_root_path", scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and f"{path}/".startswith(f"{prefix}/") else path


def name_of(host: str) -> str:
    """Return the name in a Host header, without its port; an empty text if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _plain(text: str) -> str:
    """Return an address as it is usually written, or an empty text. A socket for IPv6 also takes IPv4."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
