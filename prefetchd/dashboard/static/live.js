// The live page: asks each second what the daemon does, and draws it.

import { ask } from "./ask.js";
import { badCard } from "./bad.js";
import { agentsCard, consumersCard, dataCard, memoryCard, readersCard, ringCard, sharesCard, speedCard } from "./cards.js";
import { el, show } from "./dom.js";
import { chosenDaemon, makeHead, offerDaemons } from "./frame.js";
import { count, duration } from "./words.js";

const EACH_MS = 1000;

let chosen = chosenDaemon();
let timer = 0;
let asking = null;
let bad = null; // the card of bad samples keeps its page from one drawing to the next

const main = document.getElementById("main");
const banner = el("div", { id: "banner" });
const body = el("div", { id: "body" });

makeHead();
show(main, el("h1", { class: "unseen" }, "Live"), banner, body);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
refresh();

async function refresh() {
  clearTimeout(timer);
  asking?.abort();
  asking = new AbortController();
  try {
    const page = await ask("/api/live", { daemon: chosen }, asking.signal);
    draw(page);
  } catch (error) {
    if (error.name === "AbortError") return;
    body.classList.add("old");
    say("lost", "alert", "The dashboard is gone.", error.message);
  }
  if (document.visibilityState === "visible") timer = setTimeout(refresh, EACH_MS);
}

function choose(key) {
  chosen = key;
  const url = new URL(location.href);
  url.searchParams.set("daemon", key);
  history.replaceState(null, "", url);
  bad = null;
  makeHead();
  refresh();
}

function draw(page) {
  const shown = page.shown;
  offerDaemons(page.daemons, shown?.key ?? chosen, choose);
  document.title = shown ? `${shown.name} - prefetchd` : "prefetchd";
  body.classList.toggle("old", shown !== null && shown.state !== "running");
  if (shown === null || (shown.report === null && shown.state !== "running")) {
    drawNone(shown);
    return;
  }
  sayState(shown);
  const report = shown.report;
  if (report === null) {
    show(body, el("p", { class: "quiet" }, "The first report is on its way."));
    return;
  }
  if (bad === null || bad.key !== shown.key) bad = badCard(shown.key);
  bad.update(report);
  drawOnce(shown);
  const parts = {
    speed: speedCard(report, shown.history),
    memory: memoryCard(report, shown.history),
    shares: sharesCard(report),
    ring: ringCard(report),
    consumers: consumersCard(report, shown.key),
    readers: readersCard(report),
    agents: agentsCard(report),
    data: dataCard(report),
  };
  for (const [name, card] of Object.entries(parts)) {
    const place = document.getElementById(`card-${name}`);
    show(place, card);
    place.hidden = card === null;
  }
}

/** Make the places of the cards, if they are not there: they stay, so that the page does not jump. */
function drawOnce(shown) {
  if (body.dataset.daemon === shown.key && document.getElementById("card-speed")) return;
  body.dataset.daemon = shown.key;
  const place = (name, wide) => el("section", { id: `card-${name}`, class: wide ? "card wide" : "card" });
  const badPlace = place("bad", true);
  badPlace.append(bad.element);
  show(
    body,
    el(
      "div",
      { class: "grid-cards" },
      place("speed"), place("memory"), place("shares"), place("ring"),
      place("consumers", true), place("readers", true), place("agents", true), badPlace, place("data", true),
    ),
  );
}

function sayState(shown) {
  const report = shown.report;
  if (shown.state === "gone") {
    say("lost", "alert", `The daemon ${shown.name} is gone.`, `It ended ${duration(shown.state_s)} ago. What it did last stands below. This page goes on when a daemon of that name runs again.`);
  } else if (shown.state === "silent") {
    say("lost", "alert", `The daemon ${shown.name} does not answer.`, shown.why);
  } else if (report !== null) {
    const { tone, text, hint } = report.verdict;
    const facts = [`pid ${shown.pid}`, `up ${duration(report.uptime_s)}`, `${count(report.batches_made)} batches made`];
    if (shown.restarts) facts.push(`started again ${shown.restarts === 1 ? "once" : `${shown.restarts} times`}`);
    say(tone, "status", text, hint, facts.join(" · "));
  } else {
    say("quiet", "status", "Measuring.", "");
  }
}

function say(tone, role, text, hint, facts = "") {
  const signature = JSON.stringify([tone, text, hint]);
  if (banner.dataset.said !== signature) {
    banner.dataset.said = signature;
    show(
      banner,
      el("div", { class: `verdict ${tone}`, role }, el("p", { class: "verdict-text" }, text), hint ? el("p", {}, hint) : null),
      el("p", { class: "facts", id: "facts" }),
    );
  }
  document.getElementById("facts").textContent = facts;
}

function drawNone(shown) {
  const name = shown?.name ?? chosen;
  delete body.dataset.daemon;
  body.classList.remove("old");
  say(
    "quiet",
    "status",
    name && name !== "private" ? `No daemon called ${name} is running.` : "No daemon is running.",
    "This page shows it as soon as one runs.",
  );
  if (document.getElementById("how")) return;
  show(
    body,
    el(
      "section",
      { class: "card", id: "how" },
      el("h2", {}, "Start one"),
      el("p", {}, "For several trainers on this machine:"),
      el("pre", {}, el("code", {}, "prefetchd serve train.txt --batch-size 64")),
      el("p", {}, "Or in a program of yours, which starts a daemon of its own:"),
      el("pre", {}, el("code", {}, 'loader = prefetchd.batches("train.txt", batch_size=64)')),
    ),
  );
}
