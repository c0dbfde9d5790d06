// The frame around everything: the list at the side, the title above, notices, and which place is shown.

import { call, host } from "./api.js";
import { press } from "./approvals.js";
import { ConversationView } from "./conversation.js";
import { Conversations } from "./conversations.js";
import { h, refill } from "./dom.js";
import { icon } from "./icons.js";
import { listenForKeys, pages, showKeys } from "./keys.js";
import { PLACES } from "./places.js";
import { session, signOut } from "./session.js";
import { themeButton } from "./theme.js";

const NARROW = "(max-width: 52rem)";
const NOTICE_MS = 8000;
const HEALTH_EVERY_MS = 60_000;

const LEVELS = ["no walls", "weak walls", "kernel walls", "all kernel walls"];

export class Shell {
  constructor(root) {
    this.root = root;
    this.view = null;
    this.closed = new Set();
    this.conversations = new Conversations(() => this.name());
    this.heading = h("h1", {});
    this.tools = h("div", { class: "row" });
    this.place = h("main", { id: "main", tabindex: "-1" });
    this.notices = h("div", { class: "notices", role: "status" });
    this.offline = h("p", { class: "offline", role: "status", hidden: true }, icon("alert"), "The host cannot be reached. Trying again…");
    this.stuck = h("p", { class: "stuck", role: "status", hidden: true });
    this.sandbox = h("span", { class: "sandbox" });
    this.who = h("p", { class: "quiet who", hidden: true });
    this.links = PLACES.map((place) => h("a", { href: `#/${place.name}` }, icon(place.icon), place.title));
    this.opener = h("button", { class: "ghost opener", type: "button", "aria-label": "Conversations", "aria-expanded": "false", "aria-controls": "side", on: { click: () => this.drawer(true) } }, icon("menu"));
    this.stage = h("div", { class: "stage" }, this.offline, this.stuck,
      h("header", { class: "bar" }, this.opener, this.heading, this.tools), this.place, this.notices);
    this.side = this.sidebar();
    this.veil = h("div", { class: "veil", hidden: true, on: { click: () => this.drawer(false) } });
  }

  sidebar() {
    return h("aside", { class: "side", id: "side", "aria-label": "Navigation" },
      h("div", { class: "row brand" }, h("span", { class: "mark" }, icon("chat")), h("span", { class: "name" }, "PicoClaw"),
        h("button", { class: "ghost closer", type: "button", "aria-label": "Close the list", on: { click: () => this.drawer(false) } }, icon("close"))),
      h("a", { class: "button primary wide", href: "#/" }, icon("plus"), "New conversation"),
      this.conversations.node,
      h("nav", { class: "places", "aria-label": "Places" }, ...this.links),
      this.who,
      h("div", { class: "row under" }, this.sandbox,
        themeButton(),
        h("button", { class: "ghost", type: "button", title: "Keyboard", "aria-label": "Keyboard shortcuts", on: { click: showKeys } }, icon("keys")),
        h("button", { class: "ghost", type: "button", title: "Sign out", "aria-label": "Sign out", on: { click: () => this.leave() } }, icon("leave"))));
  }

  /** Show everything; resolves when people sign out or the token stops being good, with what to tell them. */
  async run() {
    refill(this.root, h("a", { class: "skip", href: "#main", on: { click: (event) => this.skip(event) } }, "Skip to the content"), this.side, this.veil, this.stage);
    const left = new Promise((resolve) => { this.finish = resolve; });
    this.listen();
    this.showHealth();
    this.timer = setInterval(() => document.hidden || this.showHealth(), HEALTH_EVERY_MS);
    await this.showWho();
    pages.splice(0, pages.length, ...PLACES.filter(({ name }) => !this.closed.has(name)).map(({ key, title }) => [key, title]));
    this.conversations.start();
    this.go();
    const message = await left;
    this.ended.abort();
    clearInterval(this.timer);
    this.view?.close();
    this.conversations.stop();
    return message;
  }

