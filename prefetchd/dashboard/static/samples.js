// One sample as a card: its pictures, boxes and points drawn over the first one, its words, and where it comes from.

import { address } from "./ask.js";
import { el, style, svg } from "./dom.js";
import { count } from "./words.js";

/**
 * Return the card of a sample.
 * @param row - what the server says of it
 * @param source - the place of its batch, and `held`
 * @param choose - called with the sample's number when a person wants to see it over epochs
 */
export function sampleCard(row, source, choose) {
  const words = row.words.map(({ name, text }) =>
    el("p", { class: "word" }, name === "label" ? null : el("span", { class: "quiet" }, `${name}: `), el(name === "label" ? "strong" : "span", {}, text)),
  );
  return el(
    "li",
    { class: "sample" },
    row.pictures.length ? pictures(row, source) : null,
    words,
    row.marks.left_out ? el("p", { class: "quiet" }, `${count(row.marks.left_out)} more boxes or points are not drawn`) : null,
    el(
      "p",
      { class: "origin" },
      choose
        ? el("a", { href: address(location.pathname, { daemon: source.daemon, sample: row.sample_id }), onclick: (event) => follow(event, choose, row.sample_id) }, `sample ${row.sample_id}`)
        : `sample ${row.sample_id}`,
      row.where ? el("span", { class: "path quiet", title: row.where }, row.where.split("/").pop()) : null,
    ),
  );
}

function follow(event, choose, sample) {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab
  event.preventDefault();
  choose(sample);
}

export function pictures(row, source) {
  return el("div", { class: "pictures" }, row.pictures.map((picture, n) => onePicture(picture, n === 0 ? row.marks : null, row, source)));
}

function onePicture(picture, marks, row, source) {
  const label = row.words.find(({ name }) => name === "label")?.text;
  const parameters = { daemon: source.daemon, dataset: source.dataset, epoch: source.epoch, batch: source.batch, held: source.held, row: row.row, name: picture.name };
  const image = el("img", {
    src: address("/api/picture", parameters),
    alt: `${picture.name} of sample ${row.sample_id}${label ? `, ${label}` : ""}`,
    width: picture.width,
    height: picture.height,
    loading: "lazy",
    decoding: "async",
    class: Math.max(picture.width, picture.height) < 128 ? "small" : null,
  });
  image.addEventListener("error", () => image.replaceWith(el("p", { class: "quiet" }, "The picture could not be loaded.")));
  const frame = el("div", { class: "picture" }, image, marks && (marks.boxes.length || marks.points.length) ? drawn(marks, picture) : null);
  style(frame, "aspect-ratio", `${picture.width} / ${picture.height}`);
  return row.pictures.length > 1 ? el("figure", {}, frame, el("figcaption", { class: "quiet" }, picture.name)) : frame;
}

/** Boxes and points over a picture, in its own pixels. */
function drawn(marks, picture) {
  const [width, height] = [picture.width, picture.height];
  const text = Math.max(width, height) / 15;
  const over = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "marks", "aria-hidden": "true" });
  for (const [left, top, right, bottom, number, name] of marks.boxes) {
    const colour = colourOf(number);
    const [x, y] = [left * width, top * height];
    over.append(svg("rect", { x, y, width: Math.max(1, (right - left) * width), height: Math.max(1, (bottom - top) * height), stroke: colour }));
    over.append(svg("text", { x: x + text * 0.25, y: y + text, "font-size": text, fill: colour }, name));
  }
  marks.points.forEach(([x, y], n) => over.append(svg("circle", { cx: x * width, cy: y * height, r: Math.max(width, height) / 80, fill: colourOf(n) })));
  return over;
}

/** A colour that differs from those of neighbouring numbers. */
function colourOf(number) {
  return `hsl(${Math.round(((number * 0.618) % 1) * 360)} 90% 62%)`;
}

/** Show or hide what is drawn over pictures. */
export function toggleMarks(button) {
  const shown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(shown));
  document.getElementById("main").classList.toggle("without-marks", !shown);
}
