// The list of conversations, by what was said first in each.

import { call, path } from "./api.js";
import { h, refill } from "./dom.js";
import { ago, brief, moment } from "./format.js";
import { icon } from "./icons.js";

const LOOK_EVERY_MS = 5000;
const PAGE = 30;
const ASKED_AT_ONCE = 4;
const TYPING_MS = 250;

export class Conversations {
  /** `onTitle` is called when another title is known. */
  constructor(onTitle) {
    this.onTitle = onTitle;
    this.items = [];
    this.cursor = null;
    this.current = null;
    this.titles = new Map();
    this.given = new Map();
    this.asked = [];
    this.asking = 0;
    this.list = h("ul", { class: "list" });
    this.search = h("input", { id: "search", type: "search", placeholder: "Search conversations", "aria-label": "Search conversations", autocomplete: "off", dir: "auto" });
    this.search.addEventListener("input", () => this.searched());
    this.more = h("button", { class: "textual", type: "button", hidden: true }, "Show more");
    this.more.addEventListener("click", () => this.loadMore());
    this.node = h("nav", { class: "conversations", "aria-label": "Conversations" }, h("div", { class: "search" }, icon("search"), this.search), this.list, this.more);
    refill(this.list, h("li", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
  }

  start() {
    this.timer = setInterval(() => document.hidden || this.reload(), LOOK_EVERY_MS);
    return this.reload();
  }

  stop() {
    clearInterval(this.timer);
  }

  /** Look for what was typed once people pause. */
  searched() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => {
      this.items = [];
      this.reload();
    }, TYPING_MS);
  }

  where(cursor = null) {
    const query = new URLSearchParams({ limit: PAGE, ...(cursor && { cursor }), ...(this.search.value.trim() && { search: this.search.value.trim() }) });
    return `/chat?${query}`;
  }

  async reload() {
    try {
      const where = this.where();
      const page = await call("GET", where);
      if (where !== this.where()) return;
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
      const page = await call("GET", this.where(this.cursor));
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
    const given = this.items.find((item) => item.conversation_id === id)?.title ?? this.given.get(id);
    return given ?? (id.startsWith("conv-") ? this.titles.get(id) ?? "…" : id);
  }

  /** Remember the title of one that may not be in the list. */
  know(item) {
    this.given.set(item.conversation_id, item.title);
    this.wantTitle(item);
    this.onTitle();
  }

  show(items) {
    this.items = items;
    for (const item of items) this.given.set(item.conversation_id, item.title);
    this.more.hidden = this.cursor === null;
    const drawn = JSON.stringify([this.current, items.map((item) => [item, this.title(item.conversation_id), ago(item.last_activity)])]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    refill(this.list, items.length === 0 ? h("li", { class: "empty" }, this.search.value.trim() ? "Nothing found." : "No conversations yet.") : items.map((item) => this.entry(item)));
    if (focused !== null) [...this.list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
    for (const item of items) this.wantTitle(item);
  }

  entry(item) {
    const id = item.conversation_id;
    const running = item.status === "running";
    const waits = item.pending ? h("span", { class: "badge paused" }, item.pending === 1 ? "waits for you" : `${item.pending} wait for you`) : null;
    return h("li", {}, h("a", { href: `#/c/${encodeURIComponent(id)}`, "aria-current": id === this.current ? "page" : null },
      h("span", { class: "title", dir: "auto" }, this.title(id)),
      h("span", { class: "meta" }, waits, running ? h("span", { class: "live" }, "at work") : h("time", { datetime: item.last_activity, title: moment(item.last_activity) }, ago(item.last_activity)))));
  }

  wantTitle({ conversation_id: id, message_count: messages, title }) {
    if (title || !id.startsWith("conv-") || this.titles.has(id)) return;
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
