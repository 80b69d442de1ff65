"""The running assistant: one object that holds the parts. It knows nothing of HTTP.

The model is prepared and vLLM started in the background. `status()` says how far that is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from thumbwise import logs
from thumbwise.accounts.audit import Audit, record
from thumbwise.accounts.browsers import Browsers
from thumbwise.accounts.entry import Entry
from thumbwise.accounts.identities import Identities
from thumbwise.accounts.keys import Keys
from thumbwise.accounts.links import Links
from thumbwise.accounts.people import People
from thumbwise.accounts.sessions import Sessions
from thumbwise.accounts.users import Users
from thumbwise.base_model import templates
from thumbwise.base_model.prepare import PreparedModel, prepare
from thumbwise.chat.admission import Admission
from thumbwise.chat.comparisons import Comparisons
from thumbwise.chat.turns import Conversations
from thumbwise.engine.external import ExternalEngine, Pool, Replicas
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import EngineUnavailable, ThumbwiseError
from thumbwise.feedback.consent import Consents
from thumbwise.feedback.store import Store
from thumbwise.metrics import Metrics
from thumbwise.plugin_host.deciding import in_background
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.serving.forgetting import Forgetting
from thumbwise.serving.schedule import Schedule
from thumbwise.serving.who import Who
from thumbwise.settings.values import seconds_of, urls_of
from thumbwise.versions import found
from thumbwise.versions.lifecycle import Policies
from thumbwise.versions.mixing import check
from thumbwise.versions.record import Versions

if TYPE_CHECKING:
    from thumbwise.accounts.oidc import Provider
    from thumbwise.engine.client import EngineClient
    from thumbwise.feedback.records import Asker, FeedbackRequest
    from thumbwise.home import Home
    from thumbwise.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)
REVIEW_SECONDS = 5.0
"""Between two reviews of the canary. A review reads what people met of it so far."""


@dataclass(frozen=True)
class Status:
    """What the engine is doing, in a sentence. `warning` is empty if everything is in order."""

    ready: bool
    detail: str
    warning: str = ""


class Assistant:
    """All parts of the assistant of one home. Create it only while you hold the home's lock."""

    def __init__(self, home: Home, settings: Settings) -> None:
        self.home = home
        self.settings = settings
        self.token, self.operator_token = home.job_token(), home.operator_token()
        self.metrics = Metrics()
        self.store = Store(home.database)
        cut = self.store.fail_unfinished()
        if cut:
            log.info("%d replies were cut off when the assistant last stopped and are marked failed", cut)
        self.versions = Versions(self.store)
        self.forgetting = Forgetting(home, self.store, self.versions)
        self.keys = Keys(self.store)
        self.users = Users(self.store)
        self.sessions = Sessions(self.store, self.users, settings.accounts.session_days)
        self.links = Links(self.store)
        self.sessions.purge()
        self.links.purge()
        self.audit = Audit(self.store)
        self.entry = Entry(settings, self.users, self.sessions, self.links)
        self.consents = Consents(self.store, lambda db, actor, user, given: record(db, actor, "consent", user, **given))
        self.people = People(settings, self.users, self.links, self.keys, self.forgetting.forget_person)
        secret = home.cookie_secret()
        self.identities = Identities(self.store, self.users)
        self.oidc = _provider(settings, secret)
        self.browsers = Browsers(secret)
        self.who = Who(
            settings, self.browsers, self.keys, self.users, self.sessions, self.token, self.operator_token, secret
        )  # fmt: skip
        self.plugins = PluginManager(home).load()
        self.policies = Policies(home, settings, self.versions, self.plugins, self.metrics)
        self.admission = Admission(settings, self.metrics)
        self.conversations = Conversations(
            self.store, self.policies, settings, self.metrics, self.admission, self.require_engine
        )
        self.comparisons = Comparisons(self.conversations, self.policies, self.plugins, self.consents)
        every = settings.train_every
        self.schedule = (
            Schedule(home, seconds_of(every), self.versions.runs, lambda: self.status().ready) if every else None
        )
        self.model: PreparedModel | None = None
        self.engine: Engine | ExternalEngine | Replicas | None = None
        self._progress = "The model is being prepared."
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start to prepare the model and the engine in the background. Returns at once."""
        self._starting = asyncio.create_task(self._start_engine())
        self.spawn(self._review())
        self.spawn(self.forgetting.run())
        if self.schedule is not None:
            self.spawn(self.schedule.run())

    async def _start_engine(self) -> None:
        try:
            model = await in_background(lambda: prepare(self.home, self.settings.model, self._report_progress))
            await self.store.run(self.versions.bind, model.digest, model.name)
            await in_background(lambda: self._check_template(model.folder))
            unknown = await asyncio.to_thread(found.unknown, self.home, self.versions, model, self.settings.engine)
            await self.store.run(found.take_in, self.versions, unknown)
            self.model = model
            self.engine = self._make_engine(self.model)
            self.policies.connect(self.model, self.engine.client)
            slots, folder = self.settings.engine.max_loras, self.model.folder
            self.engine.on_ready += [lambda each: check(each, folder, slots, self.home.policies), self.policies.restore]
            self._report_progress("The engine is starting.")
            await self.engine.start()
        except ThumbwiseError as error:
            self._report_progress(str(error))
        except Exception as error:  # a full disk, or a bug: nobody awaits this task
            log.exception("The model could not be prepared")
            why = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            self._report_progress(f"The model could not be prepared ({why}): fix that, then start the assistant again.")

    def _check_template(self, folder: Path) -> None:
        given = self.settings.chat_template_kwargs
        templates.check(folder, given)
        if advice := templates.advice(folder, given):
            log.warning("%s", advice)

    async def _review(self) -> None:
        while True:
            await asyncio.sleep(REVIEW_SECONDS)
            try:
                if self.status().ready:
                    await self.policies.review()
            except ThumbwiseError as error:  # the engine restarts, or the disk is full: the next review may succeed
                log.warning("the canary could not be reviewed: %s", error)
            except Exception:  # nobody awaits this task, and one failed review must not end it
                log.exception("the canary could not be reviewed")

    def _make_engine(self, model: PreparedModel) -> Engine | ExternalEngine | Replicas:
        settings = self.settings
        template = settings.chat_template_kwargs
        if urls := urls_of(settings.engine_url):
            given: Any = {"silence": settings.engine.silence, "api_key": settings.engine_api_key.get_secret_value()}
            given["template"] = template
            return ExternalEngine(urls[0], **given) if len(urls) == 1 else Replicas(urls, **given)
        return Engine(
            model.folder,
            settings.engine,
            run_dir=self.home.root / "engine",
            log=self.home.root / "engine" / "vllm.log",
            cache=self.home.cache,
            template=template,
        )

    def _report_progress(self, line: str) -> None:
        self._progress = line
        log.info("%s", line)

    async def stop(self) -> None:
        """Stop the engine's whole process tree and close the database."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        for task in self._tasks:  # replies in flight keep the text so far, with the state "stopped"
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.engine is not None:
            await self.engine.stop()
        self.entry.close()
        await asyncio.to_thread(self.forgetting.close)
        await asyncio.to_thread(self.store.close)  # writes what still waits to be written

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task of its own, independent of the request. `stop` cancels it if it still runs."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def status(self) -> Status:
        """Return whether the engine answers, and what to tell people."""
        if self.admission.draining:
            return Status(False, "The assistant is being stopped.")
        if self.engine is None:
            return Status(False, self._progress)
        ready = self.engine.state == "ready"
        warning = " ".join(filter(None, [self.policies.warning, self.engine.warning]))
        return Status(ready, self.engine.detail or self._progress, warning)

    def require_engine(self) -> EngineClient | Pool:
        """Return the engine, or raise EngineUnavailable with what it is doing."""
        status = self.status()
        if self.engine is None or not status.ready:
            why = status.detail.partition("\n")[0]  # the lines after it are from vLLM's log, for the operator
            raise EngineUnavailable(f"{why} Try again in a minute.")
        return self.engine.client

    def vote(self, asker: Asker, key: str, request: FeedbackRequest) -> str:
        """Store one vote and tell the plugins. Blocks until the vote is durable. Returns the feedback id."""
        feedback_id, new = self.store.add_feedback(asker, key, request)
        if new:
            self.metrics.feedback.labels(request.kind).inc()
            said = f"vote {feedback_id} ({request.kind})"
            logs.event(log, "vote", said, feedback_id=feedback_id, kind=request.kind)
            event = {"id": feedback_id, "user": asker.user, "person": asker.counted, **request.model_dump()}
            self.plugins.notify("on_feedback", event=event)
        return feedback_id


def _provider(settings: Settings, secret: str) -> Provider | None:
    """Return the OpenID Connect provider of the settings, which is asked nothing before the first login."""
    if settings.auth != "accounts" or not settings.oidc.issuer:
        return None
    from thumbwise.accounts.oidc import Provider  # here, because Authlib is needed for nothing else

    return Provider(settings.oidc, secret)
