// Draws the page. A trace is parsed when it is opened, its tokens are drawn when they come into view. Whatever a user
// wrote is set with textContent or as a text node, never as HTML.

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const start = index.settings;
const LOW = 0.2; // a completeness gap above this is a low certificate
const LEVELS = 5; // of tint
const state = { trace: -1, measure: 0, tau: start.tau, beta: start.beta, live: false };
const parsed = new Map(), unpacked = new Map(), lowered = new Map();
let rows = []; // the segments on the page: {element, note, fill, from, to}

// --- what lies in the file -------------------------------------------------------------------------------------------

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
  trace.reference = quantile((trace.scores || []).map(Math.abs), 0.99) || 1;
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

const column = (value, count) => (Array.isArray(value) ? value : new Array(count).fill(value));

const blockOfToken = (blocks) =>
  blocks.slice(1).flatMap((end, s) => new Array(end - blocks[s]).fill(s));

function quantile(values, q) {
  const sorted = values.filter((one) => one > 0).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : 0;
}

const viewOf = (trace) => trace.views[state.measure];

/** The reason of each segment, by the sliders once one was moved. */
function reasons(view) {
  return state.live ? select(view, state.tau, state.beta, start.force, start.beta_min_tokens) : view.reason;
}

const isKept = (reason) => reason === "strength" || reason === "forced";

// --- the list of traces ----------------------------------------------------------------------------------------------

function verdictOf(head) {
  if (head.correct === undefined) return { mark: "·", name: "none", words: "not graded" };
  const name = head.correct ? "right" : "wrong";
  return { mark: head.correct ? "✓" : "✗", name, words: `${name} (${head.status})` };
}

const certificate = (head) => (head.gap === undefined || head.gap === null ? Infinity : head.gap);
const isLow = (head) => certificate(head) > LOW || (head.flags || []).length > 0;

const long = quantile(index.traces.map((one) => one.tokens), 0.75);

function fits(head, i, words) {
  const filters = { right: head.correct === true, wrong: head.correct === false, long: head.tokens >= long, low: isLow(head) };
  if (filters[byId("filter").value] === false) return false;
  return !words || wordsOf(i).some((text) => text.includes(words));
}

function sorted(found) {
  const heads = index.traces;
  const rightness = (i) => (heads[i].correct === undefined ? 1 : heads[i].correct ? 0 : 2);
  const keys = {
    file: (i) => i, right: rightness, wrong: (i) => -rightness(i), long: (i) => -heads[i].tokens,
    short: (i) => heads[i].tokens, low: (i) => -certificate(heads[i]),
  };
  const key = keys[byId("sort").value];
  const compare = (a, b) => (key(a) === key(b) ? a - b : key(a) < key(b) ? -1 : 1);
  return found.sort(compare);
}

function drawList() {
  const words = byId("search").value.trim().toLowerCase();
  const found = sorted([...index.traces.keys()].filter((i) => fits(index.traces[i], i, words)));
  byId("list").replaceChildren(...found.map(listItem));
  byId("count").textContent = `${found.length} of ${index.traces.length} traces`;
  markCurrent();
  highlight();
}

function listItem(i) {
  const head = index.traces[i], verdict = verdictOf(head), button = element("button");
  button.type = "button";
  button.dataset.trace = i;
  const gap = head.gap === undefined ? "" : ` · gap ${number(head.gap)}${isLow(head) ? " ⚠" : ""}`;
  const mark = element("span", `mark ${verdict.name}`, verdict.mark);
  mark.setAttribute("aria-label", verdict.words);
  button.append(mark, element("span", "name", head.id), element("span", "facts", `${head.tokens.toLocaleString("en")} tokens${gap}`));
  const item = element("li");
  item.append(button);
  return item;
}

function markCurrent() {
  for (const button of byId("list").querySelectorAll("button"))
    button.setAttribute("aria-current", Number(button.dataset.trace) === state.trace);
}

