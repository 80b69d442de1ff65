"""Calls to a running assistant, or its database where none runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.store import Store
from thumbwise.home import Home, HomeLock, running_url


def running(home: Home) -> str:
    """Return the URL of the home's running assistant. Raises ThumbwiseError if none runs."""
    url = running_url(home)
    if url is None:
        raise ThumbwiseError(f"No assistant runs on {home.root}: start one with `thumbwise serve`.")
    return url


@contextmanager
def database(home: Home) -> Iterator[Store]:
    """Open the home's database while no assistant runs. Holds the home's lock."""
    with HomeLock(home):
        store = Store(home.database)
        try:
            yield store
        finally:
            store.close()


def call(home: Home, url: str, method: str, path: str, **options: Any) -> Any:
    """Make one call to `/ops/api` with the operator's token. Return the JSON answer, or raise the error's sentence."""
    headers = {"Authorization": f"Bearer {home.operator_token()}"}
    try:
        # No proxy of the environment: the assistant is on this machine, and nobody else may see the token.
        patience = httpx.Timeout(60, read=900)  # a promotion loads and probes the version in every engine
        answer = httpx.request(method, url + path, headers=headers, timeout=patience, trust_env=False, **options)
    except httpx.HTTPError as error:
        raise ThumbwiseError(f"The assistant at {url} does not answer ({error}): is it still running?") from None
    if answer.is_error:
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"The assistant answered {answer.status_code} to {path}."
        raise ThumbwiseError(message, status=answer.status_code)
    return answer.json()
