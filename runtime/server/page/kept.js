// What is still there after this page is loaded again: kept by the browser with its tab, and gone with it.

// The number goes up whenever something is kept in another form: what another version kept is left alone.
const PREFIX = "pocketlm-kept-1-";
const tellers = new Map();

/** What was kept under that name, else `otherwise`; from now on `tell()` says what is to be kept. */
export function kept(name, otherwise, tell) {
  tellers.set(name, tell);
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise; // what somebody else wrote there
  }
}

/** The same of a field of the page. */
export function keepField(name, field) {
  field.value = kept(name, field.value, () => field.value);
}

function keep() {
  for (const [name, tell] of tellers) {
    try {
      sessionStorage.setItem(PREFIX + name, JSON.stringify(tell()));
    } catch {
      sessionStorage.removeItem(PREFIX + name); // it is larger than a browser keeps
    }
  }
}

addEventListener("pagehide", keep);
// A phone ends a page that is not looked at without a word.
document.addEventListener("visibilitychange", () => document.hidden && keep());
