// A conversation's title.

import { call, path } from "./api.js";
import { asked, h } from "./dom.js";

const LONGEST = 200;

/** Ask for a title and store it; resolves to whether it changed. */
export async function renamed(id, title) {
  const field = h("input", { id: "title", maxlength: LONGEST, value: title, dir: "auto", "aria-describedby": "title-help" });
  return asked({
    title: "Rename this conversation",
    inside: h("div", { class: "field" }, h("label", { for: "title" }, "Title"), field, h("p", { class: "hint", id: "title-help" }, "Empty: its first words are its title again.")),
    action: "Rename it",
    act: () => call("PATCH", path`/chat/${id}`, { body: { title: field.value.trim() || null } }),
  });
}
