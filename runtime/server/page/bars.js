// Probabilities as bars, on an axis that ends where it can be told.

import { make } from "./dom.js";

/** A bar for a share of the axis. */
export const bar = (share, kind = "") =>
  make("span", { class: `bar ${kind}`, style: { "--share": Math.max(0, Math.min(1, share)) } });

/** The room that bars lie in. */
export const track = (...bars) => make("span", { class: "track", "aria-hidden": "true" }, ...bars);
