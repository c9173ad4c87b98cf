"""A small reasoning world with planted truth, and a small base model of it that travels with the package.

>>> model, tokenizer = segrl.toy.load_model()
>>> [trace] = segrl.toy.sample_traces(1, seed=0)
>>> trace.meta["kinds"]
('needed', 'truncated', 'needed', ...)
"""

from pathlib import Path

from segrl.toy.redundancy import REDUNDANCIES
from segrl.toy.world import CLASSES, sample_mistakes, sample_problems, sample_traces

MODEL_PATH = Path(__file__).parent / "model"

__all__ = ["CLASSES", "MODEL_PATH", "REDUNDANCIES", "load_model", "sample_mistakes", "sample_problems", "sample_traces"]


def load_model():
    """(model, tokenizer) of the bundled base: float32, in eval mode, read from the package's own folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype="float32", local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(MODEL_PATH, local_files_only=True)
