// The list of conversations, by what was said first in each.

import { call, path } from "./api.js";
import { h, refill } from "./dom.js";
import { ago, brief, moment } from "./format.js";

const LOOK_EVERY_MS = 5000;
const PAGE = 30;
const ASKED_AT_ONCE = 4;

export class Conversations {
  /** `onTitle` is called when another title is known. */
  constructor(onTitle) {
    this.onTitle = onTitle;
    this.items = [];
    this.cursor = null;
    this.current = null;
    this.titles = new Map();
    this.asked = [];
    this.asking = 0;
    this.list = h("ul", { class: "list" });
    this.more = h("button", { class: "textual", type: "button", hidden: true }, "Show more");
    this.more.addEventListener("click", () => this.loadMore());
    this.node = h("nav", { class: "conversations", "aria-label": "Conversations" }, this.list, this.more);
    refill(this.list, h("li", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
  }

  start() {
    this.timer = setInterval(() => document.hidden || this.reload(), LOOK_EVERY_MS);
    return this.reload();
  }

  stop() {
    clearInterval(this.timer);
  }

  async reload() {
    try {
      const page = await call("GET", `/chat?limit=${PAGE}`);
      const fresh = new Set(page.conversations.map((item) => item.conversation_id));
      // A page that was asked for before stays; what is on the first page now comes from there.
      const older = this.items.slice(PAGE).filter((item) => !fresh.has(item.conversation_id));
      if (this.items.length <= PAGE) this.cursor = page.next_cursor;
      this.show([...page.conversations, ...older]);
    } catch {
      // The shell says when the host is away; the list stays as it was.
    }
  }

  async loadMore() {
    try {
      const page = await call("GET", `/chat?limit=${PAGE}&cursor=${encodeURIComponent(this.cursor)}`);
      const known = new Set(this.items.map((item) => item.conversation_id));
      this.cursor = page.next_cursor;
      this.show([...this.items, ...page.conversations.filter((item) => !known.has(item.conversation_id))]);
    } catch {
      this.more.hidden = false;
    }
  }

  /** Mark the conversation that is open. */
  select(id) {
    this.current = id;
    this.show(this.items);
  }

  /** Return the id before or after the open one in the list. */
  beside(step) {
    const ids = this.items.map((item) => item.conversation_id);
    const place = ids.indexOf(this.current);
    return place < 0 ? ids[0] ?? null : ids[place + step] ?? null;
  }

  title(id) {
    return id.startsWith("conv-") ? this.titles.get(id) ?? "…" : id;
  }

  show(items) {
    this.items = items;
    this.more.hidden = this.cursor === null;
    const drawn = JSON.stringify([this.current, items.map((item) => [item, this.title(item.conversation_id), ago(item.last_activity)])]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    refill(this.list, items.length === 0 ? h("li", { class: "empty" }, "No conversations yet.") : items.map((item) => this.entry(item)));
    if (focused !== null) [...this.list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
    for (const item of items) this.wantTitle(item);
  }

  entry(item) {
    const id = item.conversation_id;
    const running = item.status === "running";
    return h("li", {}, h("a", { href: `#/c/${encodeURIComponent(id)}`, "aria-current": id === this.current ? "page" : null },
      h("span", { class: "title" }, this.title(id)),
      h("span", { class: "meta" }, running ? h("span", { class: "live" }, "at work") : h("time", { datetime: item.last_activity, title: moment(item.last_activity) }, ago(item.last_activity)))));
  }

  wantTitle({ conversation_id: id, message_count: messages }) {
    if (!id.startsWith("conv-") || this.titles.has(id)) return;
    if (messages === 0) return;
    this.titles.set(id, "…");
    this.asked.push(id);
    this.askTitles();
  }

  askTitles() {
    while (this.asking < ASKED_AT_ONCE && this.asked.length) {
      this.asking += 1;
      this.askTitle(this.asked.shift()).finally(() => {
        this.asking -= 1;
        this.askTitles();
      });
    }
  }

  async askTitle(id) {
    try {
      this.titles.set(id, await firstWords(id));
    } catch {
      this.titles.delete(id);
    }
    this.show(this.items);
    this.onTitle();
  }
}

/** Return what a conversation began with. */
export async function firstWords(id) {
  const page = await call("GET", `${path`/chat/${id}/messages`}?limit=1`);
  return brief(page.messages[0]?.content ?? "", 70) || "(blank)";
}
