// The data browser: class balance, image sizes, duplicates, and what is broken.

import { address, ask, batchAddress } from "./ask.js";
import { bars } from "./charts.js";
import { el, show } from "./dom.js";
import { chosenDaemon, makeHead, offerDaemons } from "./frame.js";
import { thumbnail } from "./thumbnail.js";
import { bytes, count, counted, duration, share } from "./words.js";

const state = { daemon: chosenDaemon(), dataset: null, asked: 0 };
const main = document.getElementById("main");
const head = el("div", {});
const body = el("div", {});

makeHead();
show(main, el("h1", { id: "title" }, "Data"), head, body);
begin();

async function begin() {
  const named = location.pathname.split("/")[2];
  if (named !== undefined) state.dataset = named === "-" ? "" : decodeURIComponent(named);
  try {
    const page = await ask("/api/live", { daemon: state.daemon });
    offerDaemons(page.daemons, page.shown?.key ?? state.daemon, (key) => (location.href = address("/data", { daemon: key })));
    const report = page.shown?.report;
    if (!report || page.shown.state !== "running") {
      const name = page.shown?.name ?? state.daemon;
      say(name ? `The daemon ${name} does not run now.` : "No daemon is running.", "This page looks again every few seconds.");
      setTimeout(begin, 3000);
      return;
    }
    state.daemon = page.shown.key;
    state.dataset ??= report.datasets[0].name;
    chooser(report.datasets);
    load();
  } catch (error) {
    say("The dashboard cannot be reached.", error.message);
    setTimeout(begin, 3000);
  }
}

function chooser(datasets) {
  document.getElementById("title").textContent = state.dataset ? `Data: ${state.dataset}` : "Data";
  if (datasets.length < 2) return;
  const link = (data) => el("a", { class: "tab", href: address(`/data/${encodeURIComponent(data.name)}`, { daemon: state.daemon }), "aria-current": data.name === state.dataset ? "page" : null }, data.name);
  show(head, el("nav", { class: "tabs", "aria-label": "Data sets" }, datasets.map(link)));
}

function say(text, hint) {
  show(body, el("div", { class: "verdict quiet", role: "status" }, el("p", { class: "verdict-text" }, text), el("p", {}, hint)));
}

async function load() {
  say("Looking at the labels.", "");
  try {
    draw(await ask("/api/data", { daemon: state.daemon, dataset: state.dataset }));
  } catch (error) {
    show(body, el("div", { class: "verdict warn", role: "alert" }, el("p", { class: "verdict-text" }, "This data set cannot be shown."), el("p", {}, error.message)));
  }
}

function draw(data) {
  const several = (data.findings ?? []).length > 1;
  show(
    body,
    el("p", { class: "facts" }, `${counted(data.n_samples, "sample")} an epoch · ${counted(data.batches_per_epoch, "batch", "batches")}`),
    el(
      "div",
      { class: "grid-cards" },
      classesCard(data.balance, data.balance_why, "Classes"),
      data.findings ? data.findings.flatMap((found) => findingsCards(found, data, several)) : missingCard(data),
    ),
  );
}

function card(title, wide, ...children) {
  return el("section", { class: wide ? "card wide" : "card" }, el("h2", {}, title), ...children);
}

function classesCard(balance, why, title) {
  if (balance === null) return card(title, true, el("p", { class: "quiet" }, `They cannot be counted. ${why}`));
  if (!balance.classes) return card(title, true, el("p", { class: "quiet" }, "Labels are no classes here."));
  const most = balance.classes[0]?.count ?? 0;
  const what = balance.of_objects ? "object" : "sample";
  const spread = most === balance.least ? `${counted(most, what)} each` : `${count(balance.least)} to ${counted(most, what)} each`;
  const empty = balance.empty ? ` ${counted(balance.empty, "class", "classes")} without any.` : "";
  const rows = balance.classes.map((row) => [row.name, row.count, count(row.count)]);
  const left = balance.n_classes - (balance.empty ?? 0) - balance.classes.length;
  return card(
    title,
    true,
    el("p", { class: "quiet" }, `${counted(balance.n_classes, "class", "classes")}, ${spread}.${empty}`),
    bars(rows, `${title}: how many ${what}s each has`),
    left > 0 ? el("p", { class: "quiet" }, `and ${count(left)} more, with ${counted(balance.others, what)} together`) : null,
  );
}

