"""What every test runs under: no network, the same examples each time."""

import os

# Before transformers or datasets is imported: a test that reaches for the hub fails at once.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only get in each other's way

from hypothesis import settings

# A slow machine must not fail a test that a fast one passes.
settings.register_profile("segrl", deadline=None, derandomize=True)
settings.load_profile("segrl")
