"""segrl: find the parts of a long reasoning trace that carry the answer, and train on those parts."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# Public name -> its module, which is loaded on first use, so that `import segrl` and the command line stay fast.
_PUBLIC = {
    "Trace": "segrl.types",
    "TokenisedTrace": "segrl.types",
    "Segments": "segrl.types",
    "Attribution": "segrl.types",
    "Evidence": "segrl.types",
    "SegmentScores": "segrl.types",
    "Selection": "segrl.types",
    "load_traces": "segrl.data",
    "load_benchmark": "segrl.data",
    "save_traces": "segrl.data",
    "tokenize": "segrl.tokenization",
    "split": "segrl.segmentation",
    "segment": "segrl.segmentation",
    "attribute": "segrl.attribution",
    "gather": "segrl.importance.gathering",
    "score": "segrl.importance",
    "select": "segrl.selection",
    "weigh": "segrl.weighting",
    "grade": "segrl.grading",
    "grade_answer": "segrl.grading",
    "Verdict": "segrl.grading",
}
_MODULES = ("toy", "worlds")

__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"segrl.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'segrl' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
