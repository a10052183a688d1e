// A small picture of a sample's file, where it can be decoded at all.

import { address } from "./ask.js";
import { el } from "./dom.js";

/** Return the picture in a place that stays as it is, so that a list does not jump. */
export function thumbnail(daemon, dataset, sample) {
  const place = el("span", { class: "thumbnail" });
  const image = el("img", { src: address("/api/thumbnail", { daemon, dataset, sample }), alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => {
    image.remove();
    place.textContent = "no picture";
  });
  place.append(image);
  return place;
}
