// The batch inspector: one batch of any epoch, the same sample over epochs, and a search.

import { ask, batchAddress } from "./ask.js";
import { el, show } from "./dom.js";
import { chosenDaemon, makeHead, offerDaemons } from "./frame.js";
import { epochsOf } from "./epochs.js";
import { sampleCard, toggleMarks } from "./samples.js";
import { searchBox } from "./search.js";
import { count, counted } from "./words.js";

const state = { daemon: chosenDaemon(), dataset: null, epoch: 0, batch: 0, sample: null, datasets: [], asked: 0 };
const main = document.getElementById("main");
const places = Object.fromEntries(["head", "note", "sample", "rows", "more"].map((name) => [name, el("div", { id: `place-${name}` })]));

makeHead();
show(main, el("h1", { id: "title", tabindex: "-1" }, "Batches"), Object.values(places));
addEventListener("popstate", () => {
  readAddress();
  load();
});
begin();

/** Find out what there is, then show the batch of the address, or the one that a trainer has now. */
async function begin() {
  readAddress();
  try {
    const page = await ask("/api/live", { daemon: state.daemon });
    offerDaemons(page.daemons, page.shown?.key ?? state.daemon, (key) => (location.href = `/batch?daemon=${encodeURIComponent(key)}`));
    const report = page.shown?.report;
    if (!report || page.shown.state !== "running") {
      const name = page.shown?.name ?? state.daemon;
      note("quiet", name ? `The daemon ${name} does not run now.` : "No daemon is running.", "Batches come from a running daemon. This page looks again every few seconds.");
      setTimeout(begin, 3000);
      return;
    }
    state.daemon = page.shown.key;
    state.datasets = report.datasets;
    if (state.dataset === null) {
      const trainer = report.consumers.find((each) => each.batch !== null && each.batch !== undefined);
      state.dataset = trainer?.dataset ?? report.datasets[0].name;
      state.epoch = trainer?.epoch ?? 0;
      state.batch = trainer?.batch ?? 0;
      history.replaceState(null, "", here());
    }
  } catch (error) {
    note("lost", "The dashboard cannot be reached.", error.message);
    setTimeout(begin, 3000);
    return;
  }
  drawHead();
  load();
}

function readAddress() {
  const [, , dataset, epoch, batch] = location.pathname.split("/");
  if (batch !== undefined) {
    state.dataset = dataset === "-" ? "" : decodeURIComponent(dataset);
    state.epoch = Number(epoch);
    state.batch = Number(batch);
  }
  const sample = new URLSearchParams(location.search).get("sample");
  state.sample = sample === null ? null : Number(sample);
}

function here() {
  return batchAddress(state.daemon, state.dataset, state.epoch, state.batch, { sample: state.sample });
}

function go(changes) {
  Object.assign(state, changes);
  history.pushState(null, "", here());
  load();
}

function drawHead() {
  const several = state.datasets.length > 1;
  const number = (id, label, value) =>
    el("span", { class: "field" }, el("label", { for: id }, label), el("input", { id, name: id, type: "number", min: 0, step: 1, value, required: true, inputmode: "numeric" }));
  const step = (id, text, label, by) =>
    el("button", { type: "button", id, "aria-label": label, onclick: () => go({ batch: Math.max(0, Math.min(lastBatch(), state.batch + by)), sample: null }) }, text);
  const form = el(
    "form",
    { class: "place", id: "place", onsubmit: submit },
    several
      ? el(
          "span",
          { class: "field" },
          el("label", { for: "dataset" }, "Data"),
          el("select", { id: "dataset" }, state.datasets.map((data) => el("option", { value: data.name, selected: data.name === state.dataset }, data.name))),
        )
      : null,
    number("epoch", "Epoch", state.epoch),
    number("batch", "Batch", state.batch),
    el("button", { type: "submit", id: "show" }, "Show"),
    step("before", "‹", "Batch before", -1),
    step("next", "›", "Next batch", 1),
    el("button", { type: "button", id: "marks", "aria-pressed": "true", hidden: true, onclick: (event) => toggleMarks(event.target) }, "Boxes"),
  );
  show(places.head, form, searchBox(state, (sample) => go({ sample })));
}

