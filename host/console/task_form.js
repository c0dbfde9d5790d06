// The form of a new task.

import { call } from "./api.js";
import { h, refill } from "./dom.js";

const KINDS = {
  cron: { label: "By the clock (cron)", value: "0 9 * * *", hint: "Minute, hour, day, month, weekday: 0 9 * * 1-5 is nine on workdays" },
  interval: { label: "Again and again", value: "1h", hint: "The time between two runs: 90s, 15m, 2h or 1d" },
  once: { label: "Once", value: "", hint: "A moment, such as 2030-01-31T09:00" },
};

/** Ask for a new task and make it; resolves to whether it was made. */
export function editTask() {
  return new Promise((resolve) => {
    const fields = makeFields();
    const fault = h("p", { class: "fault", role: "alert" });
    const button = h("button", { class: "button primary" }, "Make it");
    const form = h("form", {},
      h("h2", { id: "task-title" }, "New task"),
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
        await call("POST", "/task", { body: bodyOf(fields) });
        dialog.returnValue = "made";
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

const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Return "2h" as the milliseconds that the host wants; what is no such time is the host's to judge. */
function scheduleValue(kind, text) {
  const time = /^(\d{1,9})\s*([smhd])$/i.exec(text);
  return kind === "interval" && time ? String(Number(time[1]) * UNITS[time[2].toLowerCase()]) : text;
}

function makeFields() {
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
  kind();
  context();
  return fields;
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
