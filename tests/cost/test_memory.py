"""Memory by phase: numbers by hand, and what autograd really saves."""

import weakref
from dataclasses import replace

import pytest
import torch
from testkit.tiny import byte_level_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

import segrl
from segrl import Trace, toy
from segrl.attribution.evaluator import Row, evaluator
from segrl.cost.hardware import GIB, named
from segrl.cost.memory import (
    Phase,
    Serving,
    Training,
    attribution,
    check_cache,
    generation,
    held,
    log_probs,
    step,
    update,
)
from segrl.cost.plan import Plan, hours_said
from segrl.cost.shape import Shape, shape_of

# 2 layers of 4 x 4 (queries), 4 x 4 (output), 2 x 4 x 2 (keys, values), 3 x 4 x 8: 48 + 96 = 144; 10 words of 4, tied
SMALL = Shape(layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, feed_forward=8, vocabulary=10)


def test_the_parts_of_an_update_by_hand():
    assert SMALL.parameters == 2 * 144 + 40
    training = Training(ranks=2, tokens=100, checkpointing=False)
    # a token keeps 6 x 4 + 2 x 2 x 3 + 4 x 8 = 68 numbers in a layer
    assert update(SMALL, training).parts == {
        "weights": 4 * 328 / 2,
        "optimiser": 8 * 328 / 2,
        "gradients": 4 * 328 / 2 + 2 * 40,
        "gathered": 2 * (40 + 2 * 144),
        "activations": 100 * 2 * 68 * 2,
        "logits": 100 * 10 * 2,
    }
    # the layers' inputs, and what a layer's 68 numbers take beyond the 10 of the logits
    assert update(SMALL, replace(training, checkpointing=True)).parts["activations"] == 100 * (2 * 4 + 68 - 10) * 2
    # padded rows without the kernel: logits, each row's result, the copy out of the padding; then a temperature's
    assert update(SMALL, replace(training, packed=False, scaled=True)).parts["logits"] == 4 * 100 * 10 * 2
    assert step(SMALL, training).parts["Adam's work"] == 4 * 328 / 2


def test_adapters_train_little_and_offloaded_weights_hold_nothing():
    lora = Training(lora_rank=3)
    # of each of the layers: 2 x (4 + 4), 2 x (4 + 2) and 3 x (4 + 8) = 64, times the rank
    assert held(SMALL, lora) == {"weights": 4 * (328 + 384), "optimiser": 8 * 384}
    assert update(SMALL, lora).parts["gradients"] == 4 * 384
    assert held(SMALL, Training(on_cpu=True)) == {}


def test_chunks_bound_what_the_entropy_takes():
    """The logits in bfloat16, and three times in float32 of the tokens that are read at once: all of padded rows."""
    training = Training(tokens=1000)
    assert log_probs(SMALL, training, None).parts["logits"] == 1000 * 10 * (2 + 4 * 3)
    padded = replace(training, packed=False, scaled=True)
    assert log_probs(SMALL, padded, 50).parts["logits"] == 1000 * 10 * (2 + 2 + 4 * 3)
    assert log_probs(SMALL, training, 50).parts["logits"] == 1000 * 10 * 2 + 50 * 10 * 4 * 3


def test_vllms_cache_fills_its_share_and_holds_a_sequence():
    serving = Serving(gpus=2, share=0.5, length=1000)
    served = generation(SMALL, serving, 80 * GIB)
    assert served.total == 40 * GIB
    check_cache(SMALL, serving, served, "gpu_memory_utilization")
    with pytest.raises(ValueError, match=r"share of 0\.5 leaves 0 GiB .* raise gpu_memory_utilization"):
        check_cache(SMALL, serving, generation(SMALL, serving, 4 * GIB), "gpu_memory_utilization")


