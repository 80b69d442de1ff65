"""Consent: off until given, by account, under a version of the text; and what a snapshot holds of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import asker
from stored import comparison, pair, reply, thumb

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback import consent
from thumbwise.feedback.consent import ALL, NONE, Consent, Consents
from thumbwise.feedback.records import Asker, FeedbackRequest
from thumbwise.feedback.snapshot import snapshot_path, take_snapshot
from thumbwise.feedback.store import Store

ANN, BEN = "usr_ann", "usr_ben"


def lines(store: Store, folder: Path) -> list[tuple[str, str]]:
    """Type and user of each line of a snapshot taken now."""
    data = snapshot_path(folder, take_snapshot(store, folder)).read_bytes()
    return [(row["type"], row["user"]) for row in map(json.loads, data.splitlines())]


def say_everything(store: Store, user: str) -> None:
    """Each kind of feedback, by this user on own replies."""
    liked = reply(store, user)
    compared, _ = comparison(store, user)
    who = asker(user)
    store.add_feedback(who, "1", thumb(liked))
    store.add_feedback(who, "2", pair(compared))
    store.add_feedback(who, "3", FeedbackRequest(kind="edit", message_id=liked, value={"text": "Better."}))
    store.add_feedback(who, "4", FeedbackRequest(kind="comment", message_id=liked, value={"text": "Nice."}))


def test_everything_is_off_until_it_is_given(store: Store) -> None:
    consents = Consents(store)
    assert consents.of(ANN) == NONE == Consent(False, False, False)
    assert not consents.of(ANN).answered
    given = consents.give(ANN, keep_chats=True, use_votes=False, use_text=True)
    assert (given.keep_chats, given.use_votes, given.use_text, given.answered) == (True, False, True, True)
    assert consents.of(ANN) == given == Consents(store).of(ANN)
    assert consents.of(BEN) == NONE


def test_answers_are_kept_and_the_last_one_counts(store: Store) -> None:
    consents = Consents(store)
    consents.give(ANN, keep_chats=True, use_votes=True, use_text=True)
    consents.give(ANN, keep_chats=False, use_votes=False, use_text=True)
    for each in (consents, Consents(store)):
        assert (each.of(ANN).keep_chats, each.of(ANN).use_votes, each.of(ANN).use_text) == (False, False, True)
    assert len(store.rows("SELECT * FROM consents")) == 2


@pytest.mark.parametrize("user", ["local", "somebody", "app/usr_ann"])
def test_people_without_an_account_consent_and_have_nothing_to_answer(store: Store, user: str) -> None:
    assert Consents(store).of(user) == ALL
    with pytest.raises(ThumbwiseError, match="nothing to answer"):
        Consents(store).give(user, keep_chats=False, use_votes=False, use_text=False)


def test_a_name_below_a_key_goes_by_its_account(store: Store) -> None:
    consents = Consents(store)
    consents.give(f"{ANN}/visitor", keep_chats=True, use_votes=True, use_text=False)
    assert consents.of(ANN) == consents.of(f"{ANN}/other") != NONE


def test_a_new_text_asks_again_and_until_then_nothing_is_allowed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consents = Consents(store)
    consents.give(ANN, keep_chats=True, use_votes=True, use_text=True)
    say_everything(store, ANN)
    assert len(lines(store, tmp_path)) == 5
    monkeypatch.setattr(consent, "TERMS", "another")
    assert consents.of(ANN) == NONE
    assert consents.last(ANN).use_votes  # what the form shows as chosen
    assert lines(store, tmp_path) == []


def test_an_audit_entry_is_written_in_the_same_transaction(store: Store) -> None:
    told: list[Any] = []

    def refuse(*entry: Any) -> None:
        told.append(entry[1:])
        raise ThumbwiseError("no room")

    consents = Consents(store, refuse)
    with pytest.raises(ThumbwiseError, match="no room"):
        consents.give(ANN, keep_chats=True, use_votes=True, use_text=True, actor="ann")
    assert consents.of(ANN) == Consents(store).of(ANN) == NONE
    given = {"keep_chats": True, "use_votes": True, "use_text": True, "terms": consent.TERMS}
    assert told == [("ann", ANN, given)]


@pytest.mark.parametrize(
    ("votes", "text", "kinds"),
    [
        (False, False, []),
        (True, False, []),
        (False, True, ["prompt"]),
        (True, True, ["comparison", "thumb", "demonstration", "comment", "prompt"]),
    ],
)
def test_a_snapshot_holds_what_is_consented_to_when_it_is_taken(
    store: Store, tmp_path: Path, votes: bool, text: bool, kinds: list[str]
) -> None:
    say_everything(store, ANN)
    say_everything(store, f"{ANN}/visitor")
    say_everything(store, "local")
    Consents(store).give(ANN, keep_chats=False, use_votes=votes, use_text=text)
    found = lines(store, tmp_path)
    for user in (ANN, f"{ANN}/visitor"):
        assert sorted(kind for kind, whose in found if whose == user) == sorted(kinds)
    assert len([kind for kind, whose in found if whose == "local"]) == 5
    Consents(store).give(ANN, keep_chats=True, use_votes=False, use_text=False)
    assert {whose for _, whose in lines(store, tmp_path)} == {"local"}


@pytest.mark.parametrize(
    ("votes", "text", "owners", "kinds"),
    [
        (True, True, True, ["thumb", "comment"]),
        (True, False, True, ["thumb"]),
        (False, True, True, []),
        (True, True, False, []),
    ],
)
def test_a_vote_on_anothers_question_needs_consent_for_its_text_too(
    store: Store, tmp_path: Path, votes: bool, text: bool, owners: bool, kinds: list[str]
) -> None:
    """A row as a reviewer's: the vote is one person's, the question another's."""
    liked = reply(store, BEN)
    for number, request in enumerate(
        (thumb(liked), FeedbackRequest(kind="comment", message_id=liked, value={"text": "Nice."}))
    ):
        store.add_feedback(Asker(BEN, BEN), str(number), request)
    with store.write() as db:
        db.execute("UPDATE feedback SET user_id = ?, person = ?", [ANN, ANN])
    consents = Consents(store)
    consents.give(ANN, keep_chats=False, use_votes=votes, use_text=text)
    consents.give(BEN, keep_chats=False, use_votes=False, use_text=owners)
    assert [kind for kind, whose in lines(store, tmp_path) if whose == ANN] == kinds
