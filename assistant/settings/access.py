"""Settings of who may use the assistant: the way in, the address that people see, accounts, proxy header, OIDC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from thumbwise.errors import ThumbwiseError
from thumbwise.settings.values import attempts, issuer_url, peers_of, public_url

if TYPE_CHECKING:
    from thumbwise.settings import Settings

Auth = Literal["local", "accounts", "proxy"]
Role = Literal["user", "reviewer", "operator"]
SignUp = Literal["closed", "approval", "open"]
Attempts = Annotated[str, AfterValidator(attempts)]
PublicUrl = Annotated[str, AfterValidator(public_url)]


class AccountSettings(BaseModel):
    """Accounts: how they are made, how long a login lasts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sign_up: SignUp = Field(
        "closed",
        description="who may make an account: `closed` only those with an invitation, `approval` everybody, but an "
        "operator must approve each, `open` everybody",
    )
    session_days: float = Field(30.0, gt=0, le=400, description="days until an unused login ends")
    attempts_per_account: Attempts = Field(
        "10/minute",
        description="wrong passwords that one account may get from one address; from all addresses together ten times "
        "as many",
    )
    attempts_per_address: Attempts = Field(
        "30/minute", description="wrong passwords, wrong links and sign-ups that one address may send"
    )
    settle_days: float = Field(
        7.0, ge=0, description="days during which a new account's votes count for less, unless they are borne out"
    )


class ProxySettings(BaseModel):
    """`auth = "proxy"`: a reverse proxy tells who asks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    header: str = Field("X-Forwarded-User", pattern="^[A-Za-z0-9-]+$", description="header with the user's name")
    peers: Annotated[str, AfterValidator(peers_of)] = Field(
        "",
        description="addresses or networks of the proxies that may send it, separated by commas; "
        "`unix` is the Unix socket that the assistant listens on",
    )
    role: Role = Field("user", description="role of an account that the header makes")


class OidcSettings(BaseModel):
    """Login with an OpenID Connect provider, beside passwords."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: Annotated[str, AfterValidator(issuer_url)] = Field(
        "", description="URL of the OpenID Connect provider, such as https://login.example.org; empty: none"
    )
    client_id: str = Field("", description="client id that the provider gave")
    client_secret: SecretStr = Field(
        SecretStr(""), description="client secret that the provider gave; empty for a public client"
    )
    label: str = Field("Single sign-on", min_length=1, max_length=60, description="text of the button at the login")
    scope: str = Field("openid profile email", description="scopes to ask the provider for")
    sign_up: Literal["", SignUp] = Field(
        "", description="who gets an account at the first login, as in `accounts.sign_up`; empty: the same as there"
    )
    role_claim: str = Field(
        "",
        description="claim that lists a person's groups or roles, such as `groups` or `realm_access.roles`; "
        "empty: roles are set here only",
    )
    roles: dict[str, Role] = Field(
        default_factory=dict,
        description="map from a value of that claim to a role; the highest one counts, no value of the map is `user`",
    )
    allowed: list[str] = Field(
        default_factory=list,
        description="values of that claim, one of which a person needs to log in; empty: everybody may",
    )


def check_oidc(settings: Settings) -> None:
    """Raise ThumbwiseError if the settings of OpenID Connect do not fit together."""
    oidc = settings.oidc
    if not oidc.issuer:
        if given := sorted(oidc.model_fields_set - {"issuer"}):
            raise ThumbwiseError(f"oidc.{given[0]} is set without a provider: set oidc.issuer too.")
        return
    if settings.auth != "accounts":
        raise ThumbwiseError(f'oidc.issuer needs accounts, and auth is {settings.auth}: set auth = "accounts".')
    if not oidc.client_id:
        raise ThumbwiseError("oidc.issuer is set without oidc.client_id: set the client id that the provider gave.")
    if "openid" not in oidc.scope.split():
        raise ThumbwiseError("oidc.scope lacks openid, without which the provider does not say who it is: add openid.")
    if not oidc.role_claim and (oidc.roles or oidc.allowed):
        name = "roles" if oidc.roles else "allowed"
        raise ThumbwiseError(f"oidc.{name} is set without oidc.role_claim: set the claim whose values it lists.")
