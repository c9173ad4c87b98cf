// segrl/selection.py in JavaScript (Eq. 5-7), number for number: tests/report compares the two.
"use strict";

const ROUNDING = 1e-12;

/** Reasons per segment: "strength", "consistency", "forced" or "dropped".
 *  scores: {strength, share, consistency, tokens, thought, segment} as arrays; segment is null unless by token. */
function select(scores, tau, beta, force = [0, -1], betaMinTokens = 1) {
  const reason = new Array(scores.strength.length).fill("dropped");
  const passes = (s) => scores.consistency[s] <= beta + ROUNDING || scores.tokens[s] < betaMinTokens;
  for (const s of strongest(scores, tau)) reason[s] = passes(s) ? "strength" : "consistency";
  for (const s of forced(scores, force)) if (reason[s] !== "strength") reason[s] = "forced";
  return reason;
}

/** Strongest first, ties by position; what differs by rounding alone is tied. */
function order(strength) {
  const scale = strength.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
  const steps = scale > 0 ? strength.map((one) => halfEven(one / scale / ROUNDING)) : strength;
  return [...strength.keys()].sort((a, b) => steps[b] - steps[a] || a - b);
}

/** The fewest segments, strongest first, whose shares sum to tau; none without any attribution. */
function strongest(scores, tau) {
  const ranked = order(scores.strength);
  let sum = 0;
  const reached = ranked.map((s) => (sum += scores.share[s]));
  if (!ranked.length || sum === 0) return [];
  const count = reached.filter((one) => one < tau - ROUNDING).length + 1;
  return ranked.slice(0, count).filter((s) => scores.share[s] > 0);
}

/** Thoughts counted like Python's, those beyond a short trace's ends left out; and whatever is no thought. */
function forced(scores, force) {
  const segment = scores.segment || [...scores.strength.keys()];
  const thoughts = [...new Set(segment.filter((_, s) => scores.thought[s]))].sort((a, b) => a - b);
  const inside = new Set(
    force.filter((i) => -thoughts.length <= i && i < thoughts.length).map((i) => thoughts.at(i)),
  );
  return [...segment.keys()].filter((s) => inside.has(segment[s]) || !scores.thought[s]);
}

/** Halves to the even neighbour, as torch rounds. */
function halfEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}
