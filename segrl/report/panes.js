// The columns: one trace, or beside it another response to the same problem. Each scrolls by itself; a jump in one
// brings the thought of the same number into view in the other.

const panes = [makePane(0)];
let active = 0; // the column that the keys move in

function makePane(place) {
  const pane = byId("pane").content.firstElementChild.cloneNode(true), part = (name) => pane.querySelector(`.${name}`);
  pane.dataset.pane = place;
  byId("main").append(pane);
  return {
    place, element: pane, trace: -1, rows: [], suspect: null,
    head: part("head"), names: part("names"), strip: part("strip"), window: part("window"), text: part("trace"),
  };
}

const paneOf = (node) => panes[node.closest(".pane").dataset.pane];
const rowOf = (node) => paneOf(node).rows[node.closest("[data-segment]").dataset.segment];

// --- what is open ----------------------------------------------------------------------------------------------------

/** Opens a trace; in the second column, where there is one, the response asked for or one that ended otherwise. */
function open(i, other = state.beside ? besideOf(i) : undefined) {
  fill(panes[0], i);
  byId("tint").value = tintName(traceOf(i)) ?? "";
  setBeside(other);
}

/** Opens a response in the second column; without one, closes that column. */
function setBeside(i) {
  if (i === undefined && panes[1]) panes.pop().element.remove();
  if (i !== undefined) fill(panes[1] || (panes[1] = makePane(1)), i);
  byId("main").dataset.panes = panes.length;
  active = Math.min(active, panes.length - 1);
  listBeside();
  drawControls();
  setAddress();
  markCurrent();
  highlight();
  later(drawWindows);
}

function fill(pane, i) {
  pane.trace = i;
  redraw(pane);
  pane.element.scrollTop = 0;
}

function redraw(pane) {
  drawSegments(pane);
  drawOthers(pane);
  markSuspect(pane);
  applyTo(pane);
}

function redrawAll() {
  panes.forEach(redraw);
  drawControls();
  highlight();
}

// --- responses to one problem ----------------------------------------------------------------------------------------

/** The other responses to a trace's problem, those of a rollout's own step first. */
function siblingsOf(i) {
  const heads = index.traces, far = (j) => Math.abs((heads[j].step ?? 0) - (heads[i].step ?? 0));
  return [...heads.keys()].filter((j) => j !== i && heads[j].problem === heads[i].problem).sort((a, b) => far(a) - far(b) || a - b);
}

/** The response that stays beside a trace, or the first that ended otherwise, or the first. */
function besideOf(i) {
  const others = siblingsOf(i), right = rightOf(index.traces[i]);
  if (panes[1] && others.includes(panes[1].trace)) return panes[1].trace;
  return others.find((j) => rightOf(index.traces[j]) === !right) ?? others[0];
}

function chooseBeside(i) {
  state.beside = i !== undefined;
  setBeside(i);
}

function listBeside() {
  const others = siblingsOf(panes[0].trace), choice = byId("beside");
  const option = (text, value) => Object.assign(element("option", "", text), { value });
  const named = others.map((j) => option(`${verdictOf(index.traces[j]).mark} ${index.traces[j].id}`, j));
  choice.replaceChildren(option("nothing", ""), ...named);
  choice.value = panes[1] ? panes[1].trace : "";
  choice.parentElement.hidden = !others.length;
}

/** The address names what is open, so that a link to it can be sent. */
function setAddress() {
  const ids = panes.map((pane) => index.traces[pane.trace].id);
  try { history.replaceState(null, "", `#${ids.map(encodeURIComponent).join("&")}`); } catch { /* half a surrogate pair, a frame */ }
}

/** The traces that the address names, -1 for an unknown one. */
function asked() {
  try {
    return location.hash.slice(1).split("&").map(decodeURIComponent).map((id) => index.traces.findIndex((head) => head.id === id));
  } catch { return []; }
}

// --- moving ----------------------------------------------------------------------------------------------------------

function jump(pane, s) {
  for (const column of [...panes.filter((other) => other !== pane), pane])
    column.rows[Math.min(s, column.rows.length - 1)].element.scrollIntoView({ block: "start" });
  pane.rows[s].element.focus({ preventScroll: true });
}

/** The number of the focused segment, -1 without one. */
const focusedOf = (pane) => pane.rows.findIndex((row) => row.element === document.activeElement);

function step(by) {
  const pane = panes[active];
  jump(pane, Math.max(0, Math.min(pane.rows.length - 1, focusedOf(pane) + by)));
}

function toColumn(place) {
  const s = Math.max(0, focusedOf(panes[active])), pane = panes[place];
  if (pane) jump(pane, Math.min(s, pane.rows.length - 1));
}

function toSuspect() {
  const pane = [panes[active], ...panes].find((column) => column.suspect);
  if (pane) jump(pane, pane.suspect.row);
}

function otherTrace(by) {
  const shown = [...byId("list").querySelectorAll("button")];
  const at = shown.findIndex((button) => Number(button.dataset.trace) === panes[0].trace);
  const next = shown[Math.max(0, Math.min(shown.length - 1, at + by))];
  if (next) { open(Number(next.dataset.trace)); next.scrollIntoView({ block: "nearest" }); }
}

/** Keys move where the focus is; the thought of the same number in the other column is marked. */
function focused(event) {
  if (!event.target.closest(".pane")) return;
  active = paneOf(event.target).place;
  document.querySelectorAll(".abreast").forEach((segment) => segment.classList.remove("abreast"));
  const s = event.target.dataset.segment;
  for (const pane of panes) if (pane.place !== active && pane.rows[s]) pane.rows[s].element.classList.add("abreast");
}

/** The part of each strip that is on the screen. */
function drawWindows() {
  for (const { element: pane, window: box, strip, rows } of panes) {
    const place = pane.getBoundingClientRect(), bottom = Math.min(place.bottom, innerHeight);
    const top = Math.max(place.top, 0) + strip.parentElement.offsetHeight;
    const seen = rows.filter((row) => {
      const box = row.element.getBoundingClientRect();
      return box.bottom > top && box.top < bottom;
    });
    box.hidden = !seen.length;
    if (!seen.length) continue;
    const left = strip.getBoundingClientRect().left - strip.parentElement.getBoundingClientRect().left;
    const last = seen.at(-1).tick;
    box.style.left = `${left + seen[0].tick.offsetLeft}px`;
    box.style.width = `${last.offsetLeft + last.offsetWidth - seen[0].tick.offsetLeft}px`;
  }
}
