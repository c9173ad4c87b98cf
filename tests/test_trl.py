import inspect

import pytest

from segrl.trl import accuracy_reward, reward


def test_trl_gets_a_float_for_each_completion():
    """As GRPOTrainer calls it: everything by keyword, the dataset's columns and its own extras among it."""
    found = accuracy_reward(
        prompts=["p", "p", "p<think>\n", "p"],
        completions=["\\boxed{7}", "\\boxed{8}", "\\boxed{7}", "</think> \\boxed{x(x+1)}"],
        completion_ids=[[1], [2], [3], [4]],
        answer=["7", "7", "7", "x^2+x"],
        level=[1, 2, 3, 4],
        trainer_state=object(),
    )
    assert found == [1.0, 0.0, 0.0, 1.0]
    assert all(isinstance(one, float) for one in found)


def test_a_completion_without_think_end_is_judged_by_how_it_ended():
    """The template opened the thought. The first ended by itself; the second was cut off with a draft in a box."""
    said = [[{"role": "assistant", "content": "so \\boxed{7}"}]] * 2
    asked = [[{"role": "user", "content": "3 + 4?"}]] * 2
    given = {"prompts": asked, "completions": said, "answer": ["7"] * 2, "opened": True}
    assert accuracy_reward(**given, completion_ids=[[5, 2], [5, 6]], ends=[2]) == [1.0, 0.0]
    assert accuracy_reward(**given, completion_ids=[[5, 2], [5, 6]]) == [0.0, 0.0]


def test_conversations_and_worked_solutions_are_read():
    completions = [[{"role": "assistant", "content": "so \\boxed{7}"}]] * 2
    prompts = [[{"role": "user", "content": "3 + 4?"}]] * 2
    solution = ["3 + 4 = 7, so it is \\boxed{7}.", "8"]
    assert accuracy_reward(prompts=prompts, completions=completions, solution=solution) == [1.0, 0.0]


def test_a_gold_that_cannot_be_read_leaves_the_completion_out():
    assert accuracy_reward(["\\boxed{7}"] * 4, answer=["\\text{}", "", None, "7"]) == [None, None, None, 1.0]


def test_options_come_with_a_function_that_has_a_name():
    """TRL calls the reward itself, and logs it by its name."""
    opened = reward(opened=True, ends=[0])
    assert opened.__name__ == "accuracy_reward"
    drafts = {"completions": ["so \\boxed{7}"], "answer": ["7"], "completion_ids": [[5, 6]]}
    assert (opened(**drafts), accuracy_reward(**drafts)) == ([0.0], [1.0])


def test_missing_golds_are_a_sentence():
    with pytest.raises(ValueError, match="2 completions came with 0 gold answers"):
        accuracy_reward(["a", "b"])


def test_the_signature_takes_what_trl_sends():
    parameters = inspect.signature(accuracy_reward).parameters
    assert {"prompts", "completions"} <= set(parameters)
    assert parameters["columns"].kind is inspect.Parameter.VAR_KEYWORD
