"""The API of an account that does not keep chats: it answers, and nothing is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from team import Team, team

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "xyzzy-plugh"}]}


def key_of(here: Team, *, consent: bool) -> dict[str, str]:
    ann = here.account("ann", consent=consent)
    text = here.assistant.keys.create("laptop", owner=ann.id)
    return {"authorization": f"Bearer {text}"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_has_no_message_id_and_no_row(tmp_path: Path, stream: bool) -> None:
    async with team(tmp_path) as here, here.client() as client:
        answer = await client.post(
            "/v1/chat/completions", json=BODY | {"stream": stream}, headers=key_of(here, consent=False)
        )
        assert answer.status_code == 200
        assert "policy-0000" in answer.text
        assert "message_id" not in answer.text
        for table in ("replies", "prompts"):
            assert here.assistant.store.rows(f"SELECT * FROM {table}") == []


async def test_a_comparison_is_refused_because_it_must_be_stored(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as client:
        answer = await client.post("/v1/comparisons", json=BODY, headers=key_of(here, consent=False))
        assert answer.status_code == 403
        assert "/me" in answer.json()["error"]["message"]


async def test_with_consent_the_reply_is_kept(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as client:
        answer = await client.post("/v1/chat/completions", json=BODY, headers=key_of(here, consent=True))
        assert answer.json()["thumbwise"]["message_id"].startswith("msg_")
        assert len(here.assistant.store.rows("SELECT * FROM replies")) == 1
