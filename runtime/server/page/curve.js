// How far a model would go, word for word, from every place of a passage: a bar for each.

import { draw, make } from "./dom.js";
import { count } from "./format.js";

const WIDTH = 760, HEIGHT = 120, LEFT = 30, TOP = 14, BOTTOM = 22;

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
  const most = Math.max(1, ...reach), step = (WIDTH - LEFT) / reach.length;
  const base = HEIGHT - BOTTOM;
  const bars = reach.map((words, i) => {
    const height = Math.max(1.5, ((base - TOP) * words) / most);
    const kind = i + 1 === given ? "reach given" : "reach";
    return draw("rect", { class: kind, x: LEFT + i * step + step * 0.1, width: step * 0.8, y: base - height, height, rx: 1.5 });
  });
  const label = (x, y, anchor, text) => draw("text", { x, y, "text-anchor": anchor }, text);
  const svg = draw(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(reach, most) },
    draw("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: base, y2: base }),
    ...bars,
    label(LEFT - 8, TOP + 5, "end", count(most)),
    label(LEFT - 8, base + 4, "end", "0"),
    label(LEFT, HEIGHT - 5, "start", "1 word given"),
    label(WIDTH, HEIGHT - 5, "end", count(reach.length)),
  );
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const place = Math.floor((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / step);
    if (place >= 0 && place < reach.length) onChoose(place + 1);
  });
  const caption = "How many words follow word for word, by how many are given; a click begins there.";
  root.replaceChildren(svg, make("figcaption", { class: "note" }, caption));
}

function described(reach, most) {
  const best = reach.indexOf(most) + 1;
  return `With ${best} words given, ${most} follow word for word: the most of all beginnings, 1 to ${reach.length}.`;
}
