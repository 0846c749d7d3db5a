// A text to be read: words of a model, some of them marked.

import { make } from "./dom.js";
import { pieces } from "./format.js";

/** Draws `prompt`, and after it `text` word by word; `classOf(start)` says how the word there, or
 *  what is between two, is marked. The elements of words by where they begin. */
export function drawSaid(root, prompt, text, classOf = () => "") {
  const found = new Map();
  const elements = [...pieces(text)].map(({ text: piece, start, isWord }) => {
    const element = make("span", { class: classOf(start) || null }, piece);
    if (isWord) found.set(start, element);
    return element;
  });
  root.replaceChildren(make("span", { class: "prompt" }, prompt), ...elements);
  return found;
}
