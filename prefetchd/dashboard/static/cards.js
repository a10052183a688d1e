// The cards of the live page: each takes the report and returns its elements.

import { meter, partsBar, timeChart } from "./charts.js";
import { batchAddress } from "./ask.js";
import { el } from "./dom.js";
import { bytes, count, counted, duration, rate, share } from "./words.js";

const AGE = 0, IN = 1, OUT = 2, MEMORY = 3, BUDGET = 4;

export function speedCard(report, history) {
  const ages = history.map((point) => point[AGE]);
  return [
    el("h2", {}, "Images a second"),
    el(
      "div",
      { class: "numbers" },
      number(rate(report.images_out), "out, to trainers", "training"),
      number(rate(report.images_in), "in, from readers", "plain"),
    ),
    timeChart(
      ages,
      [
        { name: "out, to trainers", colour: "training", values: history.map((point) => point[OUT]), fill: true },
        { name: "in, from readers", colour: "plain", values: history.map((point) => point[IN]) },
      ],
      rate,
      `Images a second over the last ${duration(ages[0] || 0)}: now ${rate(report.images_out)} out and ${rate(report.images_in)} in`,
    ),
  ];
}

function number(value, name, colour) {
  return el("p", { class: `number-big ${colour}` }, el("strong", {}, value), el("span", {}, name));
}

export function sharesCard(report) {
  const shares = report.shares;
  const head = el("h2", {}, "Where the time of training goes");
  if (shares === null) {
    return [head, el("p", { class: "quiet" }, report.consumers.length ? "No loop is running now." : "No trainer is attached.")];
  }
  return [
    head,
    partsBar(
      [
        ["training", "training", shares.training, share(shares.training)],
        ["waits for batches", "loading", shares.loading, share(shares.loading)],
        ["waits for a slower trainer", "slower", shares.slower, share(shares.slower)],
      ],
      "Where the time of training goes",
    ),
    report.readers_busy === null ? null : el("p", { class: "quiet" }, `Readers are at work ${share(report.readers_busy)} of the time.`),
  ];
}

export function memoryCard(report, history) {
  const memory = report.memory;
  const grows = memory.ceiling_bytes > memory.budget_bytes ? `, may grow to ${bytes(memory.ceiling_bytes)}` : "";
  return [
    el("h2", {}, "Memory"),
    el(
      "div",
      { class: "numbers" },
      number(bytes(memory.footprint_bytes), `of ${bytes(memory.budget_bytes)} (${memory.limited_by})${grows}`, "memory"),
    ),
    timeChart(
      history.map((point) => point[AGE]),
      [
        { name: "in use", colour: "memory", values: history.map((point) => point[MEMORY]), fill: true },
        { name: "budget", colour: "plain", values: history.map((point) => point[BUDGET]), dashed: true },
      ],
      bytes,
      `Memory over time: now ${bytes(memory.footprint_bytes)} of ${bytes(memory.budget_bytes)}, at most ${bytes(memory.max_footprint_bytes)}`,
      1024,
    ),
    memory.short ? el("p", { class: "warn-text" }, `The machine is short of memory: ${bytes(memory.headroom_bytes)} left. Slots and readers are given back.`) : null,
  ];
}

export function ringCard(report) {
  const ring = report.ring;
  const ready = Math.max(0, ring.ready - ring.leased);
  return [
    el("h2", {}, "Ring"),
    partsBar(
      [
        ["in use by trainers", "training", ring.leased, count(ring.leased)],
        ["ready", "ready", ready, count(ready)],
        ["being filled", "filling", ring.filling, count(ring.filling)],
        ["free", "free", ring.free, count(ring.free)],
      ],
      "Slots of the ring",
    ),
    el("p", { class: "quiet" }, `${counted(ring.slots, "slot")} of ${bytes(ring.slot_bytes)}; each holds one batch.`),
  ];
}

export function consumersCard(report, key) {
  const head = el("h2", {}, "Trainers");
  if (!report.consumers.length) {
    return [head, el("p", { class: "quiet" }, "None is attached. Attach with prefetchd.batches().")];
  }
  const named = report.datasets.length > 1;
  return [
    head,
    table(
      ["Trainer", named && "Data", "Epoch", "Batch", "Images/s", "Waits", "Behind", "Now"],
      report.consumers.map((each) => [
        nameOf(each),
        named && each.dataset,
        right(each.epoch === null ? "–" : count(each.epoch)),
        right(batchLink(each, key)),
        right(rate(each.images)),
        meter(each.waits, share(each.waits)),
        right(each.lag === null ? "–" : each.lag === 0 ? "0" : counted(each.lag, "step")),
        each.does,
      ]),
    ),
  ];
}

