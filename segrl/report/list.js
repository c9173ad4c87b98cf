// The list of traces: filtered, sorted, searched.

/** Whether the response is right; undefined where nobody knows. Of a rollout a reward above zero is right. */
function rightOf(head) {
  if (head.reward !== undefined) return head.reward > 0;
  return { right: true, wrong: false }[head.verdict];
}

function verdictOf(head) {
  const right = rightOf(head), name = right ? "right" : "wrong";
  if (right === undefined) return { mark: "·", name: "none", words: head.verdict ? `undecided (${head.status})` : "not graded" };
  return { mark: right ? "✓" : "✗", name, words: head.status ? `${name} (${head.status})` : `reward ${number(head.reward)}` };
}

const certificate = (head) => head.gap ?? -1; // nothing is known of a gap that was not computed
const isLow = (head) => certificate(head) > LOW || (head.flags || []).length > 0;

const long = quantile(index.traces.map((one) => one.tokens), 0.75);

function fits(head, i, words) {
  const problem = byId("problem").value;
  if (problem && head.problem !== Number(problem)) return false;
  const filters = { right: rightOf(head) === true, wrong: rightOf(head) === false, long: head.tokens >= long, low: isLow(head) };
  if (filters[byId("filter").value] === false) return false;
  return !words || wordsOf(i).some((text) => text.includes(words));
}

function sorted(found) {
  const heads = index.traces;
  const rightness = (i) => ({ true: 0, undefined: 1, false: 2 })[rightOf(heads[i])];
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
  const gap = certificate(head) < 0 ? "" : ` · gap ${number(head.gap)}${isLow(head) ? " ⚠" : ""}`;
  const credit = head.advantage === undefined ? "" : ` · advantage ${signed(head.advantage)}`;
  const mark = element("span", `mark ${verdict.name}`, verdict.mark);
  mark.setAttribute("aria-label", verdict.words);
  button.append(mark, element("span", "name", head.id), element("span", "facts", `${head.tokens.toLocaleString("en")} tokens${credit}${gap}`));
  const item = element("li");
  item.append(button);
  return item;
}

function markCurrent() {
  for (const button of byId("list").querySelectorAll("button"))
    button.setAttribute("aria-current", panes.some((pane) => pane.trace === Number(button.dataset.trace)));
}
