// One thing at a time that can be stopped: a button that starts it, and one that takes its place.

import { trying } from "./trouble.js";

export class Running {
  #controller = null;

  constructor(start, stop) {
    this.start = start;
    this.stop = stop;
    stop.addEventListener("click", () => this.abort());
  }

  get isOn() {
    return this.#controller !== null;
  }

  abort() {
    this.#controller?.abort();
  }

  /** Does `work(signal)`, after ending what is under way. */
  async run(work) {
    this.abort();
    const controller = new AbortController();
    this.#controller = controller;
    this.#show(true);
    await trying(() => work(controller.signal));
    if (this.#controller === controller) {
      this.#controller = null;
      this.#show(false);
    }
  }

  #show(on) {
    const focused = [this.start, this.stop].includes(document.activeElement);
    this.start.hidden = on;
    this.stop.hidden = !on;
    if (focused) (on ? this.stop : this.start).focus();
  }
}
