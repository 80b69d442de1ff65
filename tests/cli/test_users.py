"""`thumbwise users` and `thumbwise audit`, without a running assistant and through one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result
from fakes import FakeEngine, FakeEngineClient
from live_server import Live, serving

from thumbwise.cli.main import main
from thumbwise.home import Home

SECRET = "correct horse"


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


@contextmanager
def running(home: Home) -> Iterator[Live]:
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        yield live


@pytest.fixture(params=["no assistant", "running"])
def way(request: pytest.FixtureRequest, home: Home) -> Iterator[str]:
    """Both ways in which the commands work."""
    home.config.write_text('auth = "accounts"\n')
    if request.param == "running":
        with running(home):
            yield request.param
    else:
        yield request.param


def listed() -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(run("users", "list", "--json").output)}


def said(*arguments: str, stdin: str | None = None) -> str:
    done = run(*arguments, stdin=stdin)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("way")
def test_the_life_of_accounts() -> None:
    said("users", "create", "boss", "--role", "operator", "--password-stdin", stdin=SECRET + "\n")
    assert "/reset?link=" in said("users", "create", "ann")  # no terminal, so no prompt
    assert "/join?link=" in said("users", "invite", "--role", "reviewer")
    assert "/reset?link=" in said("users", "reset", "ann")
    said("users", "role", "ann", "reviewer")
    said("users", "disable", "ann")
    assert (listed()["ann"]["role"], listed()["ann"]["state"]) == ("reviewer", "disabled")
    said("users", "enable", "ann")
    assert listed()["ann"]["state"] == "active"
    assert (listed()["boss"]["has_password"], listed()["ann"]["has_password"]) == (True, False)
    assert "0 replies" in said("users", "adopt", "ann")
    assert "ann" in said("users", "list")
    assert run("users", "delete", "ann", stdin="n\n").exit_code == 1
    said("users", "delete", "ann", "--yes")
    assert list(listed()) == ["boss"]
    actions = [row["action"] for row in json.loads(said("audit", "--json", "--action", "user."))]
    assert actions[0] == "user.delete"
    assert actions.count("user.create") == 2
    assert len(json.loads(said("audit", "--json", "--limit", "1"))) == 1
    assert "user.adopt" in said("audit")
    assert SECRET not in said("audit", "--json")


@pytest.mark.usefixtures("way")
def test_mistakes_are_told_in_a_sentence() -> None:
    said("users", "create", "boss", "--role", "operator")
    for arguments, sentence in (
        (("users", "create", "boss"), "already"),
        (("users", "create", "a/b"), "no slash"),
        (("users", "create", "eve", "--password-stdin"), "8 to 1024"),
        (("users", "delete", "nobody", "--yes"), "no account 'nobody'"),
        (("users", "delete", "boss", "--yes"), "last operator"),
        (("users", "disable", "boss"), "last operator"),
        (("users", "role", "boss", "user"), "last operator"),
    ):
        done = run(*arguments, stdin="short\n")
        assert done.exit_code == 1
        assert sentence in done.output.replace("\n", " ")
    assert list(listed()) == ["boss"]


def test_a_password_is_no_argument(home: Home) -> None:
    home.config.write_text('auth = "accounts"\n')
    for arguments in (("create", "ann", SECRET), ("create", "ann", "--password", SECRET)):
        assert run("users", *arguments).exit_code == 2


def test_names_with_odd_characters_are_reached(home: Home) -> None:
    home.config.write_text('auth = "accounts"\n')
    with running(home):
        for name in ("ann@example.org", "é ü", "50%?#&", "a.b"):
            said("users", "create", name)
            said("users", "role", name, "reviewer")
            assert listed()[name]["role"] == "reviewer"


def test_before_auth_is_set_the_commands_say_that_accounts_do_not_count_yet(home: Home) -> None:
    for arguments in (
        ("users", "create", "boss", "--role", "operator"),
        ("users", "invite"),
        ("users", "reset", "boss"),
    ):
        done = run(*arguments)
        assert done.exit_code == 0
        assert "once the setting `auth` is `accounts`" in done.stderr
        assert "`auth`" not in done.stdout
    assert not home.config.exists()
