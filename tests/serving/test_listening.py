"""Where `serve` listens: other addresses than loopback only where people log in; a Unix socket."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from crash_tools import SERVE_WITHOUT_END

from thumbwise.cli.client import call
from thumbwise.cli.main import main
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, running_url
from thumbwise.serving import listening
from thumbwise.settings import Settings
from thumbwise.training.run.client import OpsClient

PUBLIC = "https://chat.example.org"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "0.0.0.0"}, 'Set auth = "accounts"'), ({"host": "unix:/run/x.sock"}, "not this machine's loopback"),
        ({"public_url": PUBLIC}, "public_url is set and auth is local"),
        ({"auth": "proxy"}, "proxy.peers"), ({"auth": "accounts", "host": "0.0.0.0"}, "set public_url"),
        ({"auth": "accounts", "host": "0.0.0.0", "public_url": PUBLIC}, ""), ({"auth": "accounts"}, ""), ({}, ""),
        ({"auth": "proxy", "proxy": {"peers": "unix"}, "host": "unix:/x", "public_url": PUBLIC}, ""),
    ],
)  # fmt: skip
def test_what_would_open_the_assistant_to_everybody_is_refused(tmp_path: Path, given: Any, said: str) -> None:
    settings = Settings.load(Home.find(tmp_path), **given)
    if not said:
        listening.check(settings)
        return
    with pytest.raises(ThumbwiseError, match=said):
        listening.check(settings)


def test_serve_opens_no_other_address_before_there_is_an_operator(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    home.config.write_text(f'auth = "accounts"\npublic_url = "{PUBLIC}"\nhost = "0.0.0.0"\nport = 0\n')
    done = CliRunner(env={"THUMBWISE_HOME": str(tmp_path)}).invoke(main, ["serve"])
    assert done.exit_code == 1
    assert "thumbwise users create NAME --role operator" in done.output


def test_a_unix_socket_is_for_owner_and_group_and_replaces_a_dead_one_only(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening.unix(path), pytest.raises(ThumbwiseError, match="Another process listens"):
        listening.unix(path)
    with listening.unix(path):  # the file of the dead one is there still
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    path.unlink()
    path.write_text("mine")
    with pytest.raises(ThumbwiseError, match="no socket"):
        listening.unix(path)
    assert path.read_text() == "mine"
    tmp_path.chmod(0o777)
    with pytest.raises(ThumbwiseError, match="written by others"):
        listening.unix(tmp_path / "t")


def test_other_addresses_come_with_loopback_and_an_unknown_one_is_refused() -> None:
    for host, url in (("0.0.0.0", "http://127.0.0.1:"), ("127.0.0.1", "http://127.0.0.1:"), ("::", "http://[::1]:")):
        with listening.opened(host, 0) as sockets:
            assert listening.url_of(sockets).startswith(url)
    with pytest.raises(ThumbwiseError, match=r"192\.0\.2\.1"), listening.opened("192.0.2.1", 0):
        pass


def test_commands_job_and_proxy_reach_an_assistant_on_a_unix_socket(tmp_path: Path) -> None:
    home, path = Home.find(tmp_path / "home"), tmp_path / "s"
    home.config.write_text(
        f'auth = "proxy"\npublic_url = "{PUBLIC}/wise"\nhost = "unix:{path}"\nproxy = {{peers = "unix"}}\n'
    )
    command = [sys.executable, "-P", "-c", SERVE_WITHOUT_END]
    environment = {**os.environ, "THUMBWISE_HOME": str(home.root)}
    serve = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert serve.stdout is not None
        assert any(PUBLIC in line for line in itertools.takewhile(lambda line: line != "preparing\n", serve.stdout))
        url = running_url(home)
        assert url is not None
        assert call(home, url, "GET", "/ops/api/policies")[0]["version"] == "policy-0000"
        with OpsClient(url, home.job_token()) as job:
            assert len(job.take_snapshot()) == 64
        named = {"host": "chat.example.org", "x-forwarded-user": "ann"}
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://here") as proxy:
            assert proxy.get("/wise/pages/account", headers=named).json()["account"]["id"].startswith("usr_")
        assert (
            httpx.get(f"{url}/pages/account", headers={"x-forwarded-user": "ann"}, trust_env=False).status_code == 401
        )
        serve.send_signal(signal.SIGINT)
        assert serve.wait(timeout=60) == 0
        assert not path.exists()
    finally:
        serve.kill()
        serve.wait()
