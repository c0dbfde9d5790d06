// The skills as the next turn will see them, and what is wrong with those that aren't.

import { call } from "./api.js";
import { h, refill } from "./dom.js";
import { icon } from "./icons.js";

const TIERS = { builtIn: "built in", org: "of the organisation", user: "yours" };

export class SkillsView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Skills";
    this.node = h("div", { class: "page" });
    this.tools = [h("button", { class: "button", type: "button", on: { click: () => this.load("POST", "/admin/reload-skills") } }, icon("again"), "Read again")];
  }

  open() {
    return this.load("GET", "/admin/skills");
  }

  close() {}

  async load(method, where) {
    try {
      this.show(await call(method, where));
    } catch (error) {
      refill(this.node, h("p", { class: "empty" }, error.message));
    }
  }

  show({ details, problems }) {
    const wrong = problems.map((problem) => h("div", { class: "note warn" }, icon("alert"), h("p", {}, `${problem.path}: ${problem.problem}`)));
    const cards = details.map((skill) => h("article", { class: "card" },
      h("div", { class: "row top" }, h("h2", { class: "name" }, skill.name), h("span", { class: "badge" }, TIERS[skill.tier] ?? skill.tier)),
      h("p", { dir: "auto" }, skill.description),
      h("p", { class: "meta" }, h("code", {}, skill.path))));
    refill(this.node,
      h("p", { class: "quiet lead" }, "Instructions that the agent loads when it needs them."),
      wrong.length ? h("section", { class: "cards", "aria-label": "What is wrong" }, wrong) : null,
      cards.length ? h("div", { class: "cards" }, cards) : h("div", { class: "empty" }, icon("star", "icon large"), h("h2", {}, "No skills"), h("p", {}, "A skill is a folder with a SKILL.md in the workspace’s folder skills.")));
  }
}
