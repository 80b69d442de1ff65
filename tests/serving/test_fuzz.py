"""The whole interface, from its OpenAPI document, with generated requests of people in each role.

No request is answered with 500, and no answer has anything of somebody else's in it: `zoe` has chats, votes, comments,
comparisons and keys, all of them with MARK in their texts, and the requests are made with the real ids of her things.
"""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from asgi_call import Answer, asgi_call
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from team import URL, Team, team

from thumbwise.accounts.principal import COMMAND_LINE, Role
from thumbwise.accounts.users import Account
from thumbwise.api.models import Body, ChatRequest, ComparisonRequest, FeedbackBody

pytestmark = pytest.mark.slow
EXAMPLES = 5
"""Requests to each route, of each role: so many that fit the document, and so many that do not."""
MARK = "zoesmark"
READ_BY_US: dict[tuple[str, str], type[Body]] = {
    ("/v1/chat/completions", "post"): ChatRequest, ("/v1/comparisons", "post"): ComparisonRequest,
    ("/v1/feedback", "post"): FeedbackBody,
}  # fmt: skip
"""Bodies that our code reads itself, so that FastAPI does not know them."""
IDS = {
    "c": ("conv_",), "conversation": ("conv_",), "reply": ("msg_",), "message": ("msg_",), "message_id": ("msg_",),
    "comparison": ("cmp_",), "comparison_id": ("cmp_",), "follow": ("cmp_", "msg_"), "key": ("key_",),
    "user": ("usr_",), "user_id": ("usr_",), "draft_id": ("msg_",),
    "username": ("zoe",),
}  # fmt: skip
"""How the ids begin that fit a parameter or field."""
MAY_BE_503 = ("/ops/api/runs",)
"""Begins a run, which needs the base model: here is none."""
WITHOUT_V1 = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/comparisons", "/feedback")


@dataclass
class Zoe:
    """Somebody else, and what is hers: `ids` name it, `secrets` are texts that only she may read."""

    account: Account
    ids: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)


