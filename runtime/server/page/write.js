// Write and watch: the model goes on with a text, word by word, and every word can be another one.

import { Alternatives } from "./alternatives.js";
import { post } from "./api.js";
import { find, tell } from "./dom.js";
import { Editor } from "./editor.js";
import { count, countTokens } from "./format.js";
import { onceAFrame } from "./frame.js";
import { kept } from "./kept.js";
import { drawKnobs } from "./knobs.js";
import { chosenModel, opened, opening } from "./models.js";
import { NextWord } from "./next.js";
import { drawRecipes, firstText } from "./recipes.js";
import { Running } from "./running.js";
import { generationOptions, settings } from "./settings.js";
import { generate, Pace } from "./stream.js";
import { Text } from "./text.js";
import { legend } from "./tint.js";
import { trying } from "./trouble.js";

const LENGTH = 120; // tokens, where nobody says
const ENDS = {
  eos: "the model ended it",
  stop: "ended before a stop text",
  length: "as long as asked",
  context: "the context is full",
  timeout: "the time is over",
};

let editor, running, nextWord, contextLength = 0, promptTokens = 0, figures = "";
const alternatives = new Alternatives();

/** Makes the view work. */
export async function startWriting() {
  editor = new Editor(find("#document"), { onToken: openAlternatives, onChange: changed });
  // What is typed while it begins would be lost to what comes.
  running = new Running(find("#go"), find("#stop"), (on) => (editor.isBusy = on));
  find("#legend").append(legend());
  drawKnobs(find("#knobs-of-write .knobs"));
  find("#knobs-of-write").open = matchMedia("(min-width: 64rem)").matches;
  find("#go").addEventListener("click", goOn);
  find("#undo").addEventListener("click", undo);
  find("#redo").addEventListener("click", redo);
  find("#clear").addEventListener("click", () => startAnew(""));
  find("#document").addEventListener("keydown", keys);
  addEventListener("keydown", historyKeys);
  editor.area.addEventListener("beforeinput", browsersHistory);
  find("#model").addEventListener("change", modelChanged);
  nextWord = new NextWord(find("#next"), () => (running.isOn ? null : editor.text), (tokens, most) => {
    [promptTokens, contextLength] = [tokens, most];
    showContext();
  });
  startAnew(kept("text", firstText(), () => editor.text.string));
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

/** The focus goes to the word that was chosen, or back to where it was clicked at; but a phone would
 *  show its keyboard for that. */
function takeInstead(part, other, byKeyboard) {
  const place = editor.text.parts.indexOf(part);
  write(async () => editor.text.chosen(part, other), (text) => {
    if (byKeyboard) editor.elementOf(text.parts[place])?.focus();
    else if (matchMedia("(hover: hover)").matches) editor.area.focus({ preventScroll: true });
    return text.parts.length > place; // else it is a part of a character, and the rest is to come
  });
}

/** Generates after the text that `begin` makes; `shown` hears of it whenever it is drawn, until true. */
async function write(begin, shown = () => true) {
  alternatives.close(false);
  await running.run(async (signal) => {
    const model = chosenModel();
    editor.remember();
    figures = "";
    find("#figures").textContent = opening(model);
    const text = await begin(signal);
    contextLength = (await opened(model, signal)).context_length;
    editor.text = text;
    editor.refresh();
    let isShown = shown(text);
    const pace = new Pace();
    let hasEnded = false;
    const redraw = onceAFrame(() => {
      if (editor.text !== text || hasEnded || signal.aborted) return;
      figures = pace.figures;
      editor.refresh();
      isShown ||= shown(text);
    });
    try {
      const body = {
        max_tokens: LENGTH, ...generationOptions(), model, prompt: text.tail.ids, logprobs: 10,
      };
      for await (const piece of generate("v1/completions", body, signal)) {
        text.extend(piece);
        pace.add(piece.tokens.length);
        if (piece.details) finish(text, piece.details.choices[0]);
        hasEnded ||= piece.details !== undefined;
        redraw();
      }
    } finally {
      if (editor.text === text) {
        // Else another text has taken its place, and is not to be disturbed.
        if (signal.aborted) figures = `${pace.figures} · stopped`;
        editor.refresh();
      }
    }
  });
  find("#figures").textContent = figures;
  nextWord.soon();
}

function finish(text, { finish_reason: reason, timings }) {
  if (reason === "stop") text.cut();
  const rate = timings.decode_rate ? `${count(Math.round(timings.decode_rate))} tokens/s · ` : "";
  const tokens = countTokens(timings.new_tokens), end = ENDS[reason] ?? reason;
  figures = `${tokens} · ${rate}${end}`;
  tell(`${tokens}, ${end}`);
}

/** The text is another, or more of it is there. */
function changed() {
  alternatives.closeUnless((part) => editor.text.parts.includes(part));
  find("#figures").textContent = figures;
  find("#undo").disabled = !editor.canUndo;
  find("#redo").disabled = !editor.canRedo;
  if (editor.text.tail) promptTokens = editor.text.tail.ids.length;
  showContext();
  if (!running.isOn) nextWord.soon();
}

function showContext() {
  const meter = find("#context");
  meter.max = contextLength || 1;
  meter.value = Math.min(promptTokens, contextLength);
  find("#context-told").textContent = contextLength ? `${count(meter.value)} of ${count(contextLength)}` : "";
}

function modelChanged() {
  settings.forgetOwn();
  contextLength = 0;
  running.abort();
  editor.forgetTokens();
}

function openAlternatives(part, element, byKeyboard) {
  if (part) alternatives.open(part, element, byKeyboard, (other) => takeInstead(part, other, byKeyboard));
}

function undo() {
  running.abort();
  figures = "";
  editor.undo();
  passFocus(find("#undo"), find("#redo"));
}

function redo() {
  running.abort();
  figures = "";
  editor.redo();
  passFocus(find("#redo"), find("#undo"));
}

/** A button that is off now does not keep the focus: no key would do anything there. */
function passFocus(from, to) {
  if (from.disabled && document.activeElement === from) to.focus();
}

function keys(event) {
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key === "Enter" && !running.isOn) goOn();
  else if (event.key === "Escape" && running.isOn) running.abort();
  else return;
  event.preventDefault();
}

/** Wherever the focus is: the browser would undo what it knows of the text, and garble the rest. Only
 *  a field to type in has a history of its own. */
function historyKeys(event) {
  const isElsewhere = event.target.matches?.("input:not([type=range]), textarea:not(#text)");
  if (isElsewhere || find("#view-write").hidden || !(event.ctrlKey || event.metaKey) || event.altKey) return;
  if (isRedo(event)) redo();
  else if (event.key.toLowerCase() === "z") undo();
  else return;
  event.preventDefault();
}

/** By its menu. */
function browsersHistory(event) {
  if (event.inputType === "historyUndo") undo();
  else if (event.inputType === "historyRedo") redo();
  else return;
  event.preventDefault();
}

/** Of Ctrl: that of Windows, and that of everywhere else. */
const isRedo = ({ key, shiftKey }) => key.toLowerCase() === (shiftKey ? "z" : "y");
