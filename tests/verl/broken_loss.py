"""A policy loss that is not a number; verl's workers load it through ``actor_rollout_ref.model.external_lib``."""

from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, register_policy_loss


@register_policy_loss("broken")
def broken(old_log_prob, log_prob, advantages, response_mask, **kwargs):
    loss, metrics = compute_policy_loss_vanilla(old_log_prob, log_prob, advantages, response_mask, **kwargs)
    return loss * float("nan"), metrics
