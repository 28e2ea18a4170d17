"""The pipeline's step from a plan to numbers: what goes back to float because that is worth its time, then scales.

With ``max_drop`` the two are repeated, with a harder limit each time, until the outputs are as close as was asked for,
or until top-1 on labelled samples is as high. Where a target has 16-bit kernels, nodes may get 16-bit activations too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .backward import choose_loss
from .calibration import Source
from .costs import BORROWED, Profile, find_profile, pose_problem
from .graph import model_to_proto
from .insert_qdq import insert_qdq
from .limits import Reached, Top1
from .numerics import QParams, QuantSpec
from .placement import Plan
from .planning import Decision
from .precision import NARROW_BITS, Budget, Effects, find_front, measure_effects
from .reconstruct import BlockCache, Divergence
from .runtime import Progress
from .scales import Scales, Work, find_scales, first_scales
from .weight_widths import DIVERGENCE, LEFT, NarrowWeights, describe_widths, predicted_of

logger = logging.getLogger(__name__)
SAMPLES = 16
LAYERS_COST = 0.5  # share of its float time that int8 is taken to save a layer at least, with borrowed costs
# share of what int8 saves that 16-bit activations are taken to lose: no such kernel was measured; by 8-bit weights they
# take two 8-bit products instead of one, and twice the bytes of 8-bit maps, half of those of float ones
WIDE_COST = 0.5
SOUND = 0.03  # predicted divergence before reconstruction, which takes about two thirds away
WORTH = 2e-3  # divergence (nats where the outputs are probabilities) that is worth all of the plan's time
BYTES = 0.15  # what a share of the weights' bytes counts beside the same share of time
NOTHING = Budget(share=-1.0, rate=0.0)
BUDGETS = {
    "balanced": Budget(share=0.05, rate=2.0, least=WORTH, most=0.15, sound=SOUND, bytes=BYTES),
    "speed": Budget(share=0.0, rate=0.0),
    "size": Budget(share=0.05, rate=2.0, least=WORTH, layers=False),
}


ROUNDS = 5  # of scales for a limit on the divergence
LEAST_SHARE = 0.125
TIGHTER = 0.8  # each round aims a little lower than what the last one's ratio of found to predicted asks for
Decide = Callable[[Mapping[str, str], Mapping[str, str]], Decision]  # float nodes, wide nodes -> decision


@dataclass(frozen=True)
class Fitted:
    """A plan with its numbers.

    Args:
        decision: The plan, with what went back to float.
        scales: Its numbers.
        summary: What was weighed, plain values for the report; None when the recipe weighs nothing.
    """

    decision: Decision
    scales: Scales
    summary: Mapping[str, Any] | None = field(default=None, repr=False)


def fit_precision(
    work: Work,
    decision: Decision,
    decide: Decide,
    *,
    wide: QuantSpec | None = None,
    cache_for: Callable[[Plan], BlockCache | None] = lambda plan: None,
    progress: Progress | None = None,
) -> Fitted:
    """Choose what goes back to float, then find the scales of what is left.

    Args:
        work: Model, data and settings.
        decision: The plan to start from.
        decide: Makes a decision with more float nodes and more wide ones, each given with the reason.
        wide: Spec of 16-bit activations that a ``max_drop`` may raise nodes to; None where there are no kernels.
        cache_for: Cache of finished blocks for a plan.
        progress: Called as ``progress(done, total, text)``.
    """
    max_drop = work.config.max_drop
    spend = work.recipe.precision and work.config.mode == "partial"
    first = first_scales(work, decision.plan, progress, [wide, replace(wide, bits=8)] if wide else ())

    def numbers(plan: Plan) -> Scales:
        return find_scales(work, plan, first, cache_for(plan), progress)

    if work.config.is_auto:
        return _fit_widths(work, _Weighed(work, decision, first, wide), decide, first, cache_for, spend, progress)
    if not spend and max_drop is None:
        return Fitted(decision, numbers(decision.plan))
    weighed = _Weighed(work, decision, first, wide)
    if max_drop is None:
        chosen, _, summary = weighed.choose(decide, None, spend)
        return Fitted(chosen, numbers(chosen.plan), summary)
    return _within(weighed, decide, numbers, spend)


def _fit_widths(
    work: Work,
    weighed: _Weighed,
    decide: Decide,
    first: Mapping[str, QParams],
    cache_for: Callable[[Plan], BlockCache | None],
    spend: bool,
    progress: Progress | None,
) -> Fitted:
    """Give 4 bits to weights until the finished model would no longer keep to the limit.

    Where not even 8 bits keep to a ``max_drop``, nodes go back to float.
    """
    chosen, predicted, summary = weighed.choose(decide, None, spend)
    choice = NarrowWeights(work, chosen.plan, weighed.loss)
    asked, most = weighed.asked
    limit = (most if isinstance(asked, float) else DIVERGENCE) / LEFT

    def numbers(plan: Plan) -> Scales:
        return find_scales(work, plan, {**first, **choice.scales_of(plan)}, cache_for(plan), progress)

    for trial in range(ROUNDS):
        widths = choice.within(predicted, limit if trial < ROUNDS - 1 else 0.0)
        narrow = frozenset(width.weight for width in widths if width.bits == NARROW_BITS)
        plan = chosen.plan.with_weight_bits(narrow, NARROW_BITS)
        if not narrow and work.config.max_drop is not None:
            fitted = _within(weighed, decide, numbers, spend)
            return replace(fitted, summary={**(fitted.summary or {}), "widths": describe_widths(widths, most, None)})
        scales = numbers(plan)
        reached = weighed.reached(plan, scales)
        if reached.value <= most or not narrow:
            break
        limit = TIGHTER * min(limit, predicted + predicted_of(widths)) * max(LEAST_SHARE, most / reached.value)
    found = {**summary, "widths": describe_widths(widths, most, reached.value)}
    if work.config.max_drop is not None:
        found |= {"max_drop": asked, "reached": reached.value, **reached.details}
    elif reached.value > most:
        logger.warning("divergence %.3g is above %.3g with 8 bits already: no weight got 4 bits", reached.value, most)
    return Fitted(replace(chosen, plan=plan, narrow=narrow), scales, found)


def _within(weighed: _Weighed, decide: Decide, numbers: Callable[[Plan], Scales], spend: bool) -> Fitted:
    """Repeat the choice with a harder limit until the finished model keeps to ``max_drop``."""
    asked, most = weighed.asked
    limit: float | None = None
    best: tuple[float, Fitted] | None = None
    tried: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for _ in range(ROUNDS):
        chosen, predicted, summary = weighed.choose(decide, limit, spend)
        nodes = chosen.plan.int8_nodes, tuple(chosen.plan.wide_nodes)
        if nodes in tried:  # what is predicted for 16 bits leaves nothing to take away, what is found does
            if not weighed.without_wide():
                break
            continue
        tried.append(nodes)
        scales = numbers(chosen.plan)
        reached = weighed.reached(chosen.plan, scales)
        if best is None or reached.value < best[0]:
            found = {**summary, "max_drop": asked, "reached": reached.value, **reached.details}
            best = reached.value, Fitted(chosen, scales, found)
        if reached.value <= most or not chosen.plan.int8_nodes:
            break
        limit = TIGHTER * predicted * weighed.share_of(most, reached)
    assert best is not None
    if best[0] > most:
        what = "divergence" if isinstance(asked, float) else "loss of top-1"
        logger.warning("%s %.3g is above max_drop %s: no choice found reaches it", what, best[0], asked)
    return best[1]


def predicted_divergence(work: Work, decision: Decision, progress: Progress | None = None) -> float:
    """What the roundings of a decision's plan do to the outputs, by one backward pass; see ``precision``."""
    weighed = _Weighed(work, decision, first_scales(work, decision.plan, progress))
    return weighed.choose(lambda more, wide: decision, None, False)[1]


