"""The training job's side of the assistant's HTTP API: register, fetch, keep the lease, publish.

Every refusal comes back as one sentence from the assistant. Calls that can safely be repeated are tried again while the
assistant or its engine restarts.

Left out: renewing a lease without telling the job (`resume` takes up an expired one again).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from thumbwise.errors import Conflict, ThumbwiseError

WAITS = (2.0, 10.0, 30.0, 60.0, 60.0)
"""Seconds before each repetition of a call during a restart: vLLM takes a minute or two, with a large model."""
BATCH = 2000
"""Items of a run's lineage that are sent at once."""


@dataclass(frozen=True)
class Run:
    """What the assistant gave to a registered run."""

    run_id: str
    number: int
    lease: str
    snapshot_id: str
    stable: str
    base_digest: str
    model: str
    max_tokens: int
    temperature: float
    lease_seconds: float
    begin_at_base: bool = False
    """Whether stable, or a version it began from, learned from something that was forgotten since."""


class OpsClient:
    """`/ops/api` of the assistant at `url`, with the job's bearer token."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=f"{url.rstrip('/')}/ops/api",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60.0, read=900.0),
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def begin(self) -> Run:
        """Register a run. Raises Conflict while another run holds the lease."""
        given = self._call("POST", "/runs").json()
        return Run(**{name: given[name] for name in Run.__dataclass_fields__ if name in given})

    def resume(self, run: Run) -> dict[str, Any]:
        """Take up a run again: {"lease", "outcome", "reason", "version"}. `outcome` is None if there is none yet.

        The lease is a fresh one, so that an earlier process of the run that wakes up late is refused. Raises Conflict
        while another run holds the lease.
        """
        answer: dict[str, Any] = self._call("POST", f"/runs/{run.run_id}/resume", repeat=True).json()
        return answer

    def take_snapshot(self) -> str:
        """Freeze the feedback of this moment, without a run. Returns the snapshot's id."""
        return str(self._call("POST", "/snapshots").json()["snapshot_id"])

    def snapshot(self, snapshot_id: str) -> bytes:
        """The snapshot's bytes, checked against its id (their SHA-256)."""
        data = self._call("GET", f"/snapshots/{snapshot_id}", repeat=True).content
        if hashlib.sha256(data).hexdigest() != snapshot_id:
            raise ThumbwiseError("The snapshot arrived damaged (its SHA-256 is not its id): train again.")
        return data

    def heartbeat(self, run: Run) -> None:
        """Renew the run's lease. Raises Conflict if it is lost."""
        self._call("POST", f"/runs/{run.run_id}/heartbeat", json={"lease": run.lease})

    def tell_lineage(self, run: Run, items: Sequence[tuple[str, str, float]]) -> None:
        """Say what the run learned from: (id, kind, weight). Without this nothing can be published."""
        path, last = f"/runs/{run.run_id}/lineage", (max(len(items), 1) - 1) // BATCH
        for number in range(last + 1):
            batch = items[number * BATCH : (number + 1) * BATCH]
            body = {"lease": run.lease, "items": batch, "total": len(items) if number == last else None}
            self._call("POST", path, json=body, repeat=True)

    def finish(self, run: Run, outcome: str, reason: str) -> None:
        """Say how the run ended, which releases the lease."""
        body = {"lease": run.lease, "outcome": outcome, "reason": reason}
        self._call("POST", f"/runs/{run.run_id}/finish", json=body, repeat=True)

    def policy_file(self, version: str, name: str) -> bytes:
        """One file of a policy version."""
        return self._call("GET", f"/policies/{version}/files/{name}", repeat=True).content

    def publish(
        self, run: Run, version: str, files: Mapping[str, bytes], learned: Sequence[tuple[str, str, float]] = ()
    ) -> None:
        """Hand over a candidate's files (by file name), and what it learned from. The assistant validates both."""
        self.tell_lineage(run, learned)
        parts = {name.rpartition(".")[0]: (name, data) for name, data in files.items()}
        headers = {"X-Thumbwise-Lease": run.lease}
        self._call("PUT", f"/policies/{version}", files=parts, headers=headers, repeat=True)

    def promote(self, run: Run, version: str, expect_stable: str) -> str:
        """Ask that `version` takes traffic. Returns its new state (stable, or canary if a share is set).

        Raises ThumbwiseError (409, 422) if it may not.
        """
        body = {"expect_stable": expect_stable, "lease": run.lease}
        answer = self._call("POST", f"/policies/{version}/promote", json=body, repeat=True)
        return str(answer.json()["state"])

    def reject(self, run: Run, version: str, reason: str) -> None:
        """Mark a published candidate as rejected."""
        body = {"reason": reason, "lease": run.lease}
        self._call("POST", f"/policies/{version}/reject", json=body, repeat=True)

    def _call(self, method: str, path: str, *, repeat: bool = False, **arguments: Any) -> httpx.Response:
        for wait in (*(WAITS if repeat else ()), None):
            try:
                answer = self.http.request(method, path, **arguments)
                if answer.is_success:
                    return answer
                error = refusal(answer)
            except httpx.HTTPError as failed:
                error = ThumbwiseError(
                    f"The assistant at {self.url} does not answer ({type(failed).__name__}): is it still running?",
                    status=503,
                )
            if wait is None or error.status != 503:
                raise error
            time.sleep(wait)
        raise AssertionError("unreachable")


def refusal(answer: httpx.Response) -> ThumbwiseError:
    """The assistant's sentence as an error, with its status."""
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The assistant refused {answer.request.url.path} with status {answer.status_code}."
    return (Conflict if answer.status_code == 409 else ThumbwiseError)(message, status=answer.status_code)


class Lease:
    """Renews a run's lease from its own thread. `check` raises once the lease is lost."""

    def __init__(self, client: OpsClient, run: Run) -> None:
        self.client = client
        self.run = run
        self.lost = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def check(self) -> None:
        """Raise Conflict with the assistant's sentence if the lease is lost."""
        if self.lost:
            raise Conflict(self.lost)

    def _renew(self) -> None:
        """Renew four times per lease. An assistant that is away for less than a lease does no harm."""
        while not self._done.wait(self.run.lease_seconds / 4):
            try:
                self.client.heartbeat(self.run)
            except ThumbwiseError as error:
                if error.status < 500:
                    self.lost = str(error)
                    return
