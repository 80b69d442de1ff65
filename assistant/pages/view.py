"""What the chat page shows, made from stored replies: messages, thumbs, notes, the list of conversations.

Nothing here keeps state or talks to the database, so that a page can be rebuilt at any time from its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from thumbwise.contracts import Message
from thumbwise.feedback.records import Reply
from thumbwise.pages.markup import escape, markdown, short
from thumbwise.pages.top import Shown

WAITING = "\u200b"  # an empty bubble would not be drawn; the style sheet adds moving dots
NOTHING = "*There is no reply.*"
_THUMBS = {"up": "Like", "down": "Dislike"}
_SAID = {
    "done": "Reply finished. The thumbs below it tell what you think of it.",
    "stopped": "The reply was stopped.",
    "streaming": "The reply is being written.",
}


@dataclass
class View:
    """What one open page shows, kept on the server. Its own truth is only which conversation it is."""

    conversation_id: str | None = None
    state: str = "loading"  # what the page last said of the conversation's newest reply
    epoch: int = 0  # grows when the page turns to something else, which ends an older follower
    commenting_on: str | None = None
    clicked: tuple[str, float] = ("", 0.0)  # message id and monotonic time of the last thumb given
    lists: int = 1  # how many times LISTED conversations are listed
    top: Shown | None = None
    thumbs: list[str | None] = field(default_factory=list)
    cookie: str = ""  # of the browser that loaded the page


def prompt_of(path: Iterable[Reply], text: str) -> list[Message]:
    """The messages for the engine: the conversation as the reader saw it, then `text`.

    A reply that came to nothing (failed or stopped before its first word) is left out with its question, so
    that user and assistant alternate; a partial one stays, because the reader has read it.
    """
    messages: list[Message] = []
    for reply in path:
        if reply.text.strip():
            messages += [reply.prompt[-1], Message(role="assistant", content=reply.text)]
    return [*messages, Message(role="user", content=text)]


def bubble(text: str, state: str) -> str:
    """The Markdown of one reply's bubble."""
    if text.strip():
        return markdown(text)
    return WAITING if state == "streaming" else NOTHING


def messages_of(path: Iterable[Reply], writing: str) -> list[dict[str, str]]:
    """The chat component's value; `writing` is the text of the reply that is being written."""
    messages = []
    for reply in path:
        text = writing if reply.state == "streaming" else reply.text
        messages.append({"role": "user", "content": markdown(reply.prompt[-1]["content"])})
        messages.append({"role": "assistant", "content": bubble(text, reply.state)})
    return messages


def thumbs_of(path: Iterable[Reply]) -> list[str | None]:
    """The chat component's `feedback_value`: one entry a reply, in order."""
    return [_THUMBS.get(reply.thumb or "") for reply in path]


def notes_of(path: Iterable[Reply]) -> str:
    """Hidden elements that the script puts beside each reply: its version, how it ended, what went wrong."""
    notes = []
    for reply in path:
        ended = " · stopped" if reply.state == "stopped" else ""
        error = sentence(reply.error) if reply.state == "failed" else ""
        notes.append(
            f'<i data-state="{reply.state}" data-note="{escape(short(reply.policy_version) + ended)}" '
            f'data-error="{escape(error)}"></i>'
        )
    return "".join(notes)


def sentence(error: str | None) -> str:
    """What went wrong and what to do, for a reader of the page."""
    if error and "maximum context length" in error:  # vLLM's words for a conversation that has grown too long
        return "This conversation is longer than the model can read: start a new chat."
    return error or "The reply failed: ask again."


def status_of(path: Sequence[Reply]) -> tuple[str, str]:
    """The page's state for style sheet and tests, and the sentence for screen readers."""
    if not path:
        return "idle", ""
    last = path[-1]
    if last.state == "failed":
        return last.state, sentence(last.error)
    return last.state, _SAID[last.state]


def query_of(view: View) -> str:
    """What stands in the address bar for the conversation that is shown."""
    return f"c={view.conversation_id or 'new'}"


def status_html(state: str, said: str, query: str) -> str:
    """The hidden status element; the script announces `said` and keeps `query` in the address bar."""
    return f'<p data-state="{state}" data-query="{escape(query)}">{escape(said)}</p>'


def list_html(conversations: Iterable[tuple[str, str]], here: str | None) -> str:
    """The list of conversations, as links that also work in a new tab."""
    items = [
        f'<li><a href="/?c={escape(id_)}" data-open="{escape(id_)}"{" aria-current=page" if id_ == here else ""}>'
        f"{escape(title.strip() or 'Untitled')}</a></li>"
        for id_, title in conversations
    ]
    if not items:
        return '<p class="tw-none">Your conversations will be listed here.</p>'
    return f'<nav aria-label="Conversations"><ul>{"".join(items)}</ul></nav>'


_LINE_MARKS = re.compile(r"^[ \t]*[#>]+ ", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)[*_](\w(?:[^*_\n]*\w)?)[*_](?!\w)")


def excerpt(text: str, length: int = 60) -> str:
    """The first words of a text, on one line and without the marks of Markdown (`1 > 0`, `C#` and `a_b` are none)."""
    text = _LINE_MARKS.sub("", text).replace("**", "").replace("`", "")
    line = " ".join(_EMPHASIS.sub(r"\1", text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
