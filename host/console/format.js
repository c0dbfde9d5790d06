// Numbers, times and names as people read them.

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en");
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const dated = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const UNITS = [["year", 31536e6], ["month", 2592e6], ["week", 6048e5], ["day", 864e5], ["hour", 36e5], ["minute", 6e4]];

export const count = (number) => compact.format(number);
export const exact = (number) => whole.format(number);

/** Return dollars, with cents as soon as there are any. */
export function dollars(amount) {
  if (!amount) return "$0";
  return amount < 0.01 ? "under $0.01" : `$${amount.toFixed(2)}`;
}

/** Return "3 min. ago" or "in 2 hr." for an ISO time. */
export function ago(iso, now = Date.now()) {
  const gap = Date.parse(iso) - now;
  if (Number.isNaN(gap)) return "";
  for (const [unit, size] of UNITS) {
    if (Math.abs(gap) >= size) return relative.format(Math.trunc(gap / size), unit);
  }
  return gap > 5000 ? "in seconds" : "now";
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
