"""API keys: made once, kept as hashes, scoped, revoked; and who a client is with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from crash_tools import said
from fakes import FakeEngine, FakeEngineClient
from live_server import serving

from thumbwise.accounts.keys import Keys
from thumbwise.cli.main import main
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.store import Store
from thumbwise.home import Home

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello?"}]}
CHAT = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_key_names_its_client_in_what_is_stored(http, assistant) -> None:
    key = assistant.keys.create("app")
    for body in (ASK, ASK | {"user": "ann"}):
        assert (await http.post(CHAT, json=body, headers=bearer(key))).status_code == 200
    rows = assistant.store.rows("SELECT user_id, person FROM replies ORDER BY created_at")
    assert [row["user_id"] for row in rows] == ["app", "app/ann"]
    assert {row["person"] for row in rows} == {"key:app"}


async def test_no_key_takes_the_name_of_whoever_has_rows_here_already(http, assistant) -> None:
    assert (await http.post(CHAT, json=ASK | {"user": "ann"})).status_code == 200
    assert (await http.post(CHAT, json=ASK | {"user": "ci/eve"})).status_code == 200
    for name in ("ann", "local", "ci"):
        with pytest.raises(Conflict, match=f"{name} has said something here already"):
            assistant.keys.create(name)
    assert assistant.keys.create("bob").startswith("tw-")


async def test_the_openai_client_takes_one_and_hears_of_a_wrong_one_in_its_own_words(http, assistant) -> None:
    key = assistant.keys.create("app")
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:7860/v1", api_key=key, http_client=http, max_retries=0)
    reply = await client.chat.completions.create(model="thumbwise", **ASK)
    assert reply.choices[0].message.content == "Hello there friend"
    with pytest.raises(openai.AuthenticationError, match="unknown or revoked"):
        await client.with_options(api_key=key + "x").chat.completions.create(model="thumbwise", **ASK)


async def test_without_any_key_the_api_is_open_and_from_the_first_on_it_is_not(http, assistant) -> None:
    placeholder = bearer("none")
    assert (await http.post(CHAT, json=ASK, headers=placeholder)).status_code == 200
    assistant.keys.create("app")
    vote = {"kind": "thumb", "message_id": "msg_x", "value": "up"}
    for answer in (
        await http.post(CHAT, json=ASK, headers=placeholder), await http.post(CHAT, json=ASK),
        await http.post("/v1/comparisons", json=ASK), await http.get("/v1/models"),
        await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"}),
    ):  # fmt: skip
        assert answer.status_code == 401
        assert "thumbwise keys create" in said(answer)
        assert answer.json()["error"]["type"] == "authentication_error"
    assistant.keys.revoke("app")
    assert (await http.post(CHAT, json=ASK)).status_code == 401  # not open again
    assert (await http.get("/health/live")).status_code == 200


async def test_a_key_may_do_what_its_scopes_say_and_nothing_once_it_is_revoked(http, assistant) -> None:
    chat, feedback = assistant.keys.create("reader", ["chat"]), assistant.keys.create("judge", ["feedback"])
    assert (await http.get("/v1/models", headers=bearer(chat))).status_code == 200
    refused = await http.post(CHAT, json=ASK, headers=bearer(feedback))
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert "no scope `chat`" in said(refused)
    assistant.keys.revoke("reader")
    gone = await http.post(CHAT, json=ASK, headers=bearer(chat))
    assert gone.status_code == 401
    assert assistant.store.rows("SELECT 1 FROM replies") == []


async def test_a_key_is_no_key_to_what_the_job_may_do(http, assistant) -> None:
    key = assistant.keys.create("app")
    assert (await http.get("/ops/api/keys", headers=bearer(key))).status_code == 401


def test_only_a_hash_is_kept_and_a_name_is_given_out_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    keys = Keys(store)
    text = keys.create("app", ["chat", "chat"])
    assert len(text) > 40
    assert text not in str(store.rows("SELECT * FROM api_keys"))
    assert text.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [key.scopes for key in keys.all()] == [("chat",)]
    keys.revoke("app")
    first = keys.all()[0].revoked_at
    keys.revoke("app")
    assert first is not None
    assert keys.all()[0].revoked_at == first
    with pytest.raises(Conflict, match="or was"):
        keys.create("app")
    with pytest.raises(NotFound, match="no key"):
        keys.revoke("nobody")
    store.close()


@pytest.mark.parametrize(
    ("name", "scopes", "says"),
    [("App", ["chat"], "lower-case"), ("a/b", ["chat"], "lower-case"), ("", ["chat"], "lower-case"),
     ("app", ["root"], "root is not a scope"), ("app", [], "Nothing is not a scope")],
)  # fmt: skip
def test_a_bad_name_or_scope_is_refused_with_what_to_do(
    tmp_path: Path, name: str, scopes: list[str], says: str
) -> None:
    store = Store(tmp_path / "feedback.db")
    with pytest.raises(ThumbwiseError, match=says):
        Keys(store).create(name, scopes)
    store.close()


@pytest.mark.parametrize("runs", [True, False])
def test_the_command_makes_lists_and_revokes_with_or_without_an_assistant(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    home = Home.find(tmp_path)
    home.config.write_text(f'model = "{tiny_model}"\n')
    monkeypatch.setenv("THUMBWISE_HOME", str(home.root))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["keys", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return str(done.output)

    def work() -> None:
        assert run("create", "app", "--scope", "feedback").startswith("tw-")
        assert "revoked" in run("revoke", "app")
        (row,) = json.loads(run("list", "--json"))
        assert (row["name"], row["scopes"], bool(row["revoked_at"])) == ("app", ["feedback"], True)
        assert "app" in run("list")
        again = CliRunner().invoke(main, ["keys", "create", "app"])
        assert again.exit_code == 1
        assert "choose another name" in again.output

    if not runs:
        work()
        return
    with serving(home, lambda: FakeEngine(FakeEngineClient())):
        work()
