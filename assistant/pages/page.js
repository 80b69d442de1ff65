"use strict";
// What both pages need: requests, events, messages to the reader, the keyboard.
window.thumbwise = (() => {
  const $ = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const box = () => $("#tw-box textarea");

  // -- requests -------------------------------------------------------------------------------------
  const named = () => (owner ? { "X-Thumbwise-Account": owner } : {}); // whose page sends it
  const posting = (sent) => ({ method: "POST", headers: { ...named(), "Content-Type": "application/json" }, body: JSON.stringify(sent) });
  const root = new URL("./", location.href).pathname.slice(0, -1); // both pages are directly below the assistant's address
  const ask = async (path, sent) => {
    const options = sent ? posting(sent) : { headers: named() };
    let answer;
    try {
      answer = await fetch(root + "/pages" + path, options);
    } catch {
      throw new Error("The assistant cannot be reached: try again when it is back.");
    }
    const said = await answer.json().catch(() => null);
    if (answer.ok) return said;
    const loggedOut = answer.status === 401 && said?.error?.code === "login_needed";
    if (loggedOut) ended();
    throw Object.assign(new Error(said?.error?.message ?? "Something went wrong: try again."), { status: answer.status, loggedOut });
  };

  // Sends something on the way out of a page. Nobody waits for the answer.
  const post = (path, sent) =>
    fetch(root + "/pages" + path, { ...posting(sent), keepalive: true }).catch(() => {});

  // The first request of a page, again and again until the server answers.
  const untilAnswered = async (work) => {
    for (;;) {
      const error = await work().then(() => null, (error) => error);
      if (error === null) return;
      if (error.status) return showError("Not opened")(error);
      gone();
      await new Promise((resolve) => setTimeout(resolve, 1500));
    }
  };

  // -- messages to the reader -----------------------------------------------------------------------
  // Live regions that stay in place. Screen readers miss a region that is replaced together with its text.
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
  const showError = (title) => (error) => error.loggedOut || toast(error.message, { title, seconds: 10 });

  // -- what is shown --------------------------------------------------------------------------------
  // Replaces only blocks that changed, so that a selection further up is kept.
  const fill = (element, html) => {
    const made = document.createElement("template");
    made.innerHTML = html;
    let [now, then] = [element, made.content];
    if (now.children.length === 1 && then.children.length === 1 && now.firstChild.className === then.firstChild.className) {
      [now, then] = [now.firstChild, then.firstChild]; // the element that render() puts around a message
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
    const able = ready && !busy && !("gone" in document.body.dataset) && !("ended" in document.body.dataset);
    for (const button of all("#tw-send, #tw-go")) button.disabled = !able;
    const open = document.body.dataset.state === "ready";
    for (const button of all("#tw-votes button")) button.disabled = !open;
  };
  const state = ({ state, said, query, account }) => {
    if (account) know(account);
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
    await work().catch(showError("Not sent"));
    busy = false;
    buttons();
  };
  const write = (text) => {
    box().value = text;
    box().dispatchEvent(new Event("input", { bubbles: true }));
  };

  // -- events ---------------------------------------------------------------------------------------
  // One stream for each page, and none while the page is hidden: a browser opens at most six connections to a server,
  // for all pages together. Events of an older stream are dropped.
  let source = null;
  let address = "";
  let handlers = {};
  let server = null;
  let retry = 0;
  let missed = 0;
  const top = (now) => {
    if (server !== null && server !== now.server) return location.reload(); // the server was started again
    server = now.server;
    clearTimeout(missed);
    missed = 0;
    delete document.body.dataset.gone;
    delete document.body.dataset.ended;
    ready = now.ready;
    set(place("#tw-version"), now.chip ?? "");
    set(place("#tw-banner"), now.banner);
    buttons();
  };
  const gone = () => {
    if ("ended" in document.body.dataset) return;
    document.body.dataset.gone = "";
    set(place("#tw-banner"),
      '<div class="tw-banner" role="status" data-state="waiting"><i></i><div><b>The assistant is not running</b>' +
      "<span>This page goes on by itself when it is back.</span></div></div>");
    buttons();
  };
  const connect = () => {
    source?.close();
    clearTimeout(retry);
    // A temporary reply is nowhere but in this stream, so it goes on also while the page is hidden.
    const only = "temporary" in document.body.dataset && document.body.dataset.state === "streaming";
    if (!address || (document.hidden && !only)) return;
    const mine = (source = new EventSource(root + address + (owner ? (address.includes("?") ? "&" : "?") + "account=" + owner : "")));
    const on = (name, handle) => mine.addEventListener(name, (event) => mine === source && handle(JSON.parse(event.data)));
    on("top", top);
    on("frame", (frame) => handlers.frame(frame));
    on("end", (end) => handlers.end(end));
    mine.onerror = () => {
      if (mine !== source) return;
      const refused = owner && mine.readyState === EventSource.CLOSED; // the script does not see why: another request does
      mine.close();
      if (refused) ask("/account").catch(() => null);
      if ("ended" in document.body.dataset) return; // until the reader comes back to this page
      missed ||= setTimeout(gone, 1500);
      retry = setTimeout(connect, 1000);
    };
  };
  const listen = (to, then) => {
    [address, handlers] = [to, then];
    connect();
  };

  // -- who is logged in -----------------------------------------------------------------------------
  // The account whose page this is; empty without accounts. Others who log in in this browser must not get its text.
  let owner = "";
  const know = (account) => {
    if (owner && owner !== account.id) return location.reload();
    owner = account.id;
    set(place("#tw-account"), account.menu);
    for (const key of Object.keys(sessionStorage)) {
      if (key.startsWith("tw-draft ") && !key.startsWith(`tw-draft ${owner} `)) sessionStorage.removeItem(key);
    }
  };
  // The login has ended: logged out elsewhere, disabled, too old. The page stays, with what was typed.
  const ended = () => {
    if ("ended" in document.body.dataset) return;
    document.body.dataset.ended = "";
    clearTimeout(missed);
    clearTimeout(retry);
    missed = 0;
    keep();
    const next = encodeURIComponent(location.pathname.slice(root.length) + location.search);
    // Nothing of a temporary chat is kept when the page is left.
    const how = "temporary" in document.body.dataset
      ? `<a href="login?next=${next}" target="_blank">Log in again in another tab</a>, then come back to this page.`
      : `What you typed is kept. <a href="login?next=${next}">Log in again</a> to go on.`;
    set(place("#tw-banner"),
      '<div class="tw-banner" role="alert" data-state="warning"><i></i><div><b>Your login has ended</b>' +
      `<span>${how}</span></div></div>`);
    buttons();
  };

  // -- typed text survives a reload -----------------------------------------------------------------
  const draft = () => ["tw-draft", ...(owner ? [owner] : []), location.pathname + location.search].join(" ");
  const keep = () => {
    if (!owner && $("#tw-account")) return; // it is not known yet whose text this is
    if ("temporary" in document.body.dataset) sessionStorage.removeItem(draft());
    else if (box()) sessionStorage.setItem(draft(), box().value); // also when empty: text that was sent must not come back
  };
  const restore = () => {
    const kept = sessionStorage.getItem(draft());
    sessionStorage.removeItem(draft());
    if (kept && box() && !box().value) write(kept);
  };

  // -- the keyboard ---------------------------------------------------------------------------------
  // A focused button may disappear by its own action. The focus then moves to the next control, not to the top of the
  // page. It never moves to a vote, because a space would give it.
  let on = null;
  let lost = false; // true until something has the focus again: the lost element may be back before the next is there
  const moved = (element) => {
    on = element?.matches?.(":focus-visible") ? element : null;
    lost = false;
  };
  const focus = () => {
    lost ||= on !== null && !on.offsetParent;
    const next = $("#tw-compare") ? $("#tw-next") : box();
    if (lost && next?.offsetParent && !next.disabled) next.focus();
  };

  const menu = (back) => {
    $(".tw-menu").open = false;
    if (back) $(".tw-menu summary").focus();
  };

  // On a phone the list of conversations covers the page. It starts closed, and closes when one is chosen.
  const phone = matchMedia("(width <= 768px)");
  const close = () => {
    if (phone.matches) $("#tw-side.open .toggle-button")?.click();
  };
  const sidebar = () => {
    if (document.body.dataset.side || !$("#tw-side .toggle-button")) return;
    document.body.dataset.side = "ready";
    close();
  };

  // -- start ----------------------------------------------------------------------------------------
  const pages = []; // [selectors that a page must have, the function that starts it]
  let begun = false;
  let planned = false;
  const look = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      // Gradio adds its components one by one.
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
    if (event.key === "Escape" && $(".tw-menu[open]")) return menu(true);
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
    document.addEventListener("click", (event) => $(".tw-menu[open]") && !event.target.closest(".tw-menu") && menu(false));
    document.addEventListener("visibilitychange", connect);
    addEventListener("pagehide", () => (keep(), source?.close()));
    // A page that the browser kept may be another person's by now.
    addEventListener("pageshow", (event) => event.persisted && (owner ? location.reload() : connect()));
    look();
  };
  // Gradio may add this script after the page has loaded.
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();

  const whenReady = (parts, begin) => (pages.push([parts, begin]), look());
  // A page sets `key`, which returns the button of a key, and `enter`, which handles the Enter key in a box.
  return { $, all, ask, post, whenReady, box, close, enter: null, fill, key: null, listen, untilAnswered, place, showError, restore, say, sending, set, state, toast, write };
})();
