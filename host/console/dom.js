// The one place that makes elements. Text becomes text nodes and nothing else, so no text can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. `props`: class, on (listeners), text, value and other properties by `prop`, else attributes. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** Return an SVG element. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

/** Put these children in the place of all there are. */
export function refill(node, ...children) {
  node.replaceChildren();
  return added(node, children);
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "prop") {
      Object.assign(node, value);
    } else {
      node.setAttribute(checked(name, value), value === true ? "" : String(value));
    }
  }
  return added(node, children);
}

/** Add one by one: as arguments, a hundred thousand would not fit on the stack. */
function added(node, children) {
  for (const child of nodes(children)) node.append(child);
  return node;
}

/** Refuse attributes that run something; addresses lead inside the console, unless `link` has looked at them. */
function checked(name, value) {
  if (/^on/i.test(name) || name === "style" || name === "srcdoc" || name === "src") throw new Error(name);
  if (name === "href" && !String(value).startsWith("#")) throw new Error("href");
  return name;
}

function nodes(children) {
  return children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Return a link to another site, or null when the address is not one that people should be sent to. */
export function link(address, ...children) {
  const url = safeUrl(address);
  if (url === null) return null;
  const node = h("a", { rel: "noopener noreferrer", target: "_blank", title: url.href }, ...children);
  node.setAttribute("href", url.href);
  return node;
}

/** Return the address as a URL, or null when people should not be sent there. */
export function safeUrl(address) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return null;
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/** Ask people before something that can't be undone; resolves to whether they want it. */
export function confirmed({ title, text, action }) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { class: "dialog small", "aria-labelledby": "confirm-title" },
      h("form", { method: "dialog" },
        h("h2", { id: "confirm-title" }, title),
        h("p", {}, text),
        h("div", { class: "row end" },
          h("button", { class: "button", value: "no" }, "Keep it"),
          h("button", { class: "button danger", value: "yes" }, action))),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Have a field for text run as its first letter does. (With dir="auto", a megabyte takes Chromium ten seconds.) */
export function directed(field) {
  const look = () => { field.dir = FROM_RIGHT.test(field.value.slice(0, 500)) ? "rtl" : "ltr"; };
  field.addEventListener("input", look);
  look();
  return field;
}

const FROM_RIGHT = /^[^\p{L}]*[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;

/** Ask people something; `act` is done when they say yes, and its error shown. Resolves to whether it was done. */
export function asked({ title, inside, action, act }) {
  return new Promise((resolve) => {
    const fault = h("p", { class: "fault", role: "alert" });
    const button = h("button", { class: "button primary" }, action);
    const form = h("form", {}, h("h2", { id: "asked-title" }, title), inside, fault,
      h("div", { class: "row end" }, h("button", { class: "button", type: "button", on: { click: () => dialog.close() } }, "Cancel"), button));
    const dialog = h("dialog", { class: "dialog small", "aria-labelledby": "asked-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        await act();
        dialog.close("done");
      } catch (error) {
        refill(fault, error.message);
      }
      button.disabled = false;
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "done");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Have the browser save a text as a file. */
export function download(name, type, text) {
  offered(name, new Blob([text], { type }));
}

/** Have the browser save bytes as a file. */
export function offered(name, blob) {
  const address = URL.createObjectURL(blob);
  const node = h("a", { download: name });
  node.setAttribute("href", address);
  document.body.append(node);
  node.click();
  node.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
