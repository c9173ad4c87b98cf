"""What a step costs, from a config.json alone."""

import json

import pytest

from segrl import toy
from segrl.commands.cli import main
from segrl.cost.hardware import GIB
from segrl.cost.hours import estimate, units
from segrl.cost.memory import attribution
from segrl.cost.shape import Shape, shape_of

QWEN_1_5B = {
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
}


def test_the_weights_of_a_known_model():
    # Qwen2.5-1.5B has 1.54 billion parameters, its tied embedding among them, and 1.31 without
    shape = shape_of(QWEN_1_5B)
    assert shape.weights == pytest.approx(1.54e9, rel=0.01)
    assert shape.weights - shape.vocabulary * shape.hidden == pytest.approx(1.31e9, rel=0.01)


def test_the_bundled_models_weights_are_counted_right():
    model, _ = toy.load_model()
    decoder = sum(p.numel() for name, p in model.named_parameters() if "norm" not in name and "bias" not in name)
    assert shape_of(model.config.to_dict()).weights == decoder  # the embedding is tied: it is the output layer


def test_flops_by_hand():
    shape = Shape(layers=1, hidden=2, heads=1, kv_heads=1, head_dim=2, feed_forward=3, vocabulary=5)
    assert shape.weights == (8 + 8) + 18 + 10  # queries and output, keys and values; feed-forward; output layer
    assert shape.forward_flops(length=10) == 2 * 44 + 2 * 1 * 2 * 10


@pytest.mark.parametrize(
    ("nodes", "share", "checkpointing", "every", "expected"),
    [
        (1, 1.0, False, 0, 0.5),
        (1, 1.0, True, 0, 0.75),
        (4, 0.25, False, 0, 0.5),
        (1, 1.0, False, 1, 0.5 + 2 / 3),  # two forwards, each a third of an update
        (1, 1.0, True, 10, 0.75 + 2 / 4 / 10),
    ],
)
def test_units_by_hand(nodes, share, checkpointing, every, expected):
    assert units(nodes, share, checkpointing, every) == pytest.approx(expected)


def test_seconds_scale_with_rollouts_and_gpus_and_memory_with_tokens_in_a_forward():
    shape = shape_of(QWEN_1_5B)
    one = estimate(shape, 4096, 512, 8)
    assert estimate(shape, 4096, 1024, 8).update_seconds == pytest.approx(2 * one.update_seconds)
    assert estimate(shape, 4096, 512, 16).update_seconds == pytest.approx(one.update_seconds / 2)
    assert one.attribution_seconds == pytest.approx(0.75 * one.update_seconds)
    # 4 forwards of 2 x 1.54e9 flops and some attention on 2.1 million tokens, at 8 x 989e12 x 0.35
    assert one.update_seconds == pytest.approx(4 * 2.1e6 * 2 * 1.72e9 / (8 * 989e12 * 0.35), rel=0.05)
    assert attribution(shape, 8192, True) == 2 * attribution(shape, 4096, True)
    assert attribution(shape, 16_384, True) < attribution(shape, 16_384, False) / 8
    gated = estimate(shape, 4096, 512, 8, path="values", tokens_per_forward=8192)
    assert gated.memory_gib == attribution(shape, 8192, True, path="values") / GIB
    with pytest.raises(ValueError, match="share=-1, expected a part of one"):
        estimate(shape, 4096, 512, 8, share=-1)
    with pytest.raises(ValueError, match="path='value', expected embeddings or values"):
        estimate(shape, 4096, 512, 8, path="value")
    assert 1 < attribution(shape, 16_384, True) / GIB < 4


def test_experts_count_by_those_that_a_token_passes():
    mixture = QWEN_1_5B | {"num_experts_per_tok": 2, "moe_intermediate_size": 1000, "num_experts": 60}
    assert shape_of(mixture).feed_forward == 2000
    assert shape_of({"text_config": QWEN_1_5B, "vision_config": {}}) == shape_of(QWEN_1_5B)


def test_a_config_of_another_kind_is_named():
    with pytest.raises(ValueError, match=r"config\.json has no num_hidden_layers, num_attention_heads"):
        shape_of({"hidden_size": 4, "vocab_size": 3})


def test_the_command(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_1_5B))
    arguments = ["cost", f"model_path={tmp_path}", "length=4096", "rollouts=512", "gpus=8"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "update_actor  10" in said or "update_actor  11" in said
    assert "0.80 x update_actor" in said
    assert main(["cost", "gpu=h1000"]) == 2
    assert "did you mean 'h100'?" in capsys.readouterr().err
    assert main(["cost", f"model_path={tmp_path / 'nowhere'}"]) == 2
    assert "there is no model folder" in capsys.readouterr().err
