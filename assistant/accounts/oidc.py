"""Login with an OpenID Connect provider: authorization code flow with PKCE, by Authlib.

A login that has begun is in a signed cookie of its browser, so the server keeps nothing. Nobody else can end the login,
because `state` must fit the cookie. The id token is checked: issuer, audience, signature, times and nonce.
Left out: a logout at the provider. A logout here ends our session only.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import StarletteIntegration, StarletteOAuth2App
from authlib.oidc.core import CodeIDToken
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError

from thumbwise.accounts.claims import identity_of, value_of
from thumbwise.accounts.identities import refused
from thumbwise.feedback.records import sha256
from thumbwise.settings.values import is_loopback

if TYPE_CHECKING:
    from thumbwise.accounts.identities import Identity
    from thumbwise.settings.access import OidcSettings

log = logging.getLogger(__name__)
logging.getLogger("authlib").setLevel(logging.INFO)  # at DEBUG it writes the secret of PKCE
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request

STATE_SECONDS = 600
"""Seconds that a login at the provider may take."""
LEEWAY = 60
"""Seconds by which the provider's clock may differ from ours."""
METADATA_SECONDS = 3600
"""Seconds after which the provider's addresses and keys are read again. A key with a new id is read at once."""
DEADLINE = 20.0
ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
"""Signatures with a public key. Authlib takes all that the provider names, also `none`."""
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_KEPT = {"issuer", "userinfo_endpoint", "id_token_signing_alg_values_supported", *ENDPOINTS}


