// Charts: lines over time, and bars made of parts. Each has its facts in words for those who do not see it.

import { el, style, svg } from "./dom.js";
import { duration } from "./words.js";

const WIDTH = 600;
const HEIGHT = 150;

/**
 * Return a chart of lines over time.
 * @param {number[]} ages - seconds before now of each point, the oldest first
 * @param {{name: string, colour: string, values: (number|null)[], fill?: boolean, dashed?: boolean}[]} lines
 * @param {(value: number) => string} write - a value in words
 * @param {string} label - what the chart shows
 * @param {number} step - from one unit of the values to the next larger one, for a round top
 */
export function timeChart(ages, lines, write, label, step = 1000) {
  if (ages.length < 2) return el("p", { class: "quiet chart-wait" }, "The chart begins with the second measurement.");
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const top = niceTop(1.05 * Math.max(0, ...known), step);
  const oldest = ages[0] || 1;
  const x = (age) => WIDTH * (1 - age / oldest);
  const y = (value) => HEIGHT * (1 - value / top);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const part of [0.25, 0.5, 0.75, 1]) {
    picture.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * (1 - part), y2: HEIGHT * (1 - part) }));
  }
  for (const line of lines) {
    for (const run of runs(line.values)) {
      const points = run.map((n) => `${x(ages[n]).toFixed(1)},${y(Math.min(top, line.values[n])).toFixed(1)}`);
      if (line.fill) {
        const [first, last] = [x(ages[run[0]]).toFixed(1), x(ages[run[run.length - 1]]).toFixed(1)];
        picture.append(svg("polygon", { class: `area ${line.colour}`, points: `${first},${HEIGHT} ${points.join(" ")} ${last},${HEIGHT}` }));
      }
      picture.append(svg("polyline", { class: `line ${line.colour}${line.dashed ? " dashed" : ""}`, points: points.join(" ") }));
    }
  }
  return el(
    "figure",
    { class: "chart" },
    el("div", { class: "plot" }, el("span", { class: "y-top" }, write(top)), picture),
    el("div", { class: "x-axis" }, el("span", {}, `${duration(oldest)} ago`), el("span", {}, "now")),
    lines.length > 1 ? legend(lines.map((line) => [line.name, line.colour, ""])) : null,
  );
}

/** Yield stretches of numbers without a gap. */
function* runs(values) {
  let run = [];
  for (let n = 0; n <= values.length; n += 1) {
    if (n < values.length && values[n] !== null) run.push(n);
    else if (run.length) {
      if (run.length > 1) yield run;
      run = [];
    }
  }
}

/** Return a number at or above `value` that is round in its unit. */
function niceTop(value, step) {
  if (value <= 0) return 1;
  const large = step ** Math.max(0, Math.floor(Math.log(value) / Math.log(step)));
  const unit = large * 10 ** Math.floor(Math.log10(value / large));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * unit).find((step) => step >= value);
}

/**
 * Return one bar made of parts.
 * @param {[string, string, number, string][]} parts - name, colour, size, and the size in words
 */
export function partsBar(parts, label) {
  const shown = parts.filter(([, , size]) => size > 0);
  const words = parts.map(([name, , , text]) => `${name} ${text}`).join(", ");
  const bar = el("div", { class: "parts", role: "img", "aria-label": `${label}: ${words}` });
  for (const [name, colour, size, text] of shown) {
    bar.append(style(el("span", { class: colour, title: `${name} ${text}` }), "flex-grow", String(size)));
  }
  return el("div", {}, bar, legend(parts.map(([name, colour, , text]) => [name, colour, text])));
}

function legend(entries) {
  return el(
    "ul",
    { class: "legend" },
    entries.map(([name, colour, text]) =>
      el("li", {}, el("span", { class: `swatch ${colour}` }), name, text ? el("strong", {}, text) : null),
    ),
  );
}

/** Return a small bar for a share, with the share in words. */
export function meter(part, text) {
  const inner = style(el("span", {}), "width", `${Math.max(0, Math.min(1, part || 0)) * 100}%`);
  return el("span", { class: "meter" }, el("span", { class: "track", "aria-hidden": "true" }, inner), text);
}

/** Return bars beside one another's names: [name, value, text]; the longest is the whole width. */
export function bars(rows, label) {
  const most = Math.max(1, ...rows.map(([, value]) => value));
  return el(
    "ul",
    { class: "bars", "aria-label": label },
    rows.map(([name, value, text]) =>
      el(
        "li",
        {},
        el("span", { class: "name", title: name }, name),
        el("span", { class: "whole", "aria-hidden": "true" }, style(el("span", { class: "bar" }), "width", `${(100 * value) / most}%`)),
        el("span", { class: "number" }, text),
      ),
    ),
  );
}
