// Numbers, times and names as people read them.

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en");
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const dated = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const MINUTE = 6e4;
const HOUR = 36e5;
const DAY = 864e5;

export const count = (number) => compact.format(number);
export const exact = (number) => plain.format(number);

/** Return dollars, with cents as soon as there are any. */
export function dollars(amount) {
  if (!amount) return "$0";
  return amount < 0.01 ? "under $0.01" : `$${amount.toFixed(2)}`;
}

/** Return "3 min. ago", "in 1 hr. 20 min." or "tomorrow" for an ISO time: from a day on, by the reader's calendar. */
export function ago(iso, now = Date.now()) {
  const then = Date.parse(iso);
  const gap = Math.abs(then - now);
  const sign = then < now ? -1 : 1;
  if (Number.isNaN(gap)) return "";
  if (gap < MINUTE) return then > now + 5000 ? "in seconds" : "now";
  if (gap < HOUR) return relative.format(sign * Math.floor(gap / MINUTE), "minute");
  if (gap < 3 * HOUR) return hours(gap, sign);
  if (gap < DAY) return relative.format(sign * Math.floor(gap / HOUR), "hour");
  const days = daysBetween(now, then);
  if (Math.abs(days) < 14) return relative.format(days, "day");
  if (Math.abs(days) < 60) return relative.format(Math.round(days / 7), "week");
  if (Math.abs(days) < 700) return relative.format(Math.round(days / 30.4), "month");
  return relative.format(Math.round(days / 365.25), "year");
}

function hours(gap, sign) {
  const minutes = Math.floor((gap % HOUR) / MINUTE);
  const words = `${Math.floor(gap / HOUR)} hr.${minutes ? ` ${minutes} min.` : ""}`;
  return sign < 0 ? `${words} ago` : `in ${words}`;
}

/** Return how many midnights lie between two moments; a day of 23 hours is a day. */
function daysBetween(from, to) {
  const midnight = (time) => {
    const date = new Date(time);
    return Date.UTC(date.getFullYear(), date.getMonth(), date.getDate());
  };
  return (midnight(to) - midnight(from)) / DAY;
}

/** Return a file's size. */
export function bytes(size) {
  if (size < 1000) return `${size} B`;
  return size < 1e6 ? `${(size / 1e3).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

/** Return the moment in the reader's own zone. */
export function moment(iso) {
  const time = Date.parse(iso);
  return Number.isNaN(time) ? "" : dated.format(time);
}

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 60000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

/** Return the first line, cut at a bound. */
export function brief(text, most = 80) {
  const line = String(text).trim().split(/\r?\n/, 1)[0].slice(0, most * 2);
  const letters = [...line];
  return letters.length <= most ? line : `${letters.slice(0, most).join("").trimEnd()}…`;
}

/** Return "server · tool" for mcp__server__tool, else the name itself. */
export function toolName(name) {
  const parts = String(name).split("__");
  if (parts[0] !== "mcp" || parts.length < 3) return String(name);
  return parts[1] === "picoclaw" ? parts.slice(2).join("__") : `${parts[1]} · ${parts.slice(2).join("__")}`;
}

/** Return what a tool was asked for, in a few words. */
export function toolAim(input) {
  if (input === null || typeof input !== "object") return "";
  for (const key of ["command", "path", "url", "query", "text", "prompt", "name"]) {
    if (typeof input[key] === "string" && input[key]) return brief(input[key], 70);
  }
  const first = Object.values(input).find((value) => typeof value === "string" || typeof value === "number");
  return first === undefined ? "" : brief(first, 70);
}

/** Return all that a tool was asked for: a lone text as it stands, else JSON. */
export function whole(input) {
  if (typeof input === "string") return input;
  const values = Object.values(input ?? {});
  return values.length === 1 && typeof values[0] === "string" ? values[0] : JSON.stringify(input ?? null, null, 2);
}

/** Return a text in which nothing steers what is shown: control and direction characters are written out. */
export function escaped(text) {
  const steering = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
  return text.replace(steering, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** Return a task's schedule in words. */
export function schedule(task) {
  if (task.schedule_type === "cron") return `cron ${task.schedule_value}`;
  if (task.schedule_type === "once") return `once, ${moment(task.schedule_value) || task.schedule_value}`;
  const ms = Number(task.schedule_value);
  if (!Number.isFinite(ms)) return `every ${task.schedule_value}`;
  for (const [unit, size] of [["day", 864e5], ["hour", 36e5], ["minute", 6e4], ["second", 1000]]) {
    if (ms >= size && ms % size === 0) return ms === size ? `every ${unit}` : `every ${ms / size} ${unit}s`;
  }
  return `every ${exact(ms)} ms`;
}