class Provider:
    """The one provider of the settings `oidc.*`; `secret` is the home's. Reads nothing before the first login."""

    def __init__(self, settings: OidcSettings, secret: str) -> None:
        self.settings = settings
        # Browsers send a host's cookies to all its ports: two assistants on one machine need different names.
        self.cookie = f"thumbwise_oidc_{sha256(secret)[:8]}"
        self._signer = URLSafeTimedSerializer(secret, salt="oidc")
        self._pages = URLSafeTimedSerializer(secret, salt="oidc connect")
        self._app: Any = None
        self._read_at = 0.0
        self._used: dict[str, float] = {}

    async def begin(self, callback: str, **carried: str) -> tuple[str, str]:
        """Begin a login: return the provider's page for it and the text of the cookie. `carried` comes back."""
        app = await self._ready()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        begun = await app.create_authorization_url(callback, state=state, nonce=nonce, code_verifier=verifier)
        kept = {"state": state, "nonce": nonce, "verifier": verifier, "callback": callback}
        return begun["url"], self._signer.dumps(carried | kept)

    def set_cookie(self, text: str, callback: str) -> str:
        """The Set-Cookie header of a login that has begun; with an empty text it removes the cookie."""
        parts = urlsplit(callback)
        secure = "; Secure" if parts.scheme == "https" else ""
        age = STATE_SECONDS if text else 0
        return f"{self.cookie}={text}; Max-Age={age}; Path={parts.path}; HttpOnly; SameSite=Lax{secure}"

    def carried(self, cookies: Mapping[str, str], state: str) -> dict[str, str]:
        """Return what `begin` signed in this browser for the login `state`; raises ThumbwiseError."""
        try:
            kept: dict[str, str] = self._signer.loads(cookies.get(self.cookie, ""), max_age=STATE_SECONDS)
        except SignatureExpired:
            raise refused("expired") from None
        except BadSignature:
            raise refused("started_elsewhere") from None
        if not secrets.compare_digest(kept["state"].encode(), state.encode()):
            raise refused("started_elsewhere")
        return kept

    def permission(self, session: str) -> str:
        """A text that only this session's page knows, so that no other site can begin to connect an account."""
        return str(self._pages.dumps(session))

    def permits(self, text: str, session: str) -> bool:
        """Whether `text` is this session's permission, and not too old."""
        try:
            return bool(session) and self._pages.loads(text, max_age=STATE_SECONDS) == session
        except BadSignature:
            return False

    async def finish(self, kept: Mapping[str, str], query: Mapping[str, str]) -> Identity:
        """Return who logged in, by the provider's answer to the login `kept`; raises ThumbwiseError."""
        if not query.get("code"):
            raise refused("unverified")
        if query.get("iss", (await self._ready()).server_metadata["issuer"]) != self._app.server_metadata["issuer"]:
            raise refused("unverified")  # RFC 9207: the answer of another provider
        claims = await self._guarded(self._claims(query["code"], kept))
        now = time.monotonic()
        self._used = {state: until for state, until in self._used.items() if until > now}
        if kept["state"] in self._used:  # somebody copied the cookie, and the provider takes a code twice
            raise refused("started_elsewhere")
        self._used[kept["state"]] = now + STATE_SECONDS
        return identity_of(claims, self.settings)

    async def _claims(self, code: str, kept: Mapping[str, str]) -> dict[str, Any]:
        app = await self._ready()
        issuer = app.server_metadata["issuer"]
        token = await app.fetch_access_token(
            redirect_uri=kept["callback"], code=code, code_verifier=kept["verifier"], grant_type="authorization_code"
        )
        options = {name: {"essential": True, "values": [value]}
                   for name, value in (("iss", issuer), ("aud", self.settings.client_id))}  # fmt: skip
        claims = await app.parse_id_token(
            token, nonce=kept["nonce"], claims_options=options, claims_cls=CodeIDToken, leeway=LEEWAY
        )
        if not claims or not claims["sub"] or len(claims["sub"]) > 255:
            raise InvalidClaimError("sub")
        return await self._with_userinfo(app, token, dict(claims))

    async def _with_userinfo(self, app: Any, token: dict[str, Any], claims: dict[str, Any]) -> dict[str, Any]:
        """Add what only the provider's userinfo page says. A failure there ends no login."""
        name = self.settings.role_claim
        lacking = not claims.get("preferred_username") or (name and value_of(claims, name) is None)
        if not lacking or "userinfo_endpoint" not in app.server_metadata:
            return claims
        try:
            more = dict(await app.userinfo(token=token))
        except (httpx2.HTTPError, AuthlibBaseError, ValueError, TypeError) as error:
            log.warning("the provider's userinfo could not be read: %s", type(error).__name__)
            return claims
        return more | claims if more.get("sub") == claims["sub"] else claims

    async def _ready(self) -> Any:
        """Return Authlib's client; it knows the provider's addresses."""
        if self._app is None or time.monotonic() - self._read_at > METADATA_SECONDS:
            self._app = await self._guarded(self._discover())
            self._read_at = time.monotonic()
        return self._app

    async def _discover(self) -> Any:
        settings, issuer = self.settings, self.settings.issuer.rstrip("/")
        on_this_machine = is_loopback(urlsplit(issuer).hostname or "")
        options: dict[str, Any] = {
            "scope": settings.scope, "code_challenge_method": "S256", "timeout": httpx2.Timeout(10, connect=5),
            "trust_env": not on_this_machine,
        }  # fmt: skip
        app = StarletteOAuth2App(
            StarletteIntegration("oidc"), "oidc", client_id=settings.client_id,
            client_secret=settings.client_secret.get_secret_value(), client_kwargs=options,
            server_metadata_url=f"{issuer}/.well-known/openid-configuration",
        )  # fmt: skip
        found = dict(await app.load_server_metadata())
        if str(found.get("issuer", "")).rstrip("/") != issuer:
            raise ValueError(f"it calls itself {str(found.get('issuer'))[:200]!r}, not as in oidc.issuer")
        for name in ENDPOINTS:
            parts = urlsplit(str(found.get(name, "")))
            if parts.scheme != "https" and not (on_this_machine and is_loopback(parts.hostname or "")):
                raise ValueError(f"its {name} is missing or not https")
        named = found.get("id_token_signing_alg_values_supported") or ["RS256"]
        found["id_token_signing_alg_values_supported"] = [alg for alg in named if alg in ALGORITHMS]
        ways = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if settings.client_secret.get_secret_value() and "client_secret_basic" not in ways:
            options["token_endpoint_auth_method"] = "client_secret_post"
        # Authlib gives all of this to httpx, where words such as `verify` or `proxy` would mean something.
        app.server_metadata = {name: found[name] for name in _KEPT if name in found} | {"_loaded_at": time.time()}
        return app

    async def _guarded(self, work: Any) -> Any:
        """Await `work`; what goes wrong becomes a sentence, and its kind a line in the log, without any secret."""
        try:
            async with asyncio.timeout(DEADLINE):
                return await work
        except (httpx2.HTTPError, TimeoutError) as error:
            status = getattr(getattr(error, "response", None), "status_code", "no answer")
            log.warning("the login provider does not answer: %s (%s)", type(error).__name__, status)
            raise refused("unreachable") from None
        except ExpiredTokenError:
            log.warning("the id token is expired: compare this machine's clock with the provider's")
            raise refused("clock") from None
        except JoseError as error:
            log.warning("the id token is not valid: %s", str(error)[:200])
            late = isinstance(error, InvalidClaimError) and error.args[0].endswith(("future", "not yet valid"))
            raise refused("clock" if late else "unverified") from None
        except AuthlibBaseError as error:  # its description may hold the code
            known = error.error if str(error.error).replace("_", "").isalpha() else "error"
            log.warning("the login provider refuses: %s", known[:40])
            raise refused("misconfigured" if known in _OURS else "unverified") from None
        except ValueError as error:
            log.warning("the login provider's answer cannot be used: %s", str(error)[:300].partition("\n")[0])
            raise refused("misconfigured") from None
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            log.warning("the login provider's answer cannot be used: %s", type(error).__name__)
            raise refused("misconfigured") from None


_OURS = {"invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type"}
"""Refusals of the token endpoint that come from wrong settings, ours or the provider's."""
