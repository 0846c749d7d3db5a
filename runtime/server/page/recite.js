// Recite: a passage is begun, and the model goes on, always with its likeliest word. How far is it the
// passage, word for word?

import { post, retold } from "./api.js";
import { drawCurve, reachOf } from "./curve.js";
import { find, tell } from "./dom.js";
import { count, wordsIn } from "./format.js";
import { onceAFrame } from "./frame.js";
import { keepField } from "./kept.js";
import { chosenModel } from "./models.js";
import { sharedRuns } from "./parting.js";
import { Running } from "./running.js";
import { drawSaid } from "./said.js";
import { generate, Pace } from "./stream.js";

// Of the phrases that every novel has, a small model knows some by heart.
const PASSAGE =
  'The old man shook his head, and said, "I don\'t know what you mean." He looked at her with a smile. "What ' +
  'do you mean by that?" she said. He put his hand on the table, and shook his head again.';
// The model alone: none of its own penalties, which would have it say something else.
const LIKELIEST = {
  temperature: 0, repetition_penalty: 1, frequency_penalty: 0, presence_penalty: 0, no_repeat_ngram_size: 0,
};
const TOKENS_PER_WORD = 3; // at most, of what there is to recite; more are not asked for

const TOO_LONG = "the passage is longer than what the model attends to; take a part of it";

let running;

/** Makes the view work. */
export function startRecite() {
  running = new Running(find("#recite-go"), find("#recite-stop"));
  find("#passage").value = PASSAGE;
  keepField("passage", find("#passage"));
  find("#passage").addEventListener("input", () => {
    find("#curve").replaceChildren(); // of another passage it tells nothing
    measurePassage();
  });
  find("#given").addEventListener("input", measurePassage);
  find("#recite-go").addEventListener("click", recite);
}

export function showRecite() {
  measurePassage();
}

/** The slider has as many places as the passage has words to begin with. */
function measurePassage() {
  const words = wordsIn(find("#passage").value.trim()), given = find("#given");
  given.max = Math.max(1, words.length - 1);
  find("#given-told").textContent = `${count(Math.min(given.value, words.length))} of ${count(words.length)}`;
  find("#recite-go").disabled = words.length < 2;
}

function recite() {
  const passage = find("#passage").value.trim();
  const given = Number(find("#given").value);
  const cut = wordsIn(passage)[given]?.start;
  if (cut === undefined) return; // nothing is left to recite
  const beginning = passage.slice(0, cut).trimEnd(), rest = passage.slice(beginning.length);
  running.run(async (signal) => {
    find("#recited").hidden = false;
    find("#curve").replaceChildren();
    const pace = new Pace();
    let said = "";
    const body = {
      ...LIKELIEST, model: chosenModel(), prompt: beginning, logprobs: 0,
      max_tokens: Math.max(1, wordsIn(rest).length * TOKENS_PER_WORD),
    };
    const enough = new AbortController(); // as many words as there are in the passage
    const either = AbortSignal.any([signal, enough.signal]);
    const redraw = onceAFrame(() => {
      if (either.aborted) return;
      find("#recite-figures").textContent = pace.figures;
      show(beginning, rest, said);
    });
    try {
      for await (const piece of generate("v1/completions", body, either)) {
        said += piece.text;
        pace.add(piece.tokens.length);
        redraw();
        if (wordsIn(said).length > wordsIn(rest).length) {
          enough.abort();
          break;
        }
      }
    } catch (error) {
      if (!enough.signal.aborted) throw retold(error, TOO_LONG);
    }
    tell(show(beginning, rest, said));
    await showCurve(passage, given, signal).catch((error) => {
      throw retold(error, TOO_LONG);
    });
  });
}

/** The words, right and wrong, and in a sentence how far it went. */
function show(beginning, rest, said) {
  const expected = wordsIn(rest).map(({ word }) => word), found = wordsIn(said);
  const all = found.slice(0, expected.length);
  const right = new Set();
  for (const [i, , length] of sharedRuns(all.map(({ word }) => word), expected)) {
    all.slice(i, i + length).forEach(({ start }) => right.add(start));
  }
  const end = found.length > all.length ? found[all.length].start : said.length;
  const shown = said.slice(0, end).trimEnd();
  const starts = new Set(all.map(({ start }) => start));
  drawSaid(find("#recited-text"), beginning, shown, (start) => {
    if (!starts.has(start)) return "";
    return right.has(start) ? "right" : "wrong";
  });
  let exact = 0;
  while (exact < all.length && all[exact].word === expected[exact]) exact += 1;
  const sentence = exact === expected.length
    ? `Word for word to the end: all ${count(exact)} words.`
    : `${count(exact)} of ${count(expected.length)} words before the first other one.`;
  find("#verdict").textContent = sentence;
  return sentence;
}

/** From every place of the passage, at the cost of reading it once: a model that always says its
 *  likeliest token goes on as far as the passage's tokens are the likeliest in their places. */
async function showCurve(passage, given, signal) {
  const { tokens } = await post("compare", { models: [chosenModel()], text: passage }, signal);
  const words = wordsIn(passage).map(({ start }) => ({ start, right: true }));
  let place = -1, end = 0;
  for (const token of tokens) {
    end += token.text.length;
    while (place + 1 < words.length && words[place + 1].start < end) place += 1;
    if (token.best[0] !== null && place >= 0) words[place].right &&= token.best[0].id === token.id;
  }
  drawCurve(find("#curve"), reachOf(words.map((word) => word.right)), given, (other) => {
    find("#given").value = other;
    measurePassage();
    recite();
  });
}
