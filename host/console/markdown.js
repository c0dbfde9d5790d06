// Markdown as DOM nodes. Blocks that did not change while a text grows are left as they are.

import { h, refill } from "./dom.js";
import { icon } from "./icons.js";
import { inline } from "./inline.js";

const DEEPEST = 6;
const LONGEST = 200_000;
const MOST_MARKS = 10_000;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?:\s+(.*)|)$/;
const QUOTE = /^ {0,3}> ?/;
const MARK = /[\n*_~`|[<]|https?:/g;

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
    for (const block of blocks.slice(same)) this.node.append(block.make());
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

function split(text) {
  return levelled(blocks(text.split(/\r\n|\n|\r/), 0));
}

/** Give headings levels without gaps, whatever marks the text has: those above a turn's are the page's own. */
function levelled(made) {
  const above = [];
  for (const block of made) {
    if (!block.heading) continue;
    while (above.length && above.at(-1) >= block.heading) above.pop();
    above.push(block.heading);
    const level = Math.min(above.length + 2, 6);
    const { make } = block;
    block.source += `\u0000${level}`;
    block.make = () => make(level);
  }
  return made;
}

function blocks(lines, depth) {
  const made = [];
  let place = 0;
  while (place < lines.length) {
    if (lines[place].trim() === "") {
      place += 1;
      continue;
    }
    const [end, make, heading] = block(lines, place, depth);
    made.push({ source: lines.slice(place, end).join("\n"), make, heading });
    place = end;
  }
  return made;
}

function block(lines, place, depth) {
  const line = lines[place];
  if (opensFence(line)) return fenced(lines, place);
  const heading = HEADING.exec(line);
  if (heading) return [place + 1, (level) => headed(heading, level), heading[1].length];
  if (isRule(line)) return [place + 1, () => h("hr")];
  if (depth < DEEPEST) {
    if (QUOTE.test(line)) return quoted(lines, place, depth);
    if (ITEM.test(line)) return listed(lines, place, depth);
    if (isTable(lines, place)) return tabled(lines, place);
  }
  return paragraph(lines, place, depth);
}

function headed([, marks, text], level) {
  // Inside a list or a quotation it is no heading of the whole.
  return h(level ? `h${level}` : "p", { class: `heading m${marks.length}` }, inline(text.trimEnd().replace(/ #+$/, "")));
}

function opensFence(line) {
  const fence = FENCE.exec(line);
  return fence !== null && !(fence[1][0] === "`" && line.slice(fence[0].length).includes("`"));
}

function fenced(lines, place) {
  const [before, mark] = FENCE.exec(lines[place]);
  const language = /^[\w+#.-]{1,30}/.exec(lines[place].slice(before.length).trim())?.[0];
  let end = place + 1;
  const closes = (line) => line.trimStart().startsWith(mark) && line.trim().replaceAll(mark[0], "") === "";
  while (end < lines.length && !closes(lines[end])) end += 1;
  const text = lines.slice(place + 1, end).join("\n");
  return [Math.min(end + 1, lines.length), () => codeBlock(text, language)];
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
  return h("div", { class: "code" }, label, h("pre", { tabindex: "0", role: "region", "aria-label": name }, h("code", {}, text)), copy);
}

function quoted(lines, place, depth) {
  let end = place;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(place, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => h("blockquote", {}, blocks(inside, depth + 1).map((item) => item.make()))];
}

function listed(lines, place, depth) {
  const [, space, mark] = ITEM.exec(lines[place]);
  const ordered = /\d/.test(mark);
  const items = [];
  let end = place;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (item && item[1].length <= space.length + 1 && /\d/.test(item[2]) === ordered && !isRule(lines[end])) {
      items.push([item[3] ?? ""]);
    } else if (belongs(lines, end, space.length)) {
      items.at(-1).push(dedented(lines[end], space.length + (ordered ? 3 : 2)));
    } else {
      break;
    }
    end += 1;
  }
  const start = ordered && parseInt(mark, 10) !== 1 ? parseInt(mark, 10) : null;
  return [end, () => h(ordered ? "ol" : "ul", { start }, items.map((item) => listItem(item, depth)))];
}

function listItem(lines, depth) {
  const inside = blocks(lines, depth + 1);
  if (inside.length === 0) return h("li");
  const [first, ...others] = inside.map((item) => item.make());
  const tight = first.tagName === "P" ? [...first.childNodes] : [first];
  return h("li", {}, tight, others);
}

/** Whether a line goes on with the list's last item: it is set in, or blank with a set-in line behind it. */
function belongs(lines, place, indent) {
  const line = lines[place].trim() === "" ? lines[place + 1] ?? "" : lines[place];
  if (line.trim() === "") return false;
  const inset = line.length - line.trimStart().length;
  return inset > indent + 1 || (lines[place].trim() === "" && ITEM.test(line) && inset >= indent);
}

function dedented(line, most) {
  const inset = line.length - line.trimStart().length;
  return line.slice(Math.min(inset, most));
}

function isRule(line) {
  const marks = line.slice(0, 200).replace(/\s/g, "");
  return marks.length >= 3 && "-*_".includes(marks[0]) && marks.replaceAll(marks[0], "") === "";
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").slice(0, 40).map((cell) => cell.trim());
}

function isTable(lines, place) {
  const next = lines[place + 1] ?? "";
  return lines[place].includes("|") && next.includes("-") && next.includes("|")
    && cells(next).every((cell) => /^:?-+:?$/.test(cell)) && cells(next).length === cells(lines[place]).length;
}

function tabled(lines, place) {
  let end = place + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const head = cells(lines[place]);
  const rows = lines.slice(place + 2, end).map(cells);
  const row = (values, tag) => h("tr", {}, head.map((_, column) => h(tag, {}, inline(values[column] ?? ""))));
  return [end, () => h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, rows.map((values) => row(values, "td")))))];
}

function paragraph(lines, place, depth) {
  let end = place + 1;
  while (end < lines.length && lines[end].trim() !== "" && !interrupts(lines[end], depth)) end += 1;
  const text = lines.slice(place, end).join("\n");
  return [end, () => h("p", {}, inline(text))];
}

function interrupts(line, depth) {
  if (opensFence(line) || HEADING.test(line) || isRule(line)) return true;
  return depth < DEEPEST && (QUOTE.test(line) || /^ {0,3}(?:[-*+]|1[.)])\s+\S/.test(line));
}
