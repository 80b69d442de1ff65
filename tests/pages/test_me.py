"""My data: a person sees, changes, exports and deletes what is theirs, and nothing of anybody else's."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from stored import ASK, SAMPLING, comparison, pair, reply, thumb
from team import Team, team

from thumbwise.account_pages import exported, me
from thumbwise.accounts.users import Account
from thumbwise.feedback.records import Asker, FeedbackRequest
from thumbwise.feedback.writer import on_loop

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def asker(user: str) -> Asker:
    """An account, or a name below one of its API keys, as the guard finds it."""
    return Asker(user, user.partition("/")[0])


def said(here: Team, account: Account, text: str = "Is the sea deep?") -> dict[str, str]:
    """A chat of this account with one reply that it likes, and a comparison on which it voted."""
    store, who = here.assistant.store, asker(account.id)
    chat = store.start_conversation(account.id, text)
    messages: Any = [{"role": "user", "content": text}]
    message = store.start_reply(who, messages, "policy-0000", SAMPLING, conversation_id=chat)
    store.finish_reply(message, "done", text=f"About {text}", finish_reason="stop", response_ids=[1])
    up = store.add_feedback(who, f"{message}-up", thumb(message))[0]
    compared, _ = comparison(store, account.id)
    chose = store.add_feedback(who, compared, pair(compared))[0]
    return {"chat": chat, "message": message, "up": up, "comparison": compared, "chose": chose}


async def act(client: httpx.AsyncClient, do: str, id_: str = "", **more: Any) -> httpx.Response:
    return await client.post("/me", data={"do": do, "id": id_, **more})


def ids(text: str) -> set[str]:
    return set(re.findall(r"(?:conv|msg|fb|cmp|usr|key)_\w+", text))


async def test_it_shows_what_is_mine_and_nothing_of_others(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        hers, his = said(here, ann), said(here, bob, "His secret question")
        here.assistant.keys.create("his-laptop", owner=bob.id)
        async with here.client(ann) as client:
            page = (await client.get("/me")).text
        for shown in ("Is the sea deep?", "You liked a reply", "You preferred draft 1", "ann", hers["chat"]):
            assert shown in page
        assert "secret" not in page
        assert "his-laptop" not in page
        assert not ids(page) & {*his.values(), bob.id}


async def test_ids_of_others_answer_like_ids_of_nobody(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        his = said(here, bob)
        here.assistant.keys.create("laptop", owner=bob.id)
        key = here.assistant.keys.of(bob.id)[0].id
        before = here.assistant.store.rows("SELECT * FROM feedback, conversations, api_keys")
        async with here.client(ann) as client:
            for do, theirs, more in (
                ("thumb", his["up"], {"value": "down"}), ("vote", his["up"], {}), ("vote", his["chose"], {}),
                ("chat", his["chat"], {}), ("revoke", key, {}),
            ):  # fmt: skip
                other, unknown = await act(client, do, theirs, **more), await act(client, do, "x_0", **more)
                assert other.status_code == unknown.status_code == 404, do
                assert other.text.replace(theirs, "x_0") == unknown.text, do
            other = await client.get("/me", params={"delete": "chat", "id": his["chat"]})
            assert (other.status_code, other.json()) == (
                404, (await client.get("/me", params={"delete": "chat", "id": "conv_0"})).json()
            )  # fmt: skip
        assert here.assistant.store.rows("SELECT * FROM feedback, conversations, api_keys") == before


async def test_a_thumb_is_changed_and_taken_back(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        hers = said(here, ann)
        async with here.client(ann) as client:
            changed = await act(client, "thumb", hers["up"], value="down")
            assert (changed.status_code, changed.headers["location"]) == (303, "/me?said=thumb")
            page = (await client.get("/me?said=thumb")).text
            assert "You disliked a reply" in page
            assert "You liked" not in page
            newest = here.assistant.store.rows("SELECT id FROM feedback WHERE kind = 'thumb' ORDER BY seq DESC")[0][
                "id"
            ]
            await act(client, "thumb", newest, value="clear")
            assert "liked a reply" not in (await client.get("/me")).text
            assert here.assistant.store.reply(hers["message"], ann.id).thumb is None
            assert (await act(client, "thumb", hers["chose"], value="up")).status_code == 400


async def test_votes_and_chats_are_deleted(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        hers, kept = said(here, ann), said(here, ann, "Kept?")
        async with here.client(ann) as client:
            assert (await act(client, "vote", hers["chose"])).status_code == 303
            page = (await client.get("/me")).text
            assert hers["chose"] not in page
            assert kept["chose"] in page
            asked = await client.get("/me", params={"delete": "chat", "id": hers["chat"]})
            assert "Is the sea deep?" in asked.text
            assert (await act(client, "chat", hers["chat"])).headers["location"] == "/me?said=chat"
            page = (await client.get("/me?said=chat")).text
            assert "Is the sea deep?" not in page
            assert hers["up"] not in page
            assert kept["chat"] in page
            assert (await client.get("/pages/chat", params={"c": hers["chat"]})).status_code == 404


async def test_everything_is_deleted_only_after_the_name_is_typed(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        said(here, ann)
        his = said(here, bob, "His question")
        async with here.client(ann) as client, here.client(bob) as other:
            wrong = await act(client, "everything", name="bob")
            assert wrong.status_code == 400
            assert "type ann" in wrong.text
            assert "Is the sea deep?" in (await client.get("/me")).text
            assert (await act(client, "everything", name=" Ann ")).headers["location"] == "/me?said=everything"
            assert "Is the sea deep?" not in (await client.get("/me")).text
            assert ids((await other.get("/me")).text) >= {his["chat"], his["up"], his["chose"]}
        assert here.assistant.users.find(ann.id) is not None


async def test_an_account_deletes_itself_but_not_the_last_operator(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        boss, ann = here.account("boss", "operator"), here.account("ann")
        said(here, ann)
        said(here, boss, "The boss's")
        async with here.client(boss) as first, here.client(ann) as second:
            refused = await act(first, "account", name="boss")
            assert refused.status_code == 409
            assert "boss is the last operator: make another one first." in refused.text
            assert "The boss&#39;s" in (await first.get("/me")).text
            gone = await act(second, "account", name="ann")
            assert gone.headers["location"] == "/login"
            assert (await second.get("/pages/chat")).status_code == 401
        assert here.assistant.users.named("ann") is None
        assert here.assistant.store.rows("SELECT 1 FROM conversations WHERE user_id = ?", [ann.id]) == []


async def test_keys_are_made_shown_once_and_revoked(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        async with here.client(ann) as client:
            made = await act(client, "key", name="laptop", scopes=["chat"], days="30")
            text = re.search(r"tw-[\w-]{40,}", made.text)
            assert text is not None
            page = (await client.get("/me")).text
            assert text[0] not in page
            key = here.assistant.keys.of(ann.id)[0]
            assert (key.scopes, key.prefix in page, "never used" in page) == (("chat",), True, True)
            assert key.expires_at is not None
            refused = await act(client, "key", name="Other Key", scopes=["chat"])
            assert refused.status_code == 400
            assert "choose another" in refused.text
            assert (await act(client, "key", name="ops", scopes=["operate"])).status_code == 403
            assert (await act(client, "revoke", key.id)).status_code == 303
            assert key.id not in (await client.get("/me")).text
            used = await client.get("/v1/models", headers={"authorization": f"Bearer {text[0]}"})
            assert used.status_code == 401


async def test_sign_out_everywhere_ends_all_logins(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        async with here.client(ann) as laptop, here.client(ann) as phone, here.client(bob) as other:
            assert "Another browser" in (await laptop.get("/me")).text
            out = await act(laptop, "sign-out")
            assert out.headers["location"] == "/login"
            assert "Max-Age=0" in out.headers["set-cookie"]
            assert (await phone.get("/pages/chat")).status_code == 401
            assert (await other.get("/pages/chat")).status_code == 200


async def read(client: httpx.AsyncClient) -> dict[str, Any]:
    """The files of the export: the README as text, the others as their objects."""
    answer = await client.get("/me/export")
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    return {
        name: text if name == "README.txt" else [json.loads(line) for line in text.splitlines()]
        for name, text in files.items()
    }


async def test_the_export_reads_back_and_holds_only_what_is_mine(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        hers = said(here, ann, "Schön \u2028 wide 🙂?")
        said(here, bob, "His secret question")
        store = here.assistant.store
        below = reply(store, f"{ann.id}/ben", "Told to ben.")
        store.add_feedback(
            asker(f"{ann.id}/ben"), "k", FeedbackRequest(kind="comment", message_id=below, value={"text": "Nice"})
        )
        unjudged, _ = comparison(store, ann.id)
        text = here.assistant.keys.create("laptop", owner=ann.id)
        async with here.client(ann) as client:
            files = await read(client)
        assert "secret" not in json.dumps(files)
        assert text not in json.dumps(files)
        assert [row["title"] for row in files["chats.jsonl"]] == ["Schön \u2028 wide 🙂?"]
        assert {row["id"]: row["user"] for row in files["replies.jsonl"]} == {
            hers["message"]: ann.id,
            below: f"{ann.id}/ben",
        }
        assert files["replies.jsonl"][0]["messages"] == [{"role": "user", "content": "Schön \u2028 wide 🙂?"}]
        assert {row["id"] for row in files["votes.jsonl"]} == {hers["up"], hers["chose"]}
        assert [row["value"] for row in files["comments.jsonl"]] == [{"text": "Nice"}]
        drafts = {row["id"]: row["drafts"] for row in files["comparisons.jsonl"]}
        assert all("policy_version" in draft for draft in drafts[hers["comparison"]])
        assert not any("policy_version" in draft for draft in drafts[unjudged])  # it is still blind
        assert files["consents.jsonl"][0]["keep_chats"] is True
        assert [row["type"] for row in files["account.jsonl"]] == ["account", "key"]
        for name in files:
            assert name in files["README.txt"] or name == "README.txt"


async def test_an_export_is_packed_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, waited = exported._write, []

    def watched(*given: Any) -> None:
        waited.append(on_loop())
        write(*given)

    monkeypatch.setattr(exported, "_write", watched)
    async with team(tmp_path) as here:
        ann = here.account("ann")
        said(here, ann)
        async with here.client(ann) as client:
            await client.get("/me/export")
    assert waited
    assert not any(waited)


async def test_a_long_export_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        made = [reply(here.assistant.store, ann.id, f"Reply {n}") for n in range(23)]
        monkeypatch.setattr("thumbwise.feedback.mine.BATCH", 5)
        async with here.client(ann) as client:
            files = await read(client)
        assert [row["id"] for row in files["replies.jsonl"]] == made


def trained(here: Team, version: str, items: list[tuple[str, str, float]]) -> None:
    """A version that learned from these items."""
    number = int(version[-4:])
    with here.assistant.store.write() as db:
        run = {
            "id": f"run-{number}",
            "number": number,
            "snapshot_id": "s",
            "lease": "",
            "lease_until": 0.0,
            "started_at": 0,
        }
        db.table("runs").insert(run)
        db.table("policies").insert(
            {"version": version, "number": number, "run_id": run["id"], "state": "retired", "algorithm": "ppo",
             "created_at": "2026-01-01", "data_sha256": "s", "n_labels": 1, "metrics": "{}"}
        )  # fmt: skip
        for id_, kind, weight in items:
            row = {"run_id": run["id"], "feedback_id": id_, "kind": kind, "weight": weight}
            db.table("lineage").insert(row)


def judged(here: Team, user: str, version: str, choice: str) -> None:
    """A comparison of this version (left) with the base, on which somebody voted."""
    store = here.assistant.store
    compared, drafts = store.start_comparison(asker(user), ASK, [version, "policy-0000"], SAMPLING, "page")
    for draft in drafts:
        store.finish_reply(draft, "done", text="x", finish_reason="stop", response_ids=[1])
    store.add_feedback(asker(user), compared, pair(compared, choice))


async def test_it_says_what_learned_from_my_votes_and_how_people_receive_it(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        hers, his = said(here, ann), said(here, bob)
        trained(here, "policy-0007", [(hers["up"], "vote", 0.5), (hers["chose"], "vote", 1.0), (his["up"], "vote", 1.0),
                                      (hers["message"], "prompt", 1.0)])  # fmt: skip
        trained(here, "policy-0008", [(hers["up"], "vote", 0.0), (his["up"], "vote", 1.0)])
        for person in range(20):
            judged(here, f"p{person}", "policy-0007", "left" if person < 12 else "right")
        async with here.client(ann) as client:
            page = (await client.get("/me")).text
            votes = (await read(client))["votes.jsonl"]
        line = re.search(
            r"2 votes and 1 question of yours are in policy-0007, which people prefer in 60 ± (\d+)% of", page
        )
        assert line is not None
        assert 20 < int(line[1]) < 25
        assert "policy-0008" not in page  # a weight of 0 has no part in it
        assert {row["id"]: row["used_in"] for row in votes} == {
            hers["up"]: ["policy-0007"], hers["chose"]: ["policy-0007"]
        }  # fmt: skip


async def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        hers = said(here, ann)
        async with here.client(ann) as client:
            assert "What learned from it" not in (await client.get("/me")).text
            trained(here, "policy-0007", [(hers["up"], "vote", 1.0)])
            judged(here, "alone", "policy-0007", "left")  # one person is not "people"
            page = (await client.get("/me")).text
            assert "1 vote of yours is in policy-0007." in page
            assert "people prefer" not in page


async def test_titles_and_texts_are_never_html(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        hers = said(here, ann, EVIL)
        comment = FeedbackRequest(kind="comment", message_id=hers["message"], value={"text": EVIL})
        here.assistant.store.add_feedback(asker(ann.id), "c", comment)
        async with here.client(ann) as client:
            for query in ({}, {"delete": "chat", "id": hers["chat"]}, {"said": EVIL}, {"delete": EVIL}):
                answer = await client.get("/me", params=query)
                assert "<script" not in answer.text
                assert "<img" not in answer.text
                assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_long_lists_come_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(me, "PAGE", 3)
    async with team(tmp_path) as here:
        ann = here.account("ann")
        made = [said(here, ann, f"Question {n}") for n in range(4)]
        seen: set[str] = set()
        address = "/me"
        async with here.client(ann) as client:
            for kind, name, most in (("votes", "up", 3), ("chats", "chat", 2)):
                address, seen = "/me", set()
                for _ in range(most):
                    page = (await client.get(address)).text
                    seen |= ids(page)
                    older = re.search(rf'href="(me\?[^"]*)#{kind}"', page)
                    address = "/" + older[1].replace("&amp;", "&") if older else ""
                assert not address
                assert seen >= {one[name] for one in made}


async def test_in_local_it_shows_the_chats_of_this_machine(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as client:
        store = here.assistant.store
        chat = store.start_conversation("local", "Shared")
        up = store.add_feedback(asker("local"), "k", thumb(reply(store)))[0]
        page = (await client.get("/me")).text
        assert "All browsers on this machine share" in page
        assert "Shared" in page
        assert "You liked a reply" in page
        for absent in ("API keys", "Logins", "Delete my account", "What may be kept"):
            assert absent not in page
        assert [row["id"] for row in (await read(client))["votes.jsonl"]] == [up]
        for do in ("everything", "account", "key", "sign-out", "revoke"):
            assert (await act(client, do, name="local")).status_code == 404
        assert (await act(client, "chat", chat)).status_code == 303
        assert "Shared" not in (await client.get("/me")).text


async def test_the_token_of_the_home_has_no_data(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as client:
        answer = await client.get("/me", headers={"authorization": f"Bearer {here.assistant.home.job_token()}"})
        assert answer.status_code in (401, 403, 404)
        assert (await client.get("/me")).status_code == 401


async def test_the_export_and_the_deletion_are_in_the_audit_log_without_text(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        said(here, ann)
        async with here.client(ann) as client:
            await read(client)
        entries = here.assistant.audit.entries(action="data.export")
        assert [entry["actor"] for entry in entries] == [ann.id]
        assert "sea" not in json.dumps(here.assistant.audit.entries())
