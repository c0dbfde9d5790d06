// Files that go with a message, and files that came of a run.

import { newKey, send } from "./api.js";
import { h, refill } from "./dom.js";
import { bytes, escaped } from "./format.js";
import { icon } from "./icons.js";
import { fetchFile, fileAt, picture } from "./workspace.js";

/** A message that begins a conversation carries its files within it. */
const MOST_WITHIN = 20 << 20;
/** Bytes that the host's file system takes, less what stands before the name. */
const LONGEST_NAME = 240;
const ATTACHED = /^\[Attached: (.+) \((\S+), [^()]+\)\]$/gm;

/** The files that are to go with the next message. */
export class Tray {
  /** `changed()` hears that there are others. */
  constructor(changed) {
    this.changed = changed;
    this.files = [];
    this.node = h("ul", { class: "tray", "aria-label": "Files", hidden: true });
    this.chosen = h("input", { type: "file", multiple: "", hidden: true, "aria-label": "Files" });
    this.chosen.addEventListener("change", () => {
      this.add([...this.chosen.files]);
      this.chosen.value = "";
    });
    this.button = h("button", { class: "ghost", type: "button", title: "Add files", "aria-label": "Add files", on: { click: () => this.chosen.click() } }, icon("clip"));
  }

  /** Take what is dropped on `node` or pasted into it. */
  listen(node) {
    const taken = (event, data) => {
      if (!data?.files.length) return;
      event.preventDefault();
      this.add([...data.files]);
    };
    node.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    node.addEventListener("drop", (event) => taken(event, event.dataTransfer));
    node.addEventListener("paste", (event) => taken(event, event.clipboardData));
  }

  add(files) {
    this.files.push(...files);
    this.show();
  }

  /** Return the files and let them go. */
  take() {
    const files = this.files;
    this.files = [];
    this.show();
    return files;
  }

  show() {
    refill(this.node, this.files.map((file, place) => {
      const label = `Leave out ${file.name}`;
      const away = () => {
        this.files.splice(place, 1);
        this.show();
      };
      return h("li", {}, thumbnail(file), h("span", { dir: "auto" }, escaped(file.name)), h("span", { class: "quiet" }, file.path ? "" : bytes(file.size)),
        h("button", { class: "ghost", type: "button", title: label, "aria-label": label, on: { click: away } }, icon("close")));
    }));
    this.node.hidden = this.files.length === 0;
    this.changed();
  }
}

function thumbnail(file) {
  if (file.path || !/^image\/(png|jpeg|gif|webp)$/.test(file.type)) return icon("note");
  const address = URL.createObjectURL(file);
  return h("img", { class: "thumbnail", alt: "", prop: { src: address, onload: () => URL.revokeObjectURL(address) } });
}

/** Return files as POST /chat takes them: a conversation that is there has them in its inbox first. */
export async function attached(conversationId, files) {
  if (conversationId === null) {
    const size = files.reduce((sum, file) => sum + file.size, 0);
    if (size > MOST_WITHIN) throw new Error(`${bytes(size)} are too much for a first message (20 MiB). Say something first, and add them then.`);
    return Promise.all(files.map(async (file) => ({ name: ending(file.name), media_type: file.type || "application/octet-stream", data: await base64(file) })));
  }
  const made = [];
  for (const file of files) {
    const where = file.path ?? `inbox/${conversationId}/${newKey().slice(0, 8)}-${ending(file.name)}`;
    if (!file.path) await send("PUT", fileAt(conversationId, where), { file });
    made.push({ path: where });
  }
  return made;
}

/** Return the end of a name, as long as a file's may be. */
function ending(name) {
  const letters = [...name.toWellFormed()];
  const size = (text) => new TextEncoder().encode(text).length;
  let over = size(letters.join("")) - LONGEST_NAME;
  const from = letters.findIndex((letter) => over <= 0 || (over -= size(letter), false));
  return letters.slice(from).join("");
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(new Error(`${file.name} cannot be read.`)));
    reader.readAsDataURL(file);
  });
}

/** Return a message's own words, and the files that the host says came with it. */
export function parted(text) {
  const files = [...text.matchAll(ATTACHED)].map(([, where, type]) => ({ path: where, name: where.split("/").at(-1), type }));
  return { words: files.length ? text.replace(ATTACHED, "").trimEnd() : text, files };
}

/** Return a list of files, each to be saved; pictures are shown. Those without a path yet and deleted ones are named. */
export function fileList(conversationId, files, label) {
  if (!files?.length) return null;
  return h("ul", { class: "files", "aria-label": label }, files.map((file) => {
    const line = h("li", {}, icon("note"));
    if (file.change === "deleted" || !file.path) {
      line.append(h("span", { dir: "auto" }, escaped(file.path ? `${file.path} was deleted` : file.name)));
      return line;
    }
    const name = escaped(file.path.split("/").at(-1));
    const save = h("button", { class: "textual", type: "button", title: `Save ${file.path}`, dir: "auto" }, name);
    save.addEventListener("click", () => fetchFile(conversationId, file.path).catch((error) => refill(save, `${name}: ${error.message}`)));
    line.append(save);
    picture(conversationId, file.path).then((drawn) => drawn && line.append(drawn), () => {});
    return line;
  }));
}
