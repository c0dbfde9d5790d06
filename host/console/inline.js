// Inline Markdown as DOM nodes: code, emphasis, links. Whatever is not one of these is text.

import { h, link } from "./dom.js";

const DEEPEST = 6;
const LONGEST_LINK = 2000;
const SPECIAL = /[\\`*_~![<h\n]/g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ADDRESS = /https?:\/\/[^\s<>"'`]+/iy;
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "s"], ["*", "em"], ["_", "em"]];

/** Return the nodes of a piece of text. Time grows with the text's length, whatever is in it. */
export function inline(text, depth = 0) {
  const made = [];
  const absent = new Set();
  let plain = "";
  let place = 0;
  const flush = () => {
    if (plain) made.push(document.createTextNode(plain));
    plain = "";
  };
  while (place < text.length) {
    SPECIAL.lastIndex = place;
    const found = SPECIAL.exec(text);
    if (found === null) break;
    plain += text.slice(place, found.index);
    place = found.index;
    const taken = at(text, place, depth, absent);
    if (taken === null) {
      plain += text[place];
      place += 1;
    } else {
      if (typeof taken.node === "string") {
        plain += taken.node;
      } else {
        flush();
        made.push(taken.node);
      }
      place = taken.end;
    }
  }
  plain += text.slice(place);
  flush();
  return made;
}

function at(text, place, depth, absent) {
  switch (text[place]) {
    case "\n": return lineBreak(text, place);
    case "\\": if (text[place + 1] === "\n") return lineBreak(text, place + 1);
      return ESCAPABLE.test(text[place + 1] ?? "") ? { node: text[place + 1], end: place + 2 } : null;
    case "`": return code(text, place, absent);
    case "[": return linked(text, place, depth);
    // A picture would be fetched from wherever the text says, and tell that place what is in the address.
    case "!": return text[place + 1] === "[" ? linked(text, place + 1, depth) : null;
    case "<": return bracketed(text, place);
    case "h": return bare(text, place);
    default: return depth < DEEPEST ? emphasis(text, place, depth, absent) : null;
  }
}

/** A line of the text is a line on the screen: people and models write chats like that. */
function lineBreak(text, place) {
  return { node: h("br"), end: place + 1 };
}

function code(text, place, absent) {
  let ticks = 1;
  while (text[place + ticks] === "`") ticks += 1;
  const fence = "`".repeat(ticks);
  const end = closing(text, fence, place + ticks, absent);
  if (end < 0) return { node: fence, end: place + ticks };
  const inside = text.slice(place + ticks, end).replaceAll("\n", " ");
  const bare = inside.length > 2 && inside.startsWith(" ") && inside.endsWith(" ") ? inside.slice(1, -1) : inside;
  return { node: h("code", {}, bare), end: end + ticks };
}

function emphasis(text, place, depth, absent) {
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, place)) continue;
    const begin = place + mark.length;
    const inWord = mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[place - 1] ?? "");
    if (inWord || /\s|^$/.test(text[begin] ?? "")) continue;
    const end = closing(text, mark, begin + 1, absent);
    if (end < 0 || /\s/.test(text[end - 1])) continue;
    if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[end + mark.length] ?? "")) continue;
    return { node: h(tag, {}, inline(text.slice(begin, end), depth + 1)), end: end + mark.length };
  }
  return null;
}

function linked(text, place, depth) {
  const middle = depth < DEEPEST ? near(text, "](", place + 1) : -1;
  const end = middle < 0 ? -1 : near(text, ")", middle);
  if (end < 0) return null;
  const label = text.slice(place + 1, middle);
  if (label.includes("[")) return null;
  const address = text.slice(middle + 2, end).trim().split(/\s/, 1)[0].replace(/^<|>$/g, "");
  const node = link(address, ...(label ? inline(label, DEEPEST) : [address]));
  return node && { node, end: end + 1 };
}

function bracketed(text, place) {
  const end = near(text, ">", place);
  if (end < 0) return null;
  const address = text.slice(place + 1, end);
  const node = link(address, address);
  return node && { node, end: end + 1 };
}

function bare(text, place) {
  if (/[\p{L}\p{N}]/u.test(text[place - 1] ?? "")) return null;
  ADDRESS.lastIndex = place;
  const found = ADDRESS.exec(text);
  if (found === null) return null;
  const address = found[0].slice(0, 2000).replace(/[.,;:!?)\]}*_~]+$/, "");
  const node = link(address, address);
  return node && { node, end: place + address.length };
}

/** Return where `mark` comes soon, -1 when it doesn't: looking to the end each time would take forever. */
function near(text, mark, from) {
  const found = text.slice(from, from + LONGEST_LINK).indexOf(mark);
  return found < 0 ? -1 : from + found;
}

/** Return where `mark` comes next, -1 for nowhere; what is nowhere is not looked for again. */
function closing(text, mark, from, absent) {
  if (absent.has(mark)) return -1;
  const end = text.indexOf(mark, from);
  if (end < 0) absent.add(mark);
  return end;
}
