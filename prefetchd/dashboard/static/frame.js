// What every page has: the head with the links, the choice of the daemon, and the choice of light or dark.

import { address } from "./ask.js";
import { el } from "./dom.js";

const PAGES = [
  ["Live", "/", () => location.pathname === "/"],
  ["Batches", "/batch", () => location.pathname.startsWith("/batch")],
  ["Data", "/data", () => location.pathname.startsWith("/data")],
];

/** Return the daemon that the address names; null for the first one. */
export function chosenDaemon() {
  return new URLSearchParams(location.search).get("daemon");
}

/** Make the head of the page. */
export function makeHead() {
  applyTheme(storedTheme());
  const links = PAGES.map(([name, path, isHere]) =>
    el("a", { href: address(path, { daemon: chosenDaemon() }), "aria-current": isHere() ? "page" : null }, name),
  );
  const theme = el("button", { type: "button", class: "theme", id: "theme", onclick: switchTheme });
  const choice = el("div", { id: "choice", class: "choice" });
  document.getElementById("top").replaceChildren(
    el("a", { class: "brand", href: "/" }, el("img", { src: "/static/icon.svg", alt: "", width: 24, height: 24 }), el("span", { class: "brand-name" }, "prefetchd")),
    el("nav", { "aria-label": "Pages" }, links),
    choice,
    theme,
  );
  nameTheme();
}

/** Offer the daemons; `choose` gets the key of another one. */
export function offerDaemons(daemons, shown, choose) {
  const place = document.getElementById("choice");
  const signature = JSON.stringify([daemons.map((each) => [each.key, each.name, each.state]), shown]);
  if (place.dataset.shown === signature) return;
  place.dataset.shown = signature;
  if (!daemons.length) {
    place.replaceChildren();
    return;
  }
  const select = el(
    "select",
    { id: "daemon", onchange: (event) => choose(event.target.value) },
    daemons.map((each) => el("option", { value: each.key, selected: each.key === shown }, titleOf(each))),
  );
  const hadFocus = document.activeElement?.id === "daemon";
  place.replaceChildren(el("label", { for: "daemon" }, "Daemon"), select);
  if (hadFocus) select.focus();
}

function titleOf(daemon) {
  const name = daemon.name === "private" ? `private, pid ${daemon.pid}` : daemon.name;
  return { running: name, silent: `${name} (does not answer)`, gone: `${name} (gone)`, awaited: `${name} (not there)` }[daemon.state];
}

function storedTheme() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // a browser without storage
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function applyTheme(theme) {
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  applyTheme(theme);
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // a browser without storage: it holds for this page
  }
  nameTheme();
}

function nameTheme() {
  document.getElementById("theme").textContent = isDark() ? "Light" : "Dark";
  document.getElementById("theme").setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
}
