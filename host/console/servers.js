// The operator's MCP servers: how each is, what its tools cost, and the sign-in at one of them.

import { call, path } from "./api.js";
import { h, refill } from "./dom.js";
import { exact } from "./format.js";
import { icon } from "./icons.js";

const WORDS = { ready: "ready", needs_sign_in: "needs sign-in", failing: "failing" };
const BADGES = { ready: "badge", needs_sign_in: "badge paused", failing: "badge failed" };
const BEGUN = "picoclaw.sign-in";

/** Return whether a sign-in that began in this tab has led the browser back here. */
export function isBack() {
  return sessionStorage.getItem(BEGUN) !== null && new URLSearchParams(location.search).has("state");
}

export class ServersView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Servers";
    this.node = h("div", { class: "page" });
    this.tools = [h("button", { class: "button", type: "button", on: { click: () => this.load() } }, icon("again"), "Look again")];
  }

  async open() {
    if (isBack()) await this.end();
    await this.load();
  }

  close() {}

  async load() {
    refill(this.node, h("p", { class: "quiet lead", role: "status" }, "The host connects to each…"));
    try {
      this.show((await call("GET", "/mcp/servers")).servers);
    } catch (error) {
      refill(this.node, h("p", { class: "empty" }, error.message));
    }
  }

  show(servers) {
    const none = h("div", { class: "empty" }, icon("tool", "icon large"), h("h2", {}, "No MCP servers"), h("p", {}, "`picoclaw mcp add` adds one, and so does tools.mcp.servers in config.json."));
    refill(this.node,
      h("p", { class: "quiet lead" }, "Other people’s MCP servers, whose tools every run gets. Tokens are what a server’s tools take of a request; beyond a tenth of the window only their names go along."),
      servers.length ? h("div", { class: "cards" }, servers.map((server) => this.card(server))) : none);
  }

  card(server) {
    const says = server.problems.map((problem) => h("div", { class: "note warn" }, icon("alert"), h("p", { dir: "auto" }, problem)));
    const count = server.tools.length;
    return h("article", { class: "card" },
      h("div", { class: "row top" }, h("h2", { class: "name" }, server.name), h("span", { class: BADGES[server.state] }, WORDS[server.state]), this.button(server)),
      h("p", { class: "row meta" }, h("code", {}, server.address), server.state === "ready" ? h("span", {}, `${count} ${count === 1 ? "tool" : "tools"}, about ${exact(server.tokens)} tokens`) : null),
      says,
      count ? h("details", {}, h("summary", {}, "Tools"), h("ul", { class: "entries" }, server.tools.map((tool) => h("li", {}, h("code", { class: "entry-name" }, tool))))) : null);
  }

  button(server) {
    const [words, act] = server.state === "needs_sign_in" ? ["Sign in", () => this.begin(server.name)] : ["Sign out", () => this.forget(server.name)];
    if (server.state !== "needs_sign_in" && !server.signed_in) return null;
    return h("button", { class: "button", type: "button", "aria-label": `${words} at ${server.name}`, on: { click: act } }, words);
  }

  async begin(name) {
    await this.told(async () => {
      const { address } = await call("POST", path`/mcp/servers/${name}/sign-in`, { body: { redirect_uri: location.origin + location.pathname } });
      if (!/^https?:/i.test(address)) throw new Error("The server's sign-in is at no web address.");
      sessionStorage.setItem(BEGUN, name);
      location.assign(address);
    });
  }

  async end() {
    const name = sessionStorage.getItem(BEGUN);
    const callback = location.href.split("#")[0];
    sessionStorage.removeItem(BEGUN);
    history.replaceState(null, "", `${location.pathname}#/servers`);
    await this.told(() => call("POST", path`/mcp/servers/${name}/sign-in/callback`, { body: { callback } }));
  }

  async forget(name) {
    await this.told(() => call("DELETE", path`/mcp/servers/${name}/sign-in`));
    await this.load();
  }

  async told(act) {
    try {
      await act();
    } catch (error) {
      this.shell.notice(error);
    }
  }
}
