// The document: what somebody typed and what a model wrote, in parts. No part is changed in place, so
// that an earlier state is a list of parts to go back to.
//
//     part    {text, token}          token: null where it was typed
//     token   {id, text, probability, top, run, place}
//     run     {ids}                  all token ids from the beginning of the text up to what was
//                                    generated at once: those before a token are ids[0 … place)

// A text area has one kind of line end; another would make what is seen and what is in it differ.
const oneLineEnd = (string) => string.replace(/\r\n?/g, "\n");

export class Text {
  #begun = []; // the token of a character of which the rest is yet to come

  /** `tail` is the run whose ids spell the whole text; null: nobody knows them. */
  constructor(parts = [], tail = null) {
    this.parts = parts;
    this.tail = tail;
  }

  get string() {
    return this.parts.map((part) => part.text).join("");
  }

  /** How many tokens at the end the model wrote, as far as that is known. */
  get generated() {
    const first = this.parts[this.parts.findLastIndex((part) => part.token === null) + 1];
    return this.tail && first ? Math.max(0, this.tail.ids.length - first.token.place) : 0;
  }

  static typed(string) {
    return new Text(string === "" ? [] : [{ text: oneLineEnd(string), token: null }]);
  }

  /** With `string` for its text. What comes after the first change was likely after other words than
   *  are there now, so that it is as good as typed. */
  edited(string) {
    const kept = [];
    let length = 0;
    for (const part of this.parts) {
      if (!string.startsWith(part.text, length)) break;
      kept.push(part);
      length += part.text.length;
    }
    if (length === string.length && kept.length === this.parts.length) return this;
    const rest = string.slice(length);
    if (rest === "") return new Text(kept, null);
    const last = kept.at(-1);
    if (last === undefined || last.token !== null) return new Text([...kept, { text: rest, token: null }]);
    return new Text([...kept.slice(0, -1), { text: last.text + rest, token: null }]);
  }

  /** As it is now: what is added to it later is not in that. */
  copy() {
    return new Text([...this.parts], this.tail);
  }

  /** Whether there is no difference to see. */
  equals({ parts }) {
    const isSame = (part, other) => part === other || (part.text === other.text && !part.token && !other.token);
    return parts.length === this.parts.length && parts.every((part, i) => isSame(part, this.parts[i]));
  }

  /** Ready for what is generated after it, whose ids are these: `extended` adds to it. */
  continued(ids) {
    return new Text([...this.parts], { ids: [...ids] });
  }

  /** Cut before that part, and with another token there. */
  chosen(part, other) {
    const { run, place } = part.token;
    const before = new Text(this.parts.slice(0, this.parts.indexOf(part))).continued(run.ids.slice(0, place));
    const token = { ...other, top: part.token.top };
    if (/^\ufffd+$/.test(other.text)) before.#begun = before.#placed([token]);
    else before.extend({ text: other.text.replace(/\ufffd+$/, ""), tokens: [token] });
    return before;
  }

  /** Adds, in place, a piece of what is generated. */
  extend({ text, tokens }) {
    if (text === "") return; // an end token, or what a stop string cut off
    const added = [...this.#begun, ...this.#placed(tokens)];
    this.#begun = [];
    if (added.map((token) => token.text).join("") === text) {
      this.parts.push(...added.map((token) => ({ text: oneLineEnd(token.text), token })));
    } else if (added.length) {
      // Several tokens that are a character together, or one that was cut: told as the first of them.
      const probability = added.reduce((all, token) => all * (token.probability ?? 1), 1);
      this.parts.push({ text: oneLineEnd(text), token: { ...added[0], probability } });
    } else {
      this.parts.push({ text: oneLineEnd(text), token: null });
    }
  }

  /** Those tokens at the end of the run. */
  #placed(tokens) {
    const run = this.tail;
    const added = tokens.map((token, i) => ({ ...token, run, place: run.ids.length + i }));
    run.ids.push(...tokens.map((token) => token.id));
    return added;
  }

  /** Its ids are those of more than what is in it: it was cut by a stop string. */
  cut() {
    this.tail = null;
  }
}
