// What stands above a trace: its verdict, its certificate, what is kept, the problem.

const EXPLAINED = { own: "its own answer", gold: "the gold answer", contrast: "its own answer against the gold one" };

function drawHead(pane, trace, view, reason) {
  const head = index.traces[pane.trace], verdict = verdictOf(head), title = element("h2"), facts = element("p", "facts");
  title.append(element("span", `mark ${verdict.name}`, `${verdict.mark} `), head.id);
  const say = (name, value, kind = "") => {
    const fact = element("span", "", `${name} `), bold = element("b", kind, value);
    bold.dir = "auto";
    fact.append(bold);
    facts.append(fact);
    return fact;
  };
  say("verdict", verdict.words, verdict.name);
  if (head.verdict) say("answered", head.answered ?? "nothing");
  if (head.step === undefined) say("gold", head.gold ?? "none");
  else sayCredit(head, trace, say);
  if (certificate(head) >= 0) say("completeness gap", number(head.gap), isLow(head) ? "wrong" : "");
  if (head.copied !== undefined) say("on restated answers", percent(head.copied ?? 0));
  if (head.target !== undefined) say("explains", EXPLAINED[head.target]);
  if (view) say("kept", keptWords(view, reason));
  if (view) say("selection", state.live ? `live, tau ${state.tau.toFixed(2)}, beta ${state.beta.toFixed(2)}` : "as saved");
  if (pane.suspect) facts.append(suspectButton(pane, trace));
  else if (trace.suspect) say("misleading thought", "none marked").title = testWords(trace.suspect);
  for (const flag of head.flags || []) facts.append(element("span", "flag", flag));
  const problem = element("p", "problem", trace.problem.trim());
  problem.dir = "auto";
  problem.hidden = !trace.problem;
  pane.head.replaceChildren(title, facts, problem);
}

function suspectButton(pane, trace) {
  const { row, misled, score } = pane.suspect, name = misled ? "misleading thought" : "speaks most for the wrong answer";
  const button = element("button", misled ? "" : "untested", `${name}: segment ${row + 1}`);
  button.type = "button";
  button.title = `Jump to it (m). ${misled ? testWords(trace.suspect) : `Its score is ${signed(score)}. Not tested: it may be chance.`}`;
  button.addEventListener("click", () => jump(pane, row));
  return button;
}

/** What the test found. */
function testWords({ thought, score, reached, concludes }) {
  const found = `${percent(score)} of what speaks for the wrong answer lies on segment ${thought + 1}; by chance the best has at most ${percent(reached)}.`;
  return score > reached && concludes ? `${found} It states that answer itself.` : found;
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
