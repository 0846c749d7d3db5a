// A number for each word of a text, as a strip of bars beneath it. One stop for the keyboard, on which
// the arrow keys go from word to word; the word is pointed at in the text above, and told.

import { draw, make } from "./dom.js";
import { nats, percent, wordsIn } from "./format.js";

const HEIGHT = 44;

/** KL of each word: the sum over its tokens, which are those of an answer of /compare.
 *  Words that end within the first `from` characters are left out. */
export function wordsOf(tokens, from) {
  const text = tokens.map((token) => token.text).join("");
  const words = wordsIn(text).map((word) => ({ ...word, kl: 0, logprobs: [0, 0] }));
  let place = -1, end = 0;
  for (const token of tokens) {
    end += token.text.length;
    while (place + 1 < words.length && words[place + 1].start < end) place += 1;
    if (place < 0 || token.kl === null) continue;
    words[place].kl += token.kl;
    token.logprobs.forEach((logprob, model) => (words[place].logprobs[model] += logprob));
  }
  return words.filter((word) => word.end > from);
}

/** Draws the strip; `onPoint(word)` hears which is looked at, null for none. */
export function drawStrip(root, words, most, names, onPoint) {
  const head = make("div", { class: "strip-head" }, make("span", {}, "KL of each word"), make("span", {}, `full height ${nats(most)} nats`));
  const bars = words.map((word, i) => draw("rect", barOf(word, i, most)));
  const svg = draw("svg", { viewBox: `0 0 ${words.length} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars);
  const told = make("p", { class: "readout" });
  const slider = make("div", {
    class: "bars-of-words", role: "slider", tabindex: 0, "aria-label": "Word by word",
    "aria-valuemin": 1, "aria-valuemax": words.length, "aria-valuenow": 1,
    "aria-valuetext": words.length ? describe(words[0], names) : "no words",
  }, svg);
  let at = -1;

  function point(place) {
    bars[at]?.classList.remove("pointed");
    at = place;
    const word = words[at] ?? null;
    bars[at]?.classList.add("pointed");
    told.textContent = word ? describe(word, names) : summary(words);
    if (word) {
      slider.setAttribute("aria-valuenow", at + 1);
      slider.setAttribute("aria-valuetext", told.textContent);
    }
    onPoint(word);
  }

  slider.addEventListener("pointermove", (event) => {
    const box = slider.getBoundingClientRect();
    point(Math.min(words.length - 1, Math.floor(((event.clientX - box.left) / box.width) * words.length)));
  });
  slider.addEventListener("pointerleave", () => point(-1));
  slider.addEventListener("blur", () => point(-1));
  slider.addEventListener("focus", () => point(Math.max(at, 0)));
  slider.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: words.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(Math.max(0, Math.min(words.length - 1, to)));
  });
  root.replaceChildren(head, slider, told);
  point(-1);
}

function barOf(word, i, most) {
  const height = Math.max(1, (word.kl / most) * HEIGHT);
  return { x: i + 0.1, width: 0.8, y: HEIGHT - height, height };
}

const describe = ({ word, kl, logprobs }, names) =>
  `“${word}”: ${nats(kl)} nats; ${names.map((name, i) => `${name} ${percent(Math.exp(logprobs[i]))}`).join(", ")}`;

function summary(words) {
  const most = words.reduce((best, word) => (word.kl > best.kl ? word : best), words[0]);
  return most ? `Most at “${most.word}”: ${nats(most.kl)} nats` : "";
}
