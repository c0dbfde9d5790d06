// Messages that are in the store already.

import { path, send } from "./api.js";
import { fileList } from "./attachments.js";
import { h, refill } from "./dom.js";
import { endedWith } from "./endings.js";
import { frames } from "./events.js";
import { ago, moment } from "./format.js";
import { icon } from "./icons.js";
import { markdown } from "./markdown.js";
import { RunView } from "./run.js";

/** Return a person's message and the files that came with it. */
export function personTurn(text, { sender = "You", created_at = null, conversationId = null, files = [] } = {}) {
  const who = named(sender);
  const head = who === "You" && !created_at ? null : h("header", { class: "who" }, who, time(created_at));
  return h("article", { class: "turn person", "aria-label": `Message of ${who}` }, h("h2", { class: "unseen" }, who), head, h("div", { class: "bubble", dir: "auto" }, text), fileList(conversationId, files, "Files of this message"));
}

/** Return an agent's message; `run` is what made it, if that is known. */
export function agentTurn(message, run) {
  return turn([markdown(message.content)], time(message.created_at), message.conversation_id, run);
}

/** Return how a run ended that didn't end well; `how` has onRetry and onResume for the last one. */
export function endedTurn(run, how = {}) {
  return turn([endedWith(run, how)], time(run.finished_at), run.conversation_id, run, how);
}

function turn(inside, when, conversationId, run, how = {}) {
  const foot = h("footer", { class: "foot" }, when, run?.model ? h("span", {}, run.model) : null);
  const changed = fileList(conversationId, run?.files_changed, "Files this run changed");
  const node = h("article", { class: "turn agent", "aria-label": "Agent" }, h("h2", { class: "unseen" }, "Agent"), h("div", { class: "body" }, inside, changed), foot);
  if (run) foot.append(stepsButton(conversationId, run, node, how));
  return node;
}

function named(sender) {
  return sender === "user" ? "You" : sender;
}

function time(iso) {
  return iso ? h("time", { datetime: iso, title: moment(iso) }, ago(iso)) : null;
}

/** Return the button that shows a run again as it went, from its stored events. */
function stepsButton(conversationId, run, node, how) {
  const button = h("button", { class: "textual", type: "button" }, icon("list"), "Steps");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const view = await replayed(conversationId, run.run_id, how);
      if (!view.body.querySelector(".step, .thought, .said") && (run.status === "success" || !view.hasText)) {
        refill(button, "No steps were told");
        return;
      }
      for (const step of view.body.querySelectorAll("details")) step.open = view.tools.length < 2;
      node.replaceWith(view.node);
      view.node.querySelector("summary")?.focus();
    } catch (error) {
      refill(button, error.status === 404 ? "The steps are gone" : error.message);
    }
  });
  return button;
}

async function replayed(conversationId, runId, how) {
  const view = new RunView(how, conversationId);
  const response = await send("GET", path`/chat/${conversationId}/runs/${runId}/events`);
  for await (const event of frames(response.body)) view.show(event);
  if (!view.ended) view.fail("The run ended without an answer.");
  return view;
}
