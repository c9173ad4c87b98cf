"""Attributors in Ray actors of their own, on a Ray that is started here."""

import tempfile

import pytest

pytest.importorskip("verl")

import psutil
import ray
from transformers import AutoTokenizer

import segrl
from segrl import toy
from segrl.credit.settings import CreditSettings
from segrl.importance.lockstep import Request
from segrl.verl.sources import FrozenAttributors, check_free

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled"),
]


def test_attributors_for_which_no_gpu_is_left_are_refused():
    check_free(2, 0.5, 1.0)
    with pytest.raises(ValueError, match=r"attributor_gpus=1.0 take 2 GPUs, and the trainer leaves 1 free; lower"):
        check_free(2, 1.0, 1.0)


def test_an_attributor_that_dies_is_started_again_and_asked_again(monkeypatch):
    """What both give is what attribute() gives here: gates on value vectors, the log-odds of the answer."""
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    [trace] = [segrl.tokenize(sampled, tokenizer) for sampled in toy.sample_traces(1, seed=3)]
    request = Request(path="values", output="log_odds", interpolate=None)
    credit = CreditSettings(rule="rank", attributor="frozen", attributor_path=str(toy.MODEL_PATH))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=2, _temp_dir=folder, include_dashboard=False, log_to_driver=False)
        try:
            attributors = FrozenAttributors(credit, tokenizer, on_cpu=True)
            [before] = attributors.attribute([trace], request, [(0,)])
            [process] = [child for child in psutil.Process().children(recursive=True) if "ModelActor" in child.name()]
            process.kill()
            [after] = attributors.attribute([trace], request, [(0,)])
        finally:
            ray.shutdown()
    assert after.scores_T.tolist() == before.scores_T.tolist()
    options = {"nodes": 1, "tolerance": None, "path": "values", "output": "log_odds"}
    [here] = segrl.attribute(toy.load_model()[0], [trace], tokenizer, **options)
    assert before.scores_T.tolist() == pytest.approx(here.scores_T.tolist(), rel=1e-4, abs=1e-6)