  listen() {
    this.ended = new AbortController();
    const signal = { signal: this.ended.signal };
    window.addEventListener("hashchange", () => this.go(), signal);
    session.addEventListener("signed-out", () => this.finish("You signed out in another tab."), signal);
    host.addEventListener("signed-out", () => this.finish("The host no longer knows this token."), signal);
    host.addEventListener("down", () => { this.offline.hidden = false; }, signal);
    host.addEventListener("up", () => { this.offline.hidden = true; }, signal);
    matchMedia(NARROW).addEventListener("change", () => this.drawer(false), signal);
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.drawer(false), signal);
    listenForKeys({
      n: () => { location.hash = "#/"; },
      ...Object.fromEntries(PLACES.map(({ key, name }) => [key, () => { if (!this.closed.has(name)) location.hash = `#/${name}`; }])),
      f: () => this.find(),
      j: () => this.beside(1),
      k: () => this.beside(-1),
      a: () => press("allow"),
      d: () => press("deny"),
      "/": () => document.getElementById("message")?.focus(),
      "?": showKeys,
    }, signal.signal);
    this.drawer(false);
  }

  /** Show the place that the address names. */
  go() {
    const [, place = "", id = "", more = ""] = location.hash.split("/");
    if (place === "c" && this.view instanceof ConversationView && this.view.id === decoded(id)) return;
    this.view?.close();
    refill(this.notices);
    this.view = this.closed.has(place) ? refused() : made(place, id, more, this);
    this.conversations.select(this.view instanceof ConversationView ? this.view.id : null);
    for (const link of this.links) {
      if (link.getAttribute("href") === `#/${place}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    refill(this.place, this.view.node);
    refill(this.tools, ...this.view.tools);
    this.name();
    this.drawer(false);
    this.view.open();
  }

  name() {
    const { view } = this;
    const title = view instanceof ConversationView ? (view.id ? this.conversations.title(view.id) : "New conversation") : view.title;
    refill(this.heading, title);
    document.title = `${title} · PicoClaw`;
  }

  // What views ask of the shell.

  /** A conversation that began here has its id now. */
  async went(id) {
    history.replaceState(null, "", `#/c/${encodeURIComponent(id)}`);
    this.conversations.current = id;
    refill(this.tools, ...this.view.tools);
    await this.reload();
  }

  /** What was open is gone. */
  left() {
    location.hash = "#/";
    this.reload();
  }

  async reload() {
    await this.conversations.reload();
    this.name();
  }

  /** Tell people something; an error stays until they close it or go elsewhere. */
  notice(said) {
    const isFault = said instanceof Error;
    const text = isFault ? said.message : said;
    for (const old of this.notices.children) if (old.firstChild.textContent === text) old.remove();
    const close = h("button", { class: "ghost", type: "button", "aria-label": "Close this notice" }, icon("close"));
    const node = h("div", { class: "notice" }, h("p", {}, text), close);
    close.addEventListener("click", () => node.remove());
    if (!isFault) setTimeout(() => node.remove(), NOTICE_MS);
    this.notices.append(node);
  }

  find() {
    this.drawer(true);
    this.conversations.search.focus();
  }

  leave() {
    signOut();
    this.finish("");
  }

  beside(step) {
    const id = this.conversations.beside(step);
    if (id !== null) location.hash = `#/c/${encodeURIComponent(id)}`;
  }

  /** On narrow screens the list lies over the rest, which can't be reached meanwhile. */
  drawer(open) {
    const narrow = matchMedia(NARROW).matches;
    const was = this.side.classList.contains("open");
    this.side.classList.toggle("open", open && narrow);
    this.side.inert = narrow && !open;
    this.stage.inert = narrow && open;
    this.veil.hidden = !(narrow && open);
    this.opener.setAttribute("aria-expanded", String(open && narrow));
    if (open && narrow) this.side.querySelector("a, button").focus();
    else if (was) this.opener.focus();
  }

  skip(event) {
    event.preventDefault();
    this.place.focus();
  }

  /** Say whose token this is, and show the places that it is for. */
  async showWho() {
    const me = await call("GET", "/me").catch(() => null);
    if (me === null) return;
    this.closed = new Set(PLACES.filter(({ scope }) => !me.operator && !me.scopes.includes(scope)).map(({ name }) => name));
    PLACES.forEach(({ name }, number) => { this.links[number].hidden = this.closed.has(name); });
    this.who.hidden = me.operator;
    refill(this.who, `You are ${me.name}.`);
  }

  async showHealth() {
    try {
      const { sandbox, version, approvals } = await call("GET", "/health");
      this.stuck.hidden = approvals.note === null;
      refill(this.stuck, icon("alert"), approvals.note ?? "");
      const level = sandbox.level;
      this.sandbox.classList.toggle("weak", level < 2);
      this.sandbox.title = `Sandbox level ${level} of 3: ${LEVELS[level] ?? ""}; Landlock ABI ${sandbox.landlock_abi}; PicoClaw ${version}`;
      refill(this.sandbox, icon(level < 2 ? "alert" : "shield"), h("span", {}, `Sandbox ${level}/3`));
    } catch {
      host.addEventListener("up", () => this.showHealth(), { once: true, signal: this.ended.signal });
    }
  }
}

function made(place, id, more, shell) {
  const page = PLACES.find(({ name }) => name === place);
  if (page) return new page.view(shell, decoded(id), decoded(more));
  return new ConversationView(place === "c" && id ? decoded(id) : null, shell);
}

/** The place of a page that the token isn't for. */
function refused() {
  const node = h("div", { class: "page" }, h("p", { class: "empty" }, "Your token is not for this page."));
  return { title: "Not for you", tools: [], node, open: () => {}, close: () => {} };
}

function decoded(id) {
  try {
    return decodeURIComponent(id);
  } catch {
    return id;
  }
}
