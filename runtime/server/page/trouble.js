// What goes wrong, in a line above everything, until the next thing that is tried.

import { find, make } from "./dom.js";

const line = () => find("#trouble");

function clearTrouble() {
  line().hidden = true;
  line().replaceChildren();
}

function showTrouble(message) {
  const close = make("button", { class: "close", "aria-label": "Close", onclick: clearTrouble }, "×");
  line().replaceChildren(make("span", {}, sentence(message)), close);
  line().hidden = false;
}

/** Does `work`; tells what it fails with. What was stopped on purpose is no failure. */
export async function trying(work) {
  clearTrouble();
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") {
      showTrouble(error.message);
      if (error.status === undefined) throw error; // a fault of this page: for the console too
    }
    return null;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
