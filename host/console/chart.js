// Bars of days, drawn as SVG; the table below has the same figures for those who can't see them.

import { h, svg } from "./dom.js";
import { count, exact } from "./format.js";

const WIDTH = 720;
const HEIGHT = 200;
const LEFT = 44;
const BELOW = 22;

/** Return the chart of days, oldest first. */
export function barChart(days) {
  const most = niceTop(Math.max(1, ...days.map((day) => day.tokens)));
  const step = (WIDTH - LEFT) / days.length;
  const height = (tokens) => (tokens / most) * (HEIGHT - BELOW - 8);
  const label = `Tokens by day, ${days[0].day} to ${days.at(-1).day}; most on one day: ${exact(Math.max(...days.map((day) => day.tokens)))}`;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    ...lines(most, height),
    ...days.map((day, place) => bar(day, LEFT + place * step, step, height)),
    ...days.map((day, place) => dayLabel(day, place, days.length, LEFT + (place + 0.5) * step)));
  const chart = h("div", { class: "chart", tabindex: "0", role: "group", "aria-label": "Chart" }, drawing);
  // On a narrow screen the newest days are what people want to see.
  requestAnimationFrame(() => { chart.scrollLeft = chart.scrollWidth; });
  return chart;
}

function bar(day, left, step, height) {
  const fresh = day.input_tokens + day.cache_creation_input_tokens + day.unsettled_tokens;
  let top = HEIGHT - BELOW;
  const parts = [["cached", day.cache_read_input_tokens], ["fresh", fresh], ["out", day.output_tokens]].map(([name, tokens]) => {
    const tall = height(tokens);
    top -= tall;
    return svg("rect", { class: name, x: left + step * 0.18, y: top, width: step * 0.64, height: tall });
  });
  const whole = svg("rect", { class: "reach", x: left, y: 0, width: step, height: HEIGHT - BELOW });
  return svg("g", {}, svg("title", {}, `${day.day}: ${exact(day.tokens)} tokens, ${exact(day.runs)} runs`), whole, ...parts);
}

function lines(most, height) {
  return [0, 0.5, 1].flatMap((part) => {
    const y = HEIGHT - BELOW - height(most * part);
    return [svg("line", { x1: LEFT, x2: WIDTH, y1: y, y2: y }), svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, count(most * part))];
  });
}

function dayLabel(day, place, days, x) {
  const every = Math.ceil(days / 6);
  if ((days - 1 - place) % every !== 0) return null;
  return svg("text", { x: place === days - 1 ? WIDTH : x, y: HEIGHT - 4, "text-anchor": place === days - 1 ? "end" : "middle" }, day.day.slice(5));
}

/** Return the next round number: 1, 2 or 5 times a power of ten. */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= value);
}
