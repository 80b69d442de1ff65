"""A tiny OpenID Connect provider in a thread, for answers that a real one never gives: wrong tokens, wrong metadata.

Its authorization page asks nothing: it sends the browser back at once, as the person of `claims`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


@dataclass
class TinyProvider:
    """What the provider says; tests change it while it runs."""

    issuer: str
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "1", "preferred_username": "ann"})
    token: dict[str, Any] = field(default_factory=dict)
    """Claims of the id token in place of the right ones; None leaves one out."""
    metadata: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1"}))
    signed_by: Any = None
    """Another key that signs; the key set keeps `key`."""
    codes_last: bool = False
    """Whether a code may be used twice, which no provider should allow."""
    refusal: dict[str, Any] = field(default_factory=dict)
    """What the token endpoint answers instead, with status 400."""
    down: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)
    """The requests to the authorization page."""
    forms: list[dict[str, str]] = field(default_factory=list)
    """The requests to the token endpoint."""
    given: list[str] = field(default_factory=list)
    """Codes and tokens that it gave out: none may be in a log."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def discovery(self) -> dict[str, Any]:
        """The metadata."""
        found = {
            "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/jwks",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        } | self.metadata  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def authorize(self, query: dict[str, str]) -> str:
        """The address to send the browser back to."""
        self.asked.append(query)
        code = secrets.token_urlsafe(24)
        self.given.append(code)
        self.codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def exchange(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """The answer of the token endpoint."""
        if self.refusal:
            return 400, self.refusal
        query = self.codes.get(form.get("code", ""))
        if query is None:
            return 400, {"error": "invalid_grant", "error_description": f"no code {form.get('code')}"}
        if form.get("client_id") != query["client_id"]:
            return 401, {"error": "invalid_client"}
        if not self.codes_last:
            del self.codes[form["code"]]
        if _base64(hashlib.sha256(form.get("code_verifier", "").encode()).digest()) != query.get("code_challenge"):
            return 400, {"error": "invalid_grant", "error_description": "PKCE"}
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": query["client_id"], "iat": now, "exp": now + 300, "nonce": query["nonce"],
        } | self.claims | self.token  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        access = secrets.token_urlsafe(24)
        id_token = self.sign(claims)
        self.given += [access, id_token]
        return 200, {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": id_token}

    def sign(self, claims: dict[str, Any]) -> str:
        """The id token. `HS256` signs with the public key, as if it were a secret that both share."""
        if self.algorithm in ("none", "HS256"):
            parts = [json.dumps({"alg": self.algorithm, "kid": self.key.kid}), json.dumps(claims)]
            signed = ".".join(_base64(part.encode()) for part in parts)
            mac = hmac.digest(self.key.as_pem(private=False), signed.encode(), "sha256")
            return f"{signed}.{_base64(mac) if self.algorithm == 'HS256' else ''}"
        return jwt.encode({"alg": self.algorithm, "kid": self.key.kid}, claims, self.signed_by or self.key)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@contextmanager
def tiny_provider() -> Iterator[TinyProvider]:
    """A provider on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            pass

        def answer(self, status: int, body: dict[str, Any], location: str = "") -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if provider.down:
                self.answer(503, {})
            elif path == "/authorize":
                self.answer(302, {}, provider.authorize({name: values[0] for name, values in query.items()}))
            else:
                pages: dict[str, Any] = {
                    "/.well-known/openid-configuration": provider.discovery(),
                    "/jwks": {"keys": [provider.key.as_dict(private=False)]}, "/userinfo": provider.userinfo,
                }  # fmt: skip
                self.answer(200 if path in pages else 404, pages.get(path, {}))

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(text).items()}
            kind, _, basic = self.headers.get("Authorization", "").partition(" ")
            if kind == "Basic":
                form["client_id"], _, form["client_secret"] = base64.b64decode(basic).decode().partition(":")
            provider.forms.append(form)
            self.answer(*((503, {}) if provider.down else provider.exchange(form)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = TinyProvider(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
