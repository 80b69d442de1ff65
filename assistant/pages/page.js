"use strict";
// What both pages need: asking the server, listening to it, what is said and shown around the conversation.
window.thumbwise = (() => {
  const $ = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const box = () => $("#tw-box textarea");

  // -- asking ---------------------------------------------------------------------------------------
  const ask = async (path, sent) => {
    const options = sent && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(sent) };
    let answer;
    try {
      answer = await fetch("/pages" + path, options);
    } catch {
      throw new Error("The assistant cannot be reached: try again when it is back.");
    }
    const said = await answer.json().catch(() => null);
    if (answer.ok) return said;
    throw Object.assign(new Error(said?.error?.message ?? "Something went wrong: try again."), { status: answer.status });
  };

  // What a page begins with, again until the server answers.
  const patiently = async (work) => {
    for (;;) {
      const error = await work().then(() => null, (error) => error);
      if (error === null) return;
      if (error.status) return refused("Not opened")(error);
      gone();
      await new Promise((resolve) => setTimeout(resolve, 1500));
    }
  };

  // -- messages from the page -----------------------------------------------------------------------
  // Live regions that stay in place: screen readers miss one that is replaced together with its text.
  const live = document.createElement("div");
  live.className = "tw-sr";
  live.setAttribute("role", "status");
  live.setAttribute("aria-live", "polite");
  const toasts = document.createElement("div");
  toasts.className = "tw-toasts";
  toasts.setAttribute("role", "log");

  const say = (text) => {
    if (live.textContent !== text) live.textContent = text;
  };
  const toast = (text, { title = "", seconds = 4 } = {}) => {
    if (!text) return;
    const note = document.createElement("div");
    note.className = title ? "tw-toast tw-bad" : "tw-toast";
    note.innerHTML = '<p><b></b> <span data-testid="toast-text"></span></p><button type="button" aria-label="Close">×</button>';
    note.querySelector("b").textContent = title && title + ".";
    note.querySelector("span").textContent = text;
    note.querySelector("button").addEventListener("click", () => note.remove());
    toasts.append(note);
    setTimeout(() => note.remove(), 1000 * seconds);
  };
  const refused = (title) => (error) => toast(error.message, { title, seconds: 10 });

  // -- what is shown --------------------------------------------------------------------------------
  // Only blocks that changed are replaced, so that what somebody selected further up stays selected.
  const fill = (element, html) => {
    const made = document.createElement("template");
    made.innerHTML = html;
    let [now, then] = [element, made.content];
    if (now.children.length === 1 && then.children.length === 1 && now.firstChild.className === then.firstChild.className) {
      [now, then] = [now.firstChild, then.firstChild]; // what render() puts around a message
    }
    const [old, next] = [[...now.childNodes], [...then.childNodes]];
    let same = 0;
    while (same < old.length && same < next.length && old[same].isEqualNode(next[same])) same += 1;
    old.slice(same).forEach((node) => node.remove());
    now.append(...next.slice(same));
  };
  const set = (element, html) => {
    if (element && element.innerHTML !== html) element.innerHTML = html;
  };
  const place = (name) => $(name + " .html-container > *") ?? $(name);

  let ready = false;
  let busy = false; // a message is on its way
  const buttons = () => {
    const able = ready && !busy && !("gone" in document.body.dataset);
    for (const button of all("#tw-send, #tw-go")) button.disabled = !able;
    const open = document.body.dataset.state === "ready";
    for (const button of all("#tw-votes button")) button.disabled = !open;
  };
  const state = ({ state, said, query }) => {
    document.body.dataset.state = state;
    say(said);
    const wanted = query ? "?" + query : "";
    if (query !== undefined && location.search !== wanted) history.replaceState(null, "", location.pathname + wanted);
    buttons();
  };
  const sending = async (work) => {
    if (busy) return;
    busy = true;
    buttons();
    await work().catch(refused("Not sent"));
    busy = false;
    buttons();
  };
  const write = (text) => {
    box().value = text;
    box().dispatchEvent(new Event("input", { bubbles: true }));
  };

  // -- listening ------------------------------------------------------------------------------------
  // One stream a page, and none while nobody looks: browsers open six connections to a server, for all pages together.
  let source = null;
  let address = "";
  let handlers = {};
  let server = null;
  let retry = 0;
  let missed = 0;
  const top = (now) => {
    if (server !== null && server !== now.server) return location.reload(); // it was started again
    server = now.server;
    clearTimeout(missed);
    missed = 0;
    delete document.body.dataset.gone;
    ready = now.ready;
    set(place("#tw-version"), now.chip ?? "");
    set(place("#tw-banner"), now.banner);
    buttons();
  };
  const gone = () => {
    document.body.dataset.gone = "";
    set(place("#tw-banner"),
      '<div class="tw-banner" role="status" data-state="waiting"><i></i><div><b>The assistant is not running</b>' +
      "<span>This page goes on by itself when it is back.</span></div></div>");
    buttons();
  };
  const connect = () => {
    source?.close();
    clearTimeout(retry);
    if (!address || document.hidden) return;
    const mine = (source = new EventSource(address));
    const on = (name, handle) => mine.addEventListener(name, (event) => mine === source && handle(JSON.parse(event.data)));
    on("top", top);
    on("frame", (frame) => handlers.frame(frame));
    on("end", (end) => handlers.end(end));
    mine.onerror = () => {
      if (mine !== source) return;
      mine.close();
      missed ||= setTimeout(gone, 1500);
      retry = setTimeout(connect, 1000);
    };
  };
  const listen = (to, then) => {
    [address, handlers] = [to, then];
    connect();
  };

  // -- what is being typed survives a reload --------------------------------------------------------
  const draft = () => "tw-draft " + location.pathname + location.search;
  const keep = () => {
    if (box()) sessionStorage.setItem(draft(), box().value); // empty too: what was sent must not come back
  };
  const restore = () => {
    const kept = sessionStorage.getItem(draft());
    sessionStorage.removeItem(draft());
    if (kept && box() && !box().value) write(kept);
  };

  // -- the keyboard ---------------------------------------------------------------------------------
  // What it was on goes away with what it did: on to what comes next, not to the top of the page.
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

  // -- begin ----------------------------------------------------------------------------------------
  const pages = []; // [what a page must have, what begins it]
  let begun = false;
  let planned = false;
  const look = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      // Gradio brings its components one by one.
      const page = pages.find(([parts]) => [...parts, "#tw-box textarea", "#tw-banner .html-container > *"].every($));
      if (!begun && page) {
        begun = true;
        page[1]();
      }
      sidebar();
      focus();
    });
  };
  const keys = (event) => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) return event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === "Enter" && !event.shiftKey && event.target.matches?.("#tw-box textarea, #tw-comment-box textarea")) {
      event.preventDefault();
      event.stopPropagation();
      return window.thumbwise.enter?.(event.target.closest("#tw-box, #tw-comment-box").id);
    }
    if (event.key === "Escape" && $("#tw-comment[data-message]")) return $("#tw-comment-close").click();
    if (event.target.closest?.("textarea, input, [contenteditable]")) return;
    const button = window.thumbwise.key?.(event.key.toLowerCase());
    if (!button || button.disabled || !button.offsetParent) return;
    event.preventDefault();
    button.click();
  };
  const start = () => {
    document.documentElement.lang = "en";
    document.body.dataset.state = "loading";
    document.body.append(live, toasts);
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-state"] });
    document.addEventListener("keydown", keys, true);
    document.addEventListener("focusin", (event) => moved(event.target));
    document.addEventListener("pointerdown", () => moved(null));
    document.addEventListener("visibilitychange", connect);
    addEventListener("pagehide", () => (keep(), source?.close()));
    addEventListener("pageshow", (event) => event.persisted && connect());
    look();
  };
  // Gradio adds this script when the page is already there.
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();

  const begins = (parts, begin) => (pages.push([parts, begin]), look());
  // `key` and `enter` are the page's: the button of a key, and what the Enter key does in a box
  return { $, all, ask, begins, box, close, enter: null, fill, key: null, listen, patiently, place, refused, restore, say, sending, set, state, toast, write };
})();
