"use strict";
// The chat page: the conversation, its list, thumbs with a comment.
(() => {
  const { $, all, ask, post, whenReady, box, close, fill, listen, untilAnswered, place, showError, restore, sending, set, state, toast, write } = window.thumbwise;
  let shown = null; // the conversation on the page; null is a new one
  let temporary = null; // a temporary chat: its messages are only here (see temporary.py)
  let epoch = 0; // the number of the epoch: rule 4 in __init__.py
  let listed = 1; // the list has this many times thirty conversations
  let commenting = null; // the reply that the comment panel is about

  const log = () => $("#tw-chat .tw-log");
  const reply = (id) => all("#tw-chat .tw-reply").find((each) => each.dataset.reply === id);
  const atEnd = () => {
    const box = $("#tw-chat");
    return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  };
  const toEnd = () => $("#tw-chat").scrollTo({ top: $("#tw-chat").scrollHeight });

  const list = (page) => {
    set(place("#tw-list"), page.list);
    for (const link of all("#tw-list a")) if (link.dataset.open === shown) link.setAttribute("aria-current", "page");
    document.body.toggleAttribute("data-older", page.older);
  };
  // A button to copy a block of code. It is added here, because a message can contain no button.
  const codes = (row) => {
    for (const code of row.querySelectorAll(".tw-text pre")) {
      const beside = document.createElement("div");
      const button = document.createElement("button");
      beside.className = "tw-code";
      Object.assign(button, { type: "button", className: "tw-act tw-copy-code", ariaLabel: "Copy code" });
      button.append(row.querySelector("[data-copy] svg").cloneNode(true));
      code.before(beside);
      beside.append(code, button);
    }
  };
  const show = (page) => {
    shown = page.conversation;
    temporary = page.temporary ? { whose: page.temporary, chat: null, said: [], asked: null } : null;
    document.body.toggleAttribute("data-temporary", temporary !== null);
    log().innerHTML = page.log;
    all("#tw-chat .tw-reply").forEach(codes);
    list(page);
    set(place("#tw-stored"), page.stored);
    state(page);
    listen(page.events, { frame, end });
    toEnd();
  };
  const frame = ({ parts }) => {
    const text = all("#tw-chat .tw-reply[data-state=streaming] .tw-text").at(-1);
    if (!text) return;
    const follow = atEnd();
    fill(text, parts[0]);
    if (follow) toEnd();
  };
  const end = (now) => {
    const old = reply(now.reply);
    if (!old) return;
    if (temporary && old.dataset.state !== "streaming") return; // it is whole here, and nowhere else
    const follow = atEnd();
    const last = old === all("#tw-chat .tw-reply").at(-1);
    if (temporary?.asked) {
      if (now.text.trim()) temporary.said.push(temporary.asked, { role: "assistant", content: now.text });
      temporary.asked = null;
    }
    old.outerHTML = now.html;
    codes(reply(now.reply));
    if (last) state(now);
    if (follow) toEnd();
  };

  const panel = (id, question = "") => {
    if (id !== commenting) $("#tw-comment-box textarea").value = "";
    commenting = id;
    if (id) $("#tw-comment").dataset.message = id;
    else delete $("#tw-comment").dataset.message;
    set($("#tw-comment .tw-question"), question);
  };
  const open = async (id) => {
    const mine = ++epoch;
    forget();
    const page = await ask(`/chat?listed=${listed}` + (id === null ? "" : `&c=${encodeURIComponent(id)}`));
    if (mine !== epoch) return;
    panel(null);
    show(page);
  };
  // Nobody can come back to a temporary chat, so its reply need not be written to its end.
  const forget = () => {
    if (!temporary) return;
    const message = temporary.asked && all("#tw-chat .tw-reply").at(-1)?.dataset.reply;
    if (message) post("/chat/temporary/stop", { message });
    temporary = null;
    log().innerHTML = "";
  };
  const sendTemporary = async (text, typed) => {
    const [mine, chat, question] = [epoch, temporary, { role: "user", content: text }];
    if (chat.asked) throw new Error("A reply is still being written: wait for its end, or stop it.");
    const sent = { whose: chat.whose, chat: chat.chat, messages: [...chat.said, question] };
    const page = await ask("/chat/temporary", sent).catch((error) => {
      if (error.status === 409 && mine === epoch) open("temporary").catch(showError("Not opened"));
      throw error;
    });
    if (mine !== epoch) return post("/chat/temporary/stop", { message: page.reply });
    if (typed && box().value === text) write("");
    if (!chat.chat) log().innerHTML = "";
    Object.assign(chat, { chat: page.chat, asked: question });
    log().insertAdjacentHTML("beforeend", page.log);
    state(page);
    listen(page.events, { frame, end });
    toEnd();
  };
  const send = (text, typed) =>
    sending(async () => {
      if (!text.trim()) return;
      if (temporary) return sendTemporary(text, typed);
      const mine = epoch;
      const page = await ask("/chat/messages", { conversation: shown, text, listed });
      if (typed && box().value === text) write("");
      if (mine !== epoch) return list(page);
      epoch += 1;
      show(page);
    });

  const thumb = async (button) => {
    const row = button.closest(".tw-reply");
    const taken = button.getAttribute("aria-pressed") === "true";
    const mine = epoch;
    const id = row.dataset.reply;
    const now = await ask("/chat/thumbs", { message: id, thumb: taken ? "clear" : button.dataset.thumb }).catch(showError("Not saved"));
    if (!now) return;
    for (const each of reply(id)?.querySelectorAll(".tw-acts [data-thumb]") ?? []) {
      const given = each.dataset.thumb === now.thumb;
      each.setAttribute("aria-pressed", given);
      each.setAttribute("aria-label", each.dataset.names.split(",")[Number(given)]);
    }
    toast(now.said);
    if (mine !== epoch && !reply(id)) return;
    if (now.question) panel(id, now.question);
    else if (now.question === "") panel(null);
  };
  const comment = async () => {
    const [id, text] = [commenting, $("#tw-comment-box textarea").value];
    if (!id) return;
    const now = await ask("/chat/comments", { message: id, text }).catch(showError("Not saved"));
    if (!now) return;
    toast(now.said);
    if (commenting === id) panel(null);
  };
  const copy = async (button) => {
    const code = button.closest(".tw-code")?.querySelector("code");
    const text = code ? code.textContent : button.closest(".tw-reply").dataset.text;
    try {
      await navigator.clipboard.writeText(text); // needs https, except on this machine
    } catch {
      return toast("Not copied: the browser does not allow it. Select the text, and copy that.");
    }
    button.dataset.done = "";
    setTimeout(() => delete button.dataset.done, 1500);
  };

  const click = (event) => {
    const link = event.target.closest("#tw-list a[data-open]");
    if (link) {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      close();
      return open(link.dataset.open).catch(showError("Not opened"));
    }
    const button = event.target.closest("button");
    if (button?.matches("#tw-chat .tw-copy-code")) return copy(button);
    if (!button || button.closest(".tw-text")) return; // nothing inside a message is a control
    if (button.id === "tw-new") return close(), open("new").catch(showError("Not opened"));
    if (button.id === "tw-temporary") return close(), open("temporary").catch(showError("Not opened"));
    if (button.id === "tw-older") return (listed += 1), ask(`/chat?c=${shown ?? "new"}&listed=${listed}`).then(list).catch(showError("Not opened"));
    if (button.id === "tw-send") return send(box().value, true);
    if (button.id === "tw-stop") return stop();
    if (button.id === "tw-comment-save") return comment();
    if (button.id === "tw-comment-close") return panel(null);
    if (button.matches("#tw-chat .tw-starter")) return send(button.dataset.say, false);
    if (button.matches("#tw-chat .tw-acts [data-thumb]")) return thumb(button);
    if (button.matches("#tw-chat .tw-acts [data-copy]")) return copy(button);
  };
  const stop = async () => {
    const id = all("#tw-chat .tw-reply[data-state=streaming]").at(-1)?.dataset.reply;
    const now = id && (await ask(temporary ? "/chat/temporary/stop" : "/chat/stop", { message: id }).catch(showError("Not stopped")));
    if (now) end(now);
  };

  const PARTS = ["#tw-chat .tw-log", "#tw-list .html-container > *", "#tw-version .html-container > *", "#tw-comment .tw-question", "#tw-comment-box textarea", "#tw-send"];
  whenReady(PARTS, async () => {
    document.addEventListener("click", click);
    window.thumbwise.enter = (id) => (id === "tw-box" ? send(box().value, true) : comment());
    const named = new URLSearchParams(location.search).get("c");
    await untilAnswered(() => open(named).catch((error) => ([400, 404].includes(error.status) ? open(null) : Promise.reject(error))));
    restore();
    addEventListener("pagehide", () => temporary && (forget(), write("")));
    addEventListener("pageshow", (event) => event.persisted && document.body.hasAttribute("data-temporary") && location.reload());
  });
})();
