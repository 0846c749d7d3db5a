// What is drawn while text arrives: not more often than it is seen.

/** `work` at most once before the next frame is drawn. */
export function onceAFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
