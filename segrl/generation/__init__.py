"""Problems -> traces, sampled from a model."""

from segrl.generation.local import sample

__all__ = ["sample"]
