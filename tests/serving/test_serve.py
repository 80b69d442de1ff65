"""Addresses, proxies and an early Ctrl-C: `thumbwise serve`, and the commands that talk to it."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash_tools import SERVE_WITHOUT_END, tiny_home
from fakes import FakeEngine, FakeEngineClient
from live_server import serving

from thumbwise.accounts.links import Links
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Users
from thumbwise.cli.client import call, database
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, running_url

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
NOWHERE = "http://127.0.0.1:9"


def test_a_command_asks_the_assistant_itself_and_no_proxy(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    home = tiny_home(tmp_path, tiny_model)
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        assert call(home, live.url, "GET", "/ops/api/policies")[0]["version"] == "policy-0000"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_ctrl_c_does_not_wait_for_the_model_and_the_address_is_one_that_can_be_opened(
    tmp_path: Path, host: str
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "gradio").touch()  # as where another user's Gradio was first on this machine
    environment = {**os.environ, "THUMBWISE_HOME": str(tmp_path), "TMPDIR": str(tmp_path / "shared")}
    environment.pop("GRADIO_TEMP_DIR", None)
    serve = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE_WITHOUT_END, "--host", host],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serve.stdout is not None
        said = list(itertools.takewhile(lambda line: line != "preparing\n", serve.stdout))
        home = Home.find(tmp_path)
        assert any(f"http://{'[::1]' if ':' in host else host}:" in line for line in said)
        url = running_url(home)
        assert url is not None
        assert call(home, url, "GET", "/ops/api/policies")[0]["version"] == "policy-0000"
        serve.send_signal(signal.SIGINT)
        assert serve.wait(timeout=30) == 0
    finally:
        serve.kill()
        serve.wait()


@pytest.mark.slow
def test_without_an_operator_the_start_prints_a_link_that_makes_one(tmp_path: Path) -> None:
    environment = {**os.environ, "THUMBWISE_HOME": str(tmp_path), "THUMBWISE_AUTH": "accounts"}

    def started() -> str:
        """What a start prints; the assistant is asked to stop after it."""
        serve = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE_WITHOUT_END, "--port", "0"],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert serve.stdout is not None
            said = "".join(itertools.takewhile(lambda line: line != "preparing\n", serve.stdout))
            serve.send_signal(signal.SIGINT)
            assert serve.wait(timeout=60) == 0
        finally:
            serve.kill()
            serve.wait()
        return said

    first, second = (re.findall(r"http://127\.0\.0\.1:\d+/setup\?link=([\w-]{43})\n", started()) for _ in range(2))
    assert (len(first), len(second)) == (1, 1)
    with database(Home.find(tmp_path)) as store:
        links = Links(store)
        with pytest.raises(ThumbwiseError):
            links.find(first[0], "setup")
        assert links.find(second[0], "setup").role == "operator"
        Users(store).create_operator("boss", COMMAND_LINE)
    assert "link" not in started()
