"""API keys of people: several each, with scopes and an end; they die with the account and never name another one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from crash_tools import said
from sqlite_utils import Database
from team import Team, team

from thumbwise.accounts.keys import MOST, Keys
from thumbwise.accounts.migrations import migrations
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.store import Store

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello?"}]}
CHAT, MODELS = "/v1/chat/completions", "/v1/models"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def key_of(here: Team, account: Any, name: str = "app", scopes: tuple[str, ...] = ("chat", "feedback")) -> str:
    return here.assistant.keys.create(name, scopes, owner=account.id)


async def test_people_make_list_and_revoke_their_own_keys_and_nobody_elses(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        async with here.client(ann) as hers, here.client(bob) as his, here.client() as program:
            made = await hers.post("/me/keys", json={"name": "laptop", "scopes": ["chat"], "expires": 86400})
            text = made.json()["key"]
            assert made.status_code == 201
            (row,) = (await hers.get("/me/keys")).json()
            assert (row["name"], row["prefix"], row["scopes"]) == ("laptop", text[:7], ["chat"])
            assert row["expires_at"] > datetime.now(UTC).isoformat()
            assert text not in str(row)
            assert (await his.get("/me/keys")).json() == []
            assert (await his.post("/me/keys", json={"name": "laptop"})).status_code == 201  # names are per person
            theirs, unknown = await his.delete(f"/me/keys/{row['id']}"), await his.delete("/me/keys/key_none")
            assert theirs.status_code == unknown.status_code == 404
            assert said(theirs).replace(row["id"], "key_none") == said(unknown)
            assert (await program.get(MODELS, headers=bearer(text))).status_code == 200
            assert (await hers.delete(f"/me/keys/{row['id']}")).status_code == 200
            assert (await program.get(MODELS, headers=bearer(text))).status_code == 401
            assert (await hers.post("/me/keys", json={"name": "laptop"})).status_code == 201


async def test_a_key_opens_no_page_and_makes_no_key(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as program:
        boss = here.account("boss", "operator")
        for scopes in (("chat", "feedback"), ("operate",), ("chat", "feedback", "operate")):
            headers = bearer(key_of(here, boss, f"k{len(scopes)}", scopes))
            for path in ("/me/keys", "/pages/chat", "/pages/compare", "/", "/config", "/me"):
                assert (await program.get(path, headers=headers)).status_code == 401, path
            assert (await program.post("/me/keys", json={"name": "more"}, headers=headers)).status_code == 401


async def test_only_an_operators_key_operates_and_only_while_its_owner_does(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as program:
        users = here.assistant.users
        boss, other, ann = here.account("boss", "operator"), here.account("other", "operator"), here.account("ann")
        operate = bearer(key_of(here, boss, "ci", ("operate",)))
        with pytest.raises(ThumbwiseError, match="Only an operator's key"):
            key_of(here, ann, "ci", ("operate",))
        for key in (bearer(key_of(here, boss, "chat")), bearer(key_of(here, ann, "chat"))):
            for path in ("/ops/api/policies", "/metrics"):
                assert (await program.get(path, headers=key)).status_code == 403, path
        for path in ("/ops/api/policies", "/metrics"):
            assert (await program.get(path, headers=operate)).status_code == 200, path
        assert (await program.post(CHAT, json=ASK, headers=operate)).status_code == 403
        users.set_role(boss.id, "user", COMMAND_LINE)
        for path in ("/ops/api/policies", "/metrics"):
            assert "no operator any more" in said(await program.get(path, headers=operate))
        assert (await program.post("/ops/api/rollback", json={}, headers=operate)).status_code == 403
        assert users.get(other.id).role == "operator"


async def test_a_key_ends_with_its_time_and_with_its_account(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as program:
        ann, bob = here.account("ann"), here.account("bob")
        users, store = here.assistant.users, here.assistant.store
        hers, his = bearer(key_of(here, ann)), bearer(key_of(here, bob))
        users.set_state(ann.id, "disabled", COMMAND_LINE)
        assert "no active account" in said(await program.get(MODELS, headers=hers))
        users.set_state(ann.id, "active", COMMAND_LINE)
        assert (await program.get(MODELS, headers=hers)).status_code == 200
        users.change(lambda db: db.execute("UPDATE users SET state = 'deleted' WHERE id = ?", [ann.id]))
        assert (await program.get(MODELS, headers=hers)).status_code == 401
        assert [row["user_id"] for row in store.rows("SELECT user_id FROM api_keys")] == [bob.id]
        with store.write() as db:
            past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="seconds")
            db.execute("UPDATE api_keys SET expires_at = ?", [past])
        here.assistant.keys.read()
        ended = await program.get(MODELS, headers=his)
        assert (ended.status_code, "expired" in said(ended)) == (401, True)


@pytest.mark.parametrize("named", ["usr_01J", "local", "browser:x", "key:app", "bob", "a/b", "../bob", "{bob}"])
async def test_the_user_field_names_people_below_the_key_and_never_an_account(tmp_path: Path, named: str) -> None:
    async with team(tmp_path) as here, here.client() as program:
        ann, bob = here.account("ann"), here.account("bob")
        named = named.format(bob=bob.id)
        asked = await program.post(CHAT, json=ASK | {"user": named}, headers=bearer(key_of(here, ann)))
        assert asked.status_code == 200
        (row,) = here.assistant.store.rows("SELECT user_id, person FROM replies")
        assert (row["user_id"], row["person"]) == (f"{ann.id}/{named}", ann.id)
        vote = {"kind": "thumb", "message_id": asked.json()["id"], "value": "up", "user": named}
        refused = await program.post(
            "/v1/feedback", json=vote, headers=bearer(key_of(here, bob)) | {"Idempotency-Key": "k"}
        )
        assert refused.status_code == 404


async def test_a_key_without_an_owner_is_refused_until_an_account_adopts_it(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as program:
        keys, ann = here.assistant.keys, here.account("ann")
        old = keys.create("app")
        assert "thumbwise users adopt" in said(await program.get(MODELS, headers=bearer(old)))
        own = key_of(here, ann)
        with here.assistant.store.write() as db:
            assert keys.adopt(db, ann.id, COMMAND_LINE) == ["app"]
        keys.read()
        assert sorted(key.name for key in keys.of(ann.id)) == ["app", "app-2"]
        for key in (old, own):
            assert (await program.get(MODELS, headers=bearer(key))).status_code == 200


async def test_the_last_use_is_written_once_an_hour(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as program:
        key = key_of(here, here.account("ann"))
        written: list[str] = []
        later = here.assistant.store.later
        here.assistant.store.later = lambda name, work: (written.append(name), later(name, work))[1]  # type: ignore
        for _ in range(3):
            assert (await program.get(MODELS, headers=bearer(key))).status_code == 200
        assert len(written) == 1
        (row,) = here.assistant.store.rows("SELECT used_at FROM api_keys")
        assert row["used_at"] == here.assistant.keys.all()[0].used_at is not None


async def test_the_log_tells_of_keys_without_their_text(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        async with here.client(ann) as hers:
            text = (await hers.post("/me/keys", json={"name": "laptop"})).json()["key"]
            await hers.delete("/me/keys/laptop")
        made, revoked = here.assistant.audit.entries(action="key.")[::-1]
        assert (made["action"], made["actor"], made["via"]) == ("key.create", ann.id, "session")
        assert (revoked["action"], revoked["target"]) == ("key.revoke", made["target"])
        assert text[7:] not in str(here.assistant.audit.entries())


async def test_the_jobs_token_opens_what_a_round_needs_and_nothing_else(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as http:
        job, operator = bearer(here.assistant.token), bearer(here.assistant.operator_token)
        for path in ("/ops/api/policies", "/metrics"):
            assert (await http.get(path, headers=job)).status_code == 200
        others = [
            ("GET", "/ops/api/keys"), ("POST", "/ops/api/keys"), ("DELETE", "/ops/api/keys/app"),
            ("POST", "/ops/api/rollback"), ("POST", "/ops/api/backup"), ("GET", "/ops/api/reception"),
            ("GET", "/pages/chat"), ("GET", "/v1/models"), ("POST", CHAT), ("GET", "/me/keys"), ("GET", "/"),
            ("POST", "/ops/api/users"), ("GET", "/ops/api/policies/x/files/../../keys"),
        ]  # fmt: skip
        for method, path in others:
            answer = await http.request(method, path, headers=job)
            assert (answer.status_code, "operator.token" in said(answer)) == (403, True), path
        body: dict[str, Any] = {"expect_stable": "policy-0000"}
        promote = "/ops/api/policies/policy-0000/promote"
        by_hand = await http.post(promote, json=body, headers=job)
        assert (by_hand.status_code, "lease of its run" in said(by_hand)) == (403, True)
        wrong = await http.post(promote, json=body | {"lease": "x"}, headers=job)
        assert wrong.status_code == 409
        assert (await http.get("/ops/api/keys", headers=operator)).status_code == 200
        await http.post(
            "/ops/api/keys", json={"name": "a", "scopes": ["chat"], "user": here.account("ann").id}, headers=operator
        )
        (entry,) = here.assistant.audit.entries(action="key.create")
        assert (entry["actor"], entry["via"]) == ("command line", "token")


def test_no_account_has_more_keys_than_anybody_needs(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    keys = Keys(store)
    with store.write() as db:
        row = {"id": "usr_1", "name": "ann", "role": "user", "state": "active", "created_at": 1}
        db.table("users").insert(row)
    for number in range(MOST):
        keys.create(f"k{number}", owner="usr_1")
    with pytest.raises(Conflict, match=f"{MOST} keys"):
        keys.create("one-more", owner="usr_1")
    with pytest.raises(Conflict, match="a key k0 already"):
        keys.create("k0", owner="usr_1")
    store.close()


def test_keys_from_before_there_were_owners_work_as_before(tmp_path: Path) -> None:
    database = Database(tmp_path / "feedback.db")
    migrations.apply(database, stop_before="m020_keys_of_people")
    row = {"name": "app", "sha256": "5" * 64, "scopes": '["chat"]', "created_at": "2026-01-01T00:00:00+00:00"}
    database.table("api_keys").insert(row)
    database.close()
    store = Store(tmp_path / "feedback.db")
    (key,) = Keys(store).all()
    assert (key.name, key.user_id, key.scopes, key.prefix, key.expires_at) == ("app", None, ("chat",), "", None)
    with pytest.raises(Conflict, match="or was"):
        Keys(store).create("app")
    store.close()
