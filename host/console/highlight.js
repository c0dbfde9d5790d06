// Code in colours, as DOM nodes: highlight.js finds the parts, and each becomes an element here.

import { h } from "./dom.js";
import hljs from "./vendor/highlight.js";

const LONGEST = 20_000;

/** Return the nodes of a piece of code; plain text where the language isn't known or the code is long. */
export function coloured(text, language) {
  if (!language || text.length > LONGEST || !hljs.getLanguage(language)) return [text];
  return nodes(hljs.highlight(text, { language, ignoreIllegals: true })._emitter.rootNode);
}

function nodes({ children }) {
  return children.map((child) => {
    if (typeof child === "string") return document.createTextNode(child);
    return child.scope ? h("span", { class: `hl-${child.scope.split(".")[0]}` }, nodes(child)) : h("span", {}, nodes(child));
  });
}
