// Draws the page. A trace is parsed when it is opened, its tokens are drawn when they come into view. Whatever a user
// wrote is set with textContent or as a text node, never as HTML.

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const start = index.settings;
const LOW = 0.2; // a completeness gap above this is a low certificate
const LEVELS = 5; // of tint
const state = { measure: 0, tint: index.tints[0], tau: start.tau, beta: start.beta, live: false, beside: false };
const parsed = new Map(), unpacked = new Map(), lowered = new Map();

function remembered(kept, i, make) {
  if (!kept.has(i)) kept.set(i, make());
  return kept.get(i);
}

const writtenOf = (i) => remembered(parsed, i, () => JSON.parse(byId(`trace-${i}`).textContent));
const traceOf = (i) => remembered(unpacked, i, () => unpack(writtenOf(i)));
/** What a search looks through. */
const wordsOf = (i) =>
  remembered(lowered, i, () => [index.traces[i].id, writtenOf(i).problem, writtenOf(i).text].map((text) => text.toLowerCase()));

function unpack(trace) {
  let at = 0;
  trace.cuts = [0, ...trace.lengths.map((length) => (at += length))];
  for (const tint of Object.values(trace.tints)) unpackTint(tint);
  for (const view of trace.views.filter(Boolean)) unpackView(view, trace);
  return trace;
}

/** Columns that are the same all along come as one value, words as [word, how often], shares perhaps as their total. */
function unpackView(view, trace) {
  const count = view.boundaries.length - 1;
  for (const name of ["strength", "consistency"]) view[name] = column(view[name], count);
  for (const name of ["kinds", "reason"]) view[name] = view[name].flatMap(([word, times]) => new Array(times).fill(word));
  view.share = view.share === null ? view.strength.map((one) => Math.max(one, 0) / view.total) : column(view.share, count);
  view.tokens = view.boundaries.slice(1).map((end, s) => end - view.boundaries[s]);
  view.thought = view.kinds.map((kind) => kind !== "answer");
  view.byToken = count > trace.blocks.length - 1 && count === trace.lengths.length;
  view.thoughts = view.thought.filter(Boolean).length;
  view.segment = view.byToken ? blockOfToken(trace.blocks) : null;
  view.rank = new Array(count).fill(null);
  order(view.strength).filter((s) => view.thought[s]).forEach((s, place) => (view.rank[s] = place + 1));
}

/** What tokens are tinted by: how far each is from the centre, deepest at the reference. */
function unpackTint(tint) {
  if (tint.runs) tint.values = tint.runs.flatMap(([value, times]) => new Array(times).fill(value));
  else tint.values = tint.levels.map((level) => level * tint.unit);
  tint.reference = quantile(tint.values.map((value) => Math.abs(value - tint.centre)), 0.99) || 1;
}

/** The tint asked for, or the one that the trace has. */
const tintName = (trace) => (state.tint in trace.tints ? state.tint : Object.keys(trace.tints)[0]);
const tintOf = (trace) => trace.tints[tintName(trace)];

const column = (value, count) => (Array.isArray(value) ? value : new Array(count).fill(value));

const blockOfToken = (blocks) =>
  blocks.slice(1).flatMap((end, s) => new Array(end - blocks[s]).fill(s));

function quantile(values, q) {
  const sorted = values.filter((one) => one > 0).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : 0;
}

/** What the measure asked for says; of a rollout, whose scores have no other name, what there is. */
const viewOf = (trace) => trace.views[state.measure] || (trace.tints.weight && trace.views.find(Boolean));

/** Whether a view's scores speak for a wrong answer: a contrast of a wrong response. */
const forWrong = (i, view) => Boolean(view && view.contrast) && rightOf(index.traces[i]) === false;

/** Of a response that was tested the thought that misled, as {from, misled}; of another one the thought that speaks most
 *  for its wrong answer, also with its score. Null where no thought is marked, or none speaks for that answer. */
function suspectOf(i) {
  const trace = traceOf(i), tested = trace.suspect;
  if (tested) return tested.marked ? { from: trace.blocks[tested.thought], misled: true } : null;
  const view = [viewOf(trace), ...trace.views].find((view) => forWrong(i, view)), s = view ? view.rank.indexOf(1) : -1;
  return s >= 0 && view.strength[s] > 0 ? { from: view.boundaries[s], misled: false, score: view.strength[s] } : null;
}

/** The reason of each segment, by the sliders once one was moved. */
function reasons(view) {
  return state.live ? select(view, state.tau, state.beta, start.force, start.beta_min_tokens) : view.reason;
}

const isKept = (reason) => reason === "strength" || reason === "forced";