/** The batch that a trainer has now, as a link to its pictures. */
function batchLink(consumer, key) {
  if (consumer.batch === null || consumer.batch === undefined) return consumer.step === null ? "–" : count(consumer.step);
  return el("a", { href: batchAddress(key, consumer.dataset, consumer.epoch, consumer.batch) }, count(consumer.batch));
}

function nameOf(consumer) {
  const more = [`pid ${consumer.pid}`];
  if (consumer.world_size > 1) more.push(`rank ${consumer.rank} of ${consumer.world_size}`);
  if (consumer.group !== null) more.push(`group ${consumer.group}`);
  return el("span", {}, el("strong", {}, consumer.name || "unnamed"), " ", el("span", { class: "quiet" }, more.join(", ")));
}

export function readersCard(report) {
  const crashes = report.reader_crashes ? `${counted(report.reader_crashes, "reader")} replaced after a crash.` : null;
  return [
    el("h2", {}, "Readers"),
    table(
      ["Reader", "Images/s", "Busy", "Memory", "Now"],
      report.readers.map((each) => [
        `pid ${each.pid}`,
        right(rate(each.images)),
        meter(each.busy, share(each.busy)),
        right(bytes(each.memory_bytes)),
        each.does,
      ]),
    ),
    crashes ? el("p", { class: "warn-text" }, crashes) : null,
  ];
}

/** Agents on other machines, and those that are missing. */
export function agentsCard(report) {
  if (!report.agents.length) return null;
  const here = report.agents.filter((agent) => !agent.missing);
  const missing = report.agents.filter((agent) => agent.missing);
  return [
    el("h2", {}, "Agents on other machines"),
    here.length
      ? table(
          ["Agent", "Readers", "Images/s", "Received", "Round trip", "Taken back", "Memory", "State"],
          here.map((agent) => [
            el("strong", {}, agent.name),
            right(count(agent.readers)),
            right(rate(agent.images)),
            right(agent.received_bytes === null ? "–" : `${bytes(agent.received_bytes)}/s`),
            right(`${rate(agent.round_trip_s * 1000)} ms`),
            right(count(agent.recalled)),
            right(agent.budget_bytes ? `${bytes(agent.memory_bytes)} of ${bytes(agent.budget_bytes)}` : bytes(agent.memory_bytes)),
            agent.state,
          ]),
        )
      : null,
    missing.map((agent) => el("p", { class: "warn-text" }, `${agent.name} is missing: ${agent.missing}`)),
  ];
}

export function dataCard(report) {
  return [
    el("h2", {}, report.datasets.length === 1 ? "Data" : "Data sets"),
    el(
      "ul",
      { class: "datasets" },
      report.datasets.map((data) =>
        el(
          "li",
          {},
          el("strong", {}, data.name || "unnamed"),
          el("span", { class: "path" }, data.source),
          el(
            "span",
            { class: "quiet" },
            `${counted(data.n_samples, "sample")}; ${count(data.batches_per_epoch)} batches an epoch of ` +
              `${data.batch_shape.join(" × ")} ${data.batch_dtype}${cacheText(data.cache)}${paddingText(data.padding)}`,
          ),
          data.mix ? el("ul", {}, data.mix.map((part) => el("li", {}, `${part.source}: ${share(part.share)} of an epoch`))) : null,
        ),
      ),
    ),
  ];
}

function cacheText(cache) {
  if (!cache) return "";
  const asked = cache.hits + cache.misses;
  return `; cache of ${bytes(cache.bytes)}${asked ? `, ${share(cache.hits / asked)} of samples came from it` : ""}`;
}

function paddingText(padding) {
  return padding === null ? "" : `; ${share(padding)} of tokens are padding`;
}

function right(text) {
  return el("span", { class: "right" }, text);
}

/** Return a table; a column whose head is false is left out. On a narrow screen each row becomes a block. */
function table(heads, rows) {
  const kept = heads.map((head, n) => [head, n]).filter(([head]) => head !== false);
  return el(
    "table",
    { class: "rows" },
    el("thead", {}, el("tr", {}, kept.map(([head]) => el("th", { scope: "col" }, head)))),
    el(
      "tbody",
      {},
      rows.map((row) => el("tr", {}, kept.map(([head, n]) => el("td", { "data-head": head }, row[n] ?? "–")))),
    ),
  );
}
