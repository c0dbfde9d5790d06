// The host's HTTP API. The token goes into a header, never into an address.

import { token } from "./session.js";

const BASE = new URL("..", import.meta.url);

/** Says "signed-out", "down" (the host can't be reached) and "up". */
export const host = new EventTarget();

let reachable = true;

/** A refusal, or (status 0) a host that can't be reached. */
export class ApiError extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Return a fresh random key; works on plain http too, where crypto.randomUUID is not. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Return `path` with its parts escaped: path`/chat/${id}`. */
export function path(literals, ...parts) {
  return literals.reduce((made, literal, place) => made + encodeURIComponent(parts[place - 1]) + literal);
}

/** Ask the host and return its JSON (null for none); raises ApiError. */
export async function call(method, where, { body, signal, headers } = {}) {
  const response = await send(method, where, { body, signal, headers });
  return response.status === 204 ? null : response.json();
}

/** Return every item of a paged list, up to `most`. */
export async function all(where, field, { most = 5000, signal } = {}) {
  const items = [];
  let cursor = null;
  do {
    const page = await call("GET", `${where}${where.includes("?") ? "&" : "?"}limit=1000${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`, { signal });
    items.push(...page[field]);
    cursor = page.next_cursor;
  } while (cursor && items.length < most);
  return items;
}

/** Ask the host and return the response once it is known to be good; `file` is a body as it is. Raises ApiError. */
export async function send(method, where, { body, file, signal, headers = {} } = {}) {
  const options = { method, signal, headers: { "X-PicoClaw-Door": "console", ...headers }, cache: "no-store", credentials: "omit", redirect: "error" };
  if (token.get()) options.headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  if (file !== undefined) {
    options.body = file;
    // To fetch, a folder or a file that is gone is a host that can't be reached.
    await file.slice(0, 1).arrayBuffer().catch(() => { throw new Error(`${file.name} cannot be read; folders can’t be sent.`); });
  }
  const response = await reached(() => fetch(new URL(where.slice(1), BASE), options));
  if (response.ok) return response;
  throw await refusal(response);
}

async function reached(ask) {
  try {
    const response = await ask();
    tell(true);
    return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell(false);
    throw new ApiError(0, "unreachable", "The host cannot be reached.");
  }
}

function tell(now) {
  if (now !== reachable) host.dispatchEvent(new Event(now ? "up" : "down"));
  reachable = now;
}

async function refusal(response) {
  const said = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  if (response.status === 401 && token.get()) {
    token.forget();
    host.dispatchEvent(new Event("signed-out"));
  }
  return new ApiError(response.status, said.code ?? "", said.error ?? `The host answered ${response.status}.`, retryAfter);
}
