// Messages that are in the store already.

import { path, send } from "./api.js";
import { h, refill } from "./dom.js";
import { frames } from "./events.js";
import { ago, moment } from "./format.js";
import { icon } from "./icons.js";
import { markdown } from "./markdown.js";
import { RunView } from "./run.js";

/** Return a person's message. */
export function personTurn(text, { sender = "You", created_at = null } = {}) {
  const head = sender === "You" && !created_at ? null : h("header", { class: "who" }, named(sender), time(created_at));
  return h("article", { class: "turn person", "aria-label": `Message of ${named(sender)}` }, h("h2", { class: "unseen" }, named(sender)), head, h("div", { class: "bubble" }, text));
}

/** Return an agent's message; `run` is what made it, if that is known. */
export function agentTurn(message, run) {
  const body = h("div", { class: "body" }, markdown(message.content));
  const foot = h("footer", { class: "foot" }, time(message.created_at), run?.model ? h("span", {}, run.model) : null);
  const node = h("article", { class: "turn agent", "aria-label": "Agent" }, h("h2", { class: "unseen" }, "Agent"), body, foot);
  if (run) foot.append(stepsButton(message.conversation_id, run, node));
  return node;
}

function named(sender) {
  return sender === "user" ? "You" : sender;
}

function time(iso) {
  return iso ? h("time", { datetime: iso, title: moment(iso) }, ago(iso)) : null;
}

/** Return the button that shows a run again as it went, from its stored events. */
function stepsButton(conversationId, run, node) {
  const button = h("button", { class: "textual", type: "button" }, icon("list"), "Steps");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const view = await replayed(conversationId, run.run_id);
      if (view.tools.length === 0 && view.thought === null && !view.body.querySelector(".thought, .said")) {
        refill(button, "No steps were told");
        return;
      }
      for (const step of view.body.querySelectorAll("details")) step.open = view.tools.length < 2;
      node.replaceWith(view.node);
      view.node.querySelector("summary")?.focus();
    } catch (error) {
      refill(button, error.status === 0 ? "The host cannot be reached" : "The steps are gone");
    }
  });
  return button;
}

async function replayed(conversationId, runId) {
  const view = new RunView();
  const response = await send("GET", path`/chat/${conversationId}/runs/${runId}/events`);
  for await (const event of frames(response.body)) view.show(event);
  if (!view.ended) view.fail("The run ended without an answer.");
  return view;
}
