// Users of this host, for its operator: make them, give them tokens, set limits, suspend and delete.

import { all, call, path } from "./api.js";
import { asked, confirmed, h, refill } from "./dom.js";
import { ago, brief, dollars, escaped, exact } from "./format.js";
import { icon } from "./icons.js";

const LIMITS = [
  { label: "Tokens a day", of: (terms) => terms.budgets?.day?.tokens },
  { label: "Dollars a day", of: (terms) => terms.budgets?.day?.dollars, step: "any" },
  { label: "Messages a minute", of: (terms) => terms.rate_limits?.messages_per_minute },
  { label: "Requests a minute", of: (terms) => terms.rate_limits?.requests_per_minute },
  { label: "Runs at once", of: (terms) => terms.concurrent_runs },
  { label: "Files, MiB", of: (terms) => terms.workspace_mb },
];

export class PrincipalsView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Principals";
    this.node = h("div", { class: "page" });
    this.tools = [h("button", { class: "button primary", type: "button", on: { click: () => this.make() } }, icon("plus"), "New principal")];
    this.gone = new AbortController();
  }

  close() {
    this.gone.abort();
  }

  async open() {
    try {
      this.show(await all("/principals", "principals", { signal: this.gone.signal }));
    } catch (error) {
      if (error.name !== "AbortError") refill(this.node, h("p", { class: "empty" }, error.message));
    }
  }

  show(principals) {
    const others = principals.filter(({ id }) => id !== "operator");
    refill(this.node,
      h("p", { class: "quiet lead" }, "Each has conversations, memory, files, limits and tokens of its own."),
      others.length
        ? h("div", { class: "cards" }, others.map((each) => this.card(each)))
        : h("div", { class: "empty" }, icon("people", "icon large"), h("h2", {}, "Nobody but you"), h("p", {}, "Make a principal for each person or program that gets an agent here.")));
  }

  card(principal) {
    const usage = h("div", {});
    const more = h("details", {}, h("summary", {}, "Usage and limits"), usage);
    more.addEventListener("toggle", () => more.open && this.fill(usage, principal.id));
    const act = (label, name, click, style = "button") => h("button", { class: style, type: "button", on: { click } }, icon(name), label);
    const suspended = principal.status === "suspended";
    const going = principal.status === "deleting";
    return h("article", { class: "card", "aria-label": principal.name },
      h("div", { class: "row top" }, h("h2", { class: "name", dir: "auto" }, escaped(principal.name)), h("span", { class: `badge ${principal.status}` }, principal.status)),
      h("p", { class: "meta" }, h("code", { title: principal.id }, brief(principal.id, 20)), ` ${principal.scopes.join(", ")}`),
      more,
      going ? null : h("div", { class: "row wrap" },
        act("Token", "keys", () => this.token(principal)),
        act("Limits", "pencil", () => this.limit(principal)),
        suspended
          ? act("Resume", "play", () => this.change(principal, { status: "active" }))
          : act("Suspend", "pause", () => this.change(principal, { status: "suspended" })),
        act("Delete", "trash", () => this.delete(principal), "button danger")));
  }

  async fill(node, id) {
    try {
      const found = await call("GET", path`/principals/${id}`, { signal: this.gone.signal });
      const { used } = found;
      const said = [
        ["Today", `${exact(used.tokens)} tokens, ${dollars(used.dollars)}`],
        ["Conversations", exact(used.conversations)],
        ["Active tasks", exact(used.tasks)],
        ["Runs now", exact(used.running)],
        ["Last activity", used.last_activity ? ago(used.last_activity) : "never"],
        ...LIMITS.map(({ label, of }) => [label, of(found) ?? "no limit"]),
        ["Models", found.models?.join(", ") ?? "all"],
      ];
      refill(node, h("table", { class: "facts" }, h("tbody", {}, said.map(([label, value]) => h("tr", {}, h("th", { scope: "row" }, label), h("td", {}, String(value)))))));
    } catch (error) {
      if (error.name !== "AbortError") refill(node, h("p", { class: "fault" }, error.message));
    }
  }

  async make() {
    const name = h("input", { id: "principal-name", required: true, maxlength: 200 });
    const done = await asked({
      title: "New principal", action: "Make it",
      inside: [h("label", { for: "principal-name" }, "Name"), name],
      act: () => call("POST", "/principals", { body: { name: name.value } }),
    });
    if (done) this.open();
  }

  async token(principal) {
    const name = h("input", { id: "token-name", maxlength: 200 });
    let made = null;
    const done = await asked({
      title: `New token of ${escaped(principal.name)}`, action: "Make it",
      inside: [h("label", { for: "token-name" }, "What it is for"), name],
      act: async () => { made = await call("POST", path`/principals/${principal.id}/tokens`, { body: { name: name.value } }); },
    });
    if (!done) return;
    const text = h("input", { id: "token-text", readonly: true, prop: { value: made.token }, on: { focus: () => text.select() } });
    await asked({
      title: "The token", action: "I have it",
      inside: [h("label", { for: "token-text" }, "It is shown this once: the host keeps only a digest."), text],
      act: async () => {},
    });
  }

  async limit(principal) {
    const inputs = LIMITS.map(({ of, step = "1" }, number) =>
      h("input", { id: `limit-${number}`, type: "number", min: step === "1" ? 1 : 0, step, prop: { value: of(principal) ?? "" } }));
    const done = await asked({
      title: `Limits of ${escaped(principal.name)}`, action: "Save",
      inside: [
        h("p", { class: "hint" }, "Empty: no limit but the host’s."),
        ...LIMITS.map(({ label }, number) => [h("label", { for: `limit-${number}` }, label), inputs[number]]),
      ],
      act: () => call("PATCH", path`/principals/${principal.id}`, { body: limits(principal, inputs.map(({ value }) => (value === "" ? null : Number(value)))) }),
    });
    if (done) this.open();
  }

  async change(principal, body) {
    try {
      await call("PATCH", path`/principals/${principal.id}`, { body });
    } catch (error) {
      this.shell.notice(error);
    }
    this.open();
  }

  async delete(principal) {
    const sure = await confirmed({ title: `Delete ${escaped(principal.name)}?`, text: "Its conversations, tasks, tokens, memory and files are removed. This can’t be undone.", action: "Delete it" });
    if (!sure) return;
    try {
      await call("DELETE", path`/principals/${principal.id}`);
    } catch (error) {
      this.shell.notice(error);
    }
    this.open();
  }
}

/** Return the body that sets these limits and keeps the others. */
function limits(principal, [tokens, spent, messages, requests, runs, files]) {
  const day = { ...(tokens === null ? {} : { tokens }), ...(spent === null ? {} : { dollars: spent }) };
  return {
    budgets: { ...principal.budgets, day },
    rate_limits: { messages_per_minute: messages, requests_per_minute: requests },
    concurrent_runs: runs,
    workspace_mb: files,
  };
}
