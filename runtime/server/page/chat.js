// A conversation: by the model's chat template, or, with a base model, as a script to go on with.

import { retold } from "./api.js";
import { find, make, tell } from "./dom.js";
import { onceAFrame } from "./frame.js";
import { kept } from "./kept.js";
import { drawKnobs } from "./knobs.js";
import { chosenModel, opened } from "./models.js";
import { filled, recipeCalled } from "./recipes.js";
import { Running } from "./running.js";
import { generationOptions } from "./settings.js";
import { generate, Pace } from "./stream.js";
import { trying } from "./trouble.js";
import { startWith } from "./write.js";

const LENGTH = 200; // tokens, where nobody says
const NEAR = 24; // pixels from the end of the conversation: about a line

let messages = [], running;

/** Makes the view work. */
export function startChat() {
  running = new Running(find("#send"), find("#chat-stop"));
  drawKnobs(find("#knobs-of-chat .knobs"));
  find("#say").addEventListener("submit", (event) => {
    event.preventDefault();
    say();
  });
  find("#said").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say();
  });
  find("#chat-new").addEventListener("click", () => {
    begin([]);
    find("#said").focus();
  });
  find("#chat-again").addEventListener("click", again);
  find("#model").addEventListener("change", () => find("#view-chat").hidden || showChat());
  begin(kept("conversation", [], () => messages));
}

/** The view is shown: says so if the model was not made to chat. */
export async function showChat() {
  const name = chosenModel();
  const model = await trying(() => opened(name));
  if (model === null || name !== chosenModel()) return; // meanwhile it was another's turn
  const note = find("#chat-note");
  note.hidden = model.chat;
  if (model.chat) return;
  const recipe = recipeCalled("assistant");
  const ask = recipe && make("button", { class: "small", onclick: () => askBy(recipe) }, "Ask by a prompt with examples");
  note.replaceChildren(
    make("strong", {}, `${name} is a base model. `),
    "It continues texts, and has no chat template by which to answer. What is said here is given to it as a script, and it goes on with that. ",
    ask ?? "",
  );
}

/** In the first view, where the prompt can be seen and changed. */
function askBy(recipe) {
  location.hash = "write";
  requestAnimationFrame(() => startWith(recipe, ...filled(recipe)));
}

/** With that conversation: none, to begin anew. */
function begin(conversation) {
  running.abort();
  messages = conversation;
  find("#chat-figures").textContent = "";
  draw();
}

function say() {
  const field = find("#said"), content = field.value.trim();
  if (content === "" || running.isOn) return;
  field.value = "";
  answer([...messages, { role: "user", content }], content);
}

function again() {
  answer(messages.at(-1)?.role === "assistant" ? messages.slice(0, -1) : messages);
}

/** Answers what is `asked`. Where nothing comes of it all is as before, and what was `said` can be
 *  changed; only who stopped it is taken to have meant what was said. */
function answer(asked, said = null) {
  running.run(async (signal) => {
    const name = chosenModel();
    const reply = { role: "assistant", content: "" };
    const before = messages.filter(({ content }) => content !== "");
    messages = [...asked, reply];
    draw();
    const log = find("#talk");
    log.scrollTop = log.scrollHeight;
    const pace = new Pace();
    const redraw = onceAFrame(() => {
      if (signal.aborted) return;
      // Beginning with a space is the model's way to begin a word.
      following(() => (find("#talk .message:last-child .content").textContent = reply.content.trimStart()));
      find("#chat-figures").textContent = pace.figures;
    });
    try {
      const { chat } = await opened(name, signal);
      for await (const piece of generate(...requestOf(name, asked, chat), signal)) {
        reply.content += piece.text;
        pace.add(piece.tokens.length);
        redraw();
      }
      tell(reply.content);
    } catch (error) {
      throw retold(error, "the conversation is longer than what the model attends to; write less, or begin a new one");
    } finally {
      reply.content = reply.content.trim();
      if (reply.content === "" && messages.at(-1) === reply) {
        messages = said !== null && signal.aborted ? asked : before;
        if (messages === before) find("#said").value ||= said ?? "";
      }
      following(draw);
    }
  });
}

function requestOf(model, asked, hasTemplate) {
  const { stop: _, ...options } = generationOptions(); // that of a recipe is for its own text
  const body = { max_tokens: LENGTH, ...options, model, messages: asked };
  return ["v1/chat/completions", hasTemplate ? body : { ...body, transcript: true }];
}

/** Does `work`; where the end of the conversation was seen, it still is. */
function following(work) {
  const log = find("#talk"), was = log.scrollTop;
  const isEndSeen = log.scrollHeight - was - log.clientHeight < NEAR;
  work();
  log.scrollTop = isEndSeen ? log.scrollHeight : was;
}

function draw() {
  const drawn = messages.map(({ role, content }) =>
    make("div", { class: `message ${role}` }, make("span", { class: "who" }, role === "user" ? "You" : "Model"), make("p", { class: "content" }, content)),
  );
  const log = find("#talk");
  log.replaceChildren(...(drawn.length ? drawn : [make("p", { class: "note" }, "Nothing was said yet.")]));
  find("#chat-new").disabled = messages.length === 0;
  find("#chat-again").disabled = messages.length === 0;
}
