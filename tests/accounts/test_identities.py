"""Which account somebody at a provider gets: by issuer and subject only, and never at the cost of the last operator."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from thumbwise.accounts.audit import Audit
from thumbwise.accounts.identities import SENTENCES, Identities, Identity, Invited
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Users
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.store import Store

ISSUER = "https://login.example.org"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "feedback.db")
    yield store
    store.close()


@pytest.fixture
def people(store: Store) -> Identities:
    return Identities(store, Users(store))


def who(subject: str = "1", *names: str, **more: Any) -> Identity:
    return Identity(more.pop("issuer", ISSUER), subject, names, **more)


def actions(store: Store) -> list[str]:
    return [entry["action"] for entry in Audit(store).entries()]


def test_the_second_login_is_the_same_account(people: Identities) -> None:
    first = people.enter(who("1", "ann"), "open")
    assert people.enter(who("1", "renamed"), "closed").id == first.id
    assert people.users.get("ann").id == first.id


def test_first_sso_account_is_not_admin(people: Identities) -> None:
    first = people.enter(who("1", "ann"), "open")
    assert (first.role, first.state) == ("user", "active")
    assert not people.users.has_operator()
    assert people.enter(who("2", "boss", role="operator"), "open").role == "operator"


def test_linked_by_e_mail(people: Identities) -> None:
    """An account of the same name or e-mail address is somebody else's, until its owner connects the provider."""
    ann = people.users.create("ann@x.org", "operator", COMMAND_LINE)
    other = people.enter(who("evil", "ann@x.org"), "open")
    assert other.id != ann.id
    assert (other.name, other.role) == ("ann@x.org 2", "user")
    elsewhere = people.enter(who("evil", "ann@x.org", issuer="https://another.org"), "open")
    assert len({ann.id, other.id, elsewhere.id}) == 3


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("Ann",), "ann"), (("a/b", "usr_1", "local", "Ann B"), "ann b"), ((), "person"), (("\x00",), "person"),
        (("x" * 500, "ann"), "ann"), (("y" * 120,), "y" * 100), (("  ",), "person"),
    ],
)  # fmt: skip
def test_a_new_account_gets_a_name_that_can_be_one(people: Identities, names: tuple[str, ...], name: str) -> None:
    assert people.enter(who("1", *names), "open").name == name


def test_many_people_of_one_name_get_many_accounts(people: Identities) -> None:
    made = [people.enter(who(str(number), "ann"), "open") for number in range(30)]
    assert len({account.name for account in made}) == 30
    assert [people.enter(who(str(number), "ann"), "closed").id for number in range(30)] == [a.id for a in made]


def test_sign_up_decides_who_gets_an_account(people: Identities, store: Store) -> None:
    with pytest.raises(ThumbwiseError, match="invitation") as refused:
        people.enter(who("1", "ann"), "closed")
    assert refused.value.status == 403
    assert not people.users.all()
    assert actions(store) == ["login.refused"]
    assert people.enter(who("1", "ann"), "approval").state == "pending"
    assert people.enter(who("1", "ann"), "open").state == "pending"  # a change of the setting approves nobody
    assert people.enter(who("2", "bob"), "open").state == "active"


def test_an_invitation_gives_its_role_and_is_used_with_the_account(people: Identities) -> None:
    used: list[str] = []
    invited = Invited("reviewer", lambda db, user_id: used.append(user_id))
    account = people.enter(who("1", "ann"), "closed", invited=invited)
    assert (account.role, account.state, used) == ("reviewer", "active", [account.id])
    people.enter(who("1", "ann"), "closed", invited=invited)
    assert used == [account.id]


def test_an_invitation_that_was_used_meanwhile_makes_no_account(people: Identities) -> None:
    def use(db: object, user_id: str) -> None:
        raise ThumbwiseError("used", status=403)

    with pytest.raises(ThumbwiseError, match="used"):
        people.enter(who("1", "ann"), "closed", invited=Invited("operator", use))
    assert not people.users.all()
    assert people.find(ISSUER, "1") is None


