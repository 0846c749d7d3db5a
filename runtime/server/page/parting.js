// Where two texts part: the words that only one of them has. Two lists of words are compared as
// Python's difflib does: the longest run they share, then what is left and right of it.

import { wordsIn } from "./format.js";

/** Runs that both have, in order: [begin in a, begin in b, length]. */
export function sharedRuns(a, b) {
  const places = new Map();
  b.forEach((word, j) => places.set(word, [...(places.get(word) ?? []), j]));
  const runs = [];
  const open = [[0, a.length, 0, b.length]];
  while (open.length) {
    const [a0, a1, b0, b1] = open.pop();
    const [i, j, length] = longestRun(a, places, a0, a1, b0, b1);
    if (length === 0) continue;
    runs.push([i, j, length]);
    open.push([a0, i, b0, j], [i + length, a1, j + length, b1]);
  }
  return runs.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
}

function longestRun(a, places, a0, a1, b0, b1) {
  let best = [a0, b0, 0];
  let lengths = new Map(); // of the runs that end at the word before, by where they end in b
  for (let i = a0; i < a1; i += 1) {
    const longer = new Map();
    for (const j of places.get(a[i]) ?? []) {
      if (j < b0 || j >= b1) continue;
      const length = (lengths.get(j - 1) ?? 0) + 1;
      longer.set(j, length);
      if (length > best[2]) best = [i - length + 1, j - length + 1, length];
    }
    lengths = longer;
  }
  return best;
}

/** {left, right}: [start, end] of what only one side has: the first word of all, then whole runs.
 *
 *  Unless `complete`, one of the two is still being written: what the longer one has beyond the
 *  other's last word may yet come, and so may the rest of that word. */
export function parting(left, right, complete = true) {
  let ours = wordsIn(left), theirs = wordsIn(right);
  if (!complete) {
    const shorter = Math.max(0, Math.min(ours.length, theirs.length) - 1);
    ours = ours.slice(0, shorter);
    theirs = theirs.slice(0, shorter);
  }
  const found = { left: [], right: [] };
  let i = 0, j = 0;
  const runs = sharedRuns(ours.map(({ word }) => word), theirs.map(({ word }) => word));
  for (const [nextI, nextJ, length] of [...runs, [ours.length, theirs.length, 0]]) {
    if (nextI > i || nextJ > j) {
      found.left.push(...spans(ours.slice(i, nextI), found.left.length === 0));
      found.right.push(...spans(theirs.slice(j, nextJ), found.right.length === 0));
    }
    i = nextI + length;
    j = nextJ + length;
  }
  return found;
}

/** From the first to the last word; of the first run of all, its first word alone. */
function spans(run, isFirst) {
  const found = [];
  let rest = run;
  if (isFirst && rest.length) {
    found.push([rest[0].start, rest[0].end]);
    rest = rest.slice(1);
  }
  if (rest.length) found.push([rest[0].start, rest.at(-1).end]);
  return found;
}
