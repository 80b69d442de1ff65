"""One-time links: random, stored as a hash, used once, and void after their time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from thumbwise.accounts import links as module
from thumbwise.accounts.links import HOUR, LASTS, Kind, Links, address
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Users
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import now_ns
from thumbwise.feedback.store import Store

WRONG = "This link is wrong, used or expired: ask an operator for a new one."


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    with closing(Store(tmp_path / "x.db")) as store:
        Users(store)
        yield Links(store)


def refused(links: Links, text: str, kind: Kind) -> bool:
    try:
        links.find(text, kind)
    except ThumbwiseError as error:
        return (str(error), error.status) == (WRONG, 403)
    return False


def use(links: Links, text: str, kind: Kind) -> None:
    links.store.share(lambda db: links.use(db, text, kind))


def test_only_the_hash_of_a_link_is_stored(links: Links) -> None:
    text = links.make("invite", "reviewer", COMMAND_LINE)
    assert len(text) >= 43  # 256 bits
    assert links.find(text, "invite").role == "reviewer"
    (row,) = links.store.rows("SELECT * FROM links")
    (told,) = links.store.rows("SELECT * FROM audit")
    assert text not in str(row) + str(told)
    assert (told["action"], told["actor"]) == ("link.invite", "command line")


def test_a_link_works_once_and_only_for_its_kind(links: Links) -> None:
    text = links.make("invite", "user", COMMAND_LINE)
    assert refused(links, text, "setup")
    assert refused(links, text, "reset")
    assert refused(links, "", "invite")
    assert refused(links, text + "x", "invite")
    use(links, text, "invite")
    assert refused(links, text, "invite")
    with pytest.raises(ThumbwiseError, match="wrong, used or expired"):
        use(links, text, "invite")


@pytest.mark.parametrize(("kind", "hours"), [("setup", 1), ("reset", 24), ("invite", 7 * 24)])
def test_a_link_expires(links: Links, monkeypatch: pytest.MonkeyPatch, kind: Kind, hours: int) -> None:
    text, now = links.make(kind, "user", COMMAND_LINE), now_ns()
    monkeypatch.setattr(module, "now_ns", lambda: now + hours * HOUR - HOUR // 60)
    assert not refused(links, text, kind)
    monkeypatch.setattr(module, "now_ns", lambda: now + hours * HOUR)
    assert refused(links, text, kind)
    with pytest.raises(ThumbwiseError):
        use(links, text, kind)
    links.purge()
    assert links.store.rows("SELECT * FROM links") == []
    assert LASTS[kind] == hours * HOUR


def test_a_new_setup_link_ends_the_older_ones_and_invitations_stay(links: Links) -> None:
    invited = [links.make("invite", "user", COMMAND_LINE) for _ in range(2)]
    first, second = (links.make("setup", "operator", COMMAND_LINE) for _ in range(2))
    assert refused(links, first, "setup")
    assert not refused(links, second, "setup")
    assert not any(refused(links, text, "invite") for text in invited)


def test_what_fails_with_a_link_leaves_it_unused(links: Links) -> None:
    text = links.make("invite", "user", COMMAND_LINE)

    def work(db: Database) -> None:
        links.use(db, text, "invite")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        links.store.share(work)
    assert not refused(links, text, "invite")


def test_threads_that_use_a_link_at_the_same_instant_use_it_once(links: Links) -> None:
    for _ in range(10):
        text, start = links.make("invite", "user", COMMAND_LINE), threading.Barrier(4)
        outcomes: list[bool] = []

        def once(text: str = text, start: threading.Barrier = start, outcomes: list[bool] = outcomes) -> None:
            start.wait()
            try:
                use(links, text, "invite")
                outcomes.append(True)
            except ThumbwiseError:
                outcomes.append(False)

        threads = [threading.Thread(target=once) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False, False, False, True]


def test_where_a_link_leads() -> None:
    assert address("https://chat.example.org/wise/", "invite", "x") == "https://chat.example.org/wise/join?link=x"
    assert address("http://127.0.0.1:7860", "reset", "x") == "http://127.0.0.1:7860/reset?link=x"
