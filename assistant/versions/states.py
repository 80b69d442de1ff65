"""The states of a policy version, and every way from one to another.

`Versions.set_state` refuses every other way. A test holds the moves of the pointer to the same table.

| state | meaning | takes traffic |
|---|---|---|
| staged | its files are checked and complete | no |
| loaded | every vLLM server that answers people has loaded it | no |
| probed | each of them answered its probe with the trainer's log-probabilities | no |
| canary | it answers a share of people | yes |
| stable | it answers all others | yes |
| retired | it took traffic, and another version replaced it | no |
| rejected | a gate, a probe, people or an operator refused it; the reason is kept | no |

The state says how far a version ever came. It does not say that a server has it now: a vLLM that restarts forgets every
adapter. Which versions the running servers have loaded and answered a probe for is kept in memory
(`thumbwise.versions.loading`).
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """One word for each stage in a version's life."""

    STAGED = "staged"
    LOADED = "loaded"
    PROBED = "probed"
    CANARY = "canary"
    STABLE = "stable"
    RETIRED = "retired"
    REJECTED = "rejected"


TRAFFIC = frozenset({State.CANARY, State.STABLE})
"""States that the pointer gives and takes. They change in the transaction that moves the pointer, and only there."""

NEXT: dict[State, frozenset[State]] = {
    State.STAGED: frozenset({
        State.LOADED,  # every server loaded it
        State.RETIRED,  # it was found on disk, and an older copy of the database did not know it
        State.REJECTED,  # by a gate, by a server that could not load it, or by an operator
    }),
    State.LOADED: frozenset({
        State.PROBED,  # every server answered its probe
        State.REJECTED,  # a probe failed, or an operator
    }),
    State.PROBED: frozenset({
        State.PROBED,  # its promotion was dropped, and it is probed again
        State.CANARY,  # promoted with a share of people
        State.STABLE,  # promoted; or a rollback that came during a promotion to it, and went back to it
        State.REJECTED,
    }),
    State.CANARY: frozenset({
        State.CANARY,  # its share was changed
        State.STABLE,  # promoted
        State.RETIRED,  # another version became stable or canary
        State.REJECTED,  # taken back: by people, by a probe, at a restart, or by an operator
    }),
    State.STABLE: frozenset({
        State.RETIRED,  # another version became stable
    }),
    State.RETIRED: frozenset({
        State.PROBED,  # it is to be promoted again
        State.STABLE,  # a rollback went back to it
        State.REJECTED,  # it could not be restored, or an operator
    }),
    State.REJECTED: frozenset({
        State.PROBED,  # it was stable once, and is to be promoted again
        State.STABLE,  # only the base: when no other version is left to go back to, it answers whatever its state
        State.REJECTED,  # once more, with another reason
    }),
}  # fmt: skip
"""What may follow each state."""


def before(state: State) -> list[State]:
    """The states without traffic from which a version may come to `state`, in the order of the table."""
    return [old for old in State if old not in TRAFFIC and state in NEXT[old]]
