// The segments and tokens of one trace, in its column.

/** Where the text is cut for the reader: by the view's own segments, unless these are single tokens. */
function cutsOf(trace) {
  const view = viewOf(trace);
  return view && !view.byToken ? view.boundaries : trace.blocks;
}

function drawSegments(pane) {
  const trace = traceOf(pane.trace), boundaries = cutsOf(trace);
  for (const row of pane.rows) looking.unobserve(row.element);
  pane.rows = boundaries.slice(1).map((to, s) => drawSegment(pane, trace, s, boundaries[s], to));
  pane.text.replaceChildren(...pane.rows.map((row) => row.element));
  pane.strip.replaceChildren(...pane.rows.map((row) => row.tick));
  for (const row of pane.rows) looking.observe(row.element);
}

function drawSegment(pane, trace, s, from, to) {
  const box = element("article", "segment"), track = element("span", "track"), bar = element("div", "bar");
  const row = { pane, from, to, element: box, gutter: element("div", "gutter"), fill: element("i"), label: element("span"), note: element("div", "note"), tick: element("i"), others: {}, drawn: false };
  box.tabIndex = 0;
  box.dataset.segment = row.tick.dataset.segment = s;
  track.append(row.fill);
  bar.append(track, row.label);
  row.gutter.append(bar);
  row.text = element("div", "text", trace.text.slice(trace.cuts[from], trace.cuts[to]).replace(/^\n+|\s+$/g, ""));
  row.text.dir = "auto";
  row.note.id = `note-${pane.place}-${s}`;
  box.setAttribute("aria-describedby", row.note.id);
  box.append(row.gutter, row.text, row.note);
  row.tick.style.flexGrow = to - from;
  return row;
}

/** Tokens are spans only where they are tinted; runs without tint are one text node, so that scripts keep joining. */
function drawTokens(row) {
  if (row.drawn) return;
  row.drawn = true;
  const trace = traceOf(row.pane.trace), view = viewOf(trace), by = tintOf(trace), pieces = [];
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