function missingCard(data) {
  if (!data.is_images) return card("Sizes and duplicates", true, el("p", { class: "quiet" }, "They are found in images. This data set holds arrays."));
  return card(
    "Sizes, duplicates and broken files",
    true,
    data.findings_why ? el("p", { class: "warn-text", role: "alert" }, data.findings_why) : null,
    el("p", {}, "A verification finds them: it decodes every sample once. The dashboard starts none, as that takes the cores of a running training. Run it when the machine has time, and show what it found:"),
    el("pre", {}, el("code", {}, data.command)),
  );
}

function findingsCards(found, data, several) {
  const of = several ? `, ${found.source}` : "";
  const made = `Verified ${duration(data.findings_age_s)} ago`;
  const part = found.interrupted || found.verified < found.n_samples ? `; it saw ${count(found.verified)} of ${counted(found.n_samples, "sample")}` : "";
  return [
    card(
      `Files${of}`,
      true,
      el("p", {}, `${counted(found.good_samples, "good sample")}, ${bytes(found.encoded_bytes)}; ${Object.entries(found.formats).map(([name, n]) => `${name} ${count(n)}`).join(", ")}.`, found.median ? ` The median image is ${found.median[1]} × ${found.median[0]} pixels.` : ""),
      found.smaller ? el("p", { class: "quiet" }, `${counted(found.smaller, "image")} (${share(found.smaller / Math.max(1, found.good_samples))}) smaller than delivered, so enlarged.`) : null,
      el("p", { class: "quiet" }, `${made}${part}.`),
    ),
    card(`Shorter side in pixels${of}`, false, bars(found.sides.map((bin) => [bin.name, bin.count, count(bin.count)]), "Images by their shorter side")),
    card(`Width / height${of}`, false, bars(found.aspects.map((bin) => [bin.name, bin.count, count(bin.count)]), "Images by their shape")),
    duplicatesCard(found.duplicates, of, several),
    brokenCard(found, of, several),
  ];
}

function duplicatesCard(twice, of, several) {
  if (!twice.groups) return card(`Duplicates${of}`, true, el("p", { class: "quiet" }, "No two files are equal."));
  const conflict = twice.conflicting ? ` In ${counted(twice.conflicting, "group")} labels differ; they come first.` : "";
  const group = (members) => el("li", { class: "group" }, members.map((member) => el("span", { class: "twin" }, several ? null : thumbnail(state.daemon, state.dataset, member.sample_id), origin(member, several))));
  return card(
    `Duplicates${of}`,
    true,
    el("p", {}, `${counted(twice.groups, "group")} of equal files, ${counted(twice.superfluous, "sample")} more than needed.${conflict}`),
    el("ul", { class: "groups" }, twice.shown.map(group)),
    twice.groups > twice.shown.length ? el("p", { class: "quiet" }, `and ${count(twice.groups - twice.shown.length)} more groups; the file has them`) : null,
  );
}

function origin(member, several) {
  const name = (member.where || `sample ${member.sample_id}`).split("/").pop();
  return several ? el("span", { class: "path" }, name) : el("a", { class: "path", title: member.where, href: batchAddress(state.daemon, state.dataset, 0, 0, { sample: member.sample_id }) }, name);
}

function brokenCard(found, of, several) {
  const malformed = found.malformed_lines ? `${counted(found.malformed_lines, "line")} of the list malformed. ` : "";
  if (!found.bad_samples) return card(`Broken files${of}`, true, el("p", { class: "quiet" }, `${malformed}Every sample can be decoded.`));
  return card(
    `Broken files${of}: ${count(found.bad_samples)}`,
    true,
    malformed ? el("p", { class: "warn-text" }, malformed) : null,
    el("ol", { class: "bad" }, found.bad.map((bad) => el("li", {}, several ? el("span", {}) : thumbnail(state.daemon, state.dataset, bad.sample_id), el("span", { class: "path" }, bad.where), el("span", { class: "reason" }, bad.reason)))),
    found.bad_samples > found.bad.length ? el("p", { class: "quiet" }, `and ${count(found.bad_samples - found.bad.length)} more; the file has them`) : null,
  );
}
