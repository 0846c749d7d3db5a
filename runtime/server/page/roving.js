// One stop for Tab in a row of many things, and arrow keys from one to the next.
// Source: the ARIA Authoring Practices Guide, "Managing focus within components using a roving tabindex".

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** The things in `root` that match `selector` at the time of a key; `onMove(thing)` hears of each. */
export function rove(root, selector, onMove = () => {}) {
  const things = () => [...root.querySelectorAll(selector)];

  function go(thing) {
    for (const other of root.querySelectorAll(`${selector}[tabindex="0"]`)) other.tabIndex = -1;
    thing.tabIndex = 0;
  }

  root.addEventListener("focusin", (event) => {
    const thing = event.target.closest(selector);
    if (thing === null) return;
    go(thing);
    onMove(thing);
  });
  root.addEventListener("keydown", (event) => {
    const thing = event.target.closest(selector);
    if (thing === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = things();
    const place = all.indexOf(thing);
    let next = place + (STEPS[event.key] ?? 0);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = all.length - 1;
    next = Math.max(0, Math.min(all.length - 1, next));
    if (next === place) return;
    event.preventDefault();
    all[next].focus();
  });
  return { go };
}
