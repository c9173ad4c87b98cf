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
  const tints = token ? Object.entries(traceOf(state.trace).tints) : [];
  const values = Object.fromEntries(tints.map(([name, by]) => [name, number(by.values[token.dataset.token])]));
  fillNote(rows[segment.dataset.segment], token ? { token: JSON.stringify(token.textContent), ...values } : {});
}

function begin() {
  setTheme(rememberedTheme());
  system.addEventListener("change", () => setTheme(theme));
  byId("title").textContent = document.title = index.title;
  byId("measure").append(...index.measures.map((name, i) => Object.assign(element("option", "", name), { value: i })));
  byId("tint").append(...index.tints.map((name) => element("option", "", name)));
  byId("prompt").append(...index.prompts.map((text, i) => Object.assign(element("option", "", text.trim()), { value: i })));
  byId("tint").parentElement.hidden = index.tints.length < 2;
  byId("prompt").parentElement.hidden = !index.prompts.length;
  for (const control of ["measure", "tau", "beta", "saved"]) byId(control).disabled = !index.measures.length;
  byId("measure").addEventListener("change", () => { state.measure = Number(byId("measure").value); redraw(); });
  byId("tint").addEventListener("change", () => { state.tint = byId("tint").value; redraw(); });
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
  for (const name of ["filter", "sort", "prompt"]) byId(name).addEventListener("change", drawList);
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
