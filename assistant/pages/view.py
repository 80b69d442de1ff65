"""What the chat page shows, as HTML of stored replies: the conversation, and the list of conversations.

Nothing here keeps state or reads the database: see rule 1 in `thumbwise.pages`. `markup.render` makes safe HTML of a
message. Everything else is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from thumbwise.contracts import Message
from thumbwise.feedback.records import Reply
from thumbwise.pages.look import COPY, THUMB, THUMB_DOWN, THUMB_UP
from thumbwise.pages.markup import escape, render, render_once, short
from thumbwise.pages.prompts import STARTERS

EMPTY = (
    f'<div class="tw-empty">{THUMB}<h1>What can I help with?</h1>'
    "<p>Thumbs on the replies teach the next version of this assistant.</p></div>"
    '<div class="tw-starters">'
    + "".join(
        f'<button type="button" class="tw-starter" data-say="{escape(text)}">{name}</button>' for name, text in STARTERS
    )
    + "</div>"
)
TEMPORARY = (
    f'<div class="tw-empty">{THUMB}<h1>Temporary chat</h1><p>Nothing of it is stored, so it is in no list, nothing '
    "learns from it, and its replies have no thumbs. Loading this page again ends it.</p></div>"
)
NOTHING = '<p class="tw-none">There is no reply.</p>'
_SAID = {
    "done": "Reply finished. The thumbs below it tell what you think of it.",
    "stopped": "The reply was stopped.",
    "streaming": "The reply is being written.",
}
_BROKE_OFF = {
    "context": "The reply ends here: the model cannot read a longer conversation. Start a new chat to continue.",
    "length": "The reply ends here: it has the greatest length of a reply. Ask for the rest.",
}
_THUMBS = (("up", "Like", "Liked", THUMB_UP), ("down", "Dislike", "Disliked", THUMB_DOWN))


def prompt_of(path: Iterable[Reply], text: str) -> list[Message]:
    """Return the messages for the engine: the conversation as the reader saw it, then `text`.

    A reply without text (failed or stopped before its first word) is left out with its question, so that user and
    assistant alternate. A partial reply stays, because the reader has read it.
    """
    messages: list[Message] = []
    for reply in path:
        if reply.text.strip():
            messages += [reply.prompt[-1], Message(role="assistant", content=reply.text)]
    return [*messages, Message(role="user", content=text)]


def log_html(path: Sequence[Reply], *, temporary: bool = False) -> str:
    """Return the conversation, oldest first. A reply that is being written has no text yet."""
    if not path:
        return EMPTY
    return "".join(_question_html(reply, temporary) + reply_html(reply, temporary=temporary) for reply in path)


def _question_html(reply: Reply, temporary: bool) -> str:
    text = (render_once if temporary else render)(reply.prompt[-1]["content"])
    return f'<div class="tw-ask"><div class="tw-text" data-testid="user" dir="auto">{text}</div></div>'


def reply_html(reply: Reply, *, temporary: bool = False) -> str:
    """Return one reply: its text, its error, the buttons, and the version that wrote it.

    A reply that failed has no thumbs, nor has a temporary one. The HTML of a temporary one is kept in no cache.
    """
    written = (render_once if temporary else render)(reply.text) if reply.text.strip() else NOTHING
    text = "" if reply.state == "streaming" else written
    why = sentence(reply.error) if reply.state == "failed" else _BROKE_OFF.get(reply.cut, "")
    error = f'<p class="tw-why">{escape(why)}</p>' if why else ""
    buttons = _buttons(reply, thumbs=reply.state != "failed" and not temporary)
    note = short(reply.policy_version) + (" · stopped" if reply.state == "stopped" else "")
    return (
        f'<article class="tw-reply" data-reply="{escape(reply.id)}" data-state="{reply.state}" '
        f'data-text="{escape(reply.text)}">'
        f'<div class="tw-text" data-testid="bot" dir="auto">{text}</div>{error}'
        f'<div class="tw-acts">{buttons}<span class="tw-note">{escape(note)}</span></div></article>'
    )


def _buttons(reply: Reply, *, thumbs: bool) -> str:
    """Return the copy button, and the thumbs if wanted."""
    buttons = [f'<button type="button" class="tw-act" data-copy aria-label="Copy">{COPY}</button>']
    for value, name, given, icon in _THUMBS if thumbs else ():
        on = reply.thumb == value
        buttons.append(
            f'<button type="button" class="tw-act" data-thumb="{value}" data-names="{name},{given}" '
            f'aria-pressed="{str(on).lower()}" aria-label="{given if on else name}">{icon}</button>'
        )
    return "".join(buttons)


def sentence(error: str | None) -> str:
    """Return what went wrong and what to do, for a reader of the page."""
    if error and "maximum context length" in error:  # vLLM's words for a conversation that has grown too long
        return "This conversation is longer than the model can read: start a new chat."
    return error or "The reply failed: ask again."


def status_of(path: Sequence[Reply]) -> tuple[str, str]:
    """Return the page's state for the style sheet and the tests, and the sentence for screen readers."""
    if not path:
        return "idle", ""
    last = path[-1]
    if last.state == "failed":
        return last.state, sentence(last.error)
    return last.state, _BROKE_OFF.get(last.cut, _SAID[last.state])


def list_html(conversations: Iterable[tuple[str, str]]) -> str:
    """Return the list of conversations, as links that also work in a new tab."""
    items = [
        f'<li><a href="./?c={escape(id_)}" data-open="{escape(id_)}" dir="auto">'
        f"{escape(title.strip() or 'Untitled')}</a></li>"
        for id_, title in conversations
    ]
    if not items:
        return '<p class="tw-none">Your conversations will be listed here.</p>'
    return f'<nav aria-label="Conversations"><ul>{"".join(items)}</ul></nav>'


_LINE_MARKS = re.compile(r"^[ \t]*[#>]+ ", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)[*_](\w(?:[^*_\n]*\w)?)[*_](?!\w)")


def excerpt(text: str, length: int = 60) -> str:
    """Return the first words of a text, on one line and without Markdown. `1 > 0`, `C#` and `a_b` stay as they are."""
    text = _LINE_MARKS.sub("", text).replace("**", "").replace("`", "")
    line = " ".join(_EMPHASIS.sub(r"\1", text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
