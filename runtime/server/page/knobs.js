// The knobs: how a token is chosen, what is generated at most, and what ends it.

import { make } from "./dom.js";
import { settings } from "./settings.js";

// off: where the knob does nothing, and what a request says for that
const RANGES = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, off: 1, says: "0 takes the likeliest; above 1 the unlikely gains" },
  { name: "top_k", label: "Top-k", min: 0, max: 100, step: 1, off: 0, says: "so many of the likeliest; 0: all" },
  { name: "top_p", label: "Top-p", min: 0.05, max: 1, step: 0.05, off: 1, says: "the likeliest that reach this probability together" },
  { name: "min_p", label: "Min-p", min: 0, max: 0.5, step: 0.01, off: 0, says: "at least this share of the likeliest’s" },
  { name: "typical_p", label: "Typical-p", min: 0.05, max: 1, step: 0.05, off: 1, says: "those about as surprising as expected" },
  { name: "repetition_penalty", label: "Repetition", min: 1, max: 2, step: 0.05, off: 1, says: "above 1: less of what is in the text" },
  { name: "frequency_penalty", label: "Frequency", min: -2, max: 2, step: 0.1, off: 0, says: "for every time a word was generated" },
  { name: "presence_penalty", label: "Presence", min: -2, max: 2, step: 0.1, off: 0, says: "once if it was generated" },
];

let numKnobs = 0;

/** Fills `root`; all knobs of a name turn together, wherever they are. */
export function drawKnobs(root) {
  const shownAgain = [...RANGES.map(range), number("max_tokens", "Tokens at most", 1, 120), number("seed", "Seed", 0, "any"), stops()];
  const reset = make("button", { class: "small", onclick: () => settings.reset() }, "As the model has it");
  root.append(...shownAgain.map(([element]) => element), reset);
  const refresh = () => shownAgain.forEach(([, show]) => show());
  settings.onChange(refresh);
  refresh();
}

function range({ name, label, min, max, step, off, says }) {
  const hint = `hint-${(numKnobs += 1)}`;
  const input = make("input", {
    type: "range", min, max, step, "aria-label": label, "aria-describedby": hint,
    oninput: () => settings.set(name, Number(input.value)),
  });
  const told = make("output", {});
  const show = () => {
    const value = settings.get(name) ?? off;
    if (Number(input.value) !== value) input.value = value;
    told.textContent = name === "top_k" && value === 0 ? "all" : value.toFixed(step < 1 ? 2 : 0);
    element.classList.toggle("is-off", value === off);
    element.classList.toggle("is-changed", settings.isChanged(name));
  };
  const element = make("div", { class: "knob" }, make("label", {}, make("span", {}, label), input, told), make("p", { id: hint, class: "hint" }, says));
  return [element, show];
}

function number(name, label, min, placeholder) {
  const input = make("input", {
    type: "number", min, step: 1, placeholder, inputmode: "numeric",
    oninput: () => settings.set(name, input.value === "" ? undefined : Math.trunc(input.valueAsNumber)),
  });
  const show = () => {
    const value = settings.isChanged(name) ? String(settings.get(name)) : "";
    if (input.value !== value && document.activeElement !== input) input.value = value;
  };
  return [make("label", { class: "knob field" }, make("span", {}, label), input), show];
}

/** What ends a text: a text in each line, its own line ends written \n. */
function stops() {
  const input = make("textarea", {
    rows: 2, spellcheck: "false", placeholder: "one a line; \\n is an end of line",
    oninput: () => {
      const texts = input.value.split("\n").filter((text) => text !== "").map((text) => text.replaceAll("\\n", "\n"));
      settings.set("stop", texts.length ? texts : undefined);
    },
  });
  const show = () => {
    const texts = (settings.isChanged("stop") ? settings.get("stop") : []).map((text) => text.replaceAll("\n", "\\n"));
    if (document.activeElement !== input) input.value = texts.join("\n");
  };
  return [make("label", { class: "knob field tall" }, make("span", {}, "Ends before"), input), show];
}