// --- one trace -------------------------------------------------------------------------------------------------------

function open(i) {
  state.trace = i;
  const trace = traceOf(i);
  setAddress(index.traces[i].id);
  drawSegments(trace);
  applySelection();
  markCurrent();
  highlight();
  byId("main").scrollTop = 0;
}

/** Where the text is cut for the reader: by the view's own segments, unless these are single tokens. */
function cutsOf(trace) {
  const view = viewOf(trace);
  return view && !view.byToken ? view.boundaries : trace.blocks;
}

function drawSegments(trace) {
  looking.disconnect();
  const boundaries = cutsOf(trace);
  rows = boundaries.slice(1).map((to, s) => drawSegment(trace, s, boundaries[s], to));
  byId("trace").replaceChildren(...rows.map((row) => row.element));
  byId("strip").replaceChildren(...rows.map((row) => row.tick));
  for (const row of rows) looking.observe(row.element);
}

function drawSegment(trace, s, from, to) {
  const box = element("article", "segment"), gutter = element("div", "gutter"), track = element("span", "track");
  const row = { element: box, fill: element("i"), label: element("span"), note: element("div", "note"), tick: element("i"), from, to, drawn: false };
  box.tabIndex = 0;
  box.dataset.segment = s;
  track.append(row.fill);
  gutter.append(track, row.label);
  row.text = element("div", "text", trace.text.slice(trace.cuts[from], trace.cuts[to]).replace(/^\n+|\s+$/g, ""));
  row.text.dir = "auto";
  row.note.id = `note-${s}`;
  box.setAttribute("aria-describedby", row.note.id);
  box.append(gutter, row.text, row.note);
  row.tick.style.flexGrow = to - from;
  row.tick.dataset.segment = s;
  return row;
}

/** Tokens are spans only where they are tinted; runs without tint are one text node, so that scripts keep joining. */
function drawTokens(row) {
  if (row.drawn) return;
  row.drawn = true;
  const trace = traceOf(state.trace), view = viewOf(trace), pieces = [];
  const reason = view && view.byToken ? row.reason : null;
  const first = trace.text.slice(trace.cuts[row.from], trace.cuts[row.to]).match(/^\n*/)[0].length + trace.cuts[row.from];
  const last = trace.cuts[row.from] + trace.text.slice(trace.cuts[row.from], trace.cuts[row.to]).trimEnd().length;
  for (let t = row.from; t < row.to; t++) {
    const text = trace.text.slice(Math.max(trace.cuts[t], first), Math.min(trace.cuts[t + 1], last));
    if (!text || trace.cuts[t + 1] <= first) continue;
    const kind = [tint(trace, t), reason && !isKept(reason[t]) ? "out" : ""].filter(Boolean).join(" ");
    const before = pieces.at(-1);
    if (before && before.kind === kind && !/[pn]\d/.test(kind)) before.text += text;
    else pieces.push({ kind, text, t });
  }
  row.text.replaceChildren(...pieces.map(tokenNode));
}

function tokenNode({ kind, text, t }) {
  if (!kind) return document.createTextNode(text);
  const node = element("mark", kind, text);
  node.dataset.token = t;
  return node;
}

function tint(trace, t) {
  if (!trace.scores) return "";
  const level = Math.round(LEVELS * Math.min(1, Math.abs(trace.scores[t]) / trace.reference));
  return level ? (trace.scores[t] > 0 ? "p" : "n") + level : "";
}

// --- what the selection changes --------------------------------------------------------------------------------------

function applySelection() {
  const trace = traceOf(state.trace), view = viewOf(trace);
  const reason = view ? reasons(view) : null;
  const shown = rows.map((row, s) => numbersOf(row, s, view, reason));
  const most = Math.max(...shown.map((one) => one.height), 0) || 1;
  rows.forEach((row, s) => applyTo(row, s, shown[s], shown[s].height / most, trace));
  byId("saved").setAttribute("aria-pressed", !state.live);
  byId("tau-value").textContent = state.tau.toFixed(2);
  byId("beta-value").textContent = state.beta.toFixed(2);
  drawHead(trace, view, reason);
  highlight();
}

