// One trace: its head, its segments, its tokens, and what the selection makes of them.

function open(i) {
  state.trace = i;
  setAddress(index.traces[i].id);
  redraw();
  markCurrent();
  highlight();
  byId("main").scrollTop = 0;
}

function redraw() {
  const trace = traceOf(state.trace);
  byId("tint").value = tintName(trace) ?? "";
  drawSegments(trace);
  applySelection();
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
  const trace = traceOf(state.trace), view = viewOf(trace), by = tintOf(trace), pieces = [];
  const reason = view && view.byToken ? row.reason : null;
  const first = trace.text.slice(trace.cuts[row.from], trace.cuts[row.to]).match(/^\n*/)[0].length + trace.cuts[row.from];
  const last = trace.cuts[row.from] + trace.text.slice(trace.cuts[row.from], trace.cuts[row.to]).trimEnd().length;
  for (let t = row.from; t < row.to; t++) {
    const text = trace.text.slice(Math.max(trace.cuts[t], first), Math.min(trace.cuts[t + 1], last));
    if (!text || trace.cuts[t + 1] <= first) continue;
    const kind = [tint(by, t), reason && !isKept(reason[t]) ? "out" : ""].filter(Boolean).join(" ");
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

function tint(by, t) {
  if (!by) return "";
  const distance = by.values[t] - by.centre;
  const level = Math.round(LEVELS * Math.min(1, Math.abs(distance) / by.reference));
  return level ? (distance > 0 ? "p" : "n") + level : "";
}

/** Every tint's mean over a stretch: what one number says of it where tokens share their weight. */
function meansOf(trace, from, to) {
  const credit = Object.entries(trace.tints).filter(([name]) => name !== "score");
  return Object.fromEntries(credit.map(([name, by]) => [name, number(mean(by.values.slice(from, to)))]));
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
  row.facts = { segment: s + 1, ...shown.facts, ...meansOf(trace, row.from, row.to), tokens: row.to - row.from };
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
  if (head.step === undefined) say("gold", head.gold ?? "none");
  else sayCredit(head, trace, say);
  if (head.gap !== undefined) say("completeness gap", number(head.gap), isLow(head) ? "wrong" : "");
  if (head.copied !== undefined) say("on restated answers", percent(head.copied ?? 0));
  if (head.target !== undefined) say("explains", head.target === "own" ? "its own answer" : "the gold answer");
  if (view) say("kept", keptWords(view, reason));
  if (view) say("selection", state.live ? `live, tau ${state.tau.toFixed(2)}, beta ${state.beta.toFixed(2)}` : "as saved");
  for (const flag of head.flags || []) facts.append(element("span", "flag", flag));
  const problem = element("p", "problem", trace.problem.trim());
  problem.dir = "auto";
  problem.hidden = !trace.problem;
  byId("head").replaceChildren(title, facts, problem);
}

/** What GRPO made of a rollout. */
function sayCredit(head, trace, say) {
  const weights = trace.tints.weight.values;
  const spread = `${number(Math.min(...weights))} to ${number(Math.max(...weights))}`;
  say("answered", head.gold ?? "nothing");
  say("step", String(head.step));
  say("advantage", signed(head.advantage));
  say("weights", head.uniform ? `all one: ${head.uniform.replaceAll("_", " ")}` : spread);
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
