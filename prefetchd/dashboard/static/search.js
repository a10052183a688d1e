// The search: a part of a path, or a sample's number.

import { ask } from "./ask.js";
import { el, show } from "./dom.js";
import { count } from "./words.js";

/** Return the search of a data set; `choose` is called with the number of the sample that a person wants. */
export function searchBox(state, choose) {
  const input = el("input", { id: "search", type: "search", required: true, placeholder: "part of a path, or a number", autocomplete: "off" });
  const results = el("div", { role: "status", id: "found" });
  let asked = 0;
  const form = el(
    "form",
    { class: "search", role: "search", onsubmit: submit },
    el("label", { for: "search" }, "Find a sample"),
    input,
    el("button", { type: "submit", id: "find" }, "Find"),
  );
  return el("div", {}, form, results);

  async function submit(event) {
    event.preventDefault();
    asked += 1;
    const mine = asked;
    show(results, el("p", { class: "quiet" }, "Searching."));
    try {
      const found = await ask("/api/search", { daemon: state.daemon, dataset: state.dataset, text: input.value });
      if (mine === asked) draw(found);
    } catch (error) {
      if (mine === asked) show(results, el("p", { class: "warn-text" }, error.message));
    }
  }

  function draw(found) {
    if (!found.samples.length) {
      const all = found.looked_at >= found.n_samples;
      show(results, el("p", { class: "quiet" }, all ? "No sample has that in its path." : `None of the first ${count(found.looked_at)} of ${count(found.n_samples)} samples has that in its path; the search ran out of time.`));
      return;
    }
    if (found.samples.length === 1) {
      show(results);
      choose(found.samples[0].sample_id);
      return;
    }
    show(
      results,
      el("ul", { class: "found" }, found.samples.map(({ sample_id, where }) => el("li", {}, el("button", { type: "button", onclick: () => choose(sample_id) }, `sample ${sample_id}`), el("span", { class: "path" }, where)))),
      found.more ? el("p", { class: "quiet" }, "There are more. Give a longer part of the path.") : null,
    );
  }
}