function numbersOf(row, s, view, reason) {
  if (!view) return { kept: true, height: 0, facts: {}, label: "" };
  if (view.byToken) return tokenNumbers(row, view, reason);
  const thought = view.thought[s];
  const facts = thought
    ? {
        rank: `${view.rank[s]} of ${view.thoughts}`, share: percent(view.share[s]), strength: number(view.strength[s]),
        consistency: view.consistency[s].toFixed(2), reason: reason[s],
      }
    : { reason: "the answer: always kept, never scored" };
  const label = thought ? `#${view.rank[s]} · ${percent(view.share[s])}` : "answer";
  return { kept: isKept(reason[s]), height: Math.max(0, view.strength[s]), facts, label, answer: !thought };
}

/** Of a token measure: a stretch of text is what its tokens are. */
function tokenNumbers(row, view, reason) {
  let share = 0, kept = 0;
  for (let t = row.from; t < row.to; t++) {
    share += view.share[t];
    kept += isKept(reason[t]);
  }
  const count = row.to - row.from, answer = !view.thought[row.from];
  row.reason = reason;
  const facts = { share: percent(share), kept: `${kept} of ${count} tokens`, reason: "token by token" };
  return { kept: kept > 0, height: share / Math.sqrt(count), facts, label: answer ? "answer" : percent(share), answer };
}

function applyTo(row, s, shown, relative, trace) {
  row.element.className = `segment${shown.kept ? "" : " dropped"}${shown.answer ? " answer" : ""}`;
  row.tick.className = shown.kept ? "" : "dropped";
  row.tick.style.setProperty("--h", `${100 * relative}%`);
  row.fill.style.width = `${100 * relative}%`;
  row.fill.hidden = relative === 0;
  row.label.textContent = shown.label;
  row.facts = { segment: s + 1, ...shown.facts, tokens: row.to - row.from };
  if (trace.planted && trace.planted.length === rows.length) row.facts.planted = trace.planted[s];
  fillNote(row);
  if (row.reason && row.drawn) {
    row.drawn = false;
    drawTokens(row);
  }
}

function fillNote(row, extra = {}) {
  const list = element("dl");
  for (const [name, value] of Object.entries({ ...row.facts, ...extra }))
    list.append(element("dt", "", name), element("dd", "", String(value)));
  row.note.replaceChildren(list);
}

function drawHead(trace, view, reason) {
  const head = index.traces[state.trace], verdict = verdictOf(head), title = element("h2"), facts = element("p", "facts");
  title.append(element("span", `mark ${verdict.name}`, `${verdict.mark} `), head.id);
  const say = (name, value, kind = "") => {
    const fact = element("span", "", `${name} `), bold = element("b", kind, value);
    bold.dir = "auto";
    fact.append(bold);
    facts.append(fact);
  };
  say("verdict", verdict.words, verdict.name);
  if (head.correct !== undefined) say("answered", head.answered ?? "nothing");
  say("gold", head.gold ?? "none");
  if (head.gap !== undefined) say("completeness gap", number(head.gap), isLow(head) ? "wrong" : "");
  if (head.copied !== undefined) say("on restated answers", percent(head.copied ?? 0));
  if (head.target !== undefined) say("explains", head.target === "own" ? "its own answer" : "the gold answer");
  if (view) say("kept", keptWords(view, reason));
  if (view) say("selection", state.live ? `live, tau ${state.tau.toFixed(2)}, beta ${state.beta.toFixed(2)}` : "as saved");
  for (const flag of head.flags || []) facts.append(element("span", "flag", flag));
  const problem = element("p", "problem", trace.problem.trim());
  problem.dir = "auto";
  byId("head").replaceChildren(title, facts, problem);
}

