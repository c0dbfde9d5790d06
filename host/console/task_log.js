// How a task's slots went.

import { call, path } from "./api.js";
import { h, refill } from "./dom.js";
import { ago, duration, moment } from "./format.js";
import { markdown } from "./markdown.js";

const SHOWN = 20;

/** Return the log of a task; it loads itself. */
export function taskLog(task) {
  const node = h("div", { class: "log" }, h("p", { class: "quiet" }, "Loading…"));
  load(task, node);
  return node;
}

async function load(task, node) {
  try {
    const { runs } = await call("GET", `${path`/task/${task.id}/runs`}?limit=${SHOWN}`);
    if (runs.length === 0) refill(node, h("p", { class: "quiet" }, "It has not run yet."));
    else refill(node, runs.map(entry));
  } catch (error) {
    refill(node, h("p", { class: "fault" }, error.message));
  }
}

function entry(run) {
  const took = run.finished_at ? duration(Date.parse(run.finished_at) - Date.parse(run.started_at)) : null;
  const failed = !["success", "running"].includes(run.status);
  const where = run.conversation_id ? h("p", {}, h("a", { href: `#/c/${encodeURIComponent(run.conversation_id)}` }, "Open the conversation of this run")) : null;
  return h("details", { class: "entry" },
    h("summary", {}, h("b", { class: failed ? "bad" : "good" }, run.status), h("time", { datetime: run.started_at, title: moment(run.started_at) }, ago(run.started_at)), took ? h("span", {}, took) : null, run.attempt > 1 ? h("span", {}, `try ${run.attempt}`) : null),
    run.error ? h("p", { class: "fault" }, run.error) : null,
    run.result ? markdown(run.result) : h("p", { class: "quiet" }, "It said nothing."),
    where);
}
