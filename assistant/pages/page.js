(() => {
  "use strict";
  const $ = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];

  // A live region that stays in place: screen readers miss one that is replaced together with its text.
  const live = document.createElement("div");
  live.className = "tw-sr";
  live.setAttribute("role", "status");
  live.setAttribute("aria-live", "polite");

  let said = null;
  const status = () => {
    const now = $("#tw-status p");
    if (!now) return;
    if (document.body.dataset.state !== now.dataset.state) document.body.dataset.state = now.dataset.state;
    if (now.textContent !== said) live.textContent = said = now.textContent;
    const wanted = now.dataset.query ? "?" + now.dataset.query : "";
    if (now.dataset.state !== "loading" && location.search !== wanted) {
      history.replaceState(null, "", location.pathname + wanted);
    }
  };

  // What became of a vote stands under the drafts, which may be longer than a phone's screen.
  let reached = null;
  const result = () => {
    const shown = $("#tw-next") && $("#tw-composer") ? location.search : null;
    if (shown !== null && shown !== reached) $("#tw-compare").scrollTo({ top: $("#tw-compare").scrollHeight });
    reached = shown;
  };

  const set = (element, name, value) => {
    if (!element || element.dataset[name] === value) return;
    if (value) element.dataset[name] = value;
    else delete element.dataset[name];
  };

  // Which version wrote each reply and how it ended, put beside the message and not into it, so that a copy
  // of the message does not carry it.
  const notes = () => {
    const replies = all("#tw-chat .message-row.bot-row");
    all("#tw-notes i").forEach((note, i) => {
      const row = replies[i];
      const buttons = row?.nextElementSibling?.matches(".message-buttons") ? row.nextElementSibling : null;
      set(row, "state", note.dataset.state);
      set(row, "error", note.dataset.error);
      set(buttons, "state", note.dataset.state);
      set(buttons, "note", note.dataset.note);
    });
    const log = $("#tw-chat [role=log]"); // it would read every message again with each token
    if (log && log.getAttribute("aria-live") !== "off") log.setAttribute("aria-live", "off");
  };

  // markup.py ends a message with a paragraph of no width where indentation must stay; it would be an empty line.
  const ends = () => {
    for (const last of all(".prose > p:last-child:not(:first-child)")) {
      if (last.textContent === "\u200b") last.style.display = "none";
    }
  };

  // On a phone the list of conversations covers the page: it starts closed, and closes when one is chosen.
  const phone = matchMedia("(width <= 768px)");
  const close = () => {
    if (phone.matches) $("#tw-side.open .toggle-button")?.click();
  };
  const sidebar = () => {
    if (document.body.dataset.side || !$("#tw-side .toggle-button")) return;
    document.body.dataset.side = "ready";
    close();
  };
  const chosen = (event) => {
    if (event.target.closest?.("#tw-list a, #tw-new")) close();
  };

  // A message is kept in the page as markup.py's `markdown` writes it; who copies it wants what was said.
  const VERBATIM = /(```[^]*?(?:```|$)|~~~[^]*?(?:~~~|$)|`[^`\n]+`|\$\$[^]+?\$\$)/;
  const plain = (text) =>
    text.replace(/\n\n\u200b$/, "").split(VERBATIM)
      .map((part, i) => (i % 2 ? part : part.replaceAll("&#33;[", "![").replaceAll("&lt;", "<").replaceAll("&amp;", "&")))
      .join("");
  const copies = () => {
    if (!navigator.clipboard) return; // as on plain HTTP from another machine
    let whole = false;
    document.addEventListener("click", (event) => (whole = !!event.target.closest?.("#tw-chat .message-buttons")), true);
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(whole ? plain(text) : text);
  };

  // Gradio says that the server is gone, and loads the page again when it is back; what was being typed goes with it.
  const gone = () => {
    const lost = (toast) => toast.textContent.startsWith("Connection to the server was lost");
    if (all(".toast-message-text").some(lost)) document.body.dataset.gone = "";
  };
  const box = () => $("#tw-box textarea");
  const draft = () => "tw-draft " + location.pathname + location.search;
  const keep = () => {
    if (box()) sessionStorage.setItem(draft(), box().value); // empty too: what was sent must not come back
  };
  let restored = false;
  const restore = () => {
    if (restored || !box() || !document.body.dataset.state || document.body.dataset.state === "loading") return;
    restored = true;
    const kept = sessionStorage.getItem(draft());
    sessionStorage.removeItem(draft());
    if (!kept || box().value) return;
    box().value = kept;
    box().dispatchEvent(new Event("input", { bubbles: true }));
  };

  // What the keyboard was on goes away with what it did: on to what comes next, not to the top of the page.
  // Never on to a vote, which a space would give.
  let on = null;
  let lost = false; // until the focus is somewhere again: what went away may be back before there is a next
  const moved = (element) => {
    on = element?.matches?.(":focus-visible") ? element : null;
    lost = false;
  };
  const focus = () => {
    lost ||= on !== null && !on.offsetParent;
    const next = $("#tw-compare") ? $("#tw-next") : box();
    if (lost && next?.offsetParent && !next.disabled) next.focus();
  };

  let planned = false;
  const look = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      status();
      notes();
      ends();
      result();
      sidebar();
      gone();
      restore();
      focus();
    });
  };

  const VOTES = {
    1: "tw-much-1", 2: "tw-better-1", 3: "tw-same", 4: "tw-better-2", 5: "tw-much-2", b: "tw-both-bad", s: "tw-skip",
    n: "tw-next",
  };
  const keys = (event) => {
    if (event.key === "Enter" && event.isComposing) return event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === "Escape" && $("#tw-comment-close")) return $("#tw-comment-close").click();
    if (event.target.closest?.("textarea, input, [contenteditable]")) return;
    const button = document.getElementById(VOTES[event.key.toLowerCase()]);
    if (!button || button.disabled || !button.offsetParent) return;
    event.preventDefault();
    button.click();
  };

  const start = () => {
    document.documentElement.lang = "en";
    document.body.append(live);
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
    document.addEventListener("keydown", keys, true);
    document.addEventListener("click", chosen);
    document.addEventListener("focusin", (event) => moved(event.target));
    document.addEventListener("pointerdown", () => moved(null));
    addEventListener("pagehide", keep);
    copies();
    look();
  };
  // Gradio adds this script when the page is already there.
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