def saved_for_backward(model, ids) -> int:
    """Bytes that autograd keeps of a forward up to the last layer, weights not counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False)
    return sum(kept.values())


def test_a_layer_keeps_what_autograd_saves():
    model, _ = toy.load_model()
    shape, ids = shape_of(model.config.to_dict()), torch.randint(3, 500, (2, 256))
    planned = update(shape, Training(tokens=512, precision=4, checkpointing=False)).parts["activations"]
    assert saved_for_backward(model, ids) == pytest.approx(planned, rel=0.15)


class Peak(TorchDispatchMode):
    """The most bytes that results of torch's operations held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if type(tensor) is torch.Tensor and tensor.untyped_storage()._cdata not in self.live:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata, 0)
                self.most = max(self.most, sum(self.live.values()))
        return result


@pytest.mark.parametrize(("checkpointing", "more"), [(False, 8 * 32 - 64 - 64), (True, 32 - 64)])
def test_gates_keep_each_layers_value_vectors_once_more_and_the_path_over_embeddings_its_reach(checkpointing, more):
    """Two heads of 16 numbers in each of 8 layers, a reach of 64; the first layer keeps no input of its norm."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4}
    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    model, trace = (
        LlamaForCausalLM(config).eval(),
        segrl.tokenize(Trace("t", "3 + 4?", "Wait, 7. " * 150, "7"), tokenizer),
    )
    measured, planned = [], []
    for path in ("embeddings", "values"):
        evaluate = evaluator(model, [trace], tokenizer, path=path, baseline=7)
        tokens = len(evaluate.explained[0])
        with Peak() as peak:
            evaluate([Row(0, 0.5, 1.0)], checkpointing)
        measured.append(peak.most / 4 / tokens)
        planned.append(attribution(shape_of(config.to_dict()), tokens, checkpointing, 4, path) / 4 / tokens)
    assert measured[1] - measured[0] == pytest.approx(more, abs=4)
    assert planned[1] - planned[0] == more + (0 if checkpointing else 64)
    assert planned[1] / measured[1] == pytest.approx(planned[0] / measured[0], rel=0.05)


@pytest.mark.e2e
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_verls_loss_on_padded_rows_holds_as_many_copies_of_the_logits_as_planned(dtype, temperature):
    """As verl's engine calls it, on two rows whose logits are large beside all else."""
    pytest.importorskip("verl")
    from verl.utils.torch_functional import logprobs_from_logits_v2

    rows, tokens, words = 2, 64, 4000
    head = torch.randn(words, 8, dtype=dtype, requires_grad=True)
    hidden, labels = torch.randn(rows, tokens, 8, dtype=dtype), torch.randint(0, words, (rows * tokens,))
    with Peak() as peak:
        logits = output = hidden @ head.t()  # the model's output lives until the loss is known
        if temperature != 1:
            logits = output / torch.tensor(temperature).to(dtype)
        lengths = torch.tensor([tokens] * rows)
        logits = torch.nested.narrow(logits, 1, torch.zeros_like(lengths), lengths, layout=torch.jagged)
        flat = torch.cat(list(logits.unbind()))
        loss = logprobs_from_logits_v2(flat, labels).float().sum()
        del logits, output, flat
        loss.backward()
    training = Training(tokens=rows * tokens, precision=dtype.itemsize, packed=False, scaled=temperature != 1)
    shape = Shape(layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8, feed_forward=8, vocabulary=words)
    assert peak.most == pytest.approx(update(shape, training).parts["logits"], rel=0.05)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_names_the_largest_part_that_a_key_makes_smaller():
    phase = Phase("update", {"gathered": 50 * GIB, "weights": 20 * GIB, "logits": 7 * GIB})
    plan = Plan(SMALL, named("h100"), 8, (phase,), {"weights": "raise nproc", "logits": "lower the tokens"})
    with pytest.raises(ValueError, match=r"update needs 77 GiB .* and 3 GiB to spare; h100 has 79 GiB: raise nproc"):
        plan.check()
    fits = Phase("update", {"weights": 75 * GIB})
    Plan(SMALL, named("h100"), 8, (fits,), {"weights": "raise nproc"}).check()


@pytest.mark.parametrize(
    ("hours", "said"), [(2000, "2,000 hours"), (2.5, "2.5 hours"), (0.5, "30 minutes"), (0.001, "3.6 seconds")]
)
def test_times_are_said_in_their_unit(hours, said):
    assert hours_said(hours) == said
