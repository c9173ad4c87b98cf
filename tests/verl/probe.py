"""A policy loss that keeps what it was given; verl's workers load it through ``actor_rollout_ref.model.external_lib``.

It is verl's own loss otherwise. What it writes is what really reached the loss, after the TransferQueue, the dispatch
and the padding.
"""

import json
import os
import uuid
from pathlib import Path

from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, register_policy_loss


@register_policy_loss("probe")
def probe(old_log_prob, log_prob, advantages, response_mask, **kwargs):
    rows = [row_T[mask_T].tolist() for row_T, mask_T in zip(advantages, response_mask, strict=True)]
    partial = Path(os.environ["SEGRL_PROBE_DIR"]) / f"{uuid.uuid4()}.partial"
    partial.write_text(json.dumps(rows))
    partial.rename(partial.with_suffix(".json"))  # whole or not at all: the run may be killed
    return compute_policy_loss_vanilla(old_log_prob, log_prob, advantages, response_mask, **kwargs)
