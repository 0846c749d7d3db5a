// What else could have stood there: the ten likeliest words, each to be chosen.

import { bar, track } from "./bars.js";
import { find, make } from "./dom.js";
import { boxOf } from "./editor.js";
import { axisEnd, percent, shown, spoken } from "./format.js";

const GAP = 8; // pixels between a word and what opens at it

export class Alternatives {
  #element = null;
  #part = null; // that it is about, and the element of it
  #word = null;
  #opener = null; // what had the focus, if it was opened by the keyboard

  constructor() {
    document.addEventListener("pointerdown", (event) => {
      if (this.#element && !this.#element.contains(event.target)) this.close(false);
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.close(true));
    document.addEventListener("input", () => this.close(false));
    addEventListener("resize", () => this.close(false));
  }

  /** At `word`, the element of `part`; `onChoose(token)` when another is taken. */
  open(part, word, byKeyboard, onChoose) {
    this.close(false);
    this.#opener = byKeyboard ? word : null;
    const rows = rowsOf(part.token);
    const end = axisEnd(Math.max(...rows.map((row) => row.probability)));
    const list = make("ol", {}, ...rows.map((row) => this.#row(row, part.token, end, onChoose)));
    this.#element = make(
      "div",
      { class: "alternatives card", role: "dialog", "aria-label": `Instead of ${spoken(part.text)}` },
      make(
        "div",
        { class: "head" },
        make("strong", { "aria-hidden": "true" }, shown(part.text)),
        make("span", { class: "figures" }, percent(part.token.probability)),
        make("button", { class: "close", "aria-label": "Close", onclick: () => this.close(true) }, "×"),
      ),
      list,
      make("p", { class: "note" }, `Probabilities of the model itself, before any option. A full bar is ${100 * end} %.`),
    );
    this.#element.addEventListener("keydown", (event) => this.#key(event));
    document.body.append(this.#element);
    this.#place(word);
    word.classList.add("open");
    this.#part = part;
    this.#word = word;
    if (byKeyboard) find("[aria-current]", this.#element)?.focus();
  }

  close(giveFocusBack) {
    if (!this.#element) return;
    this.#element.remove();
    this.#word.classList.remove("open");
    this.#element = null;
    if (giveFocusBack) this.#opener?.focus();
  }

  /** A part that is not there any more cannot be another. */
  closeUnless(isThere) {
    if (this.#element && !isThere(this.#part)) this.close(false);
  }

  #row(row, token, end, onChoose) {
    const taken = row.id === token.id;
    const button = make(
      "button",
      {
        "aria-current": taken ? "true" : null,
        "aria-label": `${spoken(row.text)}, ${percent(row.probability)}${taken ? ", as it is" : ""}`,
        onclick: () => {
          this.close(true);
          if (!taken) onChoose(row);
        },
      },
      make("span", { class: "name" }, shown(row.text)),
      track(bar(row.probability / end)),
      make("span", { class: "figures" }, percent(row.probability)),
    );
    return make("li", {}, button);
  }

  #key(event) {
    const buttons = [...this.#element.querySelectorAll("li button")];
    const place = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: (place + 1) % buttons.length, ArrowUp: place - 1, Home: 0, End: -1 }[event.key];
    if (event.key === "Escape") this.close(true);
    else if (to !== undefined) buttons.at(to).focus();
    else if (event.key === "Tab") return this.#keepInside(event);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Tab goes around: what is behind is no part of the choice. */
  #keepInside(event) {
    const all = [...this.#element.querySelectorAll("button")];
    const edge = event.shiftKey ? all[0] : all.at(-1);
    if (document.activeElement !== edge) return;
    (event.shiftKey ? all.at(-1) : all[0]).focus();
    event.preventDefault();
  }

  /** Below the word, or above it where there is more room; narrow windows have it at their foot. */
  #place(word) {
    const box = boxOf(word);
    const { width, height } = this.#element.getBoundingClientRect();
    if (matchMedia("(max-width: 40rem)").matches) {
      const hidden = box.bottom + 4 * GAP - (innerHeight - height);
      if (hidden > 0) scrollBy(0, hidden);
      return;
    }
    const left = Math.max(GAP, Math.min(box.left - GAP, innerWidth - width - GAP));
    const below = box.bottom + GAP;
    const above = box.top - GAP - height;
    const top = below + height <= innerHeight || above < 0 ? below : above;
    this.#element.style.left = `${left + scrollX}px`;
    this.#element.style.top = `${top + scrollY}px`;
  }
}

/** The likeliest, and what was taken if it is none of them. */
function rowsOf(token) {
  const rows = [...token.top];
  if (!rows.some((row) => row.id === token.id)) rows.push(token);
  return rows;
}
