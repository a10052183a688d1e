// One sample over epochs: in which batch it is, and how it looks there.

import { ask, batchAddress } from "./ask.js";
import { el, show } from "./dom.js";
import { pictures } from "./samples.js";
import { count } from "./words.js";

const EPOCHS = 6;

/** Show the sample `state.sample` from the epoch `state.epoch` on; `close` is called when it is to go. */
export async function epochsOf(place, state, close) {
  const { daemon, dataset, sample } = state;
  const key = JSON.stringify([daemon, dataset, sample, state.epoch]);
  if (place.dataset.key === key && place.childElementCount) return;
  place.dataset.key = key;
  const heading = el("h2", { tabindex: "-1", id: "sample-title" }, `Sample ${count(sample)} over epochs`);
  const origin = el("p", { class: "path quiet" });
  const list = el("ul", { class: "gallery strip" }, el("li", { class: "quiet" }, "Looking for it."));
  show(place, el("section", { class: "card" }, el("div", { class: "card-head" }, heading, el("button", { type: "button", onclick: close }, "Close")), origin, list));
  heading.focus();
  let found;
  try {
    found = await ask("/api/places", { daemon, dataset, sample, epoch: state.epoch, epochs: EPOCHS });
  } catch (error) {
    if (place.dataset.key === key) show(list, el("li", { class: "warn-text" }, error.message));
    return;
  }
  if (place.dataset.key !== key) return;
  origin.textContent = found.where;
  const items = found.epochs.map(({ epoch, places }) => [el("li", { class: "sample" }, el("p", { class: "word" }, `Epoch ${count(epoch)}`)), epoch, places]);
  show(list, items.map(([item]) => item));
  // One after another: each is a whole batch for the daemon to make.
  for (const [item, epoch, places] of items) {
    if (place.dataset.key !== key || !place.isConnected) return;
    if (places === null) item.append(el("p", { class: "quiet" }, "The search took too long."));
    else if (!places.length) item.append(el("p", { class: "quiet" }, "It is not in this epoch."));
    else await fillIn(item, { daemon, dataset, epoch, batch: places[0].batch }, sample, places);
  }
}

async function fillIn(item, source, sample, places) {
  const { daemon, dataset, epoch, batch } = source;
  const links = places.map((place) => el("a", { href: batchAddress(daemon, dataset, epoch, place.batch) }, `batch ${count(place.batch)}`));
  item.append(el("p", { class: "origin" }, links.flatMap((link, n) => (n ? [", ", link] : [link]))));
  try {
    let first = 0;
    for (;;) {
      const answer = await ask("/api/batch", { daemon, dataset, epoch, batch, first });
      const row = answer.rows.find((each) => each.sample_id === sample);
      first += answer.rows.length;
      if (row) {
        if (row.pictures.length) item.prepend(pictures(row, { ...source, held: answer.held }));
        for (const { name, text } of row.words) item.append(el("p", { class: "word" }, name === "label" ? text : `${name}: ${text}`));
        return;
      }
      if (first >= answer.n_rows || !answer.rows.length) break;
    }
    item.append(el("p", { class: "warn-text" }, "It was left out as a bad sample."));
  } catch (error) {
    item.append(el("p", { class: "warn-text" }, error.message));
  }
}