async def somebody_else(here: Team) -> Zoe:
    """An account that has said something in every way."""
    zoe = Zoe(here.account(f"zoe-{MARK}"))
    engine: Any = here.assistant.engine
    before, engine.client.words = engine.client.words, [f"{MARK} says", " this"]
    key = here.assistant.keys.create(MARK, owner=zoe.account.id)
    async with here.client(zoe.account) as page, here.client() as program:
        program.headers["authorization"] = f"Bearer {key}"
        chat = (await page.post("/pages/chat/messages", json={"text": f"{MARK} asks"})).json()
        pair = (await page.post("/pages/compare/comparisons", json={"text": f"{MARK} compares"})).json()
        while here.assistant.store.rows("SELECT 1 FROM replies WHERE state = 'streaming'"):
            await asyncio.sleep(0.01)
        (reply,) = here.assistant.store.rows("SELECT id FROM replies WHERE conversation_id IS NOT NULL")
        await page.post("/pages/chat/thumbs", json={"message": reply["id"], "thumb": "up"})
        await page.post("/pages/chat/comments", json={"message": reply["id"], "text": f"{MARK} comments"})
        await page.post(
            "/pages/compare/votes", json={"comparison": pair["comparison"], "choice": "left", "strength": 2}
        )
        ask = {"messages": [{"role": "user", "content": f"{MARK} programs"}], "user": MARK}
        said = (await program.post("/v1/chat/completions", json=ask)).json()
        await program.post("/v1/comparisons", json=ask)
        vote = {"kind": "edit", "message_id": said["id"], "value": {"text": f"{MARK} edits"}, "user": MARK}
        assert (await program.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"})).status_code == 201
    engine.client.words = before
    for table in ("conversations", "replies", "comparisons", "feedback"):
        zoe.ids += [row["id"] for row in here.assistant.store.rows(f"SELECT id FROM {table}")]
    zoe.ids += [zoe.account.name, zoe.account.id, here.assistant.keys.of(zoe.account.id)[0].id]
    assert len(zoe.ids) > 12
    assert chat["conversation"] in zoe.ids
    zoe.secrets = [MARK, key[7:]]
    return zoe


# -- the document ---------------------------------------------------------------------------------------


def document(app: Any, zoe: Zoe) -> dict[str, Any]:
    """The OpenAPI document of the API and of the pages' own routes, with zoe's ids where an id may stand."""
    pages = next(route.app for route in app.routes if getattr(route, "path", "") == "/pages")
    for route in app.routes:  # those of login and invitation are in no document
        if isinstance(route, APIRoute):
            route.include_in_schema = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Duplicate Operation ID")
        whole, more = app.openapi(), pages.openapi()
    whole["paths"] |= {f"/pages{path}": operations for path, operations in more["paths"].items()}
    schemas = whole.setdefault("components", {}).setdefault("schemas", {})
    schemas |= more["components"]["schemas"]
    for (path, method), model in READ_BY_US.items():
        shape = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= shape.pop("$defs", {})
        whole["paths"][path][method]["requestBody"] = {"content": {"application/json": {"schema": shape}}}
    for path in WITHOUT_V1:
        del whole["paths"][path]
    for operations in whole["paths"].values():
        for operation in operations.values():
            operation.pop("operationId", None)
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _with_ids(parameter["name"], parameter["schema"], zoe)
                parameter["required"] = parameter["required"] or parameter["name"] in IDS
    for schema in [*schemas.values(), *(shape for shape in _bodies(whole))]:
        for name, shape in list(schema.get("properties", {}).items()):
            schema["properties"][name] = _with_ids(name, shape, zoe)
        needed = IDS.keys() & schema.get("properties", {}).keys() - {"user"}
        if needed and not {"message_id", "comparison_id"} <= needed:  # a vote has one of them
            schema["required"] = sorted({*schema.get("required", ()), *needed})
    return whole


def _bodies(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path, method in READ_BY_US:
        yield whole["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]


def _with_ids(name: str, shape: dict[str, Any], zoe: Zoe) -> dict[str, Any]:
    """Only zoe's ids where an id stands; requests that do not fit the document have other values too."""
    return {"enum": [id_ for id_ in zoe.ids if id_.startswith(IDS[name])]} if name in IDS else shape


# -- the requests ---------------------------------------------------------------------------------------


def request_of(case: schemathesis.Case) -> requests.PreparedRequest:
    """The request as it would be sent."""
    arguments = case.as_transport_kwargs(base_url=URL)
    arguments.pop("verify", None)
    names = ("method", "url", "headers", "files", "data", "params", "auth", "cookies", "json")
    return requests.Request(**{name: arguments[name] for name in names if name in arguments}).prepare()


def sent_by(prepared: requests.PreparedRequest, signed: dict[str, str]) -> tuple[dict[str, str], bytes, str]:
    """Its headers with those of the one who asks, its body, and all of it as one text."""
    kept = {
        name: value if isinstance(value, str) else value.decode("latin-1")
        for name, value in prepared.headers.items()
        if name.lower() not in ("host", "cookie", "authorization", "origin", "content-length")
    }
    body = prepared.body or b""
    body = body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body)
    headers = kept | {"host": "127.0.0.1:7860", "content-length": str(len(body))} | signed
    return headers, body, requests.utils.unquote(f"{prepared.url} {kept} ") + body.decode("utf-8", "replace")


def complaint(role: str, zoe: Zoe, request: str, path: str, answer: Answer) -> str:
    """What is wrong with an answer, or nothing."""
    if answer.status >= 500 and not (answer.status == 503 and path.startswith(MAY_BE_503)):
        return f"{answer.status}: {answer.body[:500]!r}"
    if role == "operator" and path.startswith("/ops/"):  # operators see who there is; never a secret
        wrong = [secret for secret in zoe.secrets[1:] if secret in answer.body.decode("utf-8", "replace")]
    else:
        text = answer.body.decode("utf-8", "replace") + str(answer.headers)
        wrong = [hers for hers in (*zoe.secrets, *zoe.ids) if hers in text and hers not in request]
    return f"{answer.status} tells {wrong}: {answer.body[:500]!r}" if wrong else ""


class Asking:
    """Sends generated requests as somebody with a role, each route with an account of its own."""

    def __init__(self, here: Team, role: str, runner: asyncio.Runner, zoe: Zoe) -> None:
        self.here, self.role, self.runner, self.zoe = here, role, runner, zoe
        self.app: Any = here.transport.app
        self.numbers = itertools.count()
        self.statuses: dict[int, int] = {}

    def ask(self, operation: Any) -> None:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with suppress(Unsatisfiable):  # a request without any parameter cannot be a wrong one
                self._ask(operation, mode, self._signed())

    def _ask(self, operation: Any, mode: GenerationMode, signed: dict[str, str]) -> None:
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def each(case: schemathesis.Case) -> None:
            prepared = request_of(case)
            headers, body, whole = sent_by(prepared, signed)
            answer = self.runner.run(asgi_call(self.app, str(prepared.method), str(prepared.url), headers, body))
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            wrong = complaint(self.role, self.zoe, whole, operation.path, answer)
            assert not wrong, f"{self.role}: {prepared.method} {prepared.url} {body[:500]!r}: {wrong}"

        each()

    def _signed(self) -> dict[str, str]:
        if self.role == "nobody":
            return {}
        role: Role = self.role  # type: ignore[assignment]
        account = self.here.account(f"{role}{next(self.numbers)}", role)
        cookie = self.here.assistant.sessions.start(account.id, COMMAND_LINE)
        return {"cookie": f"{self.here.assistant.who.cookie}={cookie}"}


@pytest.mark.parametrize("role", ["nobody", "user", "reviewer", "operator"])
def test_no_generated_request_breaks_anything_or_reads_what_is_somebody_elses(tmp_path: Path, role: str) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        here = runner.run(stack.enter_async_context(team(tmp_path / "home")))
        try:
            zoe = runner.run(somebody_else(here))
            app: Any = here.transport.app
            schema = schemathesis.openapi.from_dict(document(app, zoe))
            asking = Asking(here, role, runner, zoe)
            for found in schema.get_all_operations():
                asking.ask(found.ok())
            assert sum(asking.statuses.values()) > 200
            assert set(asking.statuses) & ({401, 303} if role == "nobody" else {200, 201}), asking.statuses
        finally:
            runner.run(stack.aclose())