function submit(event) {
  event.preventDefault();
  const value = (id) => Math.max(0, Math.floor(Number(document.getElementById(id).value)) || 0);
  go({ dataset: document.getElementById("dataset")?.value ?? state.dataset, epoch: value("epoch"), batch: value("batch"), sample: null });
}

function lastBatch() {
  return (state.datasets.find((data) => data.name === state.dataset)?.batches_per_epoch ?? 1) - 1;
}

async function load() {
  state.asked += 1;
  const mine = state.asked;
  for (const id of ["epoch", "batch"]) document.getElementById(id).value = state[id];
  const title = `Batch ${count(state.batch)} of epoch ${count(state.epoch)}`;
  document.getElementById("title").textContent = title;
  document.title = `${title} - prefetchd`;
  showSample();
  places.rows.setAttribute("aria-busy", "true");
  const waiting = setTimeout(() => mine === state.asked && note("quiet", "The daemon is making the batch.", "Loops that run go first."), 400);
  try {
    const answer = await ask("/api/batch", query(0));
    if (mine !== state.asked) return;
    noteAnswer(answer);
    document.getElementById("marks").hidden = !answer.rows.some((row) => row.marks.boxes.length || row.marks.points.length);
    show(places.rows, gallery(answer.rows, answer));
    more(answer, mine);
  } catch (error) {
    if (mine !== state.asked) return;
    note("warn", "This batch cannot be shown.", error.message);
    show(places.rows);
    show(places.more);
  } finally {
    clearTimeout(waiting);
    if (mine === state.asked) places.rows.removeAttribute("aria-busy");
  }
}

function query(first) {
  return { daemon: state.daemon, dataset: state.dataset, epoch: state.epoch, batch: state.batch, first };
}

function gallery(rows, answer) {
  const source = { daemon: state.daemon, dataset: state.dataset, epoch: state.epoch, batch: state.batch, held: answer.held };
  return el("ul", { class: "gallery" }, rows.map((row) => sampleCard(row, source, (sample) => go({ sample }))));
}

function more(answer, mine) {
  const next = answer.first + answer.rows.length;
  if (next >= answer.n_rows) {
    show(places.more);
    return;
  }
  const button = el("button", { type: "button", id: "more", onclick: load_more }, `Show more (${count(answer.n_rows - next)} left)`);
  show(places.more, button);
  async function load_more() {
    button.disabled = true;
    try {
      const following = await ask("/api/batch", query(next));
      if (mine !== state.asked) return;
      places.rows.append(gallery(following.rows, following));
      more(following, mine);
    } catch (error) {
      note("warn", "More of this batch cannot be shown.", error.message);
    }
  }
}

function noteAnswer(answer) {
  const facts = [counted(answer.n_rows, "sample"), `${count(answer.batches_per_epoch)} batches an epoch`];
  const missing = answer.planned_rows === null ? 0 : answer.planned_rows - answer.n_rows;
  if (missing > 0) facts.push(`${counted(missing, "bad sample")} left out`);
  if (!answer.shuffle) facts.push("not shuffled: each epoch has the same batches");
  show(places.note, el("p", { class: "facts" }, facts.join(" · ")), answer.paths_why ? el("p", { class: "warn-text" }, `Paths and names are not known. ${answer.paths_why}`) : null);
}

function note(tone, text, hint) {
  show(places.note, el("div", { class: `verdict ${tone}`, role: tone === "quiet" ? "status" : "alert" }, el("p", { class: "verdict-text" }, text), el("p", {}, hint)));
}

function showSample() {
  if (state.sample === null) show(places.sample);
  else epochsOf(places.sample, state, () => go({ sample: null }));
}
