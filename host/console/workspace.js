// The agent's workspace, to look at: folders, and files as text.

import { call } from "./api.js";
import { h, refill } from "./dom.js";
import { bytes } from "./format.js";
import { icon } from "./icons.js";
import { codeBlock, markdown } from "./markdown.js";

export class WorkspaceView {
  constructor(shell, path = "") {
    this.shell = shell;
    this.path = path;
    this.title = "Workspace";
    this.tools = [];
    this.node = h("div", { class: "page" }, h("div", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
  }

  async open() {
    try {
      const { text } = await call("GET", `/admin/workspace?path=${encodeURIComponent(this.path)}`);
      refill(this.node, this.trail(), this.path === "" || this.path.endsWith("/") ? this.folder(text) : this.file(text));
    } catch (error) {
      refill(this.node, this.trail(), h("div", { class: "empty" }, h("h2", {}, "This can’t be shown"), h("p", {}, error.message)));
    }
  }

  close() {}

  /** The way from the workspace to here, each part a link. */
  trail() {
    const parts = this.path.split("/").filter(Boolean);
    const links = parts.map((name, place) => {
      const last = place === parts.length - 1;
      const whole = parts.slice(0, place + 1).join("/");
      return h("li", {}, last ? h("span", { "aria-current": "page" }, name) : to(`${whole}/`, name));
    });
    return h("nav", { class: "trail", "aria-label": "Path" }, h("ol", {}, h("li", {}, to("", "Workspace")), links));
  }

  folder(listing) {
    const [head, ...lines] = listing.split("\n");
    const entries = lines.map(entry);
    if (entries.length === 0) return h("p", { class: "empty" }, "This folder is empty.");
    return h("section", { class: "card" },
      h("ul", { class: "entries" }, entries.map(({ name, isFolder, size, kind }) => h("li", {},
        icon(isFolder ? "folder" : "note"),
        name === null || kind ? h("span", { class: "entry-name" }, name ?? kind) : to(`${this.path}${name}${isFolder ? "/" : ""}`, name),
        h("span", { class: "quiet" }, isFolder ? "" : kind || bytes(size))))),
      head.includes("cut after") ? h("p", { class: "quiet" }, "There are more than these.") : null);
  }

  file(text) {
    if (text.includes("\u0000") || text.split("\ufffd", 20).length === 20) return h("p", { class: "empty" }, "This file is not text.");
    const ending = /\.([a-z0-9]+)$/i.exec(this.path)?.[1].toLowerCase() ?? "";
    return h("section", { class: "card" }, h("h2", { dir: "auto" }, this.path.split("/").at(-1)), ending === "md" ? markdown(text) : codeBlock(text.replace(/\n$/, ""), ending));
  }
}

function to(path, name) {
  return h("a", { href: `#/workspace/${encodeURIComponent(path)}`, dir: "auto" }, name);
}

/** Return what a line of a listing says: "name/", "name  bytes" or "name  (kind)"; odd names stand as in JSON. */
function entry(line) {
  const [, shown, size, kind] = /^(.*?)(?:\/|  (\d+)|  \((.*)\))$/.exec(line) ?? [null, line];
  return { name: plain(shown), isFolder: size === undefined && kind === undefined, size: Number(size), kind };
}

function plain(shown) {
  if (!shown.startsWith('"')) return shown;
  try {
    return JSON.parse(shown);
  } catch {
    return null;
  }
}
