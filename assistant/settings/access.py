"""Settings of who may use the assistant: the way in, the address that people see, accounts, proxy header, OIDC."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from thumbwise.settings.values import peers_of, public_url

Auth = Literal["local", "accounts", "proxy"]
Role = Literal["user", "reviewer", "operator"]
PublicUrl = Annotated[str, AfterValidator(public_url)]


class AccountSettings(BaseModel):
    """Accounts: how they are made, how long a login lasts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sign_up: Literal["closed", "approval", "open"] = Field(
        "closed",
        description="who may make an account: `closed` only those with an invitation, `approval` everybody, but an "
        "operator must approve each, `open` everybody",
    )
    session_days: float = Field(30.0, gt=0, le=400, description="days until an unused login ends")
    attempts_per_account: str = Field("10/minute", description="wrong passwords that one account may get")
    attempts_per_address: str = Field("30/minute", description="login attempts that one address may make")
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

    issuer: str = Field("", description="URL of the OpenID Connect provider; empty: none")
    client_id: str = Field("", description="client id that the provider gave")
    client_secret: SecretStr = Field(SecretStr(""), description="client secret that the provider gave")
    label: str = Field("Single sign-on", description="text of the button on the login page")
    scope: str = Field("openid profile email", description="scopes to ask the provider for")
    role_claim: str = Field(
        "", description="claim that lists a person's groups or roles; empty: roles are set here only"
    )
    roles: dict[str, Role] = Field(
        default_factory=dict, description="map from a value of that claim to a role; the highest one counts"
    )
