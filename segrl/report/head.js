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
  };
  say("verdict", verdict.words, verdict.name);
  if (head.correct !== undefined) say("answered", head.answered ?? "nothing");
  if (head.step === undefined) say("gold", head.gold ?? "none");
  else sayCredit(head, trace, say);
  if (certificate(head) >= 0) say("completeness gap", number(head.gap), isLow(head) ? "wrong" : "");
  if (head.copied !== undefined) say("on restated answers", percent(head.copied ?? 0));
  if (head.target !== undefined) say("explains", EXPLAINED[head.target]);
  if (view) say("kept", keptWords(view, reason));
  if (view) say("selection", state.live ? `live, tau ${state.tau.toFixed(2)}, beta ${state.beta.toFixed(2)}` : "as saved");
  if (pane.misleading >= 0) facts.append(misleadingButton(pane));
  for (const flag of head.flags || []) facts.append(element("span", "flag", flag));
  const problem = element("p", "problem", trace.problem.trim());
  problem.dir = "auto";
  problem.hidden = !trace.problem;
  pane.head.replaceChildren(title, facts, problem);
}

function misleadingButton(pane) {
  const button = element("button", "", `misleading thought: segment ${pane.misleading + 1}`);
  button.type = "button";
  button.title = `jump to what speaks most for the wrong answer, ${signed(misleadingOf(pane.trace).score)} (m)`;
  button.addEventListener("click", () => jump(pane, pane.misleading));
  return button;
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
