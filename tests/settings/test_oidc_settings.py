"""Settings of OpenID Connect that do not fit together are refused before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings import Settings
from thumbwise.settings.access import check_oidc

ISSUER = "https://login.example.org"


def load(folder: Path, auth: str = "accounts", **oidc: Any) -> Settings:
    return Settings.load(Home.find(folder), auth=auth, oidc=oidc)


@pytest.mark.parametrize(
    ("auth", "oidc", "said"),
    [
        ("accounts", {"issuer": ISSUER}, "oidc.client_id"),
        ("local", {"issuer": ISSUER, "client_id": "t"}, 'set auth = "accounts"'),
        ("proxy", {"issuer": ISSUER, "client_id": "t"}, 'set auth = "accounts"'),
        ("accounts", {"client_id": "t"}, "set oidc.issuer too"),
        ("accounts", {"issuer": ISSUER, "client_id": "t", "scope": "profile"}, "add openid"),
        ("accounts", {"issuer": ISSUER, "client_id": "t", "roles": {"a": "operator"}}, "oidc.roles is set without"),
        ("accounts", {"issuer": ISSUER, "client_id": "t", "allowed": ["a"]}, "oidc.allowed is set without"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(auth: str, oidc: dict[str, Any], said: str, tmp_path: Path) -> None:
    settings = load(tmp_path, auth, **oidc)
    with pytest.raises(ThumbwiseError, match=said) as refused:
        check_oidc(settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "issuer", ["http://login.example.org", "login.example.org", "ftp://x", "https://x/?a=b", "https://[x"]
)
def test_a_provider_is_reached_by_https_or_on_this_machine(issuer: str, tmp_path: Path) -> None:
    with pytest.raises(ThumbwiseError, match=r"oidc\.issuer"):
        load(tmp_path, issuer=issuer, client_id="t")


@pytest.mark.parametrize("issuer", ["", ISSUER, "https://x.example/realms/a", "http://127.0.0.1:9", "http://[::1]:9"])
def test_a_right_provider_is_taken(issuer: str, tmp_path: Path) -> None:
    settings = load(tmp_path, issuer=issuer, **({"client_id": "t"} if issuer else {}))
    check_oidc(settings)
    assert settings.oidc.issuer == issuer


def test_without_a_provider_nothing_is_asked_for(tmp_path: Path) -> None:
    settings = Settings.load(Home.find(tmp_path))
    check_oidc(settings)
    assert not settings.oidc.issuer
