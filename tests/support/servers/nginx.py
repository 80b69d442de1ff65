"""Debian's nginx with a file of `deploy/`, as a child of a user without rights, on free ports of loopback."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PROGRAM = Path("/usr/sbin/nginx")
DEPLOY = Path(__file__).parents[3] / "deploy"
HOST = "chat.example.org"
NOBODY = 65534
MAIN = """\
daemon off;
pid nginx.pid;
error_log error.log;
events {}
http {
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    proxy_ignore_headers X-Accel-Buffering;  # the file of deploy/ must suffice for streaming
    include site.conf;
}
"""
"""The frame that `/etc/nginx/nginx.conf` gives to a site, without what needs root."""


def missing() -> str:
    """Return what this machine lacks, or an empty text."""
    needed = [PROGRAM, Path("/usr/bin/openssl")]
    return " ".join(f"{path} is not installed." for path in needed if not path.exists())


def version() -> str:
    """Return nginx's version."""
    return subprocess.run([PROGRAM, "-v"], capture_output=True, text=True, check=True).stderr.split("/")[1].strip()


@dataclass(frozen=True)
class Nginx:
    """A running nginx: TLS at `port`, plain HTTP at `plain`."""

    folder: Path
    port: int
    plain: int
    trust: ssl.SSLContext

    @property
    def url(self) -> str:
        """Where clients of this machine reach it; they must send HOST as Host and as the name for TLS."""
        return f"https://127.0.0.1:{self.port}"

    def client(self, host: str = HOST, **options: Any) -> httpx.Client:
        """A browser that believes our certificate only."""
        transport = httpx.HTTPTransport(verify=self.trust, local_address=options.pop("source", None))
        headers = {"host": host, **options.pop("headers", {})}
        return _Named(base_url=self.url, transport=transport, headers=headers, timeout=60, **options)


class _Named(httpx.Client):
    """Says HOST in TLS, whatever address it connects to."""

    def build_request(self, *args: Any, **more: Any) -> httpx.Request:
        request = super().build_request(*args, **more)
        request.extensions["sni_hostname"] = HOST
        return request


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def site(name: str, folder: Path, ports: dict[str, int], changes: dict[str, str]) -> str:
    """Return the text of a file of `deploy/` with the ports and paths of this machine, and `changes`."""
    text = (DEPLOY / name).read_text()
    own = {
        "listen 443 ": f"listen 127.0.0.1:{ports['tls']} ",
        "listen 80;": f"listen 127.0.0.1:{ports['plain']};",
        "127.0.0.1:7860": f"127.0.0.1:{ports['assistant']}",
        "/etc/ssl/thumbwise/": f"{folder}/",
        "/var/log/nginx/thumbwise.log": f"{folder}/access.log",
    }
    for old, new in (own | changes).items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(assistant: str, name: str = "nginx.conf", changes: dict[str, str] | None = None) -> Iterator[Nginx]:
    """Run nginx with a file of `deploy/` in front of the assistant at a URL until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="nginx-"))
    ports = {"tls": free_port(), "plain": free_port(), "assistant": int(assistant.rpartition(":")[2])}
    try:
        (folder / "main.conf").write_text(MAIN)
        (folder / "site.conf").write_text(site(name, folder, ports, changes or {}))
        certificate = [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"),
            *("-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")),
        ]
        subprocess.run(certificate, check=True, capture_output=True)
        trust = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
        as_nobody: dict[str, Any] = {}
        if os.geteuid() == 0:
            as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            for path in (folder, *folder.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        command = [PROGRAM, "-p", folder, "-c", folder / "main.conf", "-e", folder / "error.log"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **as_nobody)
        try:
            _wait(child, ports["tls"])
            yield Nginx(folder, ports["tls"], ports["plain"], trust)
        finally:
            child.terminate()
            child.communicate(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(child: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"nginx ended: {child.communicate()[1]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("nginx does not listen")
