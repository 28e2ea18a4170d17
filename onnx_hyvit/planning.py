"""From a rewritten model and the settings to a plan: the target's rules, then what the cost model says of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .config import QuantConfig
from .costs import BORROWED, Choice, Profile, choose_float, faster_as_convolution, find_profile, pose_problem
from .graph.io import Model
from .placement import ASKED, FullMode, Plan, make_plan
from .recipes import find_recipe
from .targets import Target


@dataclass(frozen=True)
class Decision:
    """A plan and why it is not just the target's rules.

    Args:
        plan: Where Q/DQ pairs go.
        objective: ``balanced``, ``speed`` or ``size``.
        profile: Costs that decided, None when the target's rules did alone.
        choice: What the costs said, None without a profile.
        more_float: Further nodes that are float, each with the reason.
        full: Whether mode full was asked for, in which speed decides nothing.
        narrow: Weights that got 4 bits.
        wide: Nodes that were asked to have 16-bit activations, each with the reason; ``plan.wide_nodes`` are those that
            have them.
    """

    plan: Plan
    objective: str
    profile: Profile | None = None
    choice: Choice | None = None
    more_float: Mapping[str, str] = field(default_factory=dict)
    full: bool = False
    narrow: frozenset[str] = frozenset()
    wide: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        if self.profile is None or self.choice is None:
            why = "mode full" if self.full else "no profile of kernels"
            weighed = "" if self.full else "; what is weighed by time as well borrows costs"
            note = f"{why} for target {self.plan.target}: its rules decide{weighed}"
            return {"objective": self.objective, "profile": None, "note": note}
        profile = {"target": self.profile.target, **self.profile.machine}
        profile["borrowed"] = self.profile.target != self.plan.target
        return {"objective": self.objective, "profile": profile, **self.choice.to_dict()}


def decide(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    config: QuantConfig,
    float_nodes: Collection[str] = (),
    earlier: Decision | None = None,
    more_float: Mapping[str, str] | None = None,
    wide: Mapping[str, str] | None = None,
) -> Decision:
    """Plan ``model`` for ``target`` and ``config.objective``.

    Args:
        model: Float model after the exact rewrites; not changed.
        shapes: Concrete shapes of all tensors.
        target: Rules; ``objective = size`` and ``mode = full`` drop those that are about speed alone.
        config: Settings.
        float_nodes: Names of nodes that must stay float.
        earlier: Decision for the same model, perhaps before an exact rewrite; its regions and its further float nodes
            are kept instead of chosen anew.
        more_float: More nodes to keep float, each with the reason.
        wide: More nodes to give 16-bit activations, each with the reason; beside those of ``earlier``.

    Returns:
        The decision; the same arguments give the same one.
    """
    full = config.mode == "full"
    if config.objective == "size" or full:
        target = target.with_small_weights()
    more = {**(earlier.more_float if earlier else {}), **(more_float or {})}
    wide = {**(earlier.wide if earlier else {}), **(wide or {})}
    asked = {**more, **dict.fromkeys(float_nodes, ASKED)}
    if earlier is None:
        profile = profile_for(target, config)
        plan = _plan(model, shapes, target, config, asked, wide)
        choice = choose_float(model, plan, shapes, profile, config.objective) if profile else None
    else:
        profile, choice, plan = earlier.profile, earlier.choice, None
    known = {node.name for node in model.graph.nodes}
    chosen = {name: reason for name, reason in (choice.float_nodes() if choice else {}).items() if name in known}
    if chosen or plan is None:
        plan = _plan(model, shapes, target, config, {**chosen, **asked}, wide)
    if profile is not None:
        plan = _with_faster_forms(model, shapes, plan, profile, config)
    return Decision(plan, config.objective, profile, choice, more, full, wide=wide)


def _with_faster_forms(
    model: Model, shapes: Mapping[str, tuple[int, ...]], plan: Plan, profile: Profile, config: QuantConfig
) -> Plan:
    """The plan with the layers and copies that are to be written in another form, for other kernels."""
    linear = faster_as_convolution(model.graph, plan, shapes, profile)
    resizes = frozenset(node.name for node in model.graph.nodes if node.op == "Resize")
    return replace(
        plan,
        as_convolution=frozenset() if config.pack_int4 else linear,  # convolutions have no kernel for INT4
        as_gather=resizes & set(plan.carried_nodes),
    )


def profile_for(target: Target, config: QuantConfig) -> Profile | None:
    """Costs of kernels that a decision goes by; None where the target's rules decide alone."""
    measured = target.profile if config.activation_bits <= 8 else None  # of 8-bit kernels
    return None if config.mode == "full" else find_profile(measured, config.profile)


def _has_costs(config: QuantConfig) -> bool:
    """Whether costs of 8-bit kernels say anything of what is asked for."""
    return config.mode != "full" and config.activation_bits <= 8


def decide_int8_residual(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    config: QuantConfig,
    float_nodes: Collection[str],
    ruled: Decision,
) -> tuple[Decision, float, float] | None:
    """The decision with an int8 residual stream, beside the one by the target's rule.

    Args:
        model: Float model after the exact rewrites; not changed.
        shapes: Concrete shapes of all tensors.
        target: Rules.
        config: Settings.
        float_nodes: Names of nodes that must stay float.
        ruled: The decision by the rule.

    Returns:
        The decision, its predicted microseconds, and those of ``ruled``, all of one problem; None where there are no
        costs (a target without a profile borrows some), the rule is not ``auto``, or both decisions are the same.
    """
    costs = ruled.profile or (find_profile(BORROWED) if _has_costs(config) else None)
    if costs is None or config.residual != "auto" or target.residual != "auto":
        return None
    config = config.replace(residual="int8")
    found = decide(model, shapes, target, config, float_nodes)
    if set(found.plan.int8_nodes) <= set(ruled.plan.int8_nodes):
        return None
    everything = plan_by_rules(model, shapes, target, config, float_nodes)
    problem = pose_problem(model.graph, everything, shapes, costs)
    float_us, int8_us = (
        problem.cost(problem.on_codes({*plan.int8_nodes, *plan.carried_nodes})) for plan in (ruled.plan, found.plan)
    )
    return found, int8_us, float_us


def plan_by_rules(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    config: QuantConfig,
    float_nodes: Collection[str] = (),
) -> Plan:
    """The plan by the target's rules alone: all that may be int8; arguments as for ``decide``."""
    return _plan(model, shapes, target, config, dict.fromkeys(float_nodes, ASKED))


def _plan(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    config: QuantConfig,
    float_nodes: Mapping[str, str],
    wide: Mapping[str, str] | None = None,
) -> Plan:
    return make_plan(
        model,
        shapes,
        target,
        weight_bits=config.weight_bits,
        activation_bits=config.activation_bits,
        residual=config.residual,
        float_nodes=float_nodes,
        full=_full_mode(config),
        wide_nodes=wide,
    )


def _full_mode(config: QuantConfig) -> FullMode | None:
    if config.mode != "full":
        return None
    recipe = find_recipe(config.recipe)
    return FullMode(recipe.softmax, recipe.norm_channels)
