// The form of a task, new or changed.

import { call, path } from "./api.js";
import { directed, h, refill } from "./dom.js";

const KINDS = {
  cron: { label: "By the clock (cron)", value: "0 9 * * *", hint: "Minute, hour, day, month, weekday: 0 9 * * 1-5 is nine on workdays" },
  interval: { label: "Again and again", value: "1h", hint: "The time between two runs: 90s, 15m, 2h or 1d" },
  once: { label: "Once", value: "", hint: "A moment, such as 2030-01-31T09:00" },
};

/** Ask for a new task and make it, or for changes of `task`; resolves to whether it was done. */
export function editTask(task = null) {
  return new Promise((resolve) => {
    const fields = makeFields(task);
    const before = bodyOf(fields);
    const fault = h("p", { class: "fault", role: "alert" });
    const button = h("button", { class: "button primary" }, task ? "Save" : "Make it");
    const form = h("form", {},
      h("h2", { id: "task-title" }, task ? "Edit the task" : "New task"),
      h("div", { class: "fields" },
        whole(field("What to say to the agent", fields.prompt)),
        field("When", fields.kind),
        field("Schedule", fields.value),
        whole(fields.hint),
        field("Time zone", fields.zone),
        field("Slots that were missed", fields.catchUp),
        field("No run after (optional)", fields.endsAt),
        field("End after so many runs (optional)", fields.maxRuns),
        whole(field("Its answers", fields.deliver)),
        whole(field("Where it speaks", fields.context)),
        fields.where),
      fault,
      h("div", { class: "row end" }, h("button", { class: "button", type: "button", on: { click: () => dialog.close() } }, "Cancel"), button));
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "task-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        if (task) await call("PUT", path`/task/${task.id}`, { body: changes(before, bodyOf(fields)) });
        else await call("POST", "/task", { body: bodyOf(fields) });
        dialog.close("made");
      } catch (error) {
        refill(fault, error.message);
      }
      button.disabled = false;
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "made");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Return what people changed; what they emptied becomes null. */
function changes(before, after) {
  const names = new Set([...Object.keys(before), ...Object.keys(after)]);
  return Object.fromEntries([...names].filter((name) => name !== "conversation_id" && before[name] !== after[name]).map((name) => [name, after[name] ?? null]));
}

/** Return milliseconds as people write them: 2h. */
function written(kind, value) {
  if (kind !== "interval" || !/^\d+$/.test(value)) return value;
  const [unit, size] = Object.entries(UNITS).reverse().find(([, ms]) => value % ms === 0) ?? [null, 1];
  return unit ? `${value / size}${unit}` : value;
}

/** Return a moment as the field for it wants it, in a task's zone. */
function local(iso, timeZone) {
  if (!iso) return "";
  const parts = new Intl.DateTimeFormat("sv-SE", { timeZone, dateStyle: "short", timeStyle: "short" });
  return parts.format(Date.parse(iso)).replace(" ", "T");
}

const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Return "2h" as the milliseconds that the host wants; what is no such time is the host's to judge. */
function scheduleValue(kind, text) {
  const time = /^(\d{1,9})\s*([smhd])$/i.exec(text);
  return kind === "interval" && time ? String(Number(time[1]) * UNITS[time[2].toLowerCase()]) : text;
}

function makeFields(task) {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "UTC";
  const fields = {
    prompt: h("textarea", { id: "task-prompt", rows: "3", required: true }),
    kind: select("task-kind", Object.entries(KINDS).map(([name, { label }]) => [name, label])),
    value: h("input", { id: "task-value", required: true, spellcheck: "false", autocapitalize: "off", "aria-describedby": "task-hint" }),
    hint: h("p", { class: "hint", id: "task-hint" }),
    zone: h("input", { id: "task-zone", value: zone, spellcheck: "false" }),
    context: select("task-context", [["isolated", "A conversation of its own each time"], ["group", "A conversation that is there already"]]),
    conversation: h("input", { id: "task-conversation", spellcheck: "false", autocapitalize: "off", "aria-describedby": "task-conversation-hint" }),
    catchUp: select("task-catch-up", [["once", "Run once for all of them"], ["skip", "Skip them"], ["all", "Run each of them"]]),
    endsAt: h("input", { id: "task-ends-at", type: "datetime-local" }),
    maxRuns: h("input", { id: "task-max-runs", type: "number", min: "1" }),
    deliver: select("task-deliver", [["answer", "Go to the people of the conversation"], ["none", "Go to nobody"]]),
  };
  const help = h("p", { class: "hint", id: "task-conversation-hint" }, "Its id; the task goes on with what was said there.");
  fields.where = whole(field("Conversation", fields.conversation, help));
  const kind = () => {
    fields.value.value = KINDS[fields.kind.value].value;
    refill(fields.hint, KINDS[fields.kind.value].hint);
  };
  const context = () => {
    const group = fields.context.value === "group";
    fields.conversation.required = group;
    fields.where.hidden = !group;
  };
  fields.kind.addEventListener("change", kind);
  fields.context.addEventListener("change", context);
  if (task) fields.kind.value = task.schedule_type;
  kind();
  if (task) fillIn(fields, task);
  context();
  directed(fields.prompt);
  return fields;
}

function fillIn(fields, task) {
  fields.prompt.value = task.prompt;
  fields.value.value = written(task.schedule_type, task.schedule_value);
  fields.zone.value = task.timezone;
  fields.context.value = task.context_mode;
  fields.conversation.value = task.conversation_id;
  fields.conversation.readOnly = true;
  fields.catchUp.value = task.catch_up;
  fields.endsAt.value = local(task.ends_at, task.timezone);
  fields.maxRuns.value = task.max_runs ?? "";
  fields.deliver.value = task.deliver;
}

function bodyOf(fields) {
  const group = fields.context.value === "group";
  return {
    prompt: fields.prompt.value,
    schedule_type: fields.kind.value,
    schedule_value: scheduleValue(fields.kind.value, fields.value.value.trim()),
    context_mode: fields.context.value,
    catch_up: fields.catchUp.value,
    deliver: fields.deliver.value,
    ...(fields.endsAt.value && { ends_at: fields.endsAt.value }),
    ...(fields.maxRuns.value && { max_runs: Number(fields.maxRuns.value) }),
    ...(fields.zone.value.trim() && { timezone: fields.zone.value.trim() }),
    ...(group && { conversation_id: fields.conversation.value.trim() }),
  };
}

function whole(node) {
  node.classList.add("whole");
  return node;
}

function field(label, control, hint = null) {
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint);
}

function select(id, options) {
  return h("select", { id }, ...options.map(([value, label]) => h("option", { value }, label)));
}
