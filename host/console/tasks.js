// Scheduled tasks: when each runs next, how it went, and what can be done with it.

import { all, call, path } from "./api.js";
import { confirmed, h, refill } from "./dom.js";
import { ago, brief, moment, schedule } from "./format.js";
import { icon } from "./icons.js";
import { editTask } from "./task_form.js";
import { taskLog } from "./task_log.js";

const LOOK_EVERY_MS = 5000;

export class TasksView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Tasks";
    this.opened = new Map();
    this.busy = new Set();
    this.list = h("div", { class: "cards" }, h("div", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
    this.node = h("div", { class: "page" }, this.list);
    this.tools = [h("button", { class: "button primary", type: "button", on: { click: () => this.create() } }, icon("plus"), "New task")];
  }

  open() {
    this.timer = setInterval(() => document.hidden || this.load(), LOOK_EVERY_MS);
    return this.load();
  }

  close() {
    clearInterval(this.timer);
  }

  async load() {
    try {
      this.show(await all("/tasks", "tasks"));
    } catch (error) {
      if (this.tasks === undefined) refill(this.list, h("p", { class: "empty" }, error.message));
    }
  }

  show(tasks) {
    this.tasks = tasks;
    const drawn = JSON.stringify([tasks, [...this.busy], tasks.map((task) => task.next_run && ago(task.next_run))]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const focused = document.activeElement?.id;
    if (tasks.length === 0) {
      refill(this.list, h("div", { class: "empty" }, icon("clock", "icon large"), h("h2", {}, "No tasks yet"),
        h("p", {}, "A task says something to the agent on schedule. Make one here, or ask the agent: “every day at 9 tell me the news”.")));
    } else {
      refill(this.list, [...tasks].sort(soonest).map((task) => this.card(task)));
    }
    if (focused) document.getElementById(focused)?.focus();
  }

  card(task) {
    const log = this.opened.get(task.id);
    const button = (name, drawn, action, danger = false) => h("button", {
      class: `ghost${danger ? " danger" : ""}`, type: "button", id: `${name}-${task.id}`, title: name, "aria-label": `${name}: ${brief(task.prompt, 40)}`,
      prop: { disabled: this.busy.has(task.id) }, on: { click: action },
    }, icon(drawn));
    const paused = task.status === "paused";
    return h("article", { class: `card ${task.status}${task.overdue ? " overdue" : ""}` },
      h("div", { class: "row top" },
        h("span", { class: `badge ${task.status}` }, task.status),
        h("span", { class: "when" }, when(task)),
        h("div", { class: "row end" },
          button("Run now", "bolt", () => this.act(task, () => this.trigger(task))),
          task.status === "active" || paused ? button(paused ? "Resume" : "Pause", paused ? "play" : "pause", () => this.act(task, () => this.change(task, { status: paused ? "active" : "paused" }))) : null,
          button("Edit", "pencil", () => this.edit(task)),
          button("Delete", "trash", () => this.remove(task), true))),
      h("p", { class: "prompt", dir: "auto" }, task.prompt),
      h("div", { class: "row meta" },
        h("span", {}, schedule(task)),
        task.schedule_type === "cron" ? h("span", {}, task.timezone) : null,
        task.ends_at ? h("span", { title: moment(task.ends_at) }, `until ${moment(task.ends_at)}`) : null,
        task.max_runs ? h("span", {}, `${task.runs_begun} of ${task.max_runs} runs`) : null,
        task.deliver === "none" ? h("span", { title: "Its answers go to nobody" }, "delivers none") : null,
        h("span", { title: task.context_mode === "group" ? "Speaks in its conversation" : "Each run in a conversation of its own" }, task.context_mode),
        task.context_mode === "group" ? h("a", { href: `#/c/${encodeURIComponent(task.conversation_id)}` }, "its conversation") : null,
        task.last_run ? h("span", {}, "last: ", h("b", { class: task.last_status === "success" ? "good" : "bad" }, task.last_status ?? "running"), " ", ago(task.last_run)) : null,
        h("button", { class: "textual", type: "button", id: `log-${task.id}`, "aria-expanded": String(log !== undefined), on: { click: () => this.toggleLog(task) } }, icon("list"), "Log")),
      log);
  }

  async act(task, action) {
    this.busy.add(task.id);
    this.show(this.tasks);
    try {
      await action();
    } catch (error) {
      this.shell.notice(error);
    }
    this.busy.delete(task.id);
    await this.load();
  }

  async trigger(task) {
    this.shell.notice(`Running: ${brief(task.prompt, 60)}`);
    const ended = await call("POST", "/task/trigger", { body: { task_id: task.id } });
    this.shell.notice(ended.error ? new Error(ended.error) : `It said: ${brief(ended.result || "(nothing)", 120)}`);
    if (this.opened.has(task.id)) this.opened.set(task.id, taskLog(task));
  }

  change(task, fields) {
    return call("PUT", path`/task/${task.id}`, { body: fields });
  }

  toggleLog(task) {
    if (!this.opened.delete(task.id)) this.opened.set(task.id, taskLog(task));
    this.drawn = null;
    this.show(this.tasks);
  }

  async remove(task) {
    const words = { title: "Delete this task?", text: `“${brief(task.prompt, 100)}” and its log are removed. This can’t be undone.`, action: "Delete it" };
    if (await confirmed(words)) await this.act(task, () => call("DELETE", path`/task/${task.id}`));
  }

  async edit(task) {
    if (await editTask(task)) {
      this.shell.notice("The task is changed.");
      await this.load();
    }
  }

  async create() {
    if (await editTask()) {
      this.shell.notice("The task is made.");
      await this.load();
    }
  }
}

function when(task) {
  if (!task.next_run) return task.status === "active" ? "no slot left" : "";
  return h("time", { datetime: task.next_run, title: task.next_run_local, class: task.overdue ? "bad" : null }, `${task.overdue ? "overdue" : "next"} ${ago(task.next_run)}`, h("span", { class: "quiet wide-only" }, ` · ${moment(task.next_run)}`));
}

function soonest(one, other) {
  const far = "9999";
  return (one.next_run ?? far).localeCompare(other.next_run ?? far) || one.created_at.localeCompare(other.created_at);
}
