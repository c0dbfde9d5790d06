// What model calls used: by day, and by conversation.

import { all } from "./api.js";
import { barChart } from "./chart.js";
import { firstWords } from "./conversations.js";
import { h, refill } from "./dom.js";
import { brief, count, dollars, exact } from "./format.js";
import { icon } from "./icons.js";

const DAYS = 30;
const DAY_MS = 864e5;

export class UsageView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Usage";
    this.tools = [];
    this.node = h("div", { class: "page" }, h("div", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
    this.gone = new AbortController();
  }

  async open() {
    const { signal } = this.gone;
    try {
      const [days, each] = await Promise.all([all("/usage", "usage", { most: 1000, signal }), byConversation(signal)]);
      this.show(days, each);
    } catch (error) {
      if (error.name !== "AbortError") refill(this.node, h("p", { class: "empty" }, error.message));
    }
  }

  close() {
    this.gone.abort();
  }

  show(days, each) {
    if (days.length === 0) {
      refill(this.node, h("div", { class: "empty" }, icon("chart", "icon large"), h("h2", {}, "Nothing used yet"), h("p", {}, "Tokens and dollars appear here with the first answer.")));
      return;
    }
    const shown = lastDays(days);
    refill(this.node,
      h("div", { class: "tiles" }, tile("Today", shown.slice(-1)), tile("Last 7 days", shown.slice(-7)), tile(`Last ${DAYS} days`, shown)),
      h("section", { class: "card" }, h("h2", {}, "Tokens by day"), barChart(shown), legend()),
      h("section", { class: "card" }, h("h2", {}, "By conversation"), this.table(each)),
      h("details", { class: "card" }, h("summary", {}, "All days as a table"), dayTable(days)));
  }

  table(each) {
    const rows = [...each].sort((one, other) => other.tokens - one.tokens).slice(0, 20).map((row) => h("tr", {},
      h("th", { scope: "row" }, this.link(row.id)),
      h("td", {}, exact(row.runs)), h("td", {}, exact(row.tokens)), h("td", {}, dollars(row.dollars))));
    return numbers("Usage by conversation", ["Conversation", "Runs", "Tokens", "Dollars"], rows);
  }

  link(id) {
    const node = h("a", { href: `#/c/${encodeURIComponent(id)}` }, brief(id, 20));
    firstWords(id).then((words) => refill(node, words), () => {});
    return node;
  }
}

async function byConversation(signal) {
  const found = new Map();
  for (const row of await allBy(signal)) {
    const sum = found.get(row.conversation_id) ?? { id: row.conversation_id, runs: 0, tokens: 0, dollars: 0 };
    sum.runs += row.runs;
    sum.tokens += row.tokens;
    sum.dollars += row.dollars;
    found.set(row.conversation_id, sum);
  }
  return [...found.values()];
}

function allBy(signal) {
  return all("/usage?by=conversation", "usage", { most: 5000, signal });
}

/** Return the last days, oldest first, with those in between on which nothing was used. */
function lastDays(days) {
  const known = new Map(days.map((day) => [day.day, day]));
  const now = Date.now();
  return Array.from({ length: DAYS }, (_, back) => {
    const day = new Date(now - (DAYS - 1 - back) * DAY_MS).toISOString().slice(0, 10);
    return known.get(day) ?? { day, runs: 0, tokens: 0, dollars: 0, input_tokens: 0, output_tokens: 0, cache_creation_input_tokens: 0, cache_read_input_tokens: 0, unsettled_tokens: 0 };
  });
}

function tile(label, days) {
  const sum = (field) => days.reduce((total, day) => total + day[field], 0);
  return h("div", { class: "tile" }, h("p", { class: "label" }, label),
    h("p", { class: "figure", title: `${exact(sum("tokens"))} tokens` }, count(sum("tokens")), h("span", {}, " tokens")),
    h("p", { class: "quiet" }, `${exact(sum("runs"))} runs · ${dollars(sum("dollars"))}`));
}

function legend() {
  const part = (name, words) => h("span", {}, h("i", { class: `swatch ${name}`, "aria-hidden": "true" }), words);
  return h("p", { class: "legend" }, part("fresh", "input"), part("cached", "input from the cache"), part("out", "output"));
}

function dayTable(days) {
  const rows = days.map((day) => h("tr", {}, h("th", { scope: "row" }, day.day), h("td", {}, exact(day.runs)), h("td", {}, exact(day.tokens)), h("td", {}, dollars(day.dollars))));
  return numbers("Usage by day", ["Day", "Runs", "Tokens", "Dollars"], rows);
}

function numbers(label, heads, rows) {
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": label },
    h("table", { class: "numbers" }, h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, ...rows)));
}
