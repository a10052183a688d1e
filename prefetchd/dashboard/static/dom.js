// Elements, made without HTML: text goes in by textContent alone, also where a path or a label holds HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element: el("p", {class: "quiet"}, "text", other, null). Attributes that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an element of an SVG picture. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set one property of an element's style; a style attribute would be forbidden. */
export function style(element, name, value) {
  element.style.setProperty(name, value);
  return element;
}

/** Replace what `place` holds, and keep the focus where an element of the same id comes back. */
export function show(place, ...children) {
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  place.replaceChildren(...children.flat().filter((child) => child));
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}
