// Two models side by side on one prompt and seed: where they part, and how far they differ at each word.

import { post } from "./api.js";
import { find } from "./dom.js";
import { nats } from "./format.js";
import { keepField } from "./kept.js";
import { drawKnobs } from "./knobs.js";
import { fill, opened, opening, pairToCompare } from "./models.js";
import { parting } from "./parting.js";
import { Running } from "./running.js";
import { drawSaid } from "./said.js";
import { generationOptions } from "./settings.js";
import { generate, Pace } from "./stream.js";
import { drawStrip, wordsOf } from "./strip.js";

const MARK_MS = 150; // between two comparisons while text is written
const LEAST_AXIS = 0.05; // nats: below it bars are low because there is little to tell
const EXPLAINED =
  "Both draw with the same random numbers: what differs is the model. Marked is what only one of them says.";

class Pane {
  constructor(root, name) {
    this.root = root;
    this.select = find("select", root);
    fill(this.select, name);
    this.wipe("");
  }

  get name() {
    return this.select.value;
  }

  wipe(prompt) {
    this.prompt = prompt;
    this.ids = [];
    this.generated = "";
    this.words = new Map();
    find(".strip", this.root).replaceChildren();
    this.tell("");
    this.draw([]);
  }

  tell(text) {
    find(".figures", this.root).textContent = text;
  }

  /** The text, with those spans of what was generated marked. */
  draw(spans) {
    const [first, ...others] = spans;
    const within = (span, start) => span && span[0] <= start && start < span[1];
    this.words = drawSaid(find(".said", this.root), this.prompt, this.generated, (start) => {
      if (within(first, start)) return "first-other";
      return others.some((span) => within(span, start)) ? "other" : "";
    });
  }

  async write(options, signal) {
    this.tell(opening(this.name));
    const found = await post("next", { model: this.name, prompt: this.prompt, top: 0 }, signal);
    this.ids = found.prompt_token_ids;
    const pace = new Pace();
    const body = { ...options, model: this.name, prompt: this.ids, logprobs: 0 };
    for await (const piece of generate("v1/completions", body, signal)) {
      this.generated += piece.text;
      this.ids.push(...piece.tokens.map((token) => token.id));
      pace.add(piece.tokens.length);
      this.tell(pace.figures);
      this.onWrite();
    }
  }

  /** The strip of what /compare found. */
  drawStrip(words, most, names) {
    drawStrip(find(".strip", this.root), words, most, names, (word) => {
      find(".pointed-word", this.root)?.classList.remove("pointed-word");
      if (word) this.words.get(Math.max(0, word.start - this.prompt.length))?.classList.add("pointed-word");
    });
  }
}

let panes = [], running;

/** Makes the view work. */
export function startCompare() {
  const pair = pairToCompare();
  panes = [...document.querySelectorAll(".pane")].map((root, i) => new Pane(root, pair[i]));
  running = new Running(find("#compare-go"), find("#compare-stop"));
  find("#compare-go").addEventListener("click", compare);
  find("#compare-note").textContent = EXPLAINED;
  keepField("compare-prompt", find("#compare-prompt"));
  find("#compare-prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    compare();
  });
  drawKnobs(find("#knobs-of-compare .knobs"));
}

export function showCompare() {
  if (panes.length && !panes[0].prompt) panes.forEach((pane) => pane.wipe(find("#compare-prompt").value));
}

function compare() {
  const prompt = find("#compare-prompt").value;
  const { stop: _, ...asked } = generationOptions(); // that of a recipe is for its own text
  const options = { ...asked, seed: find("#compare-seed").valueAsNumber || 0, max_tokens: find("#compare-tokens").valueAsNumber || 80 };
  const mark = marking();
  running.run(async (signal) => {
    find("#compare-note").textContent = EXPLAINED;
    for (const pane of panes) {
      pane.wipe(prompt);
      pane.onWrite = () => mark(false);
    }
    try {
      await Promise.all(panes.map((pane) => pane.write(options, signal)));
    } catch (error) {
      for (const pane of panes) if (pane.generated === "") pane.tell(""); // none is being opened
      throw error;
    } finally {
      mark(true);
    }
    await measure(signal);
  });
}

/** Marks where they part, now and then while they are written, and at the end. */
function marking() {
  let last = 0;
  return (complete) => {
    const now = performance.now();
    if (!complete && now - last < MARK_MS) return;
    last = now;
    const { left, right } = parting(panes[0].generated, panes[1].generated, complete);
    panes[0].draw(left);
    panes[1].draw(right);
  };
}

/** How far the second is from the first at every word of either text. */
async function measure(signal) {
  const names = panes.map((pane) => pane.name);
  const lengths = await Promise.all(names.map(async (name) => (await opened(name, signal)).context_length));
  const found = [];
  for (const pane of panes) {
    // The last token of a text that filled the context is no longer in it.
    const ids = pane.ids.slice(0, Math.min(...lengths));
    found.push(await post("compare", { models: names, token_ids: ids }, signal));
  }
  const words = found.map((answer, i) => wordsOf(answer.tokens, panes[i].prompt.length));
  const most = Math.max(LEAST_AXIS, ...words.flat().map((word) => word.kl));
  panes.forEach((pane, i) => pane.drawStrip(words[i], most, names));
  const means = found.map((answer) => nats(answer.mean_kl));
  find("#compare-note").textContent =
    `${EXPLAINED} The strips: KL(${names[0]} ‖ ${names[1]}) of each word, in nats, summed over its tokens: ` +
    "what is lost there by taking the second’s distribution over the whole vocabulary for the first’s. " +
    `Mean per token: ${means[0]} on the left text, ${means[1]} on the right.`;
}
