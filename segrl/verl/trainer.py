"""verl's trainers with one more step before the update: attribute, select, weigh.

verl computes the advantages. The weights are applied to them in the TransferQueue, so the loss stays verl's own. The
rule uniform leaves the step out.
Importing this module registers the trainers under ``trainer.v1.trainer_mode``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import ray
import torch
from omegaconf import open_dict
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer

from segrl.attribution.calibration import calibration_of
from segrl.attribution.quadrature import CALIBRATED, midpoint, nodes_of
from segrl.attribution.target import TEMPLATE
from segrl.credit.checks import (
    check_reads_text,
    check_supported,
    compares_within_groups,
    logps_serve,
    runs_live,
)
from segrl.credit.choosing import answers, off_step, reasons
from segrl.credit.curriculum import Curriculum
from segrl.credit.memory import Memory, calibration_settings
from segrl.credit.metrics import agreement, check_finite, credit_metrics, time_metrics, too_short
from segrl.credit.regulating import Likelihoods, Regulation, steered
from segrl.credit.rollout import Rollout, Weighed, record, weigh_rollouts
from segrl.credit.settings import CreditSettings
from segrl.credit.spreading import spread
from segrl.importance.lockstep import Request
from segrl.loading import position_limit
from segrl.verl.checks import model_config
from segrl.verl.drift import warn_of_drift
from segrl.verl.health import Deadline, check_servers
from segrl.verl.queue import columns, real_keys, rollouts_of, write_advantages, write_jsonl
from segrl.verl.reward_manager import ends_of
from segrl.verl.sampler import drawn_by, passed_in
from segrl.verl.sources import FrozenAttributors, Sources
from segrl.verl.worker import with_attribution

ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)
LEAST_TO_CALIBRATE = 4  # rollouts; with fewer, midpoint nodes serve until a later step has more
CPU_TOKENS = 2048  # of one forward on a CPU; more do not fit its cache

logger = logging.getLogger("verl.segrl")  # a child of verl's logger, the only one that verl's task runner prints


class SegmentCredit:
    """A mixin for verl's trainers; ``base_mode`` is the name that verl gives the trainer."""

    base_mode: str
    train_dataloader: StatefulDataLoader

    def __init__(self, config) -> None:
        with open_dict(config):  # verl asks "is this the sync trainer?" by this name
            config.trainer.v1.trainer_mode = self.base_mode
        warn_of_drift()
        self.settings = check_supported(config)
        self.memory = Memory(config.trainer.default_local_dir, config.actor_rollout_ref.model.path)
        self.deadline = Deadline(self.settings.step_timeout)
        self.counted_thoughts = False
        self.curriculum: Curriculum | None = None
        super().__init__(config)
        self.replay_buffer.poll_interval = self.settings.poll_seconds

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        if self.settings.curriculum.order:
            data, rows = self.config.data, len(self.train_dataset)
            self.curriculum = Curriculum(self.settings.curriculum, rows, data.train_batch_size, data.get("seed") or 0)
            self.train_dataloader = drawn_by(self.curriculum, self.train_dataloader)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in ACTOR_ROLES:
            if role in self.role_worker_mapping:
                worker_class = self.role_worker_mapping[role].__ray_actor_class__
                self.role_worker_mapping[role] = ray.remote(with_attribution(worker_class))

    def _setup(self) -> None:
        self.deadline.start("the start")
        model = model_config(self.config.actor_rollout_ref.model)
        check_reads_text(model, self.settings)
        self.limit = position_limit(model)
        super()._setup()
        self.ends = ends_of(self.config.actor_rollout_ref.model, self.tokenizer)
        frozen = None
        if self.settings.attributor == "frozen":
            frozen = FrozenAttributors(self.settings, self.tokenizer, on_cpu=self.config.trainer.device == "cpu")
        self.sources = Sources(self.actor_rollout_wg, frozen, self.settings)

    def fit(self, agent_loop_manager) -> None:
        try:
            super().fit(agent_loop_manager)
        finally:
            self.deadline.stop()

    def on_validate_begin(self) -> None:
        self.deadline.start(f"the validation of step {self.global_steps}", self._validation_in_steps)
        super().on_validate_begin()

    @property
    def _validation_in_steps(self) -> float:
        """A validation's number of rollouts over a step's; 1 at least."""
        rollout = self.config.actor_rollout_ref.rollout
        validated = len(self.val_dataset) * rollout.val_kwargs.n
        return max(1.0, validated / (self.config.data.train_batch_size * rollout.n))

    def on_step_begin(self) -> None:
        self.deadline.start(f"step {self.global_steps}")
        super().on_step_begin()

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.settings.rule != "uniform":
            with marked_timer("attribution", self.timing_raw, color="purple"):
                self._spread_advantages(batch, metrics)
        if self.curriculum is not None:
            passed = passed_in(batch, self.settings.curriculum.passed_from)
            self.curriculum.observe(passed, self.global_steps, metrics.get("actor/entropy"))
            metrics.update(self.curriculum.metrics())
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._update_actor(batch, metrics)
        check_finite(metrics, self.global_steps)
        return batch

    def on_step_end(self) -> None:
        if self.config.actor_rollout_ref.rollout.name == "vllm":
            managers = self._rollout_server_managers()
            check_servers([replica for manager in managers for replica in manager.get_replicas()])
        super().on_step_end()

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        if self.settings.rule != "uniform":
            metrics.update(time_metrics(timing_raw))

    # --- the step ----------------------------------------------------------------------------------------------------

    def _spread_advantages(self, batch: KVBatchMeta, metrics: dict) -> None:
        if off_step(self.settings, self.global_steps):
            metrics.update({"segrl/attributed_share": 0.0, "segrl/uniform/off_step": float(len(real_keys(batch)))})
            return
        rollouts = rollouts_of(batch, self.tokenizer, self.ends, self.settings)
        self._warn_of_few_thoughts(rollouts)
        why = self._reasons(rollouts)
        chosen = [rollout for rollout in rollouts if why[rollout.key] is None]
        weighed = self._weighed(batch, chosen) if chosen else []
        by_key = {response.rollout.key: response for response in weighed}
        why |= dict.fromkeys({rollout.key for rollout in chosen} - by_key.keys(), "not_finite")
        if weighed:
            regulation = self._regulation(batch, weighed, metrics)
            write_advantages(batch, spread(rollouts, weighed, self.settings, regulation))
        metrics.update(credit_metrics(rollouts, why, weighed))
        if self._compares and (along := [one for one in weighed if self._follows_a_path(one.rollout)]):
            metrics.update(self._agreements(batch, along[: self.settings.fidelity_rollouts]))
        if self.settings.dump_dir:
            self._dump(self.settings.dump_dir, batch, rollouts, why, by_key)

    def _reasons(self, rollouts: Sequence[Rollout]) -> dict[str, str | None]:
        too_long, within_groups = self._too_long(rollouts), compares_within_groups(self.config)
        return reasons(rollouts, self.settings, self.global_steps, too_long, within_groups)

    def _too_long(self, rollouts: Sequence[Rollout]) -> dict[str, bool]:
        """By key, whether prompt, response and appended answer may exceed the model's positions."""
        limit = self.limit or float("inf")
        settings = self.settings
        return {rollout.key: rollout.tokens + _tokens_appended(rollout, settings) > limit for rollout in rollouts}

    def _weighed(self, batch: KVBatchMeta, chosen: Sequence[Rollout]) -> list[Weighed]:
        if self.settings.attributes:
            self._calibrate_once(batch, chosen)
        gathered = self.sources.evidence(batch, chosen, self._request())
        finite = [rollout for rollout, evidence in zip(chosen, gathered, strict=True) if evidence is not None]
        known = [evidence for evidence in gathered if evidence is not None]
        return weigh_rollouts(finite, known, self.settings, self.global_steps)

    def _regulation(self, batch: KVBatchMeta, weighed: Sequence[Weighed], metrics: dict) -> Regulation | None:
        """What the phase adds to this step's advantages."""
        settings, converging = self.settings.regulation, self._converging
        if not settings.regulates:
            return None
        keys = [response.rollout.key for response in weighed]
        read = ["old_log_probs", "entropy", *(["ref_log_prob"] if converging and settings.reference_weight else [])]
        rows = zip(*columns(keys, batch.partition_id, read), strict=True)
        likelihoods = {key: Likelihoods(*row) for key, row in zip(keys, rows, strict=True)}
        weight = settings.entropy_weight if converging else self._entropy_weight(metrics["actor/entropy"])
        metrics["segrl/entropy_weight"] = weight
        return Regulation(settings, converging, weight, likelihoods)

    def _entropy_weight(self, entropy: float) -> float:
        """This step's weight of entropy, steered from that of the last weighed step before it. The memory keeps them
        for a resumed run, which may begin before the last of them."""
        settings, step = self.settings.regulation, self.global_steps
        kept = (self.memory.get("entropy_weight", asdict(settings)) or {}).get("by_step", {})
        before = {int(number): weight for number, weight in kept.items() if int(number) < step}
        weight = steered(before[max(before)] if before else settings.entropy_weight, entropy, settings)
        self.memory.keep("entropy_weight", asdict(settings), {"by_step": {**before, step: weight}})
        return weight

    @property
    def _converging(self) -> bool:
        return self.curriculum is not None and self.curriculum.phases.converging

    @property
    def _compares(self) -> bool:
        settings = self.settings
        wanted = settings.fidelity_every and (self._weighed_before + 1) % settings.fidelity_every == 0
        return bool(wanted) and not settings.permuted

    def _follows_a_path(self, rollout: Rollout) -> bool:
        return self.settings.side(rollout.advantage) in self.settings.path_sides

    def _agreements(self, batch: KVBatchMeta, few: Sequence[Weighed]) -> dict[str, float]:
        """How far a few rollouts' scores agree with those at many nodes, and, if another model explains, with those by
        the live actor."""
        chosen, request = [weighed.rollout for weighed in few], replace(self._request(), certificate=False)
        alphas_J, weights_J = midpoint(self.settings.fidelity_nodes)
        fine = replace(request, alphas=tuple(alphas_J.tolist()), weights=tuple(weights_J.tolist()))
        others = {"segrl/fidelity": self.sources.evidence(batch, chosen, fine)}
        if self.settings.attributor != "live" and runs_live(self.config, self.settings):
            live = replace(request, model="live")
            others["segrl/agreement"] = self.sources.evidence(batch, chosen, live, live=True)
        agreements = {name: agreement(few, evidence, self.settings) for name, evidence in others.items()}
        return {name: value for name, value in agreements.items() if value is not None}

    def _request(self) -> Request:
        settings, config = self.settings, self.config
        calibration = self.memory.get("calibration", calibration_settings(settings)) or {}
        alphas_J, weights_J = nodes_of(settings.quadrature, settings.nodes, calibration)
        on_cpu = config.trainer.device == "cpu"
        first = settings.sides[0]  # the sources ask for the other side with a need and a target of its own
        return Request(
            need=first.need or "ig",
            model="ref" if settings.attributor == "ref" else "live",
            alphas=tuple(alphas_J.tolist()),
            weights=tuple(weights_J.tolist()),
            target=first.explains,
            path=settings.path,
            output=settings.output,
            begin=settings.begin,
            interpolate=settings.interpolate,
            forwards=settings.forwards,
            logps_given=logps_serve(config, settings),
            tokens=settings.tokens_per_forward
            or (CPU_TOKENS if on_cpu else config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu),
            checkpointing=self._checkpointing,
            certificate=bool(settings.certificate_every) and self._weighed_before % settings.certificate_every == 0,
        )

    @property
    def _weighed_before(self) -> int:
        """How many steps were weighed before this one: ``every`` leaves the others out."""
        return (self.global_steps - 1) // self.settings.every

    @property
    def _checkpointing(self) -> bool:
        setting = self.settings.checkpointing
        return self.config.actor_rollout_ref.model.enable_gradient_checkpointing if setting is None else setting

    # --- once a run --------------------------------------------------------------------------------------------------

    def _calibrate_once(self, batch: KVBatchMeta, chosen: Sequence[Rollout]) -> None:
        """Calibrate on the first batch with enough rollouts. The file beside the checkpoints keeps the calibration."""
        settings = self.settings
        frozen = settings.attributor == "frozen"
        wanted = settings.quadrature == CALIBRATED and settings.follows_a_path and not frozen
        basis = calibration_settings(settings)
        if not wanted or self.memory.get("calibration", basis):
            return
        began = time.perf_counter()
        side = settings.path_sides[0]
        of_side = [rollout for rollout in chosen if settings.side(rollout.advantage) == side]
        if len(of_side) < LEAST_TO_CALIBRATE:
            return
        sample = of_side[: settings.calibration_rollouts]
        request = replace(self._request(), target=side.explains)
        masses = self.sources.masses_on_grid(batch, sample, request, settings.calibration_nodes)
        masses = [masses_JL for masses_JL in masses if bool(torch.isfinite(masses_JL).all())]
        if not masses:
            return
        calibration = calibration_of(masses, basis["counts"])
        self.memory.keep("calibration", basis, calibration)
        alphas = ", ".join(f"{alpha:.2f}" for alpha in calibration["rules"][str(settings.nodes)]["alphas"])
        logger.warning(
            f"segrl: calibrated on {len(masses)} rollouts in {time.perf_counter() - began:.1f} s: {settings.nodes} "
            f"node(s) at {alphas} -> {self.memory.path}"
        )

    # --- warnings and dumps ------------------------------------------------------------------------------------------

    def _warn_of_few_thoughts(self, rollouts: Sequence[Rollout]) -> None:
        """A warning where responses have too few thoughts to tell apart; only the first batch is looked at."""
        by_segments = any(side.least_thoughts > 1 for side in self.settings.sides)
        if by_segments and not self.counted_thoughts and (sentence := too_short(rollouts)):
            logger.warning(f"segrl: {sentence}")
        self.counted_thoughts = True

    def _dump(self, folder: str, batch: KVBatchMeta, rollouts, why, by_key: Mapping[str, Weighed]) -> None:
        keys = [rollout.key for rollout in rollouts]
        (written,) = columns(keys, batch.partition_id, ["advantages"])
        lines = (
            record(rollout, _why(why[key], by_key.get(key)), by_key.get(key), advantages_T)
            for key, rollout, advantages_T in zip(keys, rollouts, written, strict=True)
        )
        write_jsonl(folder, self.global_steps, lines, more=self.local_trigger_step > 0)


def _tokens_appended(rollout: Rollout, settings: CreditSettings) -> int:
    """An upper bound for the tokens of the answer in its template: a token has one byte at least."""
    explained = answers(rollout, settings)
    return len(TEMPLATE) + max(len((answer or "").encode()) for answer in explained) if explained else 0


def _why(reason: str | None, weighed: Weighed | None) -> str | None:
    return "no_scores" if weighed and weighed.uniform else reason


@register_trainer("segrl")
class SegmentTrainerSync(SegmentCredit, PPOTrainerSync):
    base_mode = "sync"


@register_trainer("segrl_colocate_async")
class SegmentTrainerColocateAsync(SegmentCredit, PPOTrainerColocateAsync):
    base_mode = "colocate_async"


@register_trainer("segrl_separate_async")
class SegmentTrainerSeparateAsync(SegmentCredit, PPOTrainerSeparateAsync):
    base_mode = "separate_async"

    def _setup(self) -> None:
        if not self._enable_hybrid_replicas:  # verl 0.9.1 then hands `flush` to a logger that does not take it
            logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)
        super()._setup()
