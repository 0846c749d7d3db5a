// How tokens are chosen, for all views: what somebody changed, over what is the model's own.

import { kept } from "./kept.js";

const changed = new Map(kept("settings", [], () => [...changed]));
let own = {}; // the model's, as /next tells it
const listeners = new Set();

export const settings = {
  get: (name) => (changed.has(name) ? changed.get(name) : own[name]),
  isChanged: (name) => changed.has(name),

  /** `value` undefined: the model's own. */
  set(name, value) {
    if (value === undefined) changed.delete(name);
    else changed.set(name, value);
    listeners.forEach((listener) => listener("changed"));
  },

  reset() {
    changed.clear();
    listeners.forEach((listener) => listener("changed"));
  },

  /** What the model does where nobody says. */
  learn(options) {
    for (const [name, value] of Object.entries(options)) if (!changed.has(name)) own[name] = value;
    listeners.forEach((listener) => listener("learned"));
  },

  forgetOwn: () => (own = {}),
  onChange: (listener) => listeners.add(listener),
};

const LENGTHS = ["max_tokens", "seed", "stop"];

/** The fields of a request that generates. */
export const generationOptions = () => Object.fromEntries(changed);

/** Those that shape the distribution. */
export const shapingOptions = () =>
  Object.fromEntries([...changed].filter(([name]) => !LENGTHS.includes(name)));
