"""The page selects by segrl/selection.py's rule: the same reasons on the same numbers."""

import json
import shutil
import subprocess

import pytest
import torch

import segrl
from segrl import Segments
from segrl.importance import from_strength, token_scores
from segrl.report.page import FOLDER

RUN = """
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map(([scores, ...settings]) => select(scores, ...settings))));
"""


def columns(scores):
    return {
        "strength": scores.strength_S.tolist(),
        "share": scores.share_S.tolist(),
        "consistency": scores.consistency_S.tolist(),
        "tokens": scores.tokens_S.tolist(),
        "thought": scores.thought_S.tolist(),
        "segment": None if scores.segment_T is None else scores.segment_T.tolist(),
    }


def some_scores(seed):
    """Random, tied, nearly tied, zero, negative; of segments and of tokens."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 40, (1,), generator=generator))
    tokens_S = torch.randint(1, 60, (count,), generator=generator)
    kinds = ("thought",) * (count - 1) + ("answer" if seed % 2 else "thought",)
    segments = Segments((0, *tokens_S.cumsum(0).tolist()), kinds)
    if seed % 5 == 4:
        return token_scores(torch.randn(segments.tokens, generator=generator), segments)
    strength_S = torch.rand(count, generator=generator, dtype=torch.float64)
    if seed % 5 == 1:
        strength_S = (strength_S * 3).round() + 1e-14 * torch.rand(count, generator=generator, dtype=torch.float64)
    if seed % 5 == 2:
        strength_S = strength_S - 0.5
    if seed % 50 == 3:
        strength_S = torch.zeros(count)
    return from_strength(strength_S, segments, torch.rand(count, generator=generator, dtype=torch.float64))


def test_the_pages_selection_is_the_librarys():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; test_browser.py compares the same in Chromium")
    cases, expected = [], []
    for seed in range(300):
        scores = some_scores(seed)
        tau, beta = (round(float(one), 2) for one in torch.rand(2, generator=torch.Generator().manual_seed(seed)))
        force, least = [(0, -1), (), (0, -2, -1), (5, -30)][seed % 4], [1, 40][seed % 3 == 0]
        cases.append([columns(scores), tau, beta, force, least])
        expected.append(list(segrl.select(scores, tau, beta, force, least).reason_S))
    cases.append([columns(from_strength(torch.ones(30), Segments(tuple(range(31))))), 0.7, 0.8, [], 1])
    expected.append(["strength"] * 21 + ["dropped"] * 9)  # 21 of 30 equal ones reach 0.7
    script = (FOLDER / "selection.js").read_text() + RUN
    done = subprocess.run(
        [node, "-e", script], input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert [i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other] == []
    assert {reason for one in found for reason in one} == {"strength", "consistency", "forced", "dropped"}
