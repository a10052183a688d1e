// The card of bad samples: a page of them at a time, asked for when it is shown.

import { ask } from "./ask.js";
import { el, show } from "./dom.js";
import { thumbnail } from "./thumbnail.js";
import { count, counted } from "./words.js";

const ROWS = 10;

/** Return the card of the daemon `key`: its element, and `update` for each report. */
export function badCard(key) {
  const element = el("div", {});
  const state = { key, element, update, seen: -1, dataset: null, first: 0, asked: 0 };
  return state;

  function update(report) {
    const names = report.datasets.map((data) => data.name);
    if (!names.includes(state.dataset)) state.dataset = names[0] ?? "";
    // Those that are shown stay as they are: new ones come at the end.
    if (report.bad_samples === state.seen) return;
    state.seen = report.bad_samples;
    state.names = names;
    if (report.bad_samples) load();
    else show(element, el("h2", {}, "Bad samples"), el("p", { class: "quiet" }, "None so far."));
  }

  async function load() {
    state.asked += 1;
    const mine = state.asked;
    try {
      const answer = await ask("/api/bad", { daemon: key, dataset: state.dataset, first: state.first });
      if (mine === state.asked) draw(answer);
    } catch (error) {
      if (mine === state.asked) show(element, el("h2", {}, "Bad samples"), el("p", { class: "warn-text", role: "alert" }, error.message));
    }
  }

  function draw(answer) {
    const shown = answer.samples.slice(0, ROWS);
    show(
      element,
      el("h2", {}, `Bad samples: ${count(state.seen)}`),
      state.names.length > 1 ? tabs() : null,
      shown.length
        ? el("ol", { class: "bad", start: state.first + 1 }, shown.map(row))
        : el("p", { class: "quiet" }, "None in this data set."),
      pager(answer),
    );
  }

  function row(sample) {
    return el(
      "li",
      {},
      thumbnail(key, state.dataset, sample.sample_id),
      el("span", { class: "path" }, sample.where),
      el("span", { class: "reason" }, sample.reason),
    );
  }

  function tabs() {
    const button = (name) =>
      el(
        "button",
        { type: "button", id: `bad-${name}`, "aria-pressed": String(name === state.dataset), onclick: () => go(name, 0) },
        name,
      );
    return el("div", { class: "tabs", role: "group", "aria-label": "Data set" }, state.names.map(button));
  }

  function pager(answer) {
    const last = Math.min(state.first + ROWS, answer.n_remembered);
    const most = answer.n_bad > answer.n_remembered ? ` (the first ${count(answer.n_remembered)} of ${counted(answer.n_bad, "bad sample")} are listed)` : "";
    if (answer.n_remembered <= ROWS) return most ? el("p", { class: "quiet" }, most) : null;
    const move = (id, text, first, able) =>
      el("button", { type: "button", id, disabled: !able, onclick: () => go(state.dataset, first) }, text);
    const end = Math.floor((answer.n_remembered - 1) / ROWS) * ROWS;
    return el(
      "nav",
      { class: "pager", "aria-label": "Pages of bad samples" },
      move("bad-first", "First", 0, state.first > 0),
      move("bad-before", "Back", Math.max(0, state.first - ROWS), state.first > 0),
      el("span", { role: "status" }, `${count(state.first + 1)} to ${count(last)} of ${count(answer.n_remembered)}${most}`),
      move("bad-next", "Next", state.first + ROWS, last < answer.n_remembered),
      move("bad-last", "Last", end, state.first < end),
    );
  }

  function go(dataset, first) {
    state.dataset = dataset;
    state.first = first;
    load();
  }
}
