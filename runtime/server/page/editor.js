// The document that is written in: a text area, so that typing, selecting and reading aloud are the
// browser's own, and beneath it the same words once more, which carry the tints. The words of the
// model are stops for the keyboard; with the pointer they are found beneath the text area.

import { find, make, tell } from "./dom.js";
import { percent, spoken } from "./format.js";
import { rove } from "./roving.js";
import { Text } from "./text.js";
import { tintOf } from "./tint.js";

const STILL = 800; // ms without a key after which an edit is one to go back to

export class Editor {
  #shown = []; // the parts that are drawn
  #past = []; // texts to go back to, and those that were gone back from
  #future = [];
  #lastTyped = -Infinity;
  #partOf = new WeakMap();

  /** `onToken(part, element, byKeyboard)` when a word is chosen, `onChange()` when the text is another. */
  constructor(root, { onToken, onChange }) {
    this.area = find("textarea", root);
    this.layer = find(".tokens", root);
    this.tip = make("div", { class: "tip", "aria-hidden": "true", hidden: true });
    document.body.append(this.tip);
    this.text = new Text();
    this.onChange = onChange;
    this.area.addEventListener("input", () => this.#typed());
    this.area.addEventListener("click", (event) => {
      const token = this.area.selectionStart === this.area.selectionEnd ? this.#at(event) : null;
      if (token) this.#hint(null);
      if (token && event.pointerType === "touch") this.area.blur(); // else a keyboard covers what opens
      onToken(token && this.#partOf.get(token), token, false);
    });
    this.area.addEventListener("pointermove", (event) => this.#hint(this.#at(event)));
    this.area.addEventListener("pointerleave", () => this.#hint(null));
    addEventListener("scroll", () => this.#hint(null), { passive: true });
    this.roving = rove(this.layer, ".token", (token) => this.#hint(token));
    this.layer.addEventListener("focusout", () => this.#hint(null));
    this.layer.addEventListener("click", (event) => {
      // Of a screen reader, and of Enter below; a pointer meets the text area.
      const token = event.target.closest(".token");
      if (!token) return;
      this.#hint(null);
      onToken(this.#partOf.get(token), token, true);
    });
    this.layer.addEventListener("keydown", (event) => {
      const token = event.target.closest(".token");
      if (token && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        token.click();
      }
      if (event.key === "Escape") this.area.focus();
    });
  }

  /** Shows another text; what was there, if anything was, is kept to go back to. */
  show(text) {
    if (this.text.parts.length || this.canUndo || this.canRedo) this.remember();
    this.#take(text);
  }

  /** Another model has other tokens: to it all texts, also those to go back to, are as if typed. */
  forgetTokens() {
    const typed = ({ string }) => Text.typed(string);
    this.#past = this.#past.map(typed);
    this.#future = this.#future.map(typed);
    this.#take(typed(this.text));
  }

  /** From here on is another thing to undo. */
  remember() {
    this.#future = [];
    if (!this.#past.at(-1)?.equals(this.text)) this.#past.push(this.text.copy());
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  undo() {
    this.#go(this.#past, this.#future, "Undone");
  }

  redo() {
    this.#go(this.#future, this.#past, "Redone");
  }

  /** To the next text of `from` that is another than this, which is kept in `to`. */
  #go(from, to, told) {
    let next = from.pop();
    while (next?.equals(this.text)) next = from.pop();
    if (next === undefined) return this.onChange();
    to.push(this.text.copy());
    this.#take(next);
    tell(told);
  }

  /** Draws what was added to the text since; where its end was seen, it still is. */
  refresh() {
    const isFollowed = this.area.readOnly && isSeen(this.layer.lastElementChild);
    this.#draw();
    this.#fill(this.text.string);
    this.#lastTyped = -Infinity; // what is typed next is another edit
    if (isFollowed) this.layer.lastElementChild?.scrollIntoView({ block: "nearest" });
    this.onChange();
  }

  set isBusy(on) {
    this.area.readOnly = on;
  }

  elementOf(part) {
    return this.layer.children[this.#shown.indexOf(part)] ?? null;
  }

  /** A caret at the end stays there; any other, and what is selected, stays where it is. */
  #fill(string) {
    const { selectionStart: from, selectionEnd: to, value } = this.area;
    this.area.value = string;
    if (from < value.length && string.startsWith(value)) this.area.setSelectionRange(from, to);
  }

  #take(text) {
    this.text = text;
    this.refresh();
  }

  #typed() {
    const now = performance.now();
    if (now - this.#lastTyped > STILL) this.remember();
    this.#lastTyped = now;
    this.text = this.text.edited(this.area.value);
    this.#draw();
    this.onChange();
  }

  /** Only what differs is drawn anew. */
  #draw() {
    const parts = this.text.parts;
    let same = 0;
    while (same < parts.length && parts[same] === this.#shown[same]) same += 1;
    while (this.layer.children.length > same) this.layer.lastChild.remove();
    this.layer.append(...parts.slice(same).map((part) => this.#element(part)));
    this.#shown = [...parts];
    if (!find('.token[tabindex="0"]', this.layer)) {
      const first = find(".token", this.layer);
      if (first) this.roving.go(first);
    }
  }

  #element(part) {
    if (part.token === null) return make("span", { class: "typed" }, part.text);
    const { probability } = part.token;
    const element = make(
      "span",
      {
        class: "token",
        role: "button",
        tabindex: -1,
        "aria-haspopup": "dialog",
        "aria-label": `${spoken(part.text)}, ${percent(probability)}`,
      },
      ...inked(part.text, tintOf(probability)),
    );
    this.#partOf.set(element, part);
    return element;
  }

  #at({ clientX, clientY }) {
    return document.elementsFromPoint(clientX, clientY).find((element) => element.matches(".token")) ?? null;
  }

  #hint(token) {
    find(".hovered", this.layer)?.classList.remove("hovered");
    this.area.classList.toggle("over-token", token !== null);
    this.tip.hidden = token === null;
    if (token === null) return;
    token.classList.add("hovered");
    this.tip.textContent = percent(this.#partOf.get(token).token.probability);
    const place = boxOf(token);
    this.tip.style.left = `${place.left + place.width / 2}px`;
    this.tip.style.top = `${place.top}px`;
  }
}

/** Whether the end of an element is in the window; what is not there is not missed. */
const isSeen = (element) => (element?.getBoundingClientRect().bottom ?? 0) <= innerHeight;

/** Where a word stands: without the space before it, which may be at the end of another line. */
export const boxOf = (token) => find(".ink", token).getClientRects()[0] ?? token.getBoundingClientRect();

/** The word tinted, and not the space around it: so that words stay words to the eye. */
function inked(text, tint) {
  const [, before, word, after] = /^(\s*)(.*?)(\s*)$/s.exec(text);
  const ink = make("span", { class: `ink ${tint}` }, word);
  return [before, ink, after].filter((piece) => piece !== "");
}
