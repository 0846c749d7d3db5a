// What comes next at the end of the text: asked for once nothing has changed for a moment.

import { post } from "./api.js";
import { drawDistribution, drawNothing } from "./distribution.js";
import { chosenModel, opened } from "./models.js";
import { settings, shapingOptions } from "./settings.js";

const STILL = 250; // ms
const SHOWN = 10; // tokens

export class NextWord {
  #timer = 0;
  #controller = null;

  /** `textOf()` is the text to look at, null for none now; `onFound(promptTokens, contextLength)`. */
  constructor(root, textOf, onFound) {
    this.root = root;
    this.textOf = textOf;
    this.onFound = onFound;
    settings.onChange((why) => why === "changed" && this.soon());
  }

  soon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), STILL);
  }

  async #look() {
    const text = this.textOf();
    if (text === null) return;
    this.#controller?.abort();
    this.#controller = new AbortController();
    const { signal } = this.#controller;
    const model = chosenModel();
    const asked = { model, prompt: text.tail?.ids ?? text.string, generated: text.generated, top: SHOWN };
    this.root.setAttribute("aria-busy", "true");
    try {
      const found = await post("next", { ...shapingOptions(), ...asked }, signal);
      const { context_length: contextLength } = await opened(model, signal);
      settings.learn(found.options);
      drawDistribution(this.root, found);
      this.onFound(found.prompt_token_ids.length, contextLength);
    } catch (error) {
      if (error.name === "AbortError") return; // another look is under way
      drawNothing(this.root, error.message);
      if (error.status === undefined) throw error;
    }
    this.root.removeAttribute("aria-busy");
  }
}
