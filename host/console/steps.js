// What the agent did on the way: thoughts and tools, folded until somebody wants to see them.

import { h, refill } from "./dom.js";
import { brief, toolAim, toolName, whole } from "./format.js";
import { icon } from "./icons.js";

/** A thought that grows. */
export class Thought {
  constructor() {
    this.text = document.createTextNode("");
    this.aim = h("span", { class: "aim" });
    this.node = h("details", { class: "step thought" },
      h("summary", {}, icon("thought"), h("span", { class: "what" }, "Thinking"), this.aim, icon("chevron", "icon turn")),
      h("p", { class: "inside" }, this.text));
  }

  add(piece) {
    this.text.appendData(piece);
    refill(this.aim, brief(this.text.data, 60));
  }
}

/** A tool's call, and later how it ended. */
export class ToolStep {
  constructor({ tool, input }) {
    this.tool = tool;
    this.ended = false;
    this.state = h("span", { class: "state" }, h("span", { class: "spinner", "aria-hidden": "true" }), h("span", { class: "unseen" }, "running"));
    this.result = h("div", { class: "result" });
    this.node = h("details", { class: "step" },
      h("summary", {}, icon("tool"), h("span", { class: "what" }, toolName(tool)), h("span", { class: "aim" }, toolAim(input)), this.state, icon("chevron", "icon turn")),
      h("div", { class: "inside" }, h("p", { class: "label" }, "Input"), block(whole(input)), this.result));
  }

  /** Show the result; `null` says that none will come. */
  end(result) {
    this.ended = true;
    const failed = result === null || result.is_error;
    refill(this.state, icon(failed ? "cross" : "check", failed ? "icon failed" : "icon"), h("span", { class: "unseen" }, failed ? "failed" : "done"));
    if (result !== null) refill(this.result, h("p", { class: "label" }, failed ? "Error" : "Result"), block(result.preview));
  }
}

function block(text) {
  return h("pre", { tabindex: "0" }, text || "(nothing)");
}

