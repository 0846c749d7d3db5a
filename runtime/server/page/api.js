// What the server is asked, and what it says when it refuses.

const KEY = "pocketlm-key"; // in sessionStorage: gone with the tab

/** A refusal, in the server's own words: they say what was found, expected, and to be done. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** `error`, but that a text is too long is told by `message`: what can be done about it in this view. */
export const retold = (error, message) =>
  error.code === "context_length_exceeded" ? new ApiError(message, error.status, error.code) : error;

let askForKey = async () => null;
let asking = null;

/** `ask(wrong)` is to return a key, or null: called when the server wants one, or another. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** The answer to a request. Raises ApiError, and AbortError when `signal` says so. */
export async function request(path, body = undefined, signal = undefined) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await send(path, body, signal, key);
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (key !== sessionStorage.getItem(KEY)) continue; // another request has asked meanwhile
    asking ??= askForKey(key !== null).finally(() => (asking = null)); // one dialog for all
    const given = await asking;
    if (given === null) throw new ApiError("without its key the server tells nothing; load this page again to type it", 401);
    sessionStorage.setItem(KEY, given);
  }
}

async function send(path, body, signal, key) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, signal, body: JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(
      `the server does not answer at ${location.origin}; see whether it still runs, and try again`,
    );
  }
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ApiError(error.message, response.status, error.code);
  } catch {
    return new ApiError(`the server answered with status ${response.status}`, response.status);
  }
}

export const get = async (path, signal) => (await request(path, undefined, signal)).json();
export const post = async (path, body, signal) => (await request(path, body, signal)).json();
