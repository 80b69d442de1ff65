"""Make the README's pictures from a running assistant: `python tests/browser/screenshots.py URL`.

Writes docs/images/chat.png and docs/images/compare.png (1280 x 800, a palette of 64 colours, so that they stay
small). It chats and votes, so point it at an assistant whose feedback does not matter; start that one with
THUMBWISE_CHAT_MAX_TOKENS=64, since small models ramble. Replies are drawn anew at every run.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
PATIENCE = 180_000  # milliseconds for a reply; a small machine is slow


def wait(page: Page, state: str) -> None:
    """Wait until the page says `state`."""
    expect(page.locator("body")).to_have_attribute("data-state", state, timeout=PATIENCE)


def save(page: Page, name: str) -> None:
    """Write the page as a PNG with a small palette."""
    page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    path = IMAGES / f"{name}.png"
    picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", file=sys.stderr)


def ask(page: Page, url: str, text: str) -> None:
    """Ask in a new conversation; returns when the reply has begun."""
    page.goto(f"{url}/?c=new")
    wait(page, "idle")
    expect(page.locator("#tw-send")).to_be_enabled(timeout=PATIENCE)
    page.fill("#tw-box textarea", text)
    page.press("#tw-box textarea", "Enter")
    wait(page, "streaming")


def chat(page: Page, url: str) -> None:
    """A conversation with a thumb and the comment panel, and an older one in the list."""
    ask(page, url, "How does a rainbow form?")
    page.click("#tw-stop")
    wait(page, "stopped")
    ask(page, url, "Give me a tip for sleeping well.")
    wait(page, "done")
    page.get_by_role("button", name="Like", exact=True).last.click()
    expect(page.locator("#tw-comment")).to_be_visible()
    expect(page.get_by_test_id("toast-text")).to_have_count(0, timeout=PATIENCE)
    save(page, "chat")


def compare(page: Page, url: str) -> None:
    """Two finished drafts, before the vote."""
    page.goto(f"{url}/compare")
    wait(page, "idle")
    page.fill("#tw-box textarea", "How can I fall asleep faster?")
    page.click("#tw-go")
    wait(page, "ready")
    save(page, "compare")


def main(url: str) -> None:
    """Make both pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800}).new_page()
        chat(page, url.rstrip("/"))
        compare(page, url.rstrip("/"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
