"""Starts one vLLM server, keeps it running, and says whether it can be used.

`Engine` owns a child process on a private Unix socket. For a vLLM that somebody else runs, see `external.py`. Both are
"ready" only after a real token came back and every `on_ready` callback has run; in these callbacks the versions are
loaded again. The same holds after every restart. Written for vLLM 0.32: its only supervisor is a 5 s watchdog, it may
exit with status 0 after a crash, and after a restart it has no adapters. Left out: several children, which would share
the cores and the memory of one machine, and loading the model in this process.
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
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thumbwise.base_model.templates import FolderTemplate
from thumbwise.base_model.weights import linear_layers, positions
from thumbwise.engine.client import EngineClient
from thumbwise.engine.supervised import Supervised, told
from thumbwise.errors import EngineFailed, ThumbwiseError
from thumbwise.names import BASE
from thumbwise.settings.engine import EngineSettings
from thumbwise.system import child_logs, children
from thumbwise.system.processor import engine_format

_logger = logging.getLogger(__name__)
COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")  # what torch.compile looks for on CPU
HEADER = Path(sysconfig.get_path("include")) / "Python.h"  # and what it includes
_PLUGIN = "thumbwise_cpu_adapters"
_LOG_LINES = 15
_LONGEST_SOCKET_PATH = 100  # Linux allows 107 bytes
_DRAIN = 10  # seconds that vLLM may go on with open replies after SIGTERM
# Variables of the operator's shell that would open vLLM's development endpoints, make it ask for a key that we do not
# send, or let it answer for a version that it has not loaded.
_DROPPED_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "VLLM_API_KEY",
}
# Caches of compilers, unless the operator sets another place. PyTorch's default is a folder in /tmp with our user name,
# which anybody may have made before us.
_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "VLLM_CACHE_ROOT": "vllm"}
# The processes of one vLLM talk to each other over ports that check nobody: so only over this machine's loopback.
_LOOPBACK = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "TP_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
    "MASTER_ADDR": "127.0.0.1",
}
_NOISE = re.compile(r" (INFO|DEBUG) |^INFO: |nanobind|^ - leaked |^ - \.\.\. skipped|resource_tracker")


class Engine(Supervised):
    """One vLLM child. `run_dir` gets the socket (mode 0700), `log` its output, one older log beside it.

    `cache` is for compiled code, which the next start loads again: nobody else may write there. `template` has the
    arguments of the model's chat template.

    A start that fails is repeated after a pause, which grows. After `tries` failures in a row the state is "failed".
    Then a start is tried every `retry` seconds until one succeeds, because the reason may have been a lack of memory.
    `last_lines` has the end of vLLM's log.

    vLLM counts as hanging if nobody got a token for `settings.silence` seconds, not even the probe, and its processes
    did not compute. If they compute, the limit is `patience` times as long, because it may be reading long prompts.
    """

    tries = 3
    pause = 1.0  # seconds before the second start, doubled each time, at most 60
    retry = 300.0  # seconds between starts once they have failed
    settled = 60.0  # seconds of being ready after which the pauses are short again
    probe_every = 15.0  # seconds of silence after which a token is asked for, to find out whether vLLM hangs
    patience = 5  # times `settings.silence`, while it computes
    busy = 0.2  # cores; with less CPU time than this it does not compute
    look_every = 5.0  # seconds between two checks of its log's size
    grace = _DRAIN + 10.0  # seconds between SIGTERM and SIGKILL at a stop

    def __init__(
        self, model: Path, settings: EngineSettings, *, run_dir: Path, log: Path, cache: Path | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.settings, self.log = model, settings, log
        self.cache = cache or run_dir.absolute() / "cache"
        self._socket_folder, self._temporary = _private_folder(run_dir)
        self.uds = self._socket_folder / "vllm.sock"
        self._template = FolderTemplate(model, template or {})
        self.client = EngineClient(uds=self.uds, silence=settings.silence, template=template)
        self._process: asyncio.subprocess.Process | None = None
        self._watch_log: asyncio.Task[None] | None = None

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
            "max-model-len": self._longest(),
            "max-num-seqs": s.max_num_seqs,
            "max-loras": s.max_loras,
            "max-cpu-loras": s.max_cpu_loras,
            "max-lora-rank": s.max_lora_rank,
            "max-logprobs": 64,
            "logprobs-mode": "processed_logprobs",  # after temperature, as the trainer takes them
            "tokenizer-mode": "hf",  # else Mistral's own takes the place of the chat template
            "chat-template-content-format": self._format(),
            "generation-config": "vllm",  # keeps the model's stop tokens, not its sampling defaults
            "shutdown-timeout": _DRAIN,
            "uvicorn-log-level": "warning",
        }
        switches = ["enable-lora", "disable-fastapi-docs", "disable-uvicorn-access-log"]
        if s.enforce_eager:
            switches.append("enforce-eager")
        line = children.python("-m", "vllm.entrypoints.openai.api_server")
        line += [f"--{switch}" for switch in switches]
        for flag, value in flags.items():
            line += [f"--{flag}", str(value)]
        # Without this list vLLM wraps lm_head too, which costs a product over the vocabulary per token.
        return line + (["--lora-target-modules", *layers] if (layers := linear_layers(self.model)) else [])

    def _format(self) -> str:
        """As the training job hands texts to the chat template."""
        try:
            return self._template.format
        except ThumbwiseError:  # then vLLM says what is wrong
            return "auto"

    def _longest(self) -> int:
        """Tokens of a prompt and its reply: as set, or as many as the model has, beyond which vLLM does not start."""
        longest, has = self.settings.max_model_len, positions(self.model)
        if has is None or has >= longest:
            return longest
        _logger.warning("The model reads %d tokens at most, and not the %d of engine.max_model_len.", has, longest)
        return has

    def environment(self) -> dict[str, str]:
        """Return vLLM's environment: ours without secrets and without what would open it up."""
        kept = {
            key: value
            for key, value in children.safe().items()
            if not key.startswith("THUMBWISE_") and key not in _DROPPED_ENVIRONMENT
        }
        if not (HEADER.exists() and any(map(shutil.which, COMPILERS))):  # else the first token fails for want of them
            kept["TORCH_COMPILE_DISABLE"] = "1"
        caches = {variable: kept.get(variable, str(self.cache / name)) for variable, name in _CACHES.items()}
        # Nothing that vLLM sets again may come first, or its processes cannot be given their names (setproctitle).
        return {**kept, **caches, **_LOOPBACK} | {
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
            except Exception as error:  # also a bug in a callback: the next start may succeed
                await self._end(grace=0)
                failed += 1
                sentence = f"vLLM could not be started: {told(error)}"
                if failed >= self.tries:
                    again = f"It is tried again every {self.retry / 60:g} minutes; the assistant's log says more."
                    self._set("failed", f"{sentence} {again}")
                    _logger.error("\n".join([self.detail, *self.last_lines()]))
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
            await asyncio.sleep(min(60.0, self.pause * 2 ** min(max(failed, crashed, 1) - 1, 10)))

    async def _launch(self) -> None:
        if not list(importlib.metadata.entry_points(group="vllm.general_plugins", name=_PLUGIN)):
            raise ThumbwiseError("thumbwise is not installed for this Python: install it with pip.")
        _remove_stale(self.uds)
        self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = children.launched(self.command())
        with child_logs.opened(self.log, fresh=True) as log:
            self._process = await asyncio.create_subprocess_exec(
                *line,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,  # Ctrl-C in a terminal reaches us alone, and we stop vLLM in order
            )
        self._watch_log = asyncio.create_task(self._bound_log())
        if self.state == "starting":
            self._set("starting", "vLLM is starting: this takes a minute or so.")

    async def _bound_log(self) -> None:
        while True:
            await asyncio.sleep(self.look_every)
            await asyncio.to_thread(child_logs.bound, self.log)

    async def _until_ready(self) -> None:
        """Return when ready; raises EngineFailed if vLLM ends, or the time is over, before that."""
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
        """Return when vLLM has ended or hangs, with a sentence that says which."""
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        alive, spent = time.monotonic(), self._cpu_seconds()  # when it was last alive, and its CPU time then
        try:
            while True:
                await asyncio.wait({ended}, timeout=self.probe_every)
                if ended.done():
                    return f"vLLM ended unexpectedly (status {ended.result()})."
                # Any byte of any reply shows that it is alive. vLLM's health check would not show an engine that hangs.
                if time.monotonic() - self.client.heard < self.probe_every or await self._probe(ended):
                    alive, spent = time.monotonic(), self._cpu_seconds()
                    continue
                silent = time.monotonic() - max(alive, self.client.heard)
                computes = self._cpu_seconds() - spent > self.busy * (time.monotonic() - alive)
                if silent >= self.settings.silence * (self.patience if computes else 1) and not ended.done():
                    return "vLLM hung: no token came for a while."
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _probe(self, ended: asyncio.Future[int]) -> bool:
        """Whether a token comes within `settings.silence` seconds, while vLLM runs."""
        token = asyncio.ensure_future(self.client.next_token_logprobs(BASE, [0], top=1))
        either: set[asyncio.Future[Any]] = {ended, token}
        try:
            await asyncio.wait(either, timeout=self.settings.silence, return_when=asyncio.FIRST_COMPLETED)
            return token.done() and token.exception() is None
        finally:
            token.cancel()
            await asyncio.gather(token, return_exceptions=True)

    def _cpu_seconds(self) -> float:
        """CPU time of vLLM's processes so far; they are one process group."""
        pid = self.pid
        return 0.0 if pid is None else children.cpu_seconds(pid)

    async def _end(self, grace: float) -> None:
        """End the child and all processes below it: SIGTERM, then SIGKILL after `grace` seconds (0: at once)."""
        process = self._process
        if self._watch_log is not None:
            self._watch_log.cancel()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if grace:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), grace)
            if process.returncode is None:
                # The launcher ends the processes below it. It gets a moment before the whole group is killed.
                process.send_signal(signal.SIGHUP)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._process = None  # only now: if this method is cancelled, the next call must still find the process

    async def stop(self) -> None:
        """End supervision, vLLM and all processes below it; safe to call twice."""
        await super().stop()
        if self._temporary:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    async def _release(self) -> None:
        await self._end(self.grace)
        self.uds.unlink(missing_ok=True)

    def last_lines(self) -> list[str]:
        """The log's last lines, without progress lines and without what Python prints when it exits."""
        return child_logs.last_lines(self.log, _LOG_LINES, lambda line: line.strip() and not _NOISE.search(line))


def _private_folder(run_dir: Path) -> tuple[Path, bool]:
    """Return a folder for the socket that only this user can enter, and whether it is temporary."""
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
