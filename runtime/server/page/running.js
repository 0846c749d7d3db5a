// One thing at a time that can be stopped: a button that starts it, and one that takes its place.

import { trying } from "./trouble.js";

export class Running {
  #controller = null;

  /** `onSwitch(on)` hears when something begins, and when nothing is under way any more. */
  constructor(start, stop, onSwitch = () => {}) {
    this.start = start;
    this.stop = stop;
    this.onSwitch = onSwitch;
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
    controller.abort(); // of several things at once, one may have failed: the others end with it
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
    this.onSwitch(on);
  }
}