function keptWords(view, reason) {
  let kept = 0, all = 0, segments = 0;
  view.tokens.forEach((tokens, s) => {
    if (!view.thought[s]) return;
    all += tokens;
    if (isKept(reason[s])) { kept += tokens; segments += 1; }
  });
  const cut = view.byToken ? "" : `${segments} of ${view.thoughts} segments, `;
  return `${cut}${kept.toLocaleString("en")} of ${all.toLocaleString("en")} thinking tokens (${percent(all ? kept / all : 0)})`;
}

// --- small things ----------------------------------------------------------------------------------------------------

function element(name, kind = "", text = null) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  return made;
}

const percent = (value) => (value > 0 && value < 0.0095 ? "<1%" : `${Math.round(100 * value)}%`);
const number = (value) => (value === null ? "none" : value === 0 ? "0" : Math.abs(value) >= 0.001 && Math.abs(value) < 1e4 ? String(+value.toPrecision(3)) : value.toExponential(1));

/** Marks what was searched for in the open trace, without touching its nodes. */
function highlight() {
  const words = byId("search").value.trim().toLowerCase();
  for (const row of rows) row.tick.classList.toggle("hit", Boolean(words) && row.text.textContent.toLowerCase().includes(words));
  if (!window.Highlight) return;
  CSS.highlights.set("found", new Highlight(...(words ? rows.flatMap((row) => rangesOf(row.text, words)) : [])));
}

function rangesOf(box, words) {
  const nodes = [], walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), ranges = [];
  const text = box.textContent.toLowerCase();
  if (!text.includes(words) || text.length !== box.textContent.length) return [];
  for (let at = 0, node; (node = walker.nextNode()); at += node.length) nodes.push({ node, at });
  const place = (where) => nodes.findLast((one) => one.at <= where);
  for (let at = text.indexOf(words); at >= 0; at = text.indexOf(words, at + words.length)) {
    const range = new Range(), from = place(at), to = place(at + words.length - 1);
    range.setStart(from.node, at - from.at);
    range.setEnd(to.node, at + words.length - to.at);
    ranges.push(range);
  }
  return ranges;
}

/** The part of the strip that is on the screen. */
function drawWindow() {
  const box = byId("window"), main = byId("main"), strip = byId("strip");
  const top = main.getBoundingClientRect().top + byId("strip-box").offsetHeight, bottom = main.getBoundingClientRect().bottom;
  const seen = rows.filter((row) => {
    const place = row.element.getBoundingClientRect();
    return place.bottom > top && place.top < bottom;
  });
  box.hidden = !seen.length;
  if (!seen.length) return;
  const left = strip.getBoundingClientRect().left - byId("strip-box").getBoundingClientRect().left;
  const last = seen.at(-1).tick;
  box.style.left = `${left + seen[0].tick.offsetLeft}px`;
  box.style.width = `${last.offsetLeft + last.offsetWidth - seen[0].tick.offsetLeft}px`;
}

function jump(s) {
  rows[s].element.scrollIntoView({ block: "start" });
  rows[s].element.focus({ preventScroll: true });
}

function step(by) {
  const at = rows.findIndex((row) => row.element === document.activeElement);
  jump(Math.max(0, Math.min(rows.length - 1, at + by)));
}

function otherTrace(by) {
  const shown = [...byId("list").querySelectorAll("button")];
  const at = shown.findIndex((button) => Number(button.dataset.trace) === state.trace);
  const next = shown[Math.max(0, Math.min(shown.length - 1, at + by))];
  if (next) { open(Number(next.dataset.trace)); next.scrollIntoView({ block: "nearest" }); }
}

/** The address names the open trace, so that a link to it can be sent. */
function setAddress(id) {
  try { history.replaceState(null, "", `#${encodeURIComponent(id)}`); } catch { /* half a surrogate pair, a frame */ }
}

