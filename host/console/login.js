// The door: the token is tried at the host, and kept for this tab or, if people want it, for this browser.

import { call } from "./api.js";
import { h, refill } from "./dom.js";
import { icon } from "./icons.js";
import { begin, token } from "./session.js";
import { themeButton } from "./theme.js";

/** Show the door; resolves when a token was accepted. */
export function signIn(root, message = "") {
  return new Promise((resolve) => {
    const field = h("input", {
      id: "token", type: "password", autocomplete: "current-password", autocapitalize: "off", spellcheck: "false",
      required: true, "aria-describedby": "token-help token-fault",
    });
    const stay = h("input", { id: "stay", type: "checkbox", "aria-describedby": "stay-help" });
    const fault = h("p", { id: "token-fault", class: "fault", role: "alert" }, message);
    const button = h("button", { class: "button primary wide" }, "Open the console");
    const form = h("form", { class: "door", autocomplete: "on" },
      h("div", { class: "mark" }, icon("chat")),
      h("h1", {}, "PicoClaw"),
      h("p", { class: "quiet" }, "Your agents, their tasks, and what they used."),
      // Password managers want a name beside the secret.
      h("input", { type: "text", autocomplete: "username", value: "picoclaw", hidden: true, "aria-hidden": "true", tabindex: "-1" }),
      h("label", { for: "token" }, "API token"),
      field,
      h("p", { id: "token-help", class: "hint" }, "The host’s API_TOKEN; ", h("code", {}, "make run"), " prints it."),
      h("label", { class: "switch", for: "stay" }, stay, "Stay signed in on this device"),
      h("p", { id: "stay-help", class: "hint" }, "Otherwise until its last tab is closed. Leave it off on a device that others use."),
      fault,
      button);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      refill(fault);
      const reason = await tried(field.value.trim(), stay.checked);
      button.disabled = false;
      if (reason === null) {
        field.value = "";
        resolve();
      } else {
        refill(fault, reason);
        field.setAttribute("aria-invalid", "true");
        field.select();
      }
    });
    refill(root, h("main", { class: "entrance" }, form, h("div", { class: "corner" }, themeButton())));
    field.focus();
  });
}

/** Try the token; return null, or why it won't do. */
async function tried(value, stay) {
  if (!/^[\x21-\x7e]+$/.test(value)) return "That is not a token: it has letters that none has.";
  token.set(value, { stay });
  try {
    begin((await call("GET", "/me")).principal_id);
    return null;
  } catch (error) {
    token.forget();
    return error.status === 401 ? "The host does not know this token." : error.message;
  }
}
