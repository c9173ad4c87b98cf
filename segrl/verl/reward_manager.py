"""verl's naive reward manager, which also tells the reward what ended the rollout.

verl passes the text alone. The reward then knows neither whether the prompt opened the thought nor whether the response
was cut off. verl's vLLM server calls both endings "completed"; the last token id tells them apart.
"""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.utils.fs import copy_to_local
from verl.utils.model import get_generation_config

from segrl.text.ending import end_tokens, finish_of
from segrl.text.prompting import prompt_tail
from segrl.verl.reward import FINISH, PROMPT


class EndingRewardManager(NaiveRewardManager):
    """The naive manager; its ``extra_info`` holds the end of the prompt and the finish of the response."""

    def __init__(self, config, tokenizer, compute_score, **others) -> None:
        super().__init__(config, tokenizer, compute_score, **others)
        self.ends = ends_of(config.actor_rollout_ref.model, tokenizer)

    async def run_single(self, data: DataProto) -> dict:
        """The reward of the last sequence, as in verl's own manager."""
        data = data[-1:]
        ids_P, ids_R = data.batch["prompts"][0], data.batch["responses"][0]
        prompt_mask, response_mask = data.batch["attention_mask"][0].bool().split([len(ids_P), len(ids_R)])
        known = dict(data.non_tensor_batch.get("extra_info", [{}])[0] or {})
        known[PROMPT] = prompt_tail(ids_P[prompt_mask].tolist(), self.tokenizer)
        known[FINISH] = finish_of(ids_R[response_mask].tolist(), self.ends)
        data.non_tensor_batch["extra_info"] = np.array([known], dtype=object)
        return await super().run_single(data)


def ends_of(model: DictConfig, tokenizer) -> frozenset[int]:
    """The tokens that end a rollout: the tokenizer's and those of the model's ``generation_config.json``."""
    shipped = get_generation_config(copy_to_local(model.path), model.get("trust_remote_code", False))
    return end_tokens(tokenizer, shipped)
