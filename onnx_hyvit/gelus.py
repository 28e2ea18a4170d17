"""The pipeline's step that puts ``x * sigmoid(c x)`` in place of GELUs where that saves time and costs little accuracy.

GELU has no int8 kernel: between two int8 layers it is DequantizeLinear, float Gelu, QuantizeLinear. The other form is
two int8 kernels, at about half the time. It is another function (off by 0.02 at most), so each one is weighed: what it
does to the outputs, to second order as for roundings (``precision.effects``), against the time that it saves. The
factor c fits the values that the calibration data bring to this GELU. What was chosen is then measured on the
calibration samples, and the least useful are taken back until what they really do is within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from .backward import choose_loss
from .calibration import FirstSamples, Source
from .costs import gelu_saving
from .graph import Model, model_to_proto
from .numerics import Histogram
from .passes import run_passes
from .passes.layout import gelu_to_sigmoid
from .planning import Decision
from .precision import Effects, Rounding, measure_effects
from .reconstruct import Divergence
from .runtime import collect
from .scales import Work, first_scales

SAMPLES = 16
RATES = {"balanced": 2.0, "speed": math.inf}  # share of the roundings' divergence that a share of the time may cost
MOST = 0.5  # of the roundings' divergence, for all together
FACTORS = np.linspace(1.55, 1.85, 61)
FAR = 12.0  # beyond, both forms are 0 or x


@dataclass(frozen=True)
class Replaceable:
    """A GELU between int8 layers.

    Args:
        node: Its name.
        output: Name of what it makes.
        approximate: Its attribute of this name.
        factor: c.
        saved_us: Microseconds that the other form saves.
        divergence: What the other form does to the outputs, if it were the only one.
    """

    node: str
    output: str
    approximate: str
    factor: float
    saved_us: float
    divergence: float


@dataclass(frozen=True)
class Gelus:
    """What was weighed and what was chosen.

    Args:
        found: All that could be replaced.
        chosen: Those that are, the most useful first.
        rounding: Predicted divergence of the roundings alone, before reconstruction.
        measured: Divergence of the float model with the chosen ones replaced, on the samples that were weighed.
        products: Once they are replaced: the Mul that makes the output -> the GELU that it stands for.
    """

    found: tuple[Replaceable, ...]
    chosen: tuple[Replaceable, ...]
    rounding: float
    measured: float
    products: Mapping[str, Replaceable] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        kept = {gelu.node for gelu in self.chosen}
        return {
            "rounding_divergence": self.rounding,
            "divergence": self.measured,
            "saved_us": round(sum(gelu.saved_us for gelu in self.chosen), 1),
            "nodes": [
                {
                    "node": gelu.node,
                    "factor": round(gelu.factor, 4),
                    "saved_us": round(gelu.saved_us, 2),
                    "divergence": gelu.divergence,
                    "replaced": gelu.node in kept,
                }
                for gelu in self.found
            ],
        }

    def exact(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """``proto``, in which the chosen ones are replaced, with the GELUs back; every tensor stays, under its name."""
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for node in copy.graph.node:
            if (gelu := self.products.get(node.name)) is not None:
                source = [node.input[0]]
                node.CopyFrom(helper.make_node("Gelu", source, node.output, node.name, approximate=gelu.approximate))
        return copy


def replace_gelus(model: Model, gelus: Gelus) -> Gelus:
    """Put the other form in place of the chosen ones in ``model``, which is edited in place."""
    run_passes(model, [gelu_to_sigmoid({gelu.node: gelu.factor for gelu in gelus.chosen})])
    tensors = model.graph.tensors()
    return replace(gelus, products={tensors[gelu.output].inputs[0].name: gelu for gelu in gelus.chosen})


def choose_gelus(work: Work, decision: Decision, kernels: Collection[str], asked: str = "auto") -> Gelus | None:
    """Weigh the GELUs between the int8 layers of a plan.

    Args:
        work: Model, data and settings; the model is not changed.
        decision: Its plan, and the costs of kernels; without costs nothing is replaced.
        kernels: Operators that have int8 kernels and a rule in the target.
        asked: ``auto`` weighs, ``sigmoid`` takes all that save time.

    Returns:
        The choice; None where there is nothing to choose.
    """
    sites = _sites(work, decision) if {"Sigmoid", "Mul"} <= set(kernels) else {}
    if not sites:
        return None
    few = replace(work, source=FirstSamples(work.source, SAMPLES))
    proto = model_to_proto(work.model)
    loss = choose_loss(proto, work.shapes, work.config.losses)
    factors = _fit_factors(proto, work.model, list(sites), few.source, work.config.threads)
    effects = measure_effects(
        proto,
        decision.plan,
        first_scales(few, decision.plan),
        work.shapes,
        (feeds for _, feeds in few.source),
        loss,
        samples=SAMPLES,
        seed=work.config.seed,
        threads=work.config.threads,
        gelus=factors,
    )
    rounding, values = _split(effects, work.model, sites)
    found = tuple(
        Replaceable(
            node.name,
            node.outputs[0].name,
            str(node.attrs.get("approximate", "none")),
            factors[node.name],
            sites[node.name],
            _divergence(values[node.name]),
        )
        for node in work.model.graph.nodes
        if node.name in values
    )
    chosen = _affordable(found, values, rounding, decision, work.config.objective, asked)
    judge = Divergence(proto, loss, [feeds for _, feeds in few.source], work.config.threads)
    while True:
        measured = judge.of(judge.session(_replaced(proto, chosen))) if chosen else 0.0
        if asked == "sigmoid" or measured <= MOST * rounding:
            return Gelus(found, chosen, rounding, measured)
        chosen = chosen[: len(chosen) // 2]


def _sites(work: Work, decision: Decision) -> dict[str, float]:
    """Float GELU -> microseconds that the other form saves, above 0; those between nodes that compute on codes."""
    profile, plan = decision.profile, decision.plan
    on_codes = {*plan.int8_nodes, *plan.carried_nodes}
    sites: dict[str, float] = {}
    for node in work.model.graph.nodes:
        if node.op != "Gelu" or profile is None or node.name in work.config.float_nodes:
            continue
        source, output = node.inputs[0], node.outputs[0]
        around = (*source.inputs, *output.outputs)
        if len(source.inputs) != 1 or not output.outputs or not all(near.name in on_codes for near in around):
            continue
        if source.name in plan.activations and output.name in plan.activations:
            saved = gelu_saving(node, work.shapes, profile)
            if saved is not None and saved > 0:
                sites[node.name] = saved
    return sites


def _fit_factors(
    proto: onnx.ModelProto, model: Model, names: list[str], source: Source, threads: int
) -> dict[str, float]:
    """The factor of least squared error for the values that reach each GELU."""
    sources = {node.name: node.inputs[0].name for node in model.graph.nodes if node.name in names}
    tensors = list(dict.fromkeys(sources.values()))
    seen = collect(proto, tensors, source, {name: Histogram(axis=None) for name in tensors}, threads=threads)
    fitted = {name: _fit_factor(histogram) for name, histogram in seen.items()}
    return {name: fitted[sources[name]] for name in names}


def _fit_factor(histogram: Histogram) -> float:
    values, counts = histogram.points()
    near = np.abs(values) < FAR
    values, counts = values[near], counts[near]
    gelu = 0.5 * values * (1.0 + np.array([math.erf(value) for value in values / math.sqrt(2.0)]))
    errors = [float((counts * np.square(values / (1.0 + np.exp(-c * values)) - gelu)).sum()) for c in FACTORS]
    return float(FACTORS[int(np.argmin(errors))])


def _split(effects: Effects, model: Model, sites: Mapping[str, float]) -> tuple[float, dict[str, np.ndarray]]:
    """Divergence of all roundings, and the effect of each GELU's other form in every draw."""
    made = {Rounding(node.outputs[0].name, node.name): node.name for node in model.graph.nodes if node.name in sites}
    values, terms = {}, dict[str, list[int]]()
    for place, rounding in enumerate(effects.roundings):
        if rounding in made:
            values[made[rounding]] = effects.values[:, place]
        else:
            terms.setdefault(rounding.tensor, []).append(place)
    return effects.divergence(terms.values()), values


