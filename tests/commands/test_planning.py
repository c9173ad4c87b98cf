"""Every preset on the hardware it names, and what is said and refused before a run starts."""

import pytest
from testkit.composed import changed

from segrl.commands.config import CONFIG_DIR
from segrl.commands.planning import PLANS, gpu_named
from segrl.cost.shape import shape_of

pytest.importorskip("verl")


def details(hidden, layers, heads, kv, width, words, dtype="bfloat16"):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": width,
        "vocab_size": words,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }


QWEN_7B, LLAMA_8B = details(3584, 28, 28, 4, 18944, 152064), details(4096, 32, 32, 8, 14336, 128256)
# The figures of their config.json.
MODELS = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": details(1536, 28, 12, 2, 8960, 151936),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN_7B,
    "meta-llama/Llama-3.1-8B": LLAMA_8B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
}
PRESETS = [
    (command, path.stem)
    for command in ("sft", "grpo")
    for path in sorted((CONFIG_DIR / command / "preset").glob("*.yaml"))
    if path.stem != "toy_cpu"
]


def planned(command, preset, *overrides, gpu=None):
    config = changed(command, preset, *overrides)
    figures = MODELS[config.model_path]
    return PLANS[command](config, shape_of(figures), gpu_named(gpu or config.gpu), figures)


def test_the_parameters_of_the_models():
    sizes = [shape_of(figures).parameters / 1e9 for figures in MODELS.values()]
    assert sizes == pytest.approx([1.777, 7.615, 7.615, 8.030, 8.030], rel=0.001)  # as their cards say


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize(("command", "preset"), PRESETS)
def test_a_preset_fits_the_gpu_that_it_names(command, preset, attention):
    """With flash attention, and without it, where verl pads and its loss holds more copies of the logits."""
    model = "model" if command == "sft" else "actor_rollout_ref.model"
    planned(command, preset, f"{model}.use_remove_padding={str(attention == 'packed').lower()}").check()


def test_a_7b_preset_on_one_rank_is_refused_with_the_key():
    # 7.615e9 x 16 bytes are 113 GiB
    with pytest.raises(ValueError, match=r"update needs 1[2-4]\d GiB .* h100 has 79 GiB: raise nproc"):
        planned("sft", "r1_distill_qwen_7b", "nproc=1").check()
