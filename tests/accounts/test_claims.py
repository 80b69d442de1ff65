"""What an id token's claims become: names, and a role only where the operator mapped one."""

from __future__ import annotations

from typing import Any

import pytest

from thumbwise.accounts.claims import identity_of
from thumbwise.accounts.identities import Identity
from thumbwise.settings.access import OidcSettings

ROLES = {"admins": "operator", "raters": "reviewer"}


def read(claims: dict[str, Any], **settings: Any) -> Identity:
    given = {"role_claim": "groups", "roles": ROLES} | settings
    return identity_of({"iss": "https://p", "sub": "1"} | claims, OidcSettings(**given))


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["raters", "admins", "sales"], "operator"),
        (["raters"], "reviewer"),
        ("raters", "reviewer"),
        (["sales"], "user"),
        ("Admins", "user"),
        ([], "user"),
    ],
)
def test_the_highest_mapped_role_counts_and_unmapped_values_raise_nothing(groups: object, role: str) -> None:
    assert read({"groups": groups}).role == role


@pytest.mark.parametrize("groups", [7, True, {"admins": True}, ["admins", 1], [["admins"]], [None], 1.5])
def test_group_claim_wrong_type(groups: object) -> None:
    found = read({"groups": groups})
    assert found.role is None
    assert found.ignored == type(groups).__name__


@pytest.mark.parametrize("claims", [{}, {"groups": None}, {"roles": ["admins"]}])
def test_an_absent_claim_changes_nothing(claims: dict[str, Any]) -> None:
    found = read(claims)
    assert (found.role, found.ignored) == (None, "")


def test_without_a_map_the_claim_gives_no_role() -> None:
    assert read({"groups": ["admins"]}, roles={}).role is None
    assert read({"groups": ["operator"], "role": "operator"}, role_claim="", roles={}).role is None


def test_a_claim_may_be_inside_another_or_have_dots_in_its_name() -> None:
    assert read({"realm_access": {"roles": ["admins"]}}, role_claim="realm_access.roles").role == "operator"
    assert read({"https://x.org/roles": ["admins"]}, role_claim="https://x.org/roles").role == "operator"
    assert read({"realm_access": ["admins"]}, role_claim="realm_access.roles").role is None


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        ({"groups": ["staff", "x"]}, True), ({"groups": "staff"}, True), ({"groups": ["x"]}, False),
        ({"groups": []}, False), ({}, False), ({"groups": {"staff": 1}}, False), ({"groups": ["STAFF"]}, False),
    ],
)  # fmt: skip
def test_allow_lists_ignored(claims: dict[str, Any], allowed: bool) -> None:
    assert read(claims, allowed=["staff"], roles={}).allowed is allowed
    assert read(claims, roles={}).allowed


def test_names_are_taken_in_order_and_only_texts() -> None:
    claims = {"email": "a@x.org", "name": "Ann A", "preferred_username": 7}
    assert read(claims).names == ("Ann A", "a@x.org")
