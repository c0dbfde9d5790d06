// The workspace of a conversation: folders, files as text or as pictures, and files in and out.

import { call, path, send } from "./api.js";
import { confirmed, h, offered, refill } from "./dom.js";
import { bytes, escaped } from "./format.js";
import { icon } from "./icons.js";
import { codeBlock, markdown } from "./markdown.js";

const MOST_SHOWN = 2000;
const LONGEST_TEXT = 2 << 20;
/** The last of all characters: a cursor with it stands behind everything in a folder. */
const END = "\u{10ffff}";
const PICTURES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };

/** Return the address of a file in the host's API. */
export function fileAt(conversationId, where) {
  return `${path`/chat/${conversationId}/files/`}${where.split("/").map(encodeURIComponent).join("/")}`;
}

/** Fetch a file and hand it to the browser. */
export async function fetchFile(conversationId, where) {
  offered(where.split("/").at(-1), await fetched(conversationId, where));
}

/** Return a picture's node, null for what is none. */
export async function picture(conversationId, where) {
  const type = PICTURES[ending(where)];
  if (!type) return null;
  const address = URL.createObjectURL(new Blob([await fetched(conversationId, where)], { type }));
  return h("img", { class: "picture", alt: where.split("/").at(-1), prop: { src: address, onload: () => URL.revokeObjectURL(address) } });
}

async function fetched(conversationId, where) {
  return (await send("GET", fileAt(conversationId, where))).blob();
}

function ending(where) {
  return /\.([a-z0-9]+)$/i.exec(where)?.[1].toLowerCase() ?? "";
}

