// What waits for a person's word: a card for each request, and the answer to it.

import { call, path } from "./api.js";
import { h } from "./dom.js";
import { escaped, whole } from "./format.js";

/** Return the requests of a conversation that wait; budgets have a form of their own. */
export async function waiting(conversationId, signal) {
  const { approvals } = await call("GET", `/approvals?status=pending&conversation_id=${encodeURIComponent(conversationId)}`, { signal });
  return approvals.filter((request) => request.kind !== "budget");
}

/** Answer a request; returns what the host says of it. */
export function answer(request, said) {
  return call("POST", path`/approvals/${request.id}`, { body: { input_sha256: request.input_sha256, ...said } });
}

/** Return the card of a request; `decide(said)` gets the person's answer. */
export function requestCard(request, decide) {
  const inside = (INSIDE[request.kind] ?? gatedCall)(request, decide);
  return h("form", { class: "resume request", "aria-label": "Waits for you", on: { submit: (event) => event.preventDefault() } }, ...inside,
    h("p", { class: "quiet" }, request.kind === "question" && request.reason !== "elicitation" ? "A new message here answers it." : "A new message here denies it."));
}

const INSIDE = { question, client_tool: programsCall };

function programsCall({ tool, input }, decide) {
  return [
    h("p", {}, h("b", {}, "The program that asked has to do this: "), tool),
    shownInput(input),
    h("div", { class: "row" }, button("Deny", "", () => decide({ decision: "deny" }))),
  ];
}

/** Return what a call does; of an edit, what it takes away and what it puts there. */
function shownCall(tool, input) {
  const { old_text: before, new_text: after, ...rest } = input;
  if (tool !== "edit_file" || typeof before !== "string" || typeof after !== "string") return [shownInput(input)];
  const lines = (text, sign, name) => escaped(text).split("\n").map((line) => h("span", { class: name }, `${sign} ${line}`));
  return [shownInput(rest), h("pre", { class: "diff", dir: "auto" }, ...lines(before, "-", "gone"), ...lines(after, "+", "new"))];
}

function shownInput(input) {
  return h("pre", { dir: "auto" }, escaped(whole(input)));
}

/** Press a button of the first card that waits: "allow" or "deny". */
export function press(decision) {
  document.querySelector(`.request [data-decision=${decision}]`)?.click();
}

function gatedCall({ tool, input, subagent }, decide) {
  return [
    h("p", {}, h("b", {}, `May ${subagent ? `subagent ${subagent}` : "the agent"} do this? `), tool),
    ...shownCall(tool, input),
    h("div", { class: "row" },
      button("Allow", "primary", () => decide({ decision: "allow" }), { "data-decision": "allow" }),
      button("Deny", "", () => decide({ decision: "deny" }), { "data-decision": "deny" }),
      button("Allow this call in this conversation", "", () => decide({ decision: "allow", remember: "conversation" }))),
  ];
}

function question({ input }, decide) {
  const field = h("input", { type: "text", "aria-label": "Your answer" });
  const say = (message) => message.trim() && decide({ decision: "answer", message });
  return [
    h("p", { dir: "auto" }, h("b", {}, "The agent asks: "), escaped(String(input.question))),
    h("div", { class: "row" }, ...(input.options ?? []).map((option) => button(escaped(option), "", () => say(option)))),
    h("div", { class: "row" }, field, button("Answer", "primary", () => say(field.value)), button("Don't answer", "", () => decide({ decision: "deny" }))),
  ];
}

function button(text, kind, click, more = {}) {
  return h("button", { class: `button ${kind}`.trim(), type: "button", on: { click }, ...more }, text);
}
