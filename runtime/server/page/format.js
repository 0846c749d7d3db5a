// Numbers and tokens as people read them.

const PLAIN = new Intl.NumberFormat("en");

export const count = (number) => PLAIN.format(number);

export const countTokens = (number) => `${count(number)} ${number === 1 ? "token" : "tokens"}`;

export function percent(probability) {
  if (probability >= 0.9995) return "100 %";
  return probability >= 0.001 ? `${(100 * probability).toFixed(1)} %` : "< 0.1 %";
}

/** A token with what cannot be seen of it: a space at its edge, the end of a line. */
export function shown(text) {
  const seen = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣");
  return seen === "" ? "∅" : seen;
}

// Signs that are read aloud as nothing, or by names that nobody knows.
const SIGNS = {
  "\n": "new line", "\t": "tab", " ": "space", ".": "full stop", ",": "comma", ";": "semicolon", ":": "colon",
  "!": "exclamation mark", "?": "question mark", '"': "quotation mark", "'": "apostrophe", "“": "opening quotation mark",
  "”": "closing quotation mark", "‘": "opening quotation mark", "’": "apostrophe", "-": "hyphen", "–": "dash",
  "—": "long dash", "_": "underscore", "*": "asterisk", "(": "opening bracket", ")": "closing bracket",
  "[": "opening square bracket", "]": "closing square bracket", "\ufffd": "part of a character",
};

/** A token as it is read aloud: signs alone by their names; a word, and whether it joins the one before. */
export function spoken(text) {
  const word = text.trim();
  if (/[\p{L}\p{N}]/u.test(word)) return word === text ? `${word}, joined` : word;
  const signs = [...(word || text)].map((sign) => SIGNS[sign] ?? (/\p{C}/u.test(sign) ? "control character" : sign));
  return signs.join(", ") || "nothing";
}

/** A number of nats: small ones matter. */
export const nats = (number) => (number >= 0.0005 || number === 0 ? number.toFixed(3) : "< 0.001");

/** The end of the axis of bars of which this is the longest: round, so that it can be told. */
export const axisEnd = (longest) => [0.05, 0.1, 0.25, 0.5].find((end) => longest <= end) ?? 1;

/** The words of a text, with where each begins and ends. */
export const wordsIn = (text) =>
  [...text.matchAll(/\S+/g)].map(({ 0: word, index }) => ({ word, start: index, end: index + word.length }));

/** Words and what is between them, with where each begins. */
export function* pieces(text) {
  for (const match of text.matchAll(/\S+|\s+/g)) {
    yield { text: match[0], start: match.index, isWord: match[0].trim() !== "" };
  }
}
