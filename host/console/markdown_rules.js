// What chats need beyond Markdown: math that stays as it was written, and tables whose code has pipes in it.

const LONGEST_MATH = 2000;
const LONGEST_ROW = 5000;

/** Stands for a pipe inside the code of a table's cell, until the text is shown: no text has this character. */
export const PIPE = "\ufdd0";

/** Use both with a markdown-it. */
export function rules(md) {
  md.inline.ruler.before("escape", "math", inlineMath);
  md.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "blockquote", "list"] });
  const tables = new md.constructor().block.ruler;
  tables.enableOnly("table");
  const [table] = tables.getRules("");
  md.block.ruler.at("table", (state, from, to, silent) => tableWithCode(table, state, from, to, silent), { alt: ["paragraph", "reference"] });
}

/** `$x_1$`, `$$x$$`, `\(x\)`, `\[x\]`; "$5 and $10" is no math: a dollar that closes stands behind no space and before no digit. */
function inlineMath(state, silent) {
  const [open, close] = delimiters(state.src, state.pos);
  if (open === null) return false;
  const begin = state.pos + open.length;
  const inside = state.src.slice(begin, Math.min(begin + LONGEST_MATH, state.posMax));
  const length = inside.indexOf(close);
  if (length < 1 || (open === "$" && !dollars(inside, length))) return false;
  const end = begin + length + close.length;
  if (!silent) state.push("math", "", 0).content = state.src.slice(state.pos, end);
  state.pos = end;
  return true;
}

function delimiters(text, place) {
  if (text.startsWith("$$", place)) return ["$$", "$$"];
  if (text[place] === "$") return ["$", "$"];
  if (text.startsWith("\\(", place)) return ["\\(", "\\)"];
  if (text.startsWith("\\[", place)) return ["\\[", "\\]"];
  return [null, null];
}

function dollars(inside, length) {
  return !/\s/.test(inside[0]) && !/\s/.test(inside[length - 1]) && !/\d/.test(inside[length + 1] ?? "");
}

/** A block from a line that begins with `$$` or `\[` to one that ends with `$$` or `\]`; its lines are no lists or headings. */
function blockMath(state, from, to, silent) {
  const line = (number) => state.src.slice(state.bMarks[number] + state.tShift[number], state.eMarks[number]).trimEnd();
  const open = line(from).slice(0, 2);
  const close = { $$: "$$", "\\[": "\\]" }[open];
  if (close === undefined) return false;
  let last = from;
  while (last < to && !line(last).slice(last === from ? 2 : 0).endsWith(close)) last += 1;
  if (last === to || state.bMarks[last] - state.bMarks[from] > LONGEST_MATH) return false;
  if (silent) return true;
  const token = state.push("math_block", "", 0);
  token.content = state.getLines(from, last + 1, state.blkIndent, false).trim();
  token.map = [from, last + 1];
  state.line = last + 1;
  return true;
}

/** Markdown would part `a|b` inside backticks into two cells and lose the last one; people and models mean one. */
function tableWithCode(table, state, from, to, silent) {
  const source = state.src;
  let last = from;
  while (last < to && !state.isEmpty(last)) last += 1;
  if (last - from < 2 || !source.slice(state.bMarks[from + 1], state.eMarks[from + 1]).includes("-")) return false;
  if (source.slice(state.bMarks[from], state.eMarks[last - 1]).includes("`")) {
    const parts = [];
    let done = 0;
    for (let number = from; number < last; number += 1) {
      // Of the same length, so that nothing behind it moves.
      parts.push(source.slice(done, state.bMarks[number]), hidden(source.slice(state.bMarks[number], state.eMarks[number])));
      done = state.eMarks[number];
    }
    state.src = parts.join("") + source.slice(done);
  }
  const found = table(state, from, to, silent);
  if (!found || silent) state.src = source;
  return found;
}

function hidden(row) {
  if (row.length > LONGEST_ROW) return row;
  return row.replace(/(?<![`\\])(`+)(?!`)(.*?[^`])\1(?!`)/g, (span) => span.replace(/(?<!\\)\|/g, PIPE));
}
