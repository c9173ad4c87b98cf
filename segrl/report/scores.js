// What the measures and the selection say of each segment.

const CELLS = 3; // scores by other measures that stand beside the bars

// --- by the other measures -------------------------------------------------------------------------------------------

/** The parts of each thought's score, and its scores by the measures that are not shown and cut the text alike. */
function drawOthers(pane) {
  const trace = traceOf(pane.trace), shown = viewOf(trace), boundaries = String(cutsOf(trace));
  const parts = shown ? shown.parts : {};
  const made = Object.entries(parts).map(([words, strength]) => ({ view: { ...shown, strength }, words }));
  const scored = trace.views.map((view, k) => ({ view, words: index.words[k] }))
    .filter(({ view, words }) => view && view !== shown && String(view.boundaries) === boundaries && !(words in parts));
  const others = [...made, ...scored];
  for (const { view, words } of others)
    pane.rows.forEach((row, s) => { if (view.thought[s]) row.others[words] = signed(view.strength[s]); });
  const beside = others.slice(0, CELLS), names = beside.map(({ words }) => words);
  pane.element.style.setProperty("--others", beside.length);
  if (names.length) names.push(index.words[trace.views.indexOf(shown)]);
  pane.names.replaceChildren(...names.map((name) => element("span", "", name.replaceAll("_", " "))));
  for (const { view } of beside) drawCells(pane, view);
}

function drawCells(pane, view) {
  const most = Math.max(...view.strength.map(Math.abs)) || 1, kind = forWrong(pane.trace, view) ? "cell contrast" : "cell";
  pane.rows.forEach((row, s) => {
    const value = view.strength[s];
    const cell = element("span", value < 0 ? `${kind} below` : kind, view.thought[s] ? short(value, most) : "");
    cell.style.setProperty("--h", view.thought[s] ? `${(100 * Math.abs(value)) / most}%` : 0);
    row.gutter.insertBefore(cell, row.gutter.lastChild);
  });
}

/** The suspect with the row where it stands, or null. */
function markSuspect(pane) {
  const suspect = suspectOf(pane.trace);
  pane.suspect = suspect && { ...suspect, row: pane.rows.findIndex((row) => row.from <= suspect.from && suspect.from < row.to) };
}

// --- by the measure that is shown ------------------------------------------------------------------------------------

function applySelection() {
  panes.forEach(applyTo);
  drawControls();
  highlight();
}

function drawControls() {
  byId("saved").setAttribute("aria-pressed", !state.live);
  byId("tau-value").textContent = state.tau.toFixed(2);
  byId("beta-value").textContent = state.beta.toFixed(2);
}

function applyTo(pane) {
  const trace = traceOf(pane.trace), view = viewOf(trace), reason = view ? reasons(view) : null;
  const shown = pane.rows.map((row, s) => numbersOf(row, s, view, reason));
  const most = Math.max(...shown.map((one) => one.height), 0) || 1;
  pane.element.classList.toggle("contrast", forWrong(pane.trace, view));
  pane.rows.forEach((row, s) => drawNumbers(row, s, shown[s], shown[s].height / most, trace));
  drawHead(pane, trace, view, reason);
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

function drawNumbers(row, s, shown, relative, trace) {
  const kinds = { dropped: !shown.kept, answer: shown.answer }, suspect = row.pane.suspect;
  if (suspect && suspect.row === s) kinds[suspect.misled ? "misleading" : "untested"] = true;
  const kind = Object.keys(kinds).filter((name) => kinds[name]).join(" ");
  row.element.className = `segment ${kind}`;
  row.tick.className = kind;
  row.tick.style.setProperty("--h", `${100 * relative}%`);
  row.fill.style.width = `${100 * relative}%`;
  row.fill.hidden = relative === 0;
  row.label.textContent = shown.label;
  row.facts = { segment: s + 1, ...shown.facts, ...row.others, ...meansOf(trace, row.from, row.to), tokens: row.to - row.from };
  if (trace.planted && trace.planted.length === row.pane.rows.length) row.facts.planted = trace.planted[s];
  fillNote(row);
  if (row.reason && row.drawn) {
    row.drawn = false;
    drawTokens(row);
  }
}

function fillNote(row, extra = {}) {
  const facts = { ...row.facts, ...extra }, said = JSON.stringify(facts), list = element("dl");
  if (row.said === said) return; // a slider changes few notes
  row.said = said;
  for (const [name, value] of Object.entries(facts))
    list.append(element("dt", "", name), element("dd", "", String(value)));
  row.note.replaceChildren(list);
}
