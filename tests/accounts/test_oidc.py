"""The code flow with a provider that answers wrongly: no wrong token logs anybody in, and each answer is a sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import RSAKey
from tiny_provider import TinyProvider, tiny_provider

from thumbwise.accounts.identities import Identity
from thumbwise.accounts.oidc import Provider
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.access import OidcSettings

CALLBACK = "http://127.0.0.1:7860/oidc/callback"


@pytest.fixture
def there() -> Iterator[TinyProvider]:
    with tiny_provider() as provider:
        yield provider


def client(there: TinyProvider, **settings: Any) -> Provider:
    return Provider(OidcSettings(**{"issuer": there.issuer, "client_id": "thumbwise"} | settings), "secret")


def answer_to(url: str) -> dict[str, str]:
    """Follow the browser's way through the provider; returns what the callback gets."""
    location = httpx.get(url, trust_env=False).headers["location"]
    return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}


async def login(here: Provider) -> Identity:
    url, cookie = await here.begin(CALLBACK, next="/")
    query = answer_to(url)
    return await here.finish(here.carried({here.cookie: cookie}, query["state"]), query)


async def why(here: Provider) -> str:
    """The code of the refusal of a login."""
    with pytest.raises(ThumbwiseError) as refused:
        await login(here)
    assert str(refused.value).count(".") == 1
    return str(refused.value.code)


async def test_a_right_answer_logs_in(there: TinyProvider) -> None:
    found = await login(client(there, client_secret="s3cret"))
    assert found == Identity(there.issuer, "1", ("ann",))
    (asked,) = there.asked
    assert asked["redirect_uri"] == CALLBACK
    assert asked["code_challenge_method"] == "S256"
    assert asked["scope"] == "openid profile email"
    (form,) = there.forms
    assert (form["client_id"], form["client_secret"], form["redirect_uri"]) == ("thumbwise", "s3cret", CALLBACK)
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3


async def test_the_client_says_who_it_is_in_the_way_that_the_provider_takes(there: TinyProvider) -> None:
    await login(client(there))  # a public client
    there.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    await login(client(there, client_secret="s3cret"))
    assert [form.get("client_secret") for form in there.forms] == [None, "s3cret"]


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ({"aud": "another"}, "oidc_unverified"),
        ({"aud": "another", "azp": "thumbwise"}, "oidc_unverified"),
        ({"aud": ["another", "third"], "azp": "thumbwise"}, "oidc_unverified"),
        ({"aud": ["thumbwise", "another"], "azp": "another"}, "oidc_unverified"),
        ({"aud": None}, "oidc_unverified"),
        ({"iss": "https://evil.example"}, "oidc_unverified"),
        ({"iss": None}, "oidc_unverified"),
        ({"nonce": "of another login"}, "oidc_unverified"),
        ({"nonce": None}, "oidc_unverified"),
        ({"sub": ""}, "oidc_unverified"),
        ({"sub": None}, "oidc_unverified"),
        ({"sub": 7}, "oidc_unverified"),
        ({"sub": "x" * 256}, "oidc_unverified"),
        ({"exp": 1}, "oidc_clock"),
        ({"exp": None}, "oidc_unverified"),
        ({"exp": "never"}, "oidc_unverified"),
        ({"exp": int(time.time()) - 90}, "oidc_clock"),
        ({"iat": int(time.time()) + 3600}, "oidc_clock"),
        ({"nbf": int(time.time()) + 3600}, "oidc_clock"),
    ],
)
async def test_a_wrong_token_logs_nobody_in(there: TinyProvider, token: dict[str, Any], code: str) -> None:
    there.token = token
    assert await why(client(there)) == code


async def test_clocks_may_differ_by_half_a_minute(there: TinyProvider) -> None:
    now = int(time.time())
    for token in ({"exp": now - 30, "iat": now - 300}, {"iat": now + 30, "nbf": now + 30}):
        there.token = token
        assert (await login(client(there))).subject == "1"


async def test_a_wrong_signature_logs_nobody_in(there: TinyProvider) -> None:
    there.signed_by = RSAKey.generate_key(2048)
    assert await why(client(there)) == "oidc_unverified"
    there.signed_by = None
    for algorithm in ("none", "HS256"):
        there.algorithm = algorithm
        assert await why(client(there)) == "oidc_unverified"


async def test_a_new_key_of_the_provider_is_read_at_once(there: TinyProvider) -> None:
    here = client(there)
    await login(here)
    there.key = RSAKey.generate_key(2048, {"kid": "2"})
    assert (await login(here)).subject == "1"


async def test_a_login_counts_in_its_own_browser_only_and_once(there: TinyProvider) -> None:
    here, there.codes_last = client(there), True
    url, cookie = await here.begin(CALLBACK, next="/")
    _, other = await here.begin(CALLBACK, next="/")
    query = answer_to(url)
    for cookies, state in (({}, query["state"]), ({here.cookie: other}, query["state"]), ({here.cookie: cookie}, ""),
                           ({here.cookie: cookie}, "ä"), ({here.cookie: cookie[:-2]}, query["state"])):  # fmt: skip
        with pytest.raises(ThumbwiseError, match="not started in this browser"):
            here.carried(cookies, state)
    kept = here.carried({here.cookie: cookie}, query["state"])
    await here.finish(kept, query)
    with pytest.raises(ThumbwiseError, match="used already"):
        await here.finish(kept, query)


