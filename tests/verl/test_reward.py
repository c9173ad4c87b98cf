from concurrent.futures import ThreadPoolExecutor

from segrl.verl.reward import compute_score

CASES = {
    "exact": ("7", "so \\boxed{7}", 1.0),
    "symbolic": ("0.5", "so \\boxed{\\frac{1}{2}}", 1.0),
    "no_answer": ("7", "it is 7", 0.0),
}


def test_every_verdict_has_the_same_keys_off_the_main_thread():
    """verl calls the reward in an executor and makes a column of each key."""
    with ThreadPoolExecutor(1) as executor:
        for status, (gold, response, score) in CASES.items():
            verdict = executor.submit(compute_score, "toy", response, gold, {"index": 0}, num_turns=2).result()
            assert list(verdict) == ["score", "acc", "status", "pred"]
            assert (verdict["score"], verdict["acc"], verdict["status"]) == (score, score, status)
            assert isinstance(verdict["pred"], str)


def test_a_draft_is_no_answer_where_thinking_is_required():
    cut_off = "I try \\boxed{7} and"
    assert compute_score("toy", cut_off, "7")["score"] == 1.0
    assert compute_score("toy", cut_off, "7", thinking="required")["status"] == "no_answer"
