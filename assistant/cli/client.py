"""How the command line and the training job talk to a running assistant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.store import Store
from thumbwise.home import Home, HomeLock, running_url


def running(home: Home) -> str:
    """The URL of the home's running assistant; raises ThumbwiseError where there is none."""
    url = running_url(home)
    if url is None:
        raise ThumbwiseError(f"No assistant runs on {home.root}: start one with `thumbwise serve`.")
    return url


@contextmanager
def database(home: Home) -> Iterator[Store]:
    """The home's database, for a command where no assistant runs; holds the home's lock."""
    with HomeLock(home):
        store = Store(home.database)
        try:
            yield store
        finally:
            store.close()


def call(home: Home, url: str, method: str, path: str, **options: Any) -> Any:
    """Make one ops call with the job's token and return the JSON answer; an error's sentence is raised."""
    headers = {"Authorization": f"Bearer {home.job_token()}"}
    try:
        # Not through a proxy that the environment names: it is this machine, and the token is nobody else's.
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
