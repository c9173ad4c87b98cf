// What a reader does: keys, sliders, search, themes.

// --- small things ----------------------------------------------------------------------------------------------------

function element(name, kind = "", text = null) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  return made;
}

const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const percent = (value) => (value > 0 && value < 0.0095 ? "<1%" : `${Math.round(100 * value)}%`);
const number = (value) => (value === null ? "none" : value === 0 ? "0" : Math.abs(value) >= 0.001 && Math.abs(value) < 1e4 ? String(+value.toPrecision(3)) : value.toExponential(1));

/** A score beside others of which the largest is ``most``. */
const short = (value, most) => (most < 0.1 ? signed(value) : (value > 0 ? "+" : "") + value.toFixed(most < 10 ? 2 : 1)).replace("-", "\u2212");

/** Marks what was searched for in the open traces, without touching their nodes. */
function highlight() {
  const words = byId("search").value.trim().toLowerCase(), rows = panes.flatMap((pane) => pane.rows);
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
    const row = one.target.isConnected && rowOf(one.target);
    if (row && !row.drawn) { drawTokens(row); later(highlight); }
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
  const keys = {
    j: () => step(1), k: () => step(-1), h: () => toColumn(0), l: () => toColumn(1), m: toSuspect, n: () => otherTrace(1),
    p: () => otherTrace(-1), b: () => chooseBeside(panes[1] ? undefined : besideOf(panes[0].trace)), "/": () => byId("search").focus(),
  };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
}

function hovered(event) {
  const segment = event.target.closest(".segment"), token = event.target.closest("[data-token]");
  if (!segment) return;
  const tints = token ? Object.entries(traceOf(paneOf(segment).trace).tints) : [];
  const values = Object.fromEntries(tints.map(([name, by]) => [name, number(by.values[token.dataset.token])]));
  fillNote(rowOf(segment), token ? { token: JSON.stringify(token.textContent), ...values } : {});
}

function begin() {
  setTheme(rememberedTheme());
  system.addEventListener("change", () => setTheme(theme));
  byId("title").textContent = document.title = index.title;
  byId("measure").append(...index.measures.map((name, i) => Object.assign(element("option", "", name), { value: i })));
  byId("tint").append(...index.tints.map((name) => element("option", "", name)));
  byId("problem").append(...index.problems.map((text, i) => Object.assign(element("option", "", text), { value: i })));
  byId("tint").parentElement.hidden = index.tints.length < 2;
  byId("problem").parentElement.hidden = index.problems.length < 2 || index.problems.length === index.traces.length;
  for (const control of ["measure", "tau", "beta", "saved"]) byId(control).disabled = !index.measures.length;
  byId("measure").addEventListener("change", () => { state.measure = Number(byId("measure").value); redrawAll(); });
  byId("tint").addEventListener("change", () => { state.tint = byId("tint").value; redrawAll(); });
  byId("beside").addEventListener("change", () => chooseBeside(byId("beside").value === "" ? undefined : Number(byId("beside").value)));
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
  for (const name of ["filter", "sort", "problem"]) byId(name).addEventListener("change", drawList);
  byId("list").addEventListener("click", (event) => { const button = event.target.closest("button"); if (button) open(Number(button.dataset.trace)); });
  byId("main").addEventListener("click", (event) => { if (event.target.matches(".strip > i")) jump(paneOf(event.target), Number(event.target.dataset.segment)); });
  byId("main").addEventListener("mouseover", hovered);
  byId("main").addEventListener("focusin", focused);
  document.addEventListener("scroll", () => later(drawWindows), { passive: true, capture: true });
  window.addEventListener("resize", () => later(drawWindows));
  window.addEventListener("beforeprint", () => panes.forEach((pane) => pane.rows.forEach(drawTokens)));
  document.addEventListener("keydown", keyed);
  drawRun();
  drawList();
  if (!index.traces.length) { panes[0].text.append(element("p", "empty", "There are no traces in this report.")); return; }
  const [first, second] = asked();
  state.beside = second >= 0;
  const weighed = index.traces.findIndex((head) => !head.uniform);  // of a run, the first rollout with weights
  open(first >= 0 ? first : Math.max(0, weighed), state.beside ? second : undefined);
  byId("list").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
}

begin();
