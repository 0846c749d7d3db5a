// What may come next, as the model has it, and what the options make of that: what they keep is
// solid, what they cut off is hatched and struck through.

import { bar, track } from "./bars.js";
import { make } from "./dom.js";
import { axisEnd, count, percent, shown, spoken } from "./format.js";

/** Draws an answer of /next into `root`. */
export function drawDistribution(root, { tokens, others, num_left: left }) {
  const all = tokens.length + others.count;
  const end = axisEnd(Math.max(...tokens.flatMap((token) => [token.probability, token.left])));
  const rows = tokens.map((token) =>
    token.ends ? row(token, "end of text", end) : row(token, shown(token.text), end, { label: spoken(token.text) }),
  );
  root.replaceChildren(
    make(
      "table",
      { class: "distribution" },
      make("caption", {}, summary(left, all)),
      make(
        "thead",
        {},
        make("tr", {}, head("Word"), make("td", {}), head("Model", "own"), head("Drawn", "left")),
      ),
      make("tbody", {}, ...rows, row(others, `${count(others.count)} others`, end, { kind: "others" })),
    ),
  );
}

/** While there is nothing to draw, why. */
export function drawNothing(root, why) {
  root.replaceChildren(make("p", { class: "note" }, why));
}

const head = (name, swatch = null) =>
  make("th", { scope: "col" }, swatch && make("span", { class: `swatch ${swatch}` }), name);

function summary(left, all) {
  if (left === all) return `Any of ${count(all)} tokens can be drawn`;
  return `${count(left)} of ${count(all)} tokens can be drawn`;
}

function row({ probability, left }, name, end, { kind = "", label = null } = {}) {
  const isCut = left === 0;
  const bars = track(bar(probability / end, isCut ? "cut" : "own"), bar(left / end, "left"));
  return make(
    "tr",
    { class: `${kind} ${isCut ? "is-cut" : ""}` },
    make("th", { scope: "row", "aria-label": label }, isCut ? make("s", {}, name) : name),
    make("td", { class: "bars" }, bars),
    make("td", { class: "number" }, percent(probability)),
    make("td", { class: "number" }, isCut ? "cut" : percent(left)),
  );
}
