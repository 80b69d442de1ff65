"""What an id token says about a person: names for an account, and a role by the operator's map."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thumbwise.accounts.identities import Identity
from thumbwise.accounts.principal import ROLES, Role

if TYPE_CHECKING:
    from thumbwise.settings.access import OidcSettings

log = logging.getLogger(__name__)
NAMES = ("preferred_username", "name", "email")


def identity_of(claims: Mapping[str, Any], settings: OidcSettings) -> Identity:
    """Return who a checked id token tells of, with a role if the settings map one."""
    names = tuple(claims[name] for name in NAMES if isinstance(claims.get(name), str))
    values, ignored = None, ""
    if settings.role_claim and (found := value_of(claims, settings.role_claim)) is not None:
        values = _texts(found)
        if values is None:
            ignored = type(found).__name__
            log.warning("the claim %s is ignored: it is no text and no list of texts", settings.role_claim)
    allowed = not settings.allowed or bool(set(settings.allowed) & set(values or ()))
    role = role_by(values, settings.roles) if settings.roles else None
    return Identity(claims["iss"], claims["sub"], names, role, allowed, ignored)


def value_of(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim; `realm_access.roles` is one of that name, or `roles` inside `realm_access`. None: absent."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def role_by(values: list[str] | None, roles: Mapping[str, Role]) -> Role | None:
    """Return the highest role of these values; `user` if no value is in the map, None if the claim is absent."""
    if values is None:
        return None
    return max((roles[value] for value in values if value in roles), key=ROLES.index, default="user")


def _texts(found: Any) -> list[str] | None:
    if isinstance(found, str):
        return [found]
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None