def test_a_disabled_account_does_not_come_back(people: Identities) -> None:
    account = people.enter(who("1", "ann"), "open")
    people.users.set_state(account.id, "disabled", COMMAND_LINE)
    with pytest.raises(ThumbwiseError, match="disabled"):
        people.enter(who("1", "ann", role="operator"), "open")
    assert people.users.get("ann").role == "user"
    assert len(people.users.all()) == 1


def test_allow_lists_hold_at_each_login(people: Identities) -> None:
    people.enter(who("1", "ann"), "open")
    for subject in ("1", "2"):
        with pytest.raises(ThumbwiseError, match="may not use"):
            people.enter(who(subject, "ann", allowed=False), "open", invited=Invited("operator", lambda db, id_: None))
    with pytest.raises(ThumbwiseError, match="may not use"):
        people.connect(who("3", allowed=False), people.users.get("ann").id, COMMAND_LINE)


def test_the_claim_sets_the_role_at_each_login_and_an_absent_claim_keeps_it(people: Identities) -> None:
    people.users.create_operator("boss", COMMAND_LINE)
    for said, role in ((None, "user"), ("reviewer", "reviewer"), ("operator", "operator"), (None, "operator"),
                       ("user", "user")):  # fmt: skip
        assert people.enter(who("1", "ann", role=said), "open").role == role


def test_a_provisioner_removes_or_demotes_admins(people: Identities, store: Store) -> None:
    boss = people.enter(who("1", "boss", role="operator"), "open")
    kept = people.enter(who("1", "boss", role="user"), "open")
    assert (kept.id, kept.role, kept.state) == (boss.id, "operator", "active")
    entry = Audit(store).entries(1)[0]
    assert (entry["action"], entry["target"]) == ("role.kept", boss.id)
    assert entry["detail"] == {"claim": "user", "role": "operator"}
    people.enter(who("2", "second", role="operator"), "open")
    assert people.enter(who("1", "boss", role="user"), "open").role == "user"


def test_an_unreadable_claim_is_in_the_audit_log(people: Identities, store: Store) -> None:
    account = people.enter(who("1", "ann", ignored="dict"), "open")
    entry = Audit(store).entries(1)[0]
    assert (entry["action"], entry["target"], entry["detail"]) == ("role.claim_ignored", account.id, {"type": "dict"})


def test_first_admin_race(people: Identities) -> None:
    """Several first logins at one instant: one account for each person, none an operator without the map."""
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: people.enter(who(str(number % 4), "ann"), "open"), range(16)))
    assert len({account.id for account in made}) == 4
    assert {account.role for account in made} == {"user"}
    assert len(people.users.all()) == 4


def test_provisioned_users_cannot_sign_in(people: Identities) -> None:
    """Accounts that were made for people before their first login let them in: by connecting, or after approval."""
    ann = people.users.create("ann", "user", COMMAND_LINE)
    people.connect(who("1", "somebody"), ann.id, COMMAND_LINE)
    assert people.enter(who("1", "somebody"), "closed").id == ann.id
    bob = people.enter(who("2", "bob"), "approval")
    people.users.set_state(bob.id, "active", COMMAND_LINE)
    assert people.enter(who("2", "bob"), "closed").state == "active"


def test_one_identity_belongs_to_one_account(people: Identities, store: Store) -> None:
    ann, bob = (people.users.create(name, "user", COMMAND_LINE) for name in ("ann", "bob"))
    people.connect(who("1"), ann.id, COMMAND_LINE)
    people.connect(who("1"), ann.id, COMMAND_LINE)
    with pytest.raises(ThumbwiseError, match="another account") as refused:
        people.connect(who("1"), bob.id, COMMAND_LINE)
    assert refused.value.status == 409
    assert [found["subject"] for found in people.of(ann.id)] == ["1"]
    assert people.of(bob.id) == []
    assert actions(store).count("identity.connect") == 1


def test_each_sentence_says_what_to_do() -> None:
    for sentence in SENTENCES.values():
        assert sentence.endswith(".")
        assert sentence.count(". ") == 0
        assert len(sentence) <= 120
