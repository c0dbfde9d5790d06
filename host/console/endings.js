// How runs end when they don't end well, in words for people, and what can be done then.

import { h } from "./dom.js";
import { icon } from "./icons.js";

const QUIET = new Set(["cancelled", "shutdown"]);
const WAITS = new Set(["budget", "approval", "question", "client_tool"]);
/** Codes after which the host has nothing to go on with. */
const OVER = new Set(["refused", "prompt_too_long"]);
const ADVICE = {
  interrupted: "The host was cut off in the middle. What had been done stays done: look before you try again.",
  retryable: "The host was cut off before anything happened. Trying again is safe.",
  timeout: "Its finished steps are kept.",
};

/** Return what stands under a run that failed or was stopped; `actions` are buttons. */
function ending({ status, error, code }, ...actions) {
  if (status === "paused") return note("warn", why(error), ...actions);
  const words = ADVICE[code] ? `${error} ${ADVICE[code]}` : error;
  return note(QUIET.has(code) ? "quiet" : "bad", words || "The run ended without an answer.", ...actions);
}

/** Return what stands where a run ended, with what can be done then; what waits for a person has cards. */
export function endedWith(run, how) {
  if (run.code === "budget" && how.onResume) return budgetForm(run.error, how.onResume);
  return ending(run, ...(WAITS.has(run.code) ? [] : waysOn(run, how)));
}

/** Return a note of a kind: bad, warn or quiet. */
export function note(kind, text, ...actions) {
  return h("div", { class: `note ${kind}`, role: kind === "bad" ? "alert" : null },
    kind === "quiet" ? icon("stop") : icon("alert"),
    h("p", { dir: "auto" }, text),
    actions.length ? h("div", { class: "row end actions" }, ...actions) : null);
}

/** Return the buttons for what can be done after an ending: go on where it was, or say the last message again. */
export function waysOn({ code }, { onResume, onRetry }) {
  const goesOn = onResume && !OVER.has(code);
  return [
    ...(goesOn ? [h("button", { class: "button", type: "button", on: { click: () => onResume() } }, icon("play"), "Go on")] : []),
    ...(onRetry ? [h("button", { class: "button", type: "button", on: { click: onRetry } }, icon("again"), "Retry")] : []),
  ];
}

/** Return what asks people how many tokens a run may use that paused at a budget. */
function budgetForm(error, onResume) {
  const field = h("input", { id: "allow-tokens", type: "number", min: "1", value: wanted(error), inputmode: "numeric" });
  const form = h("form", { class: "resume", "aria-label": "Paused at a budget" },
    h("p", {}, h("b", {}, "Paused: a budget is used up. "), why(error)),
    h("p", { class: "quiet" }, "Nothing is lost. Say how many tokens it may use to go on, or wait until the budget allows it again."),
    h("div", { class: "row" },
      h("label", { for: field.id }, "It may use"), field, h("span", {}, "tokens"),
      h("button", { class: "button primary" }, icon("play"), "Go on")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const tokens = Number(field.value);
    if (!Number.isInteger(tokens) || tokens < 1) return;
    form.remove();
    onResume(tokens);
  });
  return form;
}

/** Return the host's reason without what only programs do with it. */
function why(error) {
  return error.replace(/^I have paused\. /, "").replace(/ To let me go on, .*$/s, "");
}

/** Return how many tokens the host says that the next step needs. */
function wanted(error) {
  return /"allow_tokens": (\d{1,15})\b/.exec(error)?.[1] ?? "20000";
}