function asked() {
  try {
    const id = decodeURIComponent(location.hash.slice(1));
    return index.traces.findIndex((head) => head.id === id);
  } catch { return -1; }
}

const THEMES = ["auto", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function setTheme(name) {
  theme = THEMES.includes(name) ? name : "auto";
  document.documentElement.dataset.theme = theme === "auto" ? (system.matches ? "dark" : "light") : theme;
  byId("theme").textContent = `theme: ${theme}`;
  try { localStorage.setItem("segrl-theme", theme); } catch { /* a browser that keeps nothing for files */ }
}

function rememberedTheme() {
  try { return localStorage.getItem("segrl-theme"); } catch { return null; }
}

// --- what a reader does ----------------------------------------------------------------------------------------------

const looking = new IntersectionObserver(
  (seen) => seen.filter((one) => one.isIntersecting).forEach((one) => {
    const row = rows[one.target.dataset.segment];
    if (row && row.element === one.target && !row.drawn) { drawTokens(row); later(highlight); }
  }),
  { root: null, rootMargin: "400px" },
);

const waiting = new Set();
function later(work) {
  if (waiting.has(work)) return;
  waiting.add(work);
  requestAnimationFrame(() => { waiting.delete(work); work(); });
}

function slide(name) {
  state[name] = Number(byId(name).value);
  state.live = true;
  later(applySelection);
}

function keyed(event) {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { j: () => step(1), k: () => step(-1), n: () => otherTrace(1), p: () => otherTrace(-1), "/": () => byId("search").focus() };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
}

function hovered(event) {
  const segment = event.target.closest(".segment"), token = event.target.closest("[data-token]");
  if (!segment) return;
  const row = rows[segment.dataset.segment], trace = traceOf(state.trace);
  const scored = token && trace.scores;
  fillNote(row, scored ? { token: JSON.stringify(token.textContent), score: number(trace.scores[token.dataset.token] * trace.unit) } : {});
}

function begin() {
  setTheme(rememberedTheme());
  system.addEventListener("change", () => setTheme(theme));
  byId("title").textContent = document.title = index.title;
  byId("measure").append(...index.measures.map((name, i) => Object.assign(element("option", "", name), { value: i })));
  for (const control of ["measure", "tau", "beta", "saved"]) byId(control).disabled = !index.measures.length;
  byId("measure").addEventListener("change", () => { state.measure = Number(byId("measure").value); drawSegments(traceOf(state.trace)); applySelection(); });
  for (const name of ["tau", "beta"]) {
    byId(name).value = state[name];
    byId(name).addEventListener("input", () => slide(name));
  }
  byId("saved").addEventListener("click", () => {
    Object.assign(state, { tau: start.tau, beta: start.beta, live: false });
    for (const name of ["tau", "beta"]) byId(name).value = state[name];
    applySelection();
  });
  byId("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]));
  byId("legend-toggle").addEventListener("click", () => {
    byId("legend").hidden = !byId("legend").hidden;
    byId("legend-toggle").setAttribute("aria-expanded", !byId("legend").hidden);
  });
  byId("search").addEventListener("input", () => later(drawList));
  for (const name of ["filter", "sort"]) byId(name).addEventListener("change", drawList);
  byId("list").addEventListener("click", (event) => { const button = event.target.closest("button"); if (button) open(Number(button.dataset.trace)); });
  byId("strip").addEventListener("click", (event) => { if (event.target.dataset.segment) jump(Number(event.target.dataset.segment)); });
  byId("trace").addEventListener("mouseover", hovered);
  byId("main").addEventListener("scroll", () => later(drawWindow), { passive: true });
  window.addEventListener("resize", () => later(drawWindow));
  window.addEventListener("beforeprint", () => rows.forEach(drawTokens));
  document.addEventListener("keydown", keyed);
  drawList();
  if (!index.traces.length) { byId("trace").append(element("p", "empty", "There are no traces in this report.")); return; }
  open(Math.max(0, asked()));
  later(drawWindow);
}

begin();
