// Server-sent events over fetch, since EventSource can't send the token. Lost connections are taken up again.

import { ApiError, path, send } from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;

/** Yield {id, name, data} of a response's stream (the HTML standard's section 9.2, of which this is what the host uses). */
export async function* frames(stream, signal = null) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  const leave = () => reader.cancel().catch(() => {});
  signal?.addEventListener("abort", leave);
  if (signal?.aborted) leave();
  let rest = "";
  let frame = { id: 0, name: "message", data: [] };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line !== "") {
          take(frame, line);
        } else {
          if (frame.data.length) yield { id: frame.id, name: frame.name, data: JSON.parse(frame.data.join("\n")) };
          frame = { id: frame.id, name: "message", data: [] };
        }
      }
    }
  } finally {
    signal?.removeEventListener("abort", leave);
    await leave();
  }
}

function take(frame, line) {
  const colon = line.indexOf(":");
  if (colon === 0) return;
  const field = colon < 0 ? line : line.slice(0, colon);
  const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
  if (field === "id") frame.id = Number(value) || 0;
  else if (field === "event") frame.name = value;
  else if (field === "data") frame.data.push(value);
}

/** Yield the events of a run that is there already, from the first one on. */
export function runEvents(conversationId, runId, signal) {
  return follow({ conversationId, runId, start: null, signal });
}

/** Say something and yield the events of its run. The key makes a second try the same request; it is said also when people leave meanwhile. */
export function say(where, body, key, signal) {
  const headers = { "Idempotency-Key": key };
  return follow({ start: () => send("POST", where, { body: { ...body, stream: true }, headers }), signal });
}

async function* follow({ conversationId, runId, start, signal }) {
  let seen = 0;
  let wait = FIRST_WAIT_MS;
  let failed = false;
  for (;;) {
    try {
      const again = () => send("GET", path`/chat/${conversationId}/runs/${runId}/events`, { headers: { "Last-Event-ID": String(seen) }, signal });
      const response = runId ? await again() : await start();
      for await (const event of frames(response.body, signal)) {
        if (event.id <= seen) continue;
        seen = event.id;
        wait = FIRST_WAIT_MS;
        if (event.name === "start") ({ conversation_id: conversationId, run_id: runId } = event.data);
        failed = failed || event.name === "error";
        yield event;
        if (event.name === "done") return;
      }
      signal?.throwIfAborted();
      if (failed) return;
    } catch (error) {
      if (signal?.aborted || (error instanceof ApiError && !passing(error))) throw error;
    }
    await pause(wait, signal);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

/** Whether it is worth trying again by itself. A refused message is the person's to send again. */
const passing = (error) => error.status === 0;

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("Aborted", "AbortError"));
    }, { once: true });
  });
}
