"""The ``segrl`` section of verl's config: its keys, their defaults, and what is refused before anything starts.

Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from segrl.attribution.evaluator import INTERPOLATE, OUTPUTS, PATHS
from segrl.attribution.quadrature import CALIBRATED, RULES, midpoint, nodes_of
from segrl.attribution.target import TARGETS
from segrl.credit.curriculum import CurriculumSettings
from segrl.credit.regulating import RegulationSettings
from segrl.importance import measure_of
from segrl.importance.discriminating import ACROSS_RESPONSES
from segrl.loading import DTYPES
from segrl.resolving import near, resolve
from segrl.segmentation import SEGMENTERS
from segrl.weighting import SIGNS, WEIGHTINGS

ATTRIBUTORS = ("live", "frozen", "ref")
SCOPES = ("response", "batch")
FORMS = ("times", "plus")
QUADRATURES = RULES | {CALIBRATED: midpoint}  # midpoint serves until there is a calibration
# What a measure may read inside GRPO: OF_THE_ANSWER and OF_THE_RESPONSE from the attributor, ACROSS_RESPONSES from the
# actor, and what verl has computed anyway, FROM_VERL.
OF_THE_ANSWER = ("ig", "contrast", "gradient_T", "gradnorm_T", "prefix_logp_S")
OF_THE_RESPONSE = ("support_S",)
ALONG_A_PATH = ("ig", "contrast")
FROM_VERL = ("entropy_T", "logp_T")
CUTTING = {"entropy": "entropy_T", "probability": "logp_T"}  # by segmenter, the number of each token that it reads
FROM_A_MODEL = (*OF_THE_ANSWER, *OF_THE_RESPONSE, *ACROSS_RESPONSES)
AT_LEAST_ONE = (
    "nodes",
    "every",
    "calibration_rollouts",
    "calibration_nodes",
    "fidelity_rollouts",
    "fidelity_nodes",
    "attributor_workers",
)
# Keys that say how to weigh, and so nothing to the rule uniform.
ONLY_FOR_WEIGHTS = (
    *("rule_options", "measure", "measure_options", "negative_measure", "negative_measure_options", "permuted"),
    *("scope", "mean_one", "form", "centred", "sign", "warmup_steps", "target", "path", "output", "attributor"),
)
# Keys that say which answer is explained, and along which path: what reads all of them, and what some.
ONLY_FOR_ANSWERS = ("target", "path", "output", "begin", "interpolate", "nodes", "quadrature")
READ_BY = dict.fromkeys(ALONG_A_PATH, ONLY_FOR_ANSWERS) | {
    "gradient_T": ("target",),
    "gradnorm_T": ("target",),
    "prefix_logp_S": ("target", "output"),
}
# Keys that earlier versions had, and what to set in their place.
REMOVED = {
    "budget": "segrl.budget is no longer a setting: set segrl.nodes, the points on each path, and segrl.share, the "
    "part of a step's tokens that is attributed; `segrl cost` says what they come to",
}


@dataclass(frozen=True)
class Side:
    """How the responses of one sign of the advantage are measured."""

    measure: str
    options: dict[str, Any]
    target: str  # of attribution, as segrl.target says
    key: str = field(default="segrl.measure", compare=False)  # the setting that names the measure

    @property
    def need(self) -> str | None:
        """What the measure reads, or None."""
        needs = measure_of(self.measure).needs
        return needs[0] if needs else None

    @property
    def explains(self) -> str:
        """The target of attribution: a measure of contrasts has its own."""
        return "contrast" if self.need == "contrast" else self.target

    @property
    def compares_responses(self) -> bool:
        """Whether the measure compares the responses of one sign of the advantage with those of the other."""
        return self.need in ACROSS_RESPONSES

    @property
    def least_thoughts(self) -> int:
        """The fewest thoughts of a response to whose tokens the measure can give different scores."""
        return 1 if measure_of(self.measure).level == "token" else 2

    @property
    def reads_kinds(self) -> bool:
        """Whether the measure reads the planted kinds of the toy world."""
        return measure_of(self.measure).reads_kinds


@dataclass
class CreditSettings:
    """How a rollout's advantage is spread over its tokens: the section ``segrl`` of `segrl grpo`.

    These defaults are those of verl's own command, which weighs nothing; `segrl grpo` adds method/support.yaml.
    """

    # what turns scores into weights: uniform (all weights one, plain GRPO), rank, linear, top, ..., or
    # package.module:function
    rule: str = "uniform"
    rule_options: dict[str, Any] = field(default_factory=dict)  # of that rule; rank without them is from 0.8 to 1.2
    # what thoughts are compared by: support, how much less likely the next three become without one; contribution, what
    # one adds to the answer, read from one gate; or another that can be read while training, or package.module:function
    measure: str = "contribution"
    measure_options: dict[str, Any] = field(default_factory=dict)  # of segrl.measure, such as {aggregate: token}
    # the measure of responses of negative advantage, like mistake: what misled them; null: the same one
    negative_measure: str | None = None
    negative_measure_options: dict[str, Any] = field(default_factory=dict)  # of segrl.negative_measure
    scope: str = "response"  # what the rule compares: the segments of a response, or those of the whole batch
    mean_one: bool = True  # the weights of a scope have mean one; false: they are as the rule says
    form: str = "times"  # advantage times weight; or plus: advantage + weight - 1
    # shift the advantages of a group's tokens to mean zero, as Cliff does: its rule `onward` takes blame from some
    # tokens; a longer wrong response is then blamed less
    centred: bool = False
    regulation: RegulationSettings = field(default_factory=RegulationSettings)
    permuted: bool = False  # a control: the scores of a response's thoughts are permuted at random
    sign: str = "positive"  # the advantages whose tokens are weighted: positive, negative, both, inverted, signed
    warmup_steps: int = 0  # steps over which the weights grow from one to the rule's
    # where to cut: auto (keywords, and paragraphs inside pieces over 512 tokens), keywords, retro_search, paragraphs,
    # fixed, regex, entropy, probability; or package.module:function
    segmenter: str = "auto"
    segmentation: dict[str, Any] = field(default_factory=dict)  # min_tokens, max_segments, options of the segmenter
    tau: float = 0.7  # Eq. 6, for the rules hard and bilevel and for the selected ratio
    beta: float = 1.0  # Eq. 7; 1.0 drops nothing
    every: int = 1  # weigh on the first step and on every n-th after it
    share: float = 1.0  # attribute at most this part of a step's tokens, in rollouts drawn at random
    # the answer to explain: own (the rollout's), gold, or contrast (own against gold, at the token where they part)
    target: str = "own"
    # gates on the value vectors of every layer; or embeddings, the paper's, which measure=ig reads
    path: str = "values"
    # what is read of the answer: log_odds, which also move where the model is sure, or logp, the paper's;
    # target=contrast reads its own
    output: str = "log_odds"
    # of measure=support: in how many forwards the segments are taken out. Every n-th is out in the same one, and counts
    # by what the n - 1 segments after it lose
    forwards: int = 4
    begin: float = 0.0  # where on the path to begin, 1 being the input
    nodes: int = 1  # points of the path at which the model is evaluated
    # what attribution.quadrature takes: the gate at 0.5; or calibrated, for path=embeddings: nodes where the first
    # rollouts show this model's path to be steep
    quadrature: str = "midpoint"
    calibration_rollouts: int = 16  # of quadrature=calibrated: the rollouts that are looked at
    calibration_nodes: int = 48  # of quadrature=calibrated: the nodes to choose from
    # response or all: the positions that move; null: all with path=embeddings, as in the paper, else the response
    interpolate: str | None = "response"
    certificate_every: int = 10  # every n-th weighed step certifies completeness, at two forwards more; 0: never
    # every n-th weighed step compares the scores of a few rollouts with those at many nodes; 0: never
    fidelity_every: int = 50
    fidelity_rollouts: int = 8  # of fidelity_every: the rollouts that are compared
    fidelity_nodes: int = 48  # of fidelity_every: the many nodes
    tokens_per_forward: int | None = None  # with padding; null: actor.ppo_max_token_len_per_gpu, and 2048 on a CPU
    checkpointing: bool | None = None  # activation checkpointing; null: as the model's enable_gradient_checkpointing
    # the model that explains: live, frozen (never changes) or ref (verl's reference, under LoRA the bare actor)
    attributor: str = "live"
    attributor_path: str | None = None  # the frozen attributor's model; it must share the policy's vocabulary
    attributor_dtype: str = "bfloat16"  # of the frozen one's weights: float32, bfloat16 or float16
    attributor_workers: int = 1  # Ray actors, each with a copy
    attributor_gpus: float = 1.0  # of each frozen one; trainer.n_gpus_per_node must leave them free
    poll_seconds: float = 2.0  # how often verl looks for finished rollouts; shorter where a whole step takes less
    # seconds after which a start or a step is taken to hang and the job ends; null: never. A validation of twice a
    # step's rollouts gets twice as long
    step_timeout: float | None = 7200
    # folder of one jsonl a step: segments, scores, weights, advantages of every response; rule=uniform writes none
    dump_dir: str | None = None
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        self._check_together()
        self._check_read()

    def _check_names(self) -> None:
        """Raise where a key names what there is not."""
        resolve(self.rule, WEIGHTINGS, "weighting rule")
        resolve(self.segmenter, SEGMENTERS, "segmenter")
        for side in self.sides:
            _check_measure(side)
        choices = (
            ("sign", SIGNS),
            ("scope", SCOPES),
            ("form", FORMS),
            ("target", TARGETS),
            ("path", PATHS),
            ("output", OUTPUTS),
            ("interpolate", INTERPOLATE),
            ("attributor", ATTRIBUTORS),
            ("attributor_dtype", DTYPES),
        )
        for name, known in choices:
            value = getattr(self, name)
            if value not in known and not (name == "interpolate" and value is None):
                raise ValueError(f"segrl.{name}={value!r}{near(value, known)}")
        if not self.quadrature.endswith(".json"):
            resolve(self.quadrature, QUADRATURES, "quadrature rule")

    def _check_numbers(self) -> None:
        """Raise where a number is out of its bounds."""
        if not 0 <= self.begin < 1:
            raise ValueError(f"segrl.begin={self.begin}, expected a point of the path from 0 to below 1")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"segrl.{name}={getattr(self, name)}, expected 1 or more")
        if self.forwards < 2:  # one would take out all segments, and nothing be left to lose anything
            raise ValueError(f"segrl.forwards={self.forwards}, expected 2 or more")
        for name in ("certificate_every", "fidelity_every", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"segrl.{name}={getattr(self, name)}, expected 0 or more")
        if self.attributor_gpus <= 0:
            raise ValueError(f"segrl.attributor_gpus={self.attributor_gpus}, expected a GPU or a part of one, like 0.5")
        if self.tokens_per_forward is not None and self.tokens_per_forward < 1:
            raise ValueError(f"segrl.tokens_per_forward={self.tokens_per_forward}, expected 1 or more, or null")
        if self.poll_seconds <= 0:
            raise ValueError(f"segrl.poll_seconds={self.poll_seconds}, expected seconds above 0")
        if self.step_timeout is not None and self.step_timeout <= 0:
            raise ValueError(f"segrl.step_timeout={self.step_timeout}, expected seconds, or null for no limit")
        if not 0 < self.share <= 1:
            raise ValueError(f"segrl.share={self.share}, expected a part of one, like 0.25")

    def _check_together(self) -> None:
        """Raise where two keys do not go together."""
        if self.negative_measure and self.sign not in ("both", "negative"):
            raise ValueError(
                f"segrl.negative_measure={self.negative_measure} measures responses with negative advantage, but "
                f"segrl.sign={self.sign} gives them no measure of their own; take segrl.sign=both or negative"
            )
        if self.quadrature == CALIBRATED and self.attributor != "frozen" and self.nodes > self.calibration_nodes:
            raise ValueError(
                f"segrl.nodes={self.nodes} are to be chosen among segrl.calibration_nodes={self.calibration_nodes}; "
                "give at least as many to choose from, or segrl.quadrature=midpoint"
            )
        if (self.attributor == "frozen") != bool(self.attributor_path):
            raise ValueError(
                f"segrl.attributor={self.attributor} with attributor_path={self.attributor_path}: a frozen attributor "
                "needs a path, and the others take none"
            )
        if self.rule == "onward" and self.scope == "batch":
            raise ValueError(
                "segrl.rule=onward looks for the strongest thought of a response, and segrl.scope=batch would look for "
                "one in all of them; take segrl.scope=response"
            )
        if self.follows_a_path and self.quadrature != CALIBRATED:
            nodes_of(self.quadrature, self.nodes)  # raises where there is no such rule, or file, of so many nodes

    def _check_read(self) -> None:
        """Raise where a key is given that nothing reads."""
        read = {name for side in self.sides for name in READ_BY.get(side.need or "", ())}
        explaining = [side for side in self.sides if "target" in READ_BY.get(side.need or "", ())]
        if all(side.explains != self.target for side in explaining):  # a measure of contrasts has its own target
            read.discard("target")
        unread = [name for name in ONLY_FOR_ANSWERS if name not in read]
        if self.rule != "uniform" and (given := self._changed(unread)):
            measures = " and ".join(f"{side.key}={side.measure}" for side in self.sides)
            raise ValueError(
                f"{' '.join(given)} would change nothing, since {measures} does not read it; take a measure that does, "
                "like segrl.measure=contribution, or leave it out"
            )
        if self.rule == "uniform" and (given := self._for_weights()):
            raise ValueError(
                f"{' '.join(given)} would change nothing: segrl.rule=uniform weighs no token; give "
                "segrl.rule=rank or method=<name> too, or leave them out"
            )

    def _for_weights(self) -> list[str]:
        """What is given of the keys that say how to weigh."""
        return self._changed(ONLY_FOR_WEIGHTS) + (["segrl.regulation"] if self.regulation.regulates else [])

    def _changed(self, names: Sequence[str]) -> list[str]:
        """Those of the keys that have another value than by default; options are empty by default."""
        changed = [name for name in names if getattr(self, name) != getattr(type(self), name, {})]
        return [f"segrl.{name}={getattr(self, name)}" for name in changed]

    def side(self, advantage: float) -> Side:
        """How responses of such an advantage are measured."""
        if advantage < 0 and self.negative_measure:
            key = "segrl.negative_measure"
            return Side(self.negative_measure, self.negative_measure_options, self.target, key)
        return Side(self.measure, self.measure_options, self.target)

    @property
    def sides(self) -> list[Side]:
        """How responses are measured: one way, or one for each sign of the advantage."""
        signs = {"positive": (1,), "negative": (-1,)}.get(self.sign, (1, -1))
        sides = [self.side(sign) for sign in signs]
        return sides[:1] if len(sides) > 1 and sides[0] == sides[1] else sides

    @property
    def cuts_by(self) -> str | None:
        """Which of verl's numbers for each token the segmenter reads, or None."""
        return CUTTING.get(self.segmenter)

    @property
    def attributes(self) -> bool:
        """Whether a model has to run for the scores."""
        return self.rule != "uniform" and any(side.need in FROM_A_MODEL for side in self.sides)

    @property
    def reads_answers(self) -> bool:
        """Whether a model has to explain an answer for the scores."""
        return self.rule != "uniform" and any(side.need in OF_THE_ANSWER for side in self.sides)

    @property
    def follows_a_path(self) -> bool:
        """Whether attribution has nodes."""
        return self.rule != "uniform" and bool(self.path_sides)

    @property
    def path_sides(self) -> list[Side]:
        """The sides that are attributed along a path."""
        return [side for side in self.sides if side.need in ALONG_A_PATH]

    @property
    def reads_gold(self) -> bool:
        """Whether the gold answer is explained, alone or in a contrast."""
        return any(side.need in OF_THE_ANSWER and side.explains != "own" for side in self.sides)


def credit_from(config: DictConfig) -> CreditSettings:
    """The settings in verl's config; what is not given keeps its default."""
    given = config.get("segrl") or {}
    known = [field.name for field in fields(CreditSettings)]
    for key in given:
        if key in REMOVED:
            raise ValueError(REMOVED[str(key)])
        if key not in known:
            raise ValueError(f"segrl.{key} is not a setting{near(str(key), known)}")
    for section, settings in (("curriculum", CurriculumSettings), ("regulation", RegulationSettings)):
        known = [field.name for field in fields(settings)]
        for key in given.get(section) or {}:
            if key not in known:
                raise ValueError(f"segrl.{section}.{key} is not a setting{near(str(key), known)}")
    return cast(CreditSettings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CreditSettings), given)))


def _check_measure(side: Side) -> None:
    measure = measure_of(side.measure)
    unread = [need for need in measure.needs if need not in (*FROM_A_MODEL, *FROM_VERL)]
    if unread or len(measure.needs) > 1:
        raise ValueError(
            f"{side.key}={side.measure} reads {', '.join(measure.needs)}, which is not gathered while training; "
            "take a measure that reads one of " + ", ".join((*FROM_A_MODEL, *FROM_VERL)) + ", or nothing"
        )