def _divergence(effect: np.ndarray) -> float:
    return 0.5 * float(np.square(effect).mean())


def _affordable(
    found: tuple[Replaceable, ...],
    values: Mapping[str, np.ndarray],
    rounding: float,
    decision: Decision,
    objective: str,
    asked: str,
) -> tuple[Replaceable, ...]:
    """Those worth it, the one that costs least for its time first; their effects add up, as they are no noise."""
    if asked == "sigmoid":
        return found
    assert decision.choice is not None
    rate = RATES.get(objective, 0.0) * rounding / decision.choice.int8_us
    chosen: list[Replaceable] = []
    total, before = np.zeros(()), 0.0
    for gelu in sorted(found, key=lambda gelu: gelu.divergence / gelu.saved_us):
        after = _divergence(total + values[gelu.node])
        if after <= MOST * rounding and after - before <= rate * gelu.saved_us:
            chosen.append(gelu)
            total, before = total + values[gelu.node], after
    return tuple(chosen)


def _replaced(proto: onnx.ModelProto, chosen: tuple[Replaceable, ...]) -> onnx.ModelProto:
    """``proto`` with the other form in place of the chosen GELUs."""
    factors = {gelu.node: gelu.factor for gelu in chosen}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    for node in proto.graph.node:
        if node.name not in factors:
            copy.graph.node.append(node)
            continue
        number = f"{node.name}::factor"
        copy.graph.initializer.append(helper.make_tensor(number, onnx.TensorProto.FLOAT, (), [factors[node.name]]))
        copy.graph.node.extend(_other_form(node, number))
    return copy


def _other_form(node: onnx.NodeProto, number: str) -> Iterator[onnx.NodeProto]:
    source, scaled, sigmoid = node.input[0], f"{node.name}::scaled", f"{node.name}::sigmoid"
    yield helper.make_node("Mul", [source, number], [scaled])
    yield helper.make_node("Sigmoid", [scaled], [sigmoid])
    yield helper.make_node("Mul", [source, sigmoid], node.output)
