// Which models there are, and which one is meant.

import { get, post } from "./api.js";
import { find, make } from "./dom.js";
import { kept } from "./kept.js";

let names = [];
const known = new Map(); // name -> what /v1/models says of it, once it is open

/** Fills the list of models. */
export async function loadModels() {
  names = (await get("v1/models")).data.map((model) => model.id);
  const last = kept("model", names[0], chosenModel);
  fill(find("#model"), names.includes(last) ? last : names[0]);
}

export const chosenModel = () => find("#model").value;

export function fill(select, chosen) {
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  select.value = chosen;
}

/** Of those two that are best looked at side by side: full precision, and the coarsest. */
export function pairToCompare() {
  const first = names.find((name) => /fp32/.test(name)) ?? names[0];
  const others = names.filter((name) => name !== first);
  const second = others.find((name) => /int4/.test(name)) ?? others[0] ?? first;
  return [first, second];
}

/** What to tell while it is not known whether it is open: to open one may take a while. */
export const opening = (name) => (known.has(name) ? "" : `opening ${name}…`);

/** What is known of a model only once it is open, which asking for a next word makes it. */
export async function opened(name, signal) {
  const path = `v1/models/${encodeURIComponent(name)}`;
  if (!known.has(name)) {
    let found = await get(path, signal);
    if (!found.open) {
      await post("next", { model: name, prompt: "a", top: 0 }, signal);
      found = await get(path, signal);
    }
    known.set(name, found);
  }
  return known.get(name);
}