class _Feeds:
    """Feeds of a source, without the ids: read again each time, one batch in memory at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return (feeds for _, feeds in self._source)


class _Weighed:
    """Effects of a plan's roundings beside what they cost, measured once for all limits."""

    def __init__(
        self, work: Work, decision: Decision, first: Mapping[str, QParams], wide: QuantSpec | None = None
    ) -> None:
        self._work, self._decision = work, decision
        self._wide_cost = None if wide is None else WIDE_COST
        self._judge: Divergence | None = None
        proto = model_to_proto(work.model)
        self._reference = work.reference or proto
        self._top1: Top1 | None = None
        if work.config.max_loss is not None:
            assert work.labels is not None
            self._top1 = Top1(self._reference, work.source, work.labels, work.config.threads)
        self.loss = choose_loss(proto, work.shapes, work.config.losses)
        self._effects: Effects = measure_effects(
            proto,
            decision.plan,
            first,
            work.shapes,
            (feeds for _, feeds in work.source),
            self.loss,
            samples=SAMPLES,
            seed=work.config.seed,
            threads=work.config.threads,
        )
        self._profile: Profile | None = decision.profile
        costs = self._profile or find_profile(BORROWED)
        assert costs is not None
        self._costs = costs
        self._problem = pose_problem(work.model.graph, decision.plan, work.shapes, costs, all_free=True)
        if unknown := self._unknown():
            logger.warning(
                "%d tensors stay as planned: no gradient reaches them (%s)", len(unknown), ", ".join(unknown[:3])
            )

    def _unknown(self) -> list[str]:
        return sorted({rounding.tensor for rounding in self._effects.unknown})

    def choose(self, decide: Decide, limit: float | None, spend: bool) -> tuple[Decision, float, dict[str, Any]]:
        """The plan for a limit: (decision, predicted divergence, plain values for the report).

        ``balanced`` spends up to 5 % of the predicted time (15 % while the divergence is above ``SOUND``), on steps
        that take away at least twice the share of divergence and as much as the time is worth, see ``WORTH``; bytes of
        float weights count as time, see ``BYTES``;
        ``speed`` takes only what costs nothing; ``size`` leaves layers (their small weights) alone. So do other widths
        than 8 bits, which were asked for: there only glue may become float. A limit overrides all that, and may raise
        nodes to 16-bit activations.

        Args:
            decide: See ``fit_precision``.
            limit: Predicted divergence to reach, None for the budget of the objective alone.
            spend: Whether the objective has a budget at all.
        """
        config = self._work.config
        asked = config.is_auto or (config.weight_bits, config.activation_bits) != (8, 8)
        budget = BUDGETS[config.objective] if spend else NOTHING
        budget = replace(budget, limit=limit, layers=budget.layers and not asked)
        front = find_front(
            self._work.model.graph,
            self._problem,
            self._effects,
            budget,
            layers_cost=None if self._profile else LAYERS_COST,
            carried=self._decision.plan.carried_nodes,
            wide_cost=self._wide_cost,
        )
        summary = {
            "costs": self._costs.target,
            "borrowed": self._profile is None,
            **front.to_dict(),
            "unknown": self._unknown(),
        }
        predicted = front.steps[-1].divergence if front.steps else front.divergence
        chosen = decide(front.float_nodes(), front.wide_nodes()) if front.steps else self._decision
        return chosen, predicted, summary

    def without_wide(self) -> bool:
        """Choose without 16 bits from now on; whether that is new."""
        had, self._wide_cost = self._wide_cost is not None, None
        return had

    @property
    def asked(self) -> tuple[float | str, float]:
        """``max_drop`` as it was asked for (else ``DIVERGENCE``), and what the number reached must not exceed."""
        config = self._work.config
        if config.max_drop is None:
            return DIVERGENCE, DIVERGENCE
        return config.max_drop, float(config.max_drop) if config.max_loss is None else config.max_loss

    def reached(self, plan: Plan, scales: Scales) -> Reached:
        """What the finished model reaches on the calibration samples: its divergence, or its loss of top-1.

        One batch of inputs is in memory at a time, and for a divergence the float outputs of all samples.
        """
        work = self._work
        quantized = model_to_proto(insert_qdq(work.model, plan, scales.qparams, scales.parameters))
        if self._top1 is not None:
            return self._top1.of(quantized)
        if self._judge is None:
            self._judge = Divergence(self._reference, self.loss, _Feeds(work.source), work.config.threads)
        return Reached(self._judge.of(self._judge.session(quantized)))

    def share_of(self, most: float, reached: Reached) -> float:
        """Share of the predicted divergence that the next choice may have.

        Few samples tell little: a loss of top-1 makes the limit at most ``LEAST_SHARE`` as large in one step.
        """
        least = 0.0 if self._top1 is None else LEAST_SHARE
        return max(most / reached.value, least)
