// How far a model would go, word for word, from every place of a passage: a bar for each.

import { make } from "./dom.js";
import { count } from "./format.js";

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

/** Draws it into a figure; `given` words were given this time, `onChoose` hears of another number. */
export function drawCurve(root, reach, given, onChoose) {
  const most = Math.max(1, ...reach);
  const bars = reach.map((words, i) =>
    make("span", { class: i + 1 === given ? "reach given" : "reach", style: { "--share": words / most } }),
  );
  const chart = make("div", { class: "reaches", role: "img", "aria-label": described(reach, most) }, ...bars);
  chart.addEventListener("click", (event) => {
    const box = chart.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * reach.length);
    if (place >= 0 && place < reach.length) onChoose(place + 1);
  });
  root.replaceChildren(
    make("div", { class: "strip-head" }, make("span", {}, "Words that follow"), make("span", {}, `full height ${count(most)}`)),
    chart,
    make("div", { class: "strip-head" }, make("span", {}, "1 word given"), make("span", {}, count(reach.length))),
    make("figcaption", { class: "note" }, "How many words follow word for word, by how many are given; a click begins there."),
  );
}

function described(reach, most) {
  const best = reach.indexOf(most) + 1;
  return `With ${best} words given, ${most} follow word for word: the most of all beginnings, 1 to ${reach.length}.`;
}