export class WorkspaceView {
  /** `conversationId` is whose workspace it is; all of one principal share one, unless the host is set to part them. */
  constructor(shell, where = "", conversationId = "main") {
    this.shell = shell;
    this.where = where;
    this.id = conversationId || "main";
    this.title = "Workspace";
    this.tools = [];
    this.node = h("div", { class: "page" }, h("div", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
  }

  get isFolder() {
    return this.where === "" || this.where.endsWith("/");
  }

  async open() {
    try {
      refill(this.node, this.trail(), this.isFolder ? await this.folder() : await this.file());
    } catch (error) {
      refill(this.node, this.trail(), h("div", { class: "empty" }, h("h2", {}, "This can’t be shown"), h("p", {}, error.message)));
    }
  }

  close() {}

  /** The way from the workspace to here, each part a link. */
  trail() {
    const parts = this.where.split("/").filter(Boolean);
    const links = parts.map((name, place) => {
      const last = place === parts.length - 1;
      const whole = parts.slice(0, place + 1).join("/");
      return h("li", {}, last ? h("span", { "aria-current": "page" }, escaped(name)) : this.to(`${whole}/`, name));
    });
    return h("nav", { class: "trail", "aria-label": "Path" }, h("ol", {}, h("li", {}, this.to("", "Workspace")), links));
  }

  to(where, name) {
    const whose = this.id === "main" ? "" : `/${encodeURIComponent(this.id)}`;
    return h("a", { href: `#/workspace/${encodeURIComponent(where)}${whose}`, dir: "auto" }, escaped(name));
  }

  async folder() {
    const { entries, isCut, isIncomplete } = await inFolder(this.id, this.where);
    const chosen = h("input", { type: "file", multiple: "", hidden: true, "aria-label": "Files" });
    chosen.addEventListener("change", () => this.upload([...chosen.files]));
    const list = h("section", { class: "card" },
      h("ul", { class: "entries" }, entries.map((entry) => this.line(entry))),
      entries.length === 0 && !isIncomplete ? h("p", { class: "quiet" }, "This folder is empty.") : null,
      isIncomplete ? h("p", { class: "quiet" }, "Not everything in here can be listed.") : null,
      isCut ? h("p", { class: "quiet" }, "There are more than these.") : null,
      h("div", { class: "row" }, h("button", { class: "button", type: "button", on: { click: () => chosen.click() } }, icon("plus"), "Add files"), chosen));
    list.addEventListener("dragover", (event) => event.preventDefault());
    list.addEventListener("drop", (event) => {
      event.preventDefault();
      this.upload([...event.dataTransfer.files]);
    });
    return list;
  }

  line({ path: whole, name, type, size }) {
    const isFolder = type === "directory";
    const shown = ["file", "directory"].includes(type) ? this.to(isFolder ? `${whole}/` : whole, name) : h("span", { class: "entry-name" }, escaped(name));
    const button = (label, drawn, click) => h("button", { class: "ghost", type: "button", title: `${label} ${name}`, "aria-label": `${label} ${name}`, on: { click: () => this.told(click) } }, icon(drawn));
    return h("li", {}, icon(isFolder ? "folder" : "note"), shown,
      h("span", { class: "quiet" }, type === "file" ? bytes(size) : isFolder ? "" : type),
      type === "file" ? button("Save", "export", () => fetchFile(this.id, whole)) : null,
      button("Delete", "trash", () => this.remove(whole, name, isFolder)));
  }

  async file() {
    const name = this.where.split("/").at(-1);
    const save = h("button", { class: "button", type: "button", on: { click: () => this.told(() => fetchFile(this.id, this.where)) } }, icon("export"), "Save");
    return h("section", { class: "card" }, h("h2", { dir: "auto" }, escaped(name)), await this.content(), h("div", { class: "row" }, save));
  }

  async content() {
    const drawn = await picture(this.id, this.where);
    if (drawn) return drawn;
    const blob = await fetched(this.id, this.where);
    if (blob.size > LONGEST_TEXT) return h("p", { class: "empty" }, `This file has ${bytes(blob.size)}: too long to be shown.`);
    const text = await blob.text();
    if (text.includes("\u0000") || text.split("\ufffd", 20).length === 20) return h("p", { class: "empty" }, "This file is not text.");
    return ending(this.where) === "md" ? markdown(text) : codeBlock(text.replace(/\n$/, ""), ending(this.where));
  }

  /** Each file by itself: what becomes of one is no reason to leave out the others. */
  async upload(files) {
    for (const file of files) await this.told(() => this.put(file));
  }

  async put(file) {
    const name = file.name.toWellFormed();
    const put = (headers) => send("PUT", fileAt(this.id, this.where + name), { file, headers });
    try {
      await put({ "If-None-Match": "*" });
    } catch (error) {
      if (error.status !== 412) throw new Error(`${name} was not added. ${error.message}`);
      const words = { title: `Replace ${escaped(name)}?`, text: "A file of this name is here. What it holds now can’t be brought back.", action: "Replace it" };
      if (await confirmed(words)) await put();
    }
  }

  async remove(whole, name, isFolder) {
    const text = isFolder ? "Everything in it goes too. This can’t be undone." : "This can’t be undone.";
    if (!(await confirmed({ title: `Delete ${escaped(name)}?`, text, action: "Delete it" }))) return;
    await call("DELETE", `${fileAt(this.id, whole)}${isFolder ? "?recursive=true" : ""}`);
  }

  /** Do something, say why when it fails, and show what is there then. */
  async told(act) {
    try {
      await act();
    } catch (error) {
      this.shell.notice(error);
    }
    if (this.isFolder) await this.open();
  }
}

/** Return what lies in a folder itself. Lists are flat: what is below its own folders is passed over. */
async function inFolder(conversationId, folder) {
  const entries = [];
  let cursor = "";
  let isIncomplete = false;
  if (folder !== "" && !(await isThere(conversationId, folder.slice(0, -1)))) throw new Error(`There is no folder ${folder}`);
  while (cursor !== null && entries.length < MOST_SHOWN) {
    const asked = new URLSearchParams({ prefix: folder, limit: 1000, ...(cursor && { cursor }) });
    const page = await call("GET", `${path`/chat/${conversationId}/files`}?${asked}`);
    const own = page.files.map((file) => ({ ...file, name: file.path.slice(folder.length) })).filter(({ name }) => name !== "" && !name.includes("/"));
    entries.push(...own);
    isIncomplete ||= page.incomplete;
    cursor = page.next_cursor;
    const below = cursor?.slice(folder.length).split("/") ?? [];
    if (below.length > 1) cursor = `${folder}${below[0]}/${END}`;
  }
  return { entries, isCut: cursor !== null, isIncomplete };
}

async function isThere(conversationId, folder) {
  const { files } = await call("GET", `${path`/chat/${conversationId}/files`}?${new URLSearchParams({ prefix: folder, limit: 1 })}`);
  return files[0]?.path === folder && files[0].type === "directory";
}
