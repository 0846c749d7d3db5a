// How likely a word was, as a tint: the less likely, the deeper. One hue whose lightness alone
// changes, so that it is read alike by those who see fewer colours, and never by colour only: the
// number is told on focus and on hover.

import { make } from "./dom.js";

// From which probability on, and what the legend calls it.
const STEPS = [
  [0.5, "over 50 %"],
  [0.2, "20–50"],
  [0.05, "5–20"],
  [0.01, "1–5"],
  [0, "under 1 %"],
];

/** The class of a token of that probability. */
export const tintOf = (probability) =>
  probability === null ? "" : `tint-${STEPS.findIndex(([least]) => probability >= least)}`;

/** What the tints mean. */
export function legend() {
  const steps = STEPS.map(([, name], step) =>
    make("span", { class: `sample tint-${step}` }, name),
  );
  return make("p", { class: "tints" }, make("span", {}, "How likely each word was:"), ...steps);
}
