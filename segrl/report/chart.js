// The curves of a GRPO run: small charts over its steps, read with the pointer or the arrow keys, and as a table.

const curves = index.curves;
const steps = [...new Set(curves.flatMap((curve) => Object.values(curve.lines).flat().map(([step]) => step)))].sort((a, b) => a - b);
const charts = curves.map((curve) => {
  const lines = Object.entries(curve.lines).map(([name, points]) => ({ name, values: new Map(points), dot: element("i", "dot") }));
  const numbers = lines.flatMap(({ values }) => [...values.values()]).filter(Number.isFinite);
  return { curve, lines, low: Math.min(...numbers), high: Math.max(...numbers), plot: element("div", "plot"), cursor: element("i", "cursor"), readout: element("output") };
});
let pointed = steps.length - 1; // the place of the step that is read

function drawRun() {
  byId("run").hidden = !charts.length;
  if (!charts.length) return;
  byId("run-steps").textContent = steps.length > 1 ? `steps ${steps[0]} to ${steps.at(-1)}` : `step ${steps[0]}`;
  byId("charts").replaceChildren(...charts.map(drawChart), runTable());
  pointTo(pointed);
}

function drawChart(chart) {
  const { curve, plot, lines, cursor, readout } = chart, figure = element("figure", curve.contrast ? "contrast" : ""), title = element("figcaption");
  title.append(element("b", "", curve.name), ` ${curve.about}`);
  const facts = { role: "slider", tabindex: 0, "aria-label": `${curve.name} by step`, "aria-valuemin": steps[0], "aria-valuemax": steps.at(-1) };
  for (const [name, value] of Object.entries(facts)) plot.setAttribute(name, value);
  plot.append(drawLines(chart), cursor, ...lines.map(({ dot }) => dot));
  plot.addEventListener("pointermove", (event) => pointTo(nearest(plot, event.clientX)));
  plot.addEventListener("keydown", pointByKey);
  figure.append(title, element("span", "most", number(chart.high)), element("span", "least", number(chart.low)), plot, readout);
  return figure;
}

const across = (step) => (100 * (step - steps[0])) / (steps.at(-1) - steps[0] || 1);
const down = ({ low, high }, value) => (high > low ? (100 * (high - value)) / (high - low) : 50);

/** The lines in an SVG that is stretched over the plot; the second one is dashed. */
function drawLines(chart) {
  const shape = (name) => document.createElementNS("http://www.w3.org/2000/svg", name), svg = shape("svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": true })) svg.setAttribute(name, value);
  for (const { values } of chart.lines) {
    const points = [...values].filter(([, value]) => value !== null);
    const line = svg.appendChild(shape("polyline"));
    line.setAttribute("points", points.map(([step, value]) => `${across(step)},${down(chart, value)}`).join(" "));
  }
  return svg;
}

// --- reading ---------------------------------------------------------------------------------------------------------

function nearest(plot, x) {
  const box = plot.getBoundingClientRect(), place = (100 * (x - box.left)) / box.width;
  const far = steps.map((step) => Math.abs(across(step) - place));
  return far.indexOf(Math.min(...far));
}

/** Reads all curves at one step. */
function pointTo(place) {
  pointed = Math.max(0, Math.min(steps.length - 1, place));
  const step = steps[pointed];
  for (const chart of charts) {
    const words = `step ${step}: ${wordsAt(chart, step)}`;
    chart.cursor.style.left = `${across(step)}%`;
    for (const { dot, values } of chart.lines) {
      dot.hidden = !Number.isFinite(values.get(step));
      dot.style.left = `${across(step)}%`;
      if (!dot.hidden) dot.style.top = `${down(chart, values.get(step))}%`;
    }
    chart.readout.textContent = words;
    chart.plot.setAttribute("aria-valuenow", step);
    chart.plot.setAttribute("aria-valuetext", words);
  }
}

const valueAt = (values, step) => (values.has(step) ? number(values.get(step)) : "none");
const wordsAt = ({ lines }, step) => lines.map(({ name, values }) => valueAt(values, step) + (lines.length > 1 ? ` ${name}` : "")).join(", ");

function pointByKey(event) {
  const places = { ArrowLeft: pointed - 1, ArrowRight: pointed + 1, Home: 0, End: steps.length - 1 };
  if (!(event.key in places)) return;
  event.preventDefault();
  pointTo(places[event.key]);
}

/** The same numbers, for print and for those who hear the page. */
function runTable() {
  const table = element("table", "unseen"), all = charts.flatMap(({ curve, lines }) => lines.map((line) => ({ curve, ...line })));
  const row = (kind, cells) => table.insertRow().append(...cells.map((text) => element(kind, "", text)));
  row("th", ["step", ...all.map(({ curve, name }) => (name === curve.name ? name : `${curve.name}, ${name}`))]);
  for (const step of steps) row("td", [String(step), ...all.map(({ values }) => valueAt(values, step))]);
  return table;
}
