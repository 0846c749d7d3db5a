// How far a model would go, word for word, from every place of a passage: a small curve.

import { draw, make } from "./dom.js";
import { count } from "./format.js";

const WIDTH = 600, HEIGHT = 120, LEFT = 34, BOTTOM = 22, TOP = 12;

/** For each number of words given, from 1 up, how many follow word for word: `reach[given - 1]`. */
export function reachOf(isRight) {
  const reach = [];
  let run = 0;
  for (let place = isRight.length - 1; place >= 1; place -= 1) {
    run = isRight[place] ? run + 1 : 0;
    reach.unshift(run);
  }
  return reach;
}

/** Draws it into a figure; `given` is where the passage was begun this time. */
export function drawCurve(root, reach, given) {
  const most = Math.max(1, ...reach);
  const x = (place) => LEFT + ((WIDTH - LEFT - 8) * place) / Math.max(1, reach.length - 1);
  const y = (words) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - words / most);
  const line = reach.map((words, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(words).toFixed(1)}`).join("");
  const base = y(0);
  const at = given - 1;
  const text = (attributes, string) => draw("text", attributes, string);
  const svg = draw(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(reach, most) },
    draw("path", { class: "area", d: `${line}L${x(reach.length - 1)} ${base}L${x(0)} ${base}Z` }),
    draw("path", { class: "line", d: line }),
    draw("line", { class: "axis", x1: LEFT, x2: WIDTH - 8, y1: base, y2: base }),
    draw("line", { class: "given", x1: x(at), x2: x(at), y1: TOP - 6, y2: base }),
    text({ x: LEFT - 6, y: y(most) + 4, "text-anchor": "end" }, count(most)),
    text({ x: LEFT - 6, y: base + 4, "text-anchor": "end" }, "0"),
    text({ x: x(0), y: HEIGHT - 5, "text-anchor": "start" }, "1 word given"),
    text({ x: x(reach.length - 1), y: HEIGHT - 5, "text-anchor": "end" }, count(reach.length)),
  );
  root.replaceChildren(
    svg,
    make("figcaption", { class: "note" }, "How many words would follow word for word, by how many are given. A rise falls where the model would have said another word."),
  );
}

function described(reach, most) {
  const best = reach.indexOf(most) + 1;
  return `With ${best} words given, ${most} words follow word for word: the most of all beginnings, 1 to ${reach.length}.`;
}
