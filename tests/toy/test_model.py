"""The bundled base: a tokenizer without surprises, an accuracy that leaves room, and steps that cause the answer."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segrl.segmentation import split
from segrl.text.prompting import render
from segrl.toy import CLASSES, MODEL_PATH, load_model, sample_mistakes, sample_problems, sample_traces

SUFFIX = "</think> So, the final answer is \\boxed{"


@pytest.fixture(scope="module")
def loaded():
    return load_model()


def test_the_folder_is_small_and_the_model_is_what_the_card_says(loaded):
    model, _ = loaded
    assert sum(file.stat().st_size for file in MODEL_PATH.iterdir()) <= 8 * 2**20
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert model.config.model_type == "qwen2"
    assert not model.training
    assert model.config.hidden_size // model.config.num_attention_heads == 32
    assert next(model.parameters()).dtype == torch.float32
    card = (MODEL_PATH / "README.md").read_text()
    assert all(word in card for word in ("train_toy.py", "--seed", "minutes", "accuracy"))


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(loaded, text):
    _, tokenizer = loaded
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=False) == text


def test_tokens(loaded):
    _, tokenizer = loaded
    one = [*"0123456789", *(f" {name}" for name in "abcdefghizyxn"), "<think>", "</think>", ".\n\n", " boxed"[1:]]
    assert [text for text in one if len(tokenizer(text).input_ids) != 1] == []
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    ids = tokenizer("<think>x</think><|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think>"


def test_pieces_tokenise_as_the_whole(loaded):
    _, tokenizer = loaded
    for trace in sample_traces(50, seed=21):
        prompt = render(trace.problem, tokenizer)
        assert prompt.endswith("<think>\n")
        thinking = trace.response.split("</think>")[0]
        pieces = [prompt, thinking, SUFFIX, trace.answer, "}"]
        assert "".join(pieces[1:]) == trace.response
        whole = tokenizer(prompt + trace.response).input_ids
        assert [i for piece in pieces for i in tokenizer(piece).input_ids] == whole


def padded(rows, pad, left=False):
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    ids = torch.tensor([gap + row if left else row + gap for gap, row in zip(fill, rows, strict=True)])
    mask = torch.tensor(
        [[0] * len(g) + [1] * len(r) if left else [1] * len(r) + [0] * len(g) for g, r in zip(fill, rows, strict=True)]
    )
    return ids, mask


@torch.no_grad()
def greedy(model, tokenizer, problems, **how):
    rows = [tokenizer(render(p.problem, tokenizer)).input_ids for p in problems]
    ids, mask = padded(rows, tokenizer.pad_token_id, left=True)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=256, do_sample=False, **how)
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def answered(response):
    boxed = re.findall(r"</think>.*\\boxed\{(\d+)\}$", response, flags=re.DOTALL)
    return boxed[0] if boxed else None


@pytest.mark.e2e
@pytest.mark.parametrize(("ask", "least", "most"), [("all", 0.33, 0.72), ("last", 0.25, 0.85)])
def test_greedy_accuracy_leaves_room_to_learn(loaded, ask, least, most):
    problems = sample_problems(100, 31, ask)
    responses = greedy(*loaded, problems)
    right = np.mean([answered(r) == p.answer for r, p in zip(responses, problems, strict=True)])
    # the card has the numbers of many problems; 100 of them stray by five points
    assert least <= right <= most
    assert np.mean([answered(r) is None for r in responses]) <= 0.05


@torch.no_grad()
def answer_logps(model, tokenizer, items):
    """log p(right answer) of (problem, thinking, answer) triples, and whether each is the argmax at every digit."""
    rows, lengths = [], []
    for problem, thinking, answer in items:
        context = tokenizer(render(problem, tokenizer) + thinking + SUFFIX).input_ids
        digits = tokenizer(answer).input_ids
        rows.append(context + digits)
        lengths.append(len(digits))
    totals, best = [], []
    for at in range(0, len(rows), 50):
        ids, mask = padded(rows[at : at + 50], tokenizer.pad_token_id)
        logp = model(ids, attention_mask=mask).logits.log_softmax(-1)
        for i, row in enumerate(rows[at : at + 50]):
            where = torch.arange(len(row) - lengths[at + i], len(row))
            totals.append(logp[i, where - 1, ids[i, where]].sum().item())
            best.append(bool((logp[i, where - 1].argmax(-1) == ids[i, where]).all()))
    return np.array(totals), np.array(best)


@pytest.mark.e2e
@pytest.mark.parametrize("ask", ["all", "last"])
def test_the_answer_is_read_off_a_right_trace_and_its_own_off_a_wrong_one(loaded, ask):
    traces = sample_traces(200, seed=41, ask=ask) + sample_mistakes(200, 41, ask)
    boxed = [answered(t.response) for t in traces]
    read = [(t.problem, t.response.split("</think>")[0], own) for t, own in zip(traces, boxed, strict=True)]
    _, best = answer_logps(*loaded, read)
    assert [own == t.answer for t, own in zip(traces, boxed, strict=True)] == [True] * 200 + [False] * 200
    assert min(best[:200].mean(), best[200:].mean()) >= 0.97


# Causal: what happens to log p(right answer) when a segment is taken out


def removals(traces, with_repeats):
    """(class, tokens kept out, trace, thinking without it) of segments whose value stands nowhere else, or, with
    ``with_repeats``, of steps that were repeated and all of their repeats."""
    for trace in traces:
        segments = split(trace.response.split("</think>")[0])
        kinds, steps = trace.meta["kinds"][:-1], trace.meta["steps"][:-1]
        if "restated" in kinds:
            continue
        for i, (kind, step) in enumerate(zip(kinds, steps, strict=True)):
            copies = [j for j, k in enumerate(kinds) if steps[j] == step >= 0 and k in ("repeat", "check") and j != i]
            if CLASSES[kind] == "other" or any(kinds[j] == "check" for j in copies):
                continue
            if kind == "needed" and bool(copies) != with_repeats:
                continue
            gone = {i, *copies} if kind == "needed" else {i}
            yield CLASSES[kind], len(gone), trace, "".join(s for j, s in enumerate(segments) if j not in gone)


def drops(loaded, found):
    before, _ = answer_logps(*loaded, [(t.problem, t.response.split("</think>")[0], t.answer) for _, _, t, _ in found])
    after, _ = answer_logps(*loaded, [(t.problem, thinking, t.answer) for _, _, t, thinking in found])
    return before - after


def interval(values, seed=0):
    means = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.e2e
@pytest.mark.parametrize("with_repeats", [False, True])
def test_a_needed_step_causes_the_answer_and_a_redundant_one_does_not(loaded, with_repeats):
    found = list(removals(sample_traces(500 if with_repeats else 60, seed=51), with_repeats))
    needed = [f for f in found if f[0] == "needed"][:90]
    redundant = [f for f in found if f[0] == "redundant"][: len(needed)]
    assert min(len(needed), len(redundant)) >= 80
    drop_needed, drop_redundant = drops(loaded, needed), drops(loaded, redundant)
    assert drop_needed.mean() >= 1.0
    assert drop_redundant.mean() <= 0.2
    assert interval(drop_needed)[0] > interval(drop_redundant)[1]
