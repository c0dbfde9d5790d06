// Who is told how runs end: how each webhook is, what it was told, and what to tell it once more.

import { all, call, path } from "./api.js";
import { h, refill } from "./dom.js";
import { ago } from "./format.js";
import { icon } from "./icons.js";

const REASONS = { owner: "switched off", gone: "answered that it is gone", failing: "failed for 3 days", seal_key: "its secret can't be opened" };
const BADGES = { delivered: "badge", waiting: "badge paused", held: "badge paused", dead: "badge failed" };

export class WebhooksView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Webhooks";
    this.node = h("div", { class: "page" });
    this.tools = [h("button", { class: "button", type: "button", on: { click: () => this.open() } }, icon("again"), "Look again")];
    this.gone = new AbortController();
  }

  close() {
    this.gone.abort();
  }

  async open() {
    try {
      this.show(await all("/webhooks", "webhooks", { signal: this.gone.signal }));
    } catch (error) {
      if (error.name !== "AbortError") refill(this.node, h("p", { class: "empty" }, error.message));
    }
  }

  show(webhooks) {
    refill(this.node,
      h("p", { class: "quiet lead" }, "Addresses that are told how runs end."),
      webhooks.length
        ? h("div", { class: "cards" }, webhooks.map((each) => this.card(each)))
        : h("div", { class: "empty" }, icon("bolt", "icon large"), h("h2", {}, "No webhooks"), h("p", {}, "`picoclaw webhook add` makes one, and so does POST /webhooks.")));
  }

  card(webhook) {
    const told = h("ul", { class: "entries" });
    const more = h("details", {}, h("summary", {}, "What it was told"), told);
    more.addEventListener("toggle", () => more.open && this.told(() => this.fill(told, webhook)));
    const state = webhook.enabled ? "enabled" : REASONS[webhook.disabled_reason];
    const act = (label, name, click) => h("button", { class: "button", type: "button", "aria-label": `${label} ${webhook.url}`, on: { click: () => this.told(click) } }, icon(name), label);
    return h("article", { class: "card" },
      h("div", { class: "row top" }, h("h2", { class: "name", dir: "auto" }, webhook.url), h("span", { class: webhook.enabled ? "badge" : "badge failed" }, state)),
      h("p", { class: "meta" }, webhook.events.join(", ")),
      webhook.last_error ? h("div", { class: "note warn" }, icon("alert"), h("p", { dir: "auto" }, `${webhook.last_error}, since ${ago(webhook.failing_since)}`)) : null,
      more,
      h("div", { class: "row wrap" },
        act("Test", "send", async () => {
          await call("POST", path`/webhooks/${webhook.id}/test`);
          this.shell.notice("A test is on its way.");
        }),
        webhook.enabled
          ? act("Disable", "pause", () => this.switch(webhook, false))
          : act("Enable", "play", () => this.switch(webhook, true))));
  }

  async switch(webhook, enabled) {
    await call("PATCH", path`/webhooks/${webhook.id}`, { body: { enabled } });
    await this.open();
  }

  async fill(told, webhook) {
    const { deliveries } = await call("GET", `${path`/webhooks/${webhook.id}`}/deliveries?limit=20`, { signal: this.gone.signal });
    refill(told, deliveries.length ? deliveries.map((each) => this.delivery(told, webhook, each)) : h("li", {}, "Nothing yet."));
  }

  delivery(told, webhook, each) {
    const replay = async () => {
      await call("POST", path`/webhooks/${webhook.id}/deliveries/${each.id}/replay`);
      await this.fill(told, webhook);
    };
    return h("li", { class: "row" },
      h("span", { class: BADGES[each.status] }, each.status),
      h("span", {}, `${each.type}, ${ago(each.created_at)}${each.error ? `: ${each.error}` : ""}`),
      h("button", { class: "button", type: "button", "aria-label": `Replay ${each.type}`, on: { click: () => this.told(replay) } }, icon("again"), "Replay"));
  }

  async told(act) {
    try {
      await act();
    } catch (error) {
      if (error.name !== "AbortError") this.shell.notice(error);
    }
  }
}
