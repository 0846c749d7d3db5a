// Answers that come piece by piece: server-sent events become pieces of text with their tokens.

import { ApiError, request } from "./api.js";
import { count, countTokens } from "./format.js";

const ENDED = "the server ended its answer too early; see whether it still runs, and go on from what is here";

/** The JSON of each event of a response. Raises ApiError if it ends before it says so. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError(ENDED);
    });
    if (done) throw new ApiError(ENDED);
    const lines = (rest + value).split("\n");
    rest = lines.pop(); // a line may arrive in two pieces
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

/** What `path` generates: {text, tokens, finish} as it comes, and at the end {details}.
 *  A token is {id, text, probability, top: [{id, text, probability}]}. */
export async function* generate(path, body, signal) {
  const asked = { ...body, stream: true, details: true };
  for await (const event of events(await request(path, asked, signal))) {
    if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
    if (event.details) yield { text: "", tokens: [], finish: null, details: event.details };
    for (const choice of event.choices) {
      const text = choice.text ?? choice.delta?.content ?? "";
      const tokens = (choice.tokens ?? []).map(withProbability);
      yield { text, tokens, finish: choice.finish_reason };
    }
  }
}

function withProbability({ id, text, logprob, top = [] }) {
  return { id, text, probability: logprob === null ? null : Math.exp(logprob), top: top.map(withProbability) };
}

/** Tokens per second of those that arrive: the first starts the clock. */
export class Pace {
  tokens = 0;
  #started = 0;

  add(number) {
    if (this.tokens === 0) this.#started = performance.now();
    this.tokens += number;
  }

  /** That and how many there are, to be told. */
  get figures() {
    const rate = Math.round(this.rate);
    return `${countTokens(this.tokens)}${rate ? ` · ${count(rate)} tokens/s` : ""}`;
  }

  get rate() {
    const seconds = (performance.now() - this.#started) / 1000;
    return this.tokens > 1 && seconds > 0 ? (this.tokens - 1) / seconds : 0;
  }
}