async def test_a_code_of_another_login_is_useless(there: TinyProvider) -> None:
    """PKCE: a stolen code does not fit the login of the thief's browser."""
    here = client(there)
    stolen = answer_to((await here.begin(CALLBACK, next="/"))[0])["code"]
    url, cookie = await here.begin(CALLBACK, next="/")
    query = answer_to(url) | {"code": stolen}
    with pytest.raises(ThumbwiseError, match="could not be verified"):
        await here.finish(here.carried({here.cookie: cookie}, query["state"]), query)


async def test_a_login_that_takes_too_long_is_over(there: TinyProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    here = client(there)
    _, cookie = await here.begin(CALLBACK, next="/")
    monkeypatch.setattr("thumbwise.accounts.oidc.STATE_SECONDS", -1)
    with pytest.raises(ThumbwiseError, match="took too long"):
        here.carried({here.cookie: cookie}, "x")


async def test_the_answer_of_another_provider_is_refused(there: TinyProvider) -> None:
    here = client(there)
    url, cookie = await here.begin(CALLBACK, next="/")
    query = answer_to(url) | {"iss": "https://evil.example"}
    with pytest.raises(ThumbwiseError, match="could not be verified"):
        await here.finish(here.carried({here.cookie: cookie}, query["state"]), query)


async def test_a_provider_that_is_down_is_one_sentence_and_may_come_back(there: TinyProvider) -> None:
    here, there.down = client(there), True
    assert await why(here) == "oidc_unreachable"
    there.down = False
    await login(here)
    nobody = Provider(OidcSettings(issuer="http://127.0.0.1:9", client_id="t"), "secret")
    assert await why(nobody) == "oidc_unreachable"


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"}, {"issuer": None}, {"token_endpoint": None}, {"jwks_uri": None},
        {"token_endpoint": "http://evil.example/token"}, {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": "http://192.0.2.1/jwks"}, {"jwks_uri": 7},
    ],
)  # fmt: skip
async def test_wrong_metadata_are_one_sentence(there: TinyProvider, metadata: dict[str, Any]) -> None:
    there.metadata = metadata
    assert await why(client(there)) == "oidc_misconfigured"


async def test_metadata_cannot_change_our_http_client(there: TinyProvider) -> None:
    there.metadata = {"verify": False, "proxy": "http://127.0.0.1:9", "client_id": "evil", "timeout": 0.0001}
    assert (await login(client(there))).subject == "1"
    assert there.asked[0]["client_id"] == "thumbwise"


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ({"error": "invalid_client"}, "oidc_misconfigured"), ({"error": "invalid_grant"}, "oidc_unverified"),
        ({"what": 1}, "oidc_unverified"), ({"access_token": "x", "token_type": "Bearer"}, "oidc_unverified"),
        ({"access_token": "x", "token_type": "Bearer", "id_token": "a.b.c"}, "oidc_unverified"),
        ({"access_token": "x", "token_type": "Bearer", "id_token": 7}, "oidc_unverified"),
    ],
)  # fmt: skip
async def test_a_token_endpoint_that_refuses_is_one_sentence(
    there: TinyProvider, refusal: dict[str, Any], code: str
) -> None:
    there.refusal = refusal
    assert await why(client(there)) == code


async def test_what_only_userinfo_says_counts_if_it_is_the_same_person(there: TinyProvider) -> None:
    there.claims = {"sub": "1"}
    here = client(there, role_claim="groups", roles={"admins": "operator"})
    there.userinfo = {"sub": "1", "preferred_username": "ann", "groups": ["admins"], "iss": "https://evil.example"}
    assert await login(here) == Identity(there.issuer, "1", ("ann",), "operator")
    there.userinfo = {"sub": "2", "preferred_username": "bob", "groups": ["admins"]}
    assert await login(here) == Identity(there.issuer, "1")
    there.metadata = {"userinfo_endpoint": f"{there.issuer}/gone"}
    assert await login(client(there)) == Identity(there.issuer, "1")


async def test_no_code_token_or_secret_is_logged(there: TinyProvider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):  # of this test
        caplog.set_level(logging.WARNING, logger=name)
    here = client(there, client_secret="s3cret-of-ours")
    await login(here)
    there.token = {"aud": "another"}
    assert await why(here) == "oidc_unverified"
    there.refusal = {"error": "invalid_grant", "error_description": "wrong code and s3cret-of-ours"}
    assert await why(here) == "oidc_unverified"
    assert "aud" in caplog.text
    assert "invalid_grant" in caplog.text
    assert len(there.given) > 5
    for secret in (*there.given, "s3cret-of-ours", *(asked["state"] for asked in there.asked)):
        assert secret not in caplog.text
