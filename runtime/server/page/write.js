// Write and watch: the model goes on with a text, word by word, and every word can be another one.

import { Alternatives } from "./alternatives.js";
import { post } from "./api.js";
import { drawDistribution, drawNothing } from "./distribution.js";
import { find, tell } from "./dom.js";
import { Editor } from "./editor.js";
import { count } from "./format.js";
import { drawKnobs } from "./knobs.js";
import { chosenModel, opened, opening } from "./models.js";
import { drawRecipes, firstText } from "./recipes.js";
import { Running } from "./running.js";
import { generationOptions, settings, shapingOptions } from "./settings.js";
import { generate, Pace } from "./stream.js";
import { Text } from "./text.js";
import { legend } from "./tint.js";
import { trying } from "./trouble.js";

const LENGTH = 120; // tokens, where nobody says
const STILL = 250; // ms without a change after which the next word is looked at
const ENDS = {
  eos: "the model ended the text",
  stop: "ended before a text that ends it",
  length: "as long as asked",
  context: "the context is full",
  timeout: "the time is over",
};

let editor, running, contextLength = 0, promptTokens = 0, figures = "";
const alternatives = new Alternatives();

/** Makes the view work. */
export async function startWriting() {
  editor = new Editor(find("#document"), { onToken: openAlternatives, onChange: changed });
  running = new Running(find("#go"), find("#stop"));
  find("#legend").append(legend());
  drawKnobs(find("#knobs-of-write .knobs"));
  find("#knobs-of-write").open = matchMedia("(min-width: 64rem)").matches;
  find("#go").addEventListener("click", goOn);
  find("#undo").addEventListener("click", undo);
  find("#clear").addEventListener("click", () => startAnew(""));
  find("#document").addEventListener("keydown", keys);
  find("#model").addEventListener("change", modelChanged);
  settings.onChange((why) => why === "changed" && lookSoon());
  startAnew(firstText());
  await trying(() => drawRecipes(find("#recipes"), startWith));
}

/** Another text, of a recipe: what stands for its {text} is selected, to be typed over. */
export function startWith(recipe, text, from, to) {
  settings.set("stop", recipe.stop.length ? recipe.stop : undefined);
  startAnew(text);
  editor.area.focus();
  editor.area.setSelectionRange(from, to);
}

function startAnew(text) {
  running.abort();
  figures = "";
  editor.show(Text.typed(text));
}

function goOn() {
  // The ids of what the model wrote are known; else the tokenizer has to be asked.
  write(async (signal) => {
    const prompt = editor.text.tail?.ids ?? editor.text.string;
    const found = await post("next", { model: chosenModel(), prompt, top: 0 }, signal);
    return editor.text.continued(found.prompt_token_ids);
  });
}

function takeInstead(part, other) {
  write(async () => editor.text.chosen(part, other));
}

/** Generates after the text that `begin` makes. */
function write(begin) {
  alternatives.close(false);
  running.run(async (signal) => {
    const model = chosenModel();
    editor.remember();
    figures = opening(model);
    find("#figures").textContent = figures;
    const text = await begin(signal);
    contextLength = (await opened(model, signal)).context_length;
    editor.text = text;
    editor.refresh();
    editor.isBusy = true;
    const pace = new Pace();
    const redraw = onceAFrame(() => editor.text === text && showProgress(pace));
    try {
      const body = {
        max_tokens: LENGTH, ...generationOptions(), model, prompt: text.tail.ids, logprobs: 10,
      };
      for await (const piece of generate("v1/completions", body, signal)) {
        text.extend(piece);
        pace.add(piece.tokens.length);
        if (piece.details) finish(text, piece.details.choices[0]);
        redraw();
      }
    } finally {
      editor.isBusy = false;
      if (signal.aborted) figures = figuresOf(pace, "stopped");
      if (editor.text === text) editor.refresh();
    }
  });
}

function finish(text, { finish_reason: reason, timings }) {
  if (reason === "stop") text.cut();
  const rate = timings.decode_rate ? `${count(Math.round(timings.decode_rate))} tokens/s · ` : "";
  figures = `${count(timings.new_tokens)} tokens · ${rate}${ENDS[reason] ?? reason}`;
  tell(`${count(timings.new_tokens)} tokens, ${ENDS[reason] ?? reason}`);
}

const figuresOf = (pace, end) =>
  `${count(pace.tokens)} tokens · ${count(Math.round(pace.rate))} tokens/s${end ? ` · ${end}` : ""}`;

function showProgress(pace) {
  if (editor.area.readOnly) figures = figuresOf(pace, "");
  editor.refresh();
}

/** The text is another, or more of it is there. */
function changed() {
  find("#figures").textContent = figures;
  find("#undo").disabled = !editor.canUndo;
  if (editor.text.tail) promptTokens = editor.text.tail.ids.length;
  showContext();
  if (!running.isOn) lookSoon();
}

function showContext() {
  const meter = find("#context");
  meter.max = contextLength || 1;
  meter.value = Math.min(promptTokens, contextLength);
  find("#context-told").textContent = contextLength ? `${count(promptTokens)} of ${count(contextLength)}` : "";
}

function modelChanged() {
  settings.forgetOwn();
  contextLength = 0;
  running.abort();
  // Another model's tokens are not these: what is there is a text to go on with.
  editor.show(Text.typed(editor.text.string));
}

let looking = 0, controller = null;

/** Looks at what comes next, once nothing has changed for a moment. */
function lookSoon() {
  clearTimeout(looking);
  looking = setTimeout(look, STILL);
}

async function look() {
  controller?.abort();
  controller = new AbortController();
  const { signal } = controller;
  const root = find("#next");
  if (running.isOn) return lookSoon();
  const prompt = editor.text.tail?.ids ?? editor.text.string;
  const body = { ...shapingOptions(), model: chosenModel(), prompt, top: 10, generated: editor.text.generated };
  root.setAttribute("aria-busy", "true");
  try {
    const found = await post("next", body, signal);
    contextLength = (await opened(chosenModel(), signal)).context_length;
    settings.learn(found.options);
    promptTokens = found.prompt_token_ids.length;
    showContext();
    drawDistribution(root, found);
  } catch (error) {
    if (error.name === "AbortError") return;
    drawNothing(root, error.message);
    if (error.status === undefined) throw error;
  }
  root.removeAttribute("aria-busy");
}

function openAlternatives(part, element, byKeyboard) {
  if (part) alternatives.open(part, element, byKeyboard, (other) => takeInstead(part, other));
}

function undo() {
  running.abort();
  figures = "";
  editor.undo();
}

function keys(event) {
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key === "Enter" && !running.isOn) goOn();
  else if (command && !event.shiftKey && event.key.toLowerCase() === "z") undo();
  else if (event.key === "Escape" && running.isOn) running.abort();
  else return;
  event.preventDefault();
}

/** `work` at most once before the next frame is drawn. */
function onceAFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
