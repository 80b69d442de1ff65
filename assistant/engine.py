"""Starts one vLLM server, keeps it alive, and says whether it may be used.

`Engine` owns a child process on a private Unix socket; a vLLM that somebody else runs is in `external.py`. Both
are "ready" only after a real token came back and every `on_ready` callback has run (that is where the policies
reload their adapters), and so again after every restart. Written for vLLM 0.32: its only supervisor is a 5 s
watchdog, it may exit with status 0 after a crash, and it forgets every adapter. Left out: several children, which
would share the cores and the memory of one machine, and loading the model in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from thumbwise.engine_client import EngineClient
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.processor import engine_format
from thumbwise.settings import EngineSettings
from thumbwise.weights import linear_layers

BASE = "policy-0000"
"""The name under which the base model is served."""

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

_logger = logging.getLogger(__name__)
COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")  # what torch.compile looks for on CPU
HEADER = Path(sysconfig.get_path("include")) / "Python.h"  # and what it includes
_PLUGIN = "thumbwise_cpu_adapters"
_LOG_LINES = 15
_LONGEST_SOCKET_PATH = 100  # Linux allows 107 bytes
_DRAIN = 10  # seconds that vLLM may go on with open replies after SIGTERM
# Settings of the operator's shell that would open vLLM's development endpoints, make it ask for a key that
# we do not send, or let it answer for a policy that it does not have.
_DROPPED_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "VLLM_API_KEY",
}
_NOISE = re.compile(r" (INFO|DEBUG) |^INFO: |nanobind|^ - leaked |^ - \.\.\. skipped|resource_tracker")


class Supervised(ABC):
    """State, waiting and stopping; a subclass brings `_supervise`."""

    client: EngineClient
    warning = ""  # what is not as it should be although people are answered

    def __init__(self) -> None:
        self.state: State = "starting"
        self.detail = "The engine has not been started."
        self.on_ready: list[Callable[[EngineClient], Awaitable[None]]] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def answering(self) -> int:
        """How many vLLM servers answer people: 0 or 1."""
        return int(self.state == "ready")

    async def start(self) -> None:
        """Begin supervision and return at once."""
        self._task = asyncio.create_task(self._run(), name="engine")

    async def wait_ready(self, timeout: float) -> None:
        """Return when ready. Raises EngineUnavailable after `timeout` seconds, EngineFailed when given up."""
        try:
            async with asyncio.timeout(timeout):
                while self.state in ("starting", "restarting"):
                    await self._changed.wait()
        except TimeoutError:
            raise EngineUnavailable(f"vLLM is not ready after {timeout:g} seconds: {self.detail}") from None
        if self.state == "failed":
            raise EngineFailed(self.detail)
        if self.state == "stopped":
            raise EngineUnavailable("The engine was stopped.")

    async def stop(self) -> None:
        """End supervision and what it started; safe to call twice."""
        self._set("stopped", "The engine is being stopped.")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._release()
        await self.client.aclose()
        self._set("stopped", "The engine was stopped.")

    def _set(self, state: State, detail: str) -> None:
        self.state, self.detail = state, detail
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _first_token(self) -> None:
        """Wait for a token of the base model; EngineUnavailable means that nobody answers yet."""
        while True:
            try:
                await self.client.next_token_logprobs(BASE, [0], top=1)
                return
            except EngineUnavailable:
                await asyncio.sleep(0.2)

    async def _get_ready(self) -> None:
        await self._first_token()
        for callback in self.on_ready:
            await callback(self.client)

    async def _run(self) -> None:
        try:
            await self._supervise()
        except Exception as error:  # a bug, in here or in a callback: nobody awaits this task
            _logger.exception("The supervision of vLLM failed")
            await self._release()
            self._set("failed", f"The supervision of vLLM failed ({error!r}): see the log.")

    @abstractmethod
    async def _supervise(self) -> None:
        """Start, watch and restart, until cancelled."""

    async def _release(self) -> None:  # noqa: B027 - an external engine holds nothing
        """Give back what the supervision holds."""


class Engine(Supervised):
    """One vLLM child. `run_dir` gets the socket (mode 0700), `log` its output, one older log beside it.

    Starts that fail are repeated with growing pauses; after `tries` in a row the state is "failed", until one that is
    made every `retry` seconds succeeds (what was missing may be memory), and `detail` ends with vLLM's last log lines.
    """

    tries = 3
    pause = 1.0  # seconds before the second start, doubled each time, at most 60
    retry = 300.0  # seconds between starts once they have failed
    settled = 60.0  # seconds of being ready after which the pauses start from the beginning
    probe_every = 15.0  # seconds of silence before a token is asked for, to see whether vLLM hangs
    probe_timeout = 30.0
    probe_tries = 3
    grace = _DRAIN + 10.0  # seconds between SIGTERM and SIGKILL at a stop

    def __init__(self, model: Path, settings: EngineSettings, *, run_dir: Path, log: Path) -> None:
        super().__init__()
        self.model, self.settings, self.log = model, settings, log
        self._socket_folder, self._temporary = _private_folder(run_dir)
        self.uds = self._socket_folder / "vllm.sock"
        self.client = EngineClient(uds=self.uds)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, and of the process group that holds all of vLLM; None: not running."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    def command(self) -> list[str]:
        """Return vLLM's command line; the same on CPU and CUDA."""
        s = self.settings
        flags: dict[str, object] = {
            "uds": self.uds,
            "model": self.model,
            "served-model-name": BASE,
            "dtype": engine_format(s.dtype),
            "max-model-len": s.max_model_len,
            "max-num-seqs": s.max_num_seqs,
            "max-loras": s.max_loras,
            "max-cpu-loras": s.max_cpu_loras,
            "max-lora-rank": s.max_lora_rank,
            "max-logprobs": 64,
            "logprobs-mode": "processed_logprobs",  # after temperature, as the trainer takes them
            "generation-config": "vllm",  # keeps the model's stop tokens, not its sampling defaults
            "shutdown-timeout": _DRAIN,
            "uvicorn-log-level": "warning",
        }
        switches = ["enable-lora", "disable-fastapi-docs", "disable-uvicorn-access-log"]
        if s.enforce_eager:
            switches.append("enforce-eager")
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        line += [f"--{switch}" for switch in switches]
        for flag, value in flags.items():
            line += [f"--{flag}", str(value)]
        # Without this list vLLM wraps lm_head too, which costs a product over the vocabulary per token.
        return line + (["--lora-target-modules", *layers] if (layers := linear_layers(self.model)) else [])

    def environment(self) -> dict[str, str]:
        """Return vLLM's environment: ours without secrets and without what would open it up."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("THUMBWISE_") and key not in _DROPPED_ENVIRONMENT
        }
        if not (HEADER.exists() and any(map(shutil.which, COMPILERS))):  # else the first token fails for want of them
            kept["TORCH_COMPILE_DISABLE"] = "1"
        return kept | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_PLUGINS": _PLUGIN,  # the base's rows; and no LoRA resolvers, which read any path they are asked for
            "VLLM_CPU_KVCACHE_SPACE": str(self.settings.kv_cache_gb),
            "VLLM_MAX_N_SEQUENCES": "8",
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",  # closing an idle connection can meet a request on its way in
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_COLOR": "0",
            "VLLM_LOG_STATS_INTERVAL": "600",
            "HF_HUB_OFFLINE": "1",
        }

    async def _supervise(self) -> None:
        failed = crashed = 0
        while True:
            try:
                await self._launch()
                await self._until_ready()
            except (ThumbwiseError, OSError) as error:
                await self._end(grace=0)
                failed += 1
                sentence = f"vLLM could not be started: {error}"
                if failed >= self.tries:
                    again = f"It is tried again every {self.retry / 60:g} minutes."
                    self._set("failed", f"{sentence} {again}\n{self._last_lines()}".rstrip())
                    _logger.error(self.detail)
                    await asyncio.sleep(self.retry)
                    continue
            else:
                failed, since = 0, time.monotonic()
                self._set("ready", "vLLM is ready.")
                sentence = await self._until_ended()
                await self._end(grace=0)
                crashed = 0 if time.monotonic() - since > self.settled else crashed + 1
            self._set("restarting", f"{sentence} It is being restarted.")
            _logger.warning(self.detail)
            await asyncio.sleep(min(60.0, self.pause * 2 ** (max(failed, crashed, 1) - 1)))

    async def _launch(self) -> None:
        if not list(importlib.metadata.entry_points(group="vllm.general_plugins", name=_PLUGIN)):
            raise ThumbwiseError("thumbwise is not installed for this Python: install it with pip.")
        _remove_stale(self.uds)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        line = [sys.executable, "-m", "thumbwise.engine_child", str(os.getpid()), *self.command()]
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *line,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,  # Ctrl-C in a terminal reaches us alone, and we stop vLLM in order
            )
        if self.state == "starting":
            self._set("starting", "vLLM is starting: this takes a minute or so.")

    async def _until_ready(self) -> None:
        """Return when ready; raises EngineFailed where vLLM ends or the time is up first."""
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        ready = asyncio.ensure_future(self._get_ready())
        try:
            await asyncio.wait({ended, ready}, timeout=self.settings.start_timeout, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
            elif ended.done():
                raise EngineFailed(f"it ended with status {ended.result()}.")
            else:
                raise EngineFailed(f"it was not ready after {self.settings.start_timeout:g} seconds.")
        finally:
            ended.cancel()
            ready.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)

    async def _until_ended(self) -> str:
        """Return a sentence when vLLM has ended or hangs."""
        assert self._process is not None
        missed = 0
        while True:
            with contextlib.suppress(TimeoutError):
                status = await asyncio.wait_for(self._process.wait(), self.probe_every)
                return f"vLLM ended unexpectedly (status {status})."
            # Any byte of any reply shows that it lives; the health check alone would not show a stuck engine.
            if time.monotonic() - self.client.heard < self.probe_every or await self._probe():
                missed = 0
            elif (missed := missed + 1) >= self.probe_tries:
                return "vLLM hung: no token came for a while."

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(self.probe_timeout):
                await self.client.next_token_logprobs(BASE, [0], top=1)
            return True
        except (TimeoutError, ThumbwiseError):
            return False

    async def _end(self, grace: float) -> None:
        """End the child and all below it: SIGTERM, then SIGKILL after `grace` seconds (0: at once)."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if grace:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), grace)
            if process.returncode is None:
                # The launcher ends what is below it; give it a moment before the whole group is killed.
                process.send_signal(signal.SIGHUP)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _release(self) -> None:
        await self._end(self.grace)
        self.uds.unlink(missing_ok=True)
        if self._temporary:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _last_lines(self) -> str:
        """Return the log's last lines that are neither progress nor what Python prints as it leaves."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return "\n".join([line for line in lines if line.strip() and not _NOISE.search(line)][-_LOG_LINES:])
        return ""


def _private_folder(run_dir: Path) -> tuple[Path, bool]:
    """Return a folder for the socket that only we can enter, and whether it is a temporary one."""
    if len(os.fsencode(run_dir.absolute() / "vllm.sock")) > _LONGEST_SOCKET_PATH:
        return Path(tempfile.mkdtemp(prefix="thumbwise-")), True
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if run_dir.stat().st_uid != os.getuid():
        raise ThumbwiseError(f"{run_dir} belongs to another user: vLLM's socket cannot be put there.")
    run_dir.chmod(0o700)
    return run_dir.absolute(), False


def _remove_stale(uds: Path) -> None:
    """Remove a socket file that nobody listens on; vLLM refuses to start beside one."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(uds))
        except FileNotFoundError:
            return
        except OSError:
            uds.unlink(missing_ok=True)
            return
    raise EngineFailed(f"another process already listens on {uds}.")
