"""Traces to look at, made without a model: the tokens are words, their scores random or given."""

import html.parser
import json
import re
from dataclasses import replace

import torch

import segrl
from segrl import Segments, TokenisedTrace
from segrl.importance import from_strength, segment_scores, token_scores
from segrl.report import Entry, View
from segrl.types import Attribution, Stream

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror=stolen=1> <!--data--> /*script*/ &amp;"
CHINESE = "首先我们计算两个数的和。等一下，我需要再检查一遍：𠀀 等于 12 😀。"
ARABIC = "لنفترض أن x = 5، إذن النتيجة هي 12.\nوهذا صحيح."


def trace_of(pieces, id="t", answer="12", problem="How many?", **meta):
    """A trace whose segments are ``pieces`` and whose tokens are words, and two characters where there are no words."""
    response = "\n\n".join(pieces)
    spans = [found.span() for found in re.finditer(r"\s*[\x21-\x7e]+|\s*[^\s\x21-\x7e]{1,2}|\s+$", response)]
    ids = torch.arange(len(spans))
    trace = TokenisedTrace(
        id,
        problem,
        response,
        answer,
        meta,
        prompt_ids=ids[:2],
        response_ids=ids,
        offsets_T=torch.tensor(spans),
        trainable_T=torch.ones(len(spans), dtype=torch.bool),
        prompt_hash="hash",
    )
    starts = [0]
    for piece in pieces[:-1]:
        starts.append(starts[-1] + len(piece) + 2)
    boundaries = [next(t for t, (_, end) in enumerate(spans) if end > start) for start in starts]
    kinds = ["thought"] * (len(pieces) - 1) + ["answer"]
    return trace, Segments((*boundaries, len(spans)), tuple(kinds))


def entry_of(pieces, scores_T=None, gap=0.01, flags=(), graded=True, seed=0, **fields):
    trace, segments = trace_of(pieces, **fields)
    generator = torch.Generator().manual_seed(seed)
    scores_T = torch.randn(trace.tokens, generator=generator) if scores_T is None else torch.tensor(scores_T)
    attribution = Attribution(
        scores_T,
        gap,
        0.1,
        trace_id=trace.id,
        target="gold",
        input_ids=torch.arange(3),
        answer_span=(1, 2),
        logp_input=-0.1,
        logp_baseline=-5.0,
        mass_prompt=0,
        mass_suffix=0,
        evaluations=14,
        flags=flags,
    )
    scores = {
        "ig": segment_scores(scores_T, segments),
        "random": from_strength(torch.rand(len(segments), generator=generator), segments),
        "tokens": token_scores(scores_T.abs(), segments),
    }
    views = {
        name: View(segments if name != "tokens" else segments.by_token, one, segrl.select(one))
        for name, one in scores.items()
    }
    verdict = segrl.grade(trace.answer, trace.response) if graded else None
    return Entry(trace, segments, verdict, attribution, views)


def contrasted(pieces, strength_S, **fields):
    """An entry of two views, of which the second is a contrast with these scores, and twice these as a part of them."""
    entry = entry_of(pieces, **fields)
    strength_S = torch.tensor(strength_S)
    scores = replace(from_strength(strength_S, entry.segments), parts={"without": 2 * strength_S})
    contrast = View(entry.segments, scores, segrl.select(scores), target="contrast")
    return entry._replace(views={"ig": entry.views["ig"], "mistake": contrast})


def many_kinds():
    """One hostile, one Chinese, one Arabic, one wrong."""
    boxed = "</think> So \\boxed{%s}"
    return [
        entry_of(["Let me see 5 + 7", "Wait " + HOSTILE, "Another way gives 12", boxed % 12], id="hostile<b>", seed=1),
        entry_of([CHINESE, "Wait " + CHINESE * 3, CHINESE, boxed % 12], id="chinese", seed=2, problem=CHINESE),
        entry_of([ARABIC, ARABIC + " Wait, 12.", ARABIC, boxed % 12], id="arabic", seed=3, problem=ARABIC),
        entry_of(["It is 13.", "Wait, 13", "But wait, so", boxed % 13], id="wrong", seed=4, gap=0.5, flags=("coarse",)),
    ]


def rollout_of(key, pieces, advantage, reward, scores_T=None, problem="What is 5 + 7?", **settings):
    """A line of GRPO's rollout dump, written by the function that writes them; unweighed without scores."""
    from segrl.credit.rollout import Rollout, evidence_of, record, weigh_rollout
    from segrl.credit.settings import CreditSettings

    trace, segments = trace_of(pieces, id=key, problem="")
    rollout = Rollout(key, trace, segments, torch.full((trace.tokens,), advantage), reward)
    if scores_T is None:
        return {**record(rollout, "other_sign", None, rollout.advantages_T), "prompt": problem}
    credit = CreditSettings(**{"rule": "rank", **settings})
    weighed = weigh_rollout(
        rollout, evidence_of(rollout, Stream(torch.tensor(scores_T), gap=0.1), credit), credit, step=1
    )
    return {**record(rollout, None, weighed, rollout.advantages_T * weighed.weights_T), "prompt": problem}


def dumped(folder):
    """Two steps of GRPO on two prompts, as ``segrl.dump_dir`` has them.

    Strengths 1, 3 and 0.5 rank as weights 1, 1.2 and 0.8, whose mean over as many tokens each is one.
    """
    boxed = "</think> \\boxed{12}"
    scores_T, right = [1.0, 1.0, 3.0, 3.0, 0.5, 0.5, 0.0, 0.0], ["a b", "c d", "e f", boxed]
    steps = {
        1: [
            rollout_of("a_0_0", right, 0.5, 1.0, scores_T),
            rollout_of("a_1_0", ["a b", "c", boxed.replace("12", "13")], -0.5, 0.0),
            rollout_of("b_0_0", ["x y", boxed], -1.0, 0.0, problem="What is 2 + 2?"),
        ],
        2: [rollout_of("a_0_0", right, 0.5, 1.0, scores_T)],
    }
    folder.mkdir()
    for step, lines in steps.items():
        (folder / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Blocks(html.parser.HTMLParser):
    """What a browser's parser sees: every element, and the text of each script by its id."""

    def __init__(self):
        super().__init__()
        self.elements, self.scripts, self.inside = [], {}, None

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("id", "code") if tag == "script" else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


def read(text):
    blocks = Blocks()
    blocks.feed(text)
    return blocks, {name: json.loads(data) for name, data in blocks.scripts.items() if name != "code"}
