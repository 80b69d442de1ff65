"""Which browser asked, in real Chromium: a cookie that outlives the page, tells browsers apart, and no script reads."""

from __future__ import annotations

import time

import pytest
from chromium import Site

from thumbwise.accounts.browsers import YOUNG_SECONDS
from thumbwise.feedback.records import NEW_BROWSER


def test_a_browser_that_came_yesterday_counts_by_itself_and_a_new_one_with_all_new_ones(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    browsers = site.assistant.browsers
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - YOUNG_SECONDS - 60)
        yesterday = browsers.new()
    cookie = {"name": browsers.name, "value": yesterday, "url": site.url, "domain": "", "path": ""}
    known = {key: value for key, value in cookie.items() if value}
    old = site.open("/?c=new", storage_state={"cookies": [known | {"expires": -1}], "origins": []})
    site.say(old, "Who am I?")
    new = site.open("/?c=new")
    site.say(new, "And I?")
    rows = site.rows("SELECT user_id, person FROM replies ORDER BY rowid")
    assert [(row["user_id"], row["person"]) for row in rows] == [
        ("local", browsers.asker(yesterday).person), ("local", NEW_BROWSER),
    ]  # fmt: skip
    assert old.evaluate("document.cookie") == ""
    kept = [cookie["value"] for cookie in old.context.cookies()]
    old.reload()
    assert [cookie["value"] for cookie in old.context.cookies()] == kept == [yesterday]
