// Light, dark, or as the system has it.

import { h, refill } from "./dom.js";
import { icon } from "./icons.js";

const KEPT = "picoclaw.theme";
const THEMES = { system: ["half", "as the system has it"], light: ["sun", "light"], dark: ["moon", "dark"] };

/** Show the theme that was chosen before. */
export function applyTheme() {
  const chosen = current();
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
}

/** Return the button that goes through the themes. */
export function themeButton() {
  const button = h("button", { class: "ghost", type: "button" });
  const show = () => {
    const [drawn, words] = THEMES[current()];
    refill(button, icon(drawn));
    button.title = `Theme: ${words}`;
    button.setAttribute("aria-label", `Theme: ${words}. Change`);
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    localStorage.setItem(KEPT, names[(names.indexOf(current()) + 1) % names.length]);
    applyTheme();
    show();
  });
  show();
  return button;
}

function current() {
  const kept = localStorage.getItem(KEPT);
  return kept !== null && Object.hasOwn(THEMES, kept) ? kept : "system";
}
