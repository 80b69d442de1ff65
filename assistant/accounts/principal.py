"""Who sends a request, decided once by the guard: `thumbwise.serving.who`. The rest reads it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import Asker

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

Role = Literal["user", "reviewer", "operator"]
ROLES: tuple[Role, ...] = ("user", "reviewer", "operator")
"""Each role may do what the roles before it may."""
Via = Literal["local", "session", "proxy", "key", "token", "nobody"]


@dataclass(frozen=True)
class Actor:
    """Who did something, for the audit log. `name` is an account id, `command line`, `job`, `local` or `nobody`."""

    name: str
    via: str
    address: str = ""


COMMAND_LINE = Actor("command line", "command line")
NOBODY = Actor("nobody", "nobody")
JOB = "job"
"""The name of the training job as a principal."""


@dataclass(frozen=True)
class Principal:
    """Who asks. `asker` owns the rows that the request writes and reads."""

    asker: Asker
    role: Role
    via: Via
    account: str | None = None
    """The account's id; None where there are no accounts (`local`), and for the tokens of job and command line."""
    name: str = ""
    """The account's name, as people see it."""
    session: str = ""
    """The SHA-256 of the session, or empty."""
    scopes: frozenset[str] = field(default_factory=frozenset)
    """What an API key may do; empty for everything else, which may do what its role may."""
    address: str = ""
    """The network address of who asks."""

    @property
    def actor(self) -> Actor:
        """The same, for the audit log."""
        return Actor(self.account or self.name or self.via, self.via, self.address)

    @property
    def is_job(self) -> bool:
        """Whether it is the training job, with its token."""
        return self.via == "token" and self.name == JOB

    def may(self, role: Role) -> bool:
        """Whether this role, or a higher one, is given."""
        return ROLES.index(self.role) >= ROLES.index(role)


def principal_of(request: HTTPConnection) -> Principal:
    """Return who sends a request; raises 401 if the guard found nobody (only open paths get here then)."""
    found = request.scope.get("state", {}).get("principal")
    if found is None:
        raise ThumbwiseError("Log in first.", status=401, code="login_needed")
    return cast(Principal, found)


def asker_of(request: HTTPConnection) -> Asker:
    """Return whose rows a request reads and writes; raises 401 if it is nobody."""
    return principal_of(request).asker


def require(request: HTTPConnection, role: Role) -> Principal:
    """Return who sends a request; raises 403 if it has a lower role than `role`."""
    principal = principal_of(request)
    if not principal.may(role):
        raise ThumbwiseError(f"This needs the role {role}: ask an operator for it.", status=403)
    return principal
