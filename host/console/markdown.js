// Markdown as DOM nodes: markdown-it reads it, and each of its tokens becomes an element of a fixed set here.
// Blocks that did not change while a text grows are left as they are.

import { h, link, refill, safeUrl } from "./dom.js";
import { coloured } from "./highlight.js";
import { icon } from "./icons.js";
import { PIPE, rules } from "./markdown_rules.js";
import footnotes from "./vendor/markdown-it-footnote.js";
import MarkdownIt from "./vendor/markdown-it.js";

const DEEPEST = 20;
const LONGEST = 200_000;
const MOST_MARKS = 10_000;
const MARK = /[\n*_~`|[<]|https?:/g;
const TASK = /^\[([ xX])\]\s+/;

const reader = new MarkdownIt({ html: false, linkify: true, breaks: true, maxNesting: DEEPEST }).use(footnotes).use(rules);
// README.md and main.rs are names of files, not of hosts.
reader.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
reader.validateLink = (address) => safeUrl(address) !== null;

/** A growing text and its nodes. */
export class Markdown {
  constructor() {
    this.node = h("div", { class: "prose" });
    this.text = "";
    this._shown = [];
    this._waiting = false;
    this._pages = 1;
    this._more = h("button", { class: "button more", type: "button", on: { click: () => this._page() } }, "Show more");
  }

  /** Add a piece; it is shown with the next frame. */
  add(piece) {
    this.text += piece;
    if (this._waiting) return;
    this._waiting = true;
    requestAnimationFrame(() => {
      this._waiting = false;
      this.render();
    });
  }

  _page() {
    this._pages += 1;
    this.render();
  }

  /** Show its pages now, and a button for what is behind them: a page has a bounded number of nodes. */
  render() {
    const end = pageEnd(this.text, this._pages);
    const blocks = split(this.text.slice(0, end));
    this._more.remove();
    let same = 0;
    while (same < blocks.length && same < this._shown.length && blocks[same].source === this._shown[same]) same += 1;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    for (const block of blocks.slice(same)) this.node.append(built(block));
    this._shown = blocks.map((block) => block.source);
    if (end < this.text.length) this.node.append(this._more);
    return this.node;
  }
}

/** Return a whole text's nodes in one element. */
export function markdown(text) {
  const made = new Markdown();
  made.text = text;
  return made.render();
}

/** Return where so many pages of a text end; each node of Markdown comes from a mark of its text. */
function pageEnd(text, pages) {
  const longest = Math.min(text.length, pages * LONGEST);
  let marks = pages * MOST_MARKS;
  MARK.lastIndex = 0;
  while (marks > 0) {
    const found = MARK.exec(text);
    if (found === null || found.index >= longest) return longest;
    marks -= 1;
  }
  return Math.min(MARK.lastIndex, longest);
}

/** Return the text's outermost blocks: their tokens, the level of a heading, and what they were made of. */
function split(text) {
  const names = {};
  const tokens = reader.parse(text, names);
  const lines = text.split("\n");
  // A definition further down changes what stands further up.
  const defined = JSON.stringify([names.references, names.footnotes?.list?.map(({ label, count }) => [label, count])]);
  const blocks = [];
  let begin = 0;
  let depth = 0;
  tokens.forEach((token, place) => {
    depth += token.nesting;
    if (depth > 0) return;
    const own = tokens.slice(begin, place + 1);
    const map = own[0].map;
    blocks.push({ tokens: own, source: (map ? lines.slice(...map).join("\n") : own.map((one) => one.content).join("\n")) + defined });
    begin = place + 1;
  });
  return levelled(blocks);
}

/** Give headings levels without gaps, whatever marks the text has: those above a turn's are the page's own. */
function levelled(blocks) {
  const above = [];
  for (const block of blocks) {
    if (block.tokens[0].type !== "heading_open") continue;
    const marks = Number(block.tokens[0].tag[1]);
    while (above.length && above.at(-1) >= marks) above.pop();
    above.push(marks);
    block.heading = Math.min(above.length + 2, 6);
    block.source += `\u0000${block.heading}`;
  }
  return blocks;
}

function built({ tokens, heading }) {
  const root = h("div");
  fill(root, tokens, heading);
  return root.childNodes.length === 1 ? root.firstChild : root;
}

function fill(root, tokens, heading = null) {
  const open = [root];
  for (const token of tokens) {
    if (token.hidden) continue;
    if (token.nesting < 0) {
      open.pop();
    } else {
      const node = token.nesting > 0 ? opened(token, heading) : leaf(token, open.at(-1));
      if (node !== null) open.at(-1).append(node);
      if (token.nesting > 0) open.push(node.querySelector("table") ?? node);
    }
  }
}

function opened(token, heading) {
  const { tag, type } = token;
  if (type === "heading_open") return h(heading ? `h${heading}` : "p", { class: `heading m${tag[1]}`, dir: "auto" });
  if (type === "link_open") return link(token.attrGet("href")) ?? h("span");
  if (type === "table_open") return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, h("table"));
  if (tag === "th" || tag === "td") return h(tag, { class: token.attrGet("style")?.replace("text-align:", "to-"), dir: "auto" });
  if (type === "footnote_block_open") return h("ol", { class: "footnotes" });
  if (type === "footnote_open") return h("li", { "data-footnote": token.meta.id, tabindex: "-1", dir: "auto" });
  if (tag === "ol") return h("ol", { start: token.attrGet("start"), dir: "auto" });
  return h(ELEMENTS.has(tag) ? tag : "span", { dir: WRITTEN.has(tag) ? "auto" : null });
}

const ELEMENTS = new Set(["p", "blockquote", "ul", "li", "thead", "tbody", "tr", "em", "strong", "s"]);
const WRITTEN = new Set(["p", "blockquote", "ul", "li"]);

function leaf(token, parent) {
  const { content } = token;
  switch (token.type) {
    case "inline": return inline(token, parent);
    case "text": return document.createTextNode(content.replaceAll(PIPE, "|"));
    case "code_inline": return h("code", {}, content.replaceAll(PIPE, "|"));
    case "softbreak": case "hardbreak": return h("br");
    case "hr": return h("hr");
    case "fence": return codeBlock(content.replace(/\n$/, ""), /^[\w+#.-]{1,30}/.exec(token.info.trim())?.[0]);
    case "code_block": return codeBlock(content.replace(/\n$/, ""));
    case "math": return h("code", { class: "math", dir: "ltr" }, content);
    case "math_block": return h("p", { class: "math", dir: "ltr" }, content);
    // A picture would be fetched from wherever the text says, and tell that place what is in the address.
    case "image": return link(token.attrGet("src"), content || token.attrGet("src"));
    case "footnote_ref": return reference(token.meta);
    case "footnote_anchor": return back(token.meta);
    default: return document.createTextNode(content);
  }
}

/** A line of text; the first of a list's item may be a box to tick. */
function inline(token, parent) {
  const { children } = token;
  const task = parent.localName === "li" && TASK.exec(children[0]?.content ?? "");
  if (task) {
    const done = task[1] !== " ";
    parent.classList.add("task");
    parent.append(h("input", { type: "checkbox", disabled: true, "aria-label": done ? "done" : "to do", prop: { checked: done } }));
    children[0].content = children[0].content.slice(task[0].length);
  }
  fill(parent, children);
  return null;
}

function reference({ id, subId = 0 }) {
  const go = (event) => reach(event, `[data-footnote="${id}"]`);
  return h("sup", {}, h("button", { class: "note-mark", type: "button", "data-mark": `${id} ${subId}`, "aria-label": `Footnote ${id + 1}`, on: { click: go } }, String(id + 1)));
}

function back({ id, subId = 0 }) {
  const go = (event) => reach(event, `[data-mark="${id} ${subId}"]`);
  return h("button", { class: "note-mark", type: "button", "aria-label": `Back to where footnote ${id + 1} is named`, on: { click: go } }, "↩");
}

function reach(event, place) {
  const node = event.target.closest(".prose").querySelector(place);
  node?.scrollIntoView({ block: "center" });
  node?.focus();
}

/** Return a block of code with its button to copy it. */
export function codeBlock(text, language = "") {
  const copy = h("button", { class: "copy", type: "button", title: "Copy", "aria-label": "Copy this code" }, icon("copy"));
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(text).catch(() => {});
    refill(copy, icon("check"));
    setTimeout(() => refill(copy, icon("copy")), 1500);
  });
  const label = language ? h("span", { class: "language" }, language) : null;
  const name = language ? `Code: ${language}` : "Code";
  return h("div", { class: "code", dir: "ltr" }, label, h("pre", { tabindex: "0", role: "region", "aria-label": name }, h("code", {}, coloured(text, language))), copy);
}
