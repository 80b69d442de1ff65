"use strict";
// The comparison page: two drafts, the vote, and the versions after it.
(() => {
  const { $, ask, whenReady, box, fill, listen, untilAnswered, place, showError, restore, sending, set, state, write } = window.thumbwise;
  // by element id: choice, strength, key
  const VOTES = {
    "tw-much-1": ["left", 2, "1"], "tw-better-1": ["left", 1, "2"], "tw-same": ["tie", 1, "3"],
    "tw-better-2": ["right", 1, "4"], "tw-much-2": ["right", 2, "5"], "tw-both-bad": ["both_bad", 1, "b"], "tw-skip": ["skip", 1, "s"],
  };
  const EXAMPLES = 4; // suggested prompts shown at once
  let shown = null; // the comparison on the page
  let epoch = 0; // the number of the epoch: rule 4 in __init__.py
  let prompts = []; // the first is the next to suggest
  let voting = false;

  // A draft cannot have an id. Even so, buttons are looked up only among the votes.
  const button = (id) => $(`#tw-votes button#${id}`);
  window.thumbwise.key = (key) => {
    if (key === "n") return $("#tw-next");
    const id = Object.keys(VOTES).find((each) => VOTES[each][2] === key);
    return id && button(id);
  };

  const suggest = () => {
    const made = prompts.slice(0, EXAMPLES).map((text) => {
      const example = document.createElement("button");
      Object.assign(example, { type: "button", className: "tw-example", textContent: text });
      return example;
    });
    place("#tw-examples").replaceChildren(...made);
    $("#tw-next").textContent = `Next: ${prompts[0]}`;
  };
  const show = (page) => {
    shown = page.comparison;
    set(place("#tw-stage"), page.stage);
    set(place("#tw-result"), page.result);
    state(page);
    // The result of the vote is below the drafts, which may be longer than a phone's screen.
    if (page.result) $("#tw-compare").scrollTo({ top: $("#tw-compare").scrollHeight });
  };
  const follow = (page) => {
    show(page);
    listen(page.events, { frame, end: show });
  };
  const frame = ({ parts }) => {
    if (document.body.dataset.state !== "streaming") return;
    parts.forEach((html, i) => fill($(`#tw-draft-${i + 1} .tw-draft-text`), html));
  };

  const open = (text, typed) =>
    sending(async () => {
      const page = await ask("/compare/comparisons", { text });
      if (typed && box().value === text) write("");
      const used = prompts.slice(0, EXAMPLES).indexOf(text) + 1;
      prompts = [...prompts.slice(used), ...prompts.slice(0, used)];
      suggest();
      epoch += 1;
      follow(page);
    });
  const vote = async (id) => {
    if (voting || !shown) return;
    voting = true;
    const mine = epoch;
    const [choice, strength] = VOTES[id];
    const id_ = shown;
    try {
      const page = await ask("/compare/votes", { comparison: id_, choice, strength }).catch((error) => {
        showError("Not saved")(error);
        return ask(`/compare?c=${encodeURIComponent(id_)}`); // another page may have voted on it
      });
      if (mine === epoch) follow(page);
    } catch (error) {
      showError("Not shown")(error);
    }
    voting = false;
  };
  const click = (event) => {
    const pressed = event.target.closest("button");
    if (!pressed || pressed.closest(".tw-text")) return; // nothing inside a draft is a control
    if (pressed.id === "tw-go") return open(box().value, true);
    if (pressed.id === "tw-next") return open(prompts[0], false);
    if (pressed.matches("#tw-examples .tw-example")) return open(pressed.textContent, false);
    if (pressed.id in VOTES && pressed === button(pressed.id)) return vote(pressed.id);
  };

  const PARTS = [...["#tw-stage", "#tw-examples", "#tw-result"].map((id) => `${id} .html-container > *`), "#tw-skip", "#tw-next", "#tw-go"];
  whenReady(PARTS, async () => {
    document.addEventListener("click", click);
    window.thumbwise.enter = () => open(box().value, true);
    const named = new URLSearchParams(location.search).get("c");
    await untilAnswered(async () => {
      const address = "/compare" + (named ? `?c=${encodeURIComponent(named)}` : "");
      const page = await ask(address).catch((error) => (error.status === 400 ? ask("/compare") : Promise.reject(error)));
      prompts = page.prompts;
      suggest();
      follow(page);
    });
    restore();
  });
})();
