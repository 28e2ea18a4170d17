"""Recipes: named compositions of ranges, weight scales and corrections.

A recipe says *how* scales are found; *where* Q/DQ pairs go is the target's business (``placement``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from .errors import ConfigError
from .numerics.log_codes import LINE, POLYNOMIAL, LogCodes
from .numerics.ranges import RangeMethod
from .numerics.weights import WeightMethod

GainRule = Literal["search", "layer-norm", "smooth"]
Weighting = Literal["mse", "fisher", "cosine", "auto"]
Fold = Literal["norm", "rows", "values", "logits", "shift"]
ALL_FOLDS: frozenset[Fold] = frozenset(get_args(Fold))
FOLDS: frozenset[Fold] = frozenset({"norm", "values", "shift"})  # rows made Mobile-Former worse, logits are unproven


@dataclass(frozen=True)
class Reconstruction:
    """What block reconstruction may change, and how it judges; see ``onnx_hyvit.reconstruct``.

    Args:
        rounding: How weights become codes: ``gptq``, ``nearest``, or None to leave weights and biases alone.
        ridge: Correct weights for the error of their inputs, where held-out samples confirm it.
        correct_bias: Correct biases, so that the mean output of each channel stays.
        search: Search the range of every activation.
        try_symmetric: The search may also choose the symmetric scheme.
        sequential: Inputs of a block come from the quantized blocks before it, else from the float model.
        metric: How errors at the outputs of a block count: ``mse``, ``fisher`` or ``cosine``. ``auto`` reconstructs
            with ``mse`` and with ``fisher``, and keeps what leaves the model's outputs closer to float on samples that
            ranges were not searched on; that takes twice the time.
        search_samples: Samples that ranges are measured on at most.
        refit: Fit the scales of a layer's weight again, by one factor, once its codes are known: outputs do not shrink.
        confirm: Keep a range that was found only where samples that the search did not see gain, too.
        rerank: Candidates of each range, the best by the block's error, among which the divergence of the model's
            outputs decides, the layers behind the block in float; 0 leaves the choice to the block's error. Blocks for
            which that takes too long are left out.
        search_weights: Search the scales of weights by the error at the block's outputs, where ``rounding`` is None.
        weigh_positions: With the metric ``fisher``, weight the positions of a layer's outputs where its weights are
            rounded, too. Off: it brought no outputs closer on models of the zoo (w4a4).
        rounds: How often the searches of weights and of ranges take turns at most.
    """

    rounding: Literal["gptq", "nearest"] | None = "gptq"
    ridge: bool = True
    correct_bias: bool = True
    search: bool = True
    try_symmetric: bool = False
    sequential: bool = True
    metric: Weighting = "mse"
    search_samples: int = 32
    refit: bool = True
    confirm: bool = True
    rerank: int = 0
    search_weights: bool = False
    weigh_positions: bool = False
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.search_weights and self.rounding is not None:
            raise ConfigError(f"search_weights needs codes that nothing else chooses; found rounding {self.rounding!r}")
        if self.rounds < 1:
            raise ConfigError(f"rounds must be at least 1, found {self.rounds}")
        if self.rerank < 0 or self.rerank == 1:
            raise ConfigError(f"rerank must be 0 or at least 2 candidates, found {self.rerank}")


@dataclass(frozen=True)
class Recipe:
    """How scales and zero points are found.

    Args:
        name: Name on the command line.
        summary: One line for ``--help`` and reports.
        ranges: How an activation's range is read off its statistics.
        weights: Scale of a weight channel: ``minmax`` covers every weight, ``mse`` is searched.
        gains: Give activations a scale per channel where an exact rewrite makes that deployable and it pays.
        gain_rule: How gains are chosen: ``search`` (least error of the layers behind, wherever a fold is exact),
            ``layer-norm`` (behind LayerNormalization, by ratio of ranges, with a shift: RepQ-ViT) or ``smooth`` (in
            front of pointwise and depthwise convolutions, by a closed form: HyQ).
        folds: What the rule ``search`` tries besides gains between neighbours, at no node: behind LayerNormalization
            through nodes that move channels (``norm``), of values of attentions (``values``), behind layers
            (``rows``), of queries against keys (``logits``); with all of them, a ``shift`` per channel. Tried where
            activations have fewer than 8 bits.
        measure_gains: Choose among the best gains by the error at the outputs of the blocks that they touch, instead of
            by the closed form of the layers' error; the metric is that of ``reconstruction``.
        softmax: In mode full, logarithmic codes of softmax outputs, emulated; None gives them uniform codes.
        norm_channels: In mode full, inputs of LayerNormalization have power-of-two factors per channel.
        precision: Take nodes back to float where that is worth its time.
        reconstruction: Reconstruct the blocks one after the other, starting from the scales found so far.
    """

    name: str
    summary: str
    ranges: RangeMethod = field(default_factory=RangeMethod)
    weights: WeightMethod = "minmax"
    gains: bool = False
    gain_rule: GainRule = "search"
    folds: frozenset[Fold] = FOLDS
    measure_gains: bool = False
    softmax: LogCodes | None = None
    norm_channels: bool = False
    precision: bool = False
    reconstruction: Reconstruction | None = None

    def __post_init__(self) -> None:
        if unknown := self.folds - set(get_args(Fold)):
            raise ConfigError(f"recipe {self.name!r}: no fold {min(unknown)!r}; expected {', '.join(get_args(Fold))}")
        if self.reconstruction is not None and (self.softmax is not None or self.norm_channels):
            raise ConfigError(f"recipe {self.name!r}: reconstruction knows uniform codes of one scale per tensor only")
        if self.measure_gains and (self.reconstruction is None or not self.gains or self.gain_rule != "search"):
            raise ConfigError(f"recipe {self.name!r}: measure_gains needs gains by the rule search, and reconstruction")


SCALES_ONLY = Reconstruction(rounding=None, ridge=False, correct_bias=False, confirm=False)
TAKE_TURNS = replace(SCALES_ONLY, search_weights=True, rounds=3)  # PTQ4ViT's three rounds
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("minmax", "ranges from the smallest and largest value seen"),
        Recipe("average", "ranges from the moving average of each batch's extremes", RangeMethod("average")),
        Recipe("percentile", "ranges that leave out the 0.001 % most extreme values", RangeMethod("percentile")),
        Recipe("entropy", "ranges of least KL divergence between values and codes", RangeMethod("entropy")),
        Recipe("mse", "ranges and weight scales of least squared error", RangeMethod("mse"), "mse"),
        Recipe(
            "gains",
            "as mse, with a scale per channel where that can be folded and pays",
            RangeMethod("mse"),
            "mse",
            True,
        ),
        Recipe(
            "easyquant",
            "scales of weights and activations in turns by the cosine of each block's outputs (arXiv 2006.16669)",
            RangeMethod("minmax"),
            "mse",
            reconstruction=replace(TAKE_TURNS, metric="cosine"),
        ),
        Recipe(
            "ptq4vit",
            "scales of weights and activations in turns by Fisher-weighted error, blocks in parallel (the search of "
            "arXiv 2111.12293, uniform codes)",
            RangeMethod("minmax"),
            "mse",
            reconstruction=replace(TAKE_TURNS, metric="fisher", sequential=False),
        ),
        Recipe(
            "repq-vit",
            "LayerNorm reparametrised (arXiv 2212.08254); mode full: log-sqrt2 codes of softmax, emulated in float",
            RangeMethod("mse"),
            "mse",
            gains=True,
            gain_rule="layer-norm",
            softmax=LogCodes(per_octave=2),
        ),
        Recipe(
            "fq-vit",
            "min-max ranges; mode full: power-of-two factors for LayerNorm, 4-bit log-int-softmax (arXiv 2111.13824), "
            "both emulated in float",
            softmax=LogCodes(4, 1, POLYNOMIAL),
            norm_channels=True,
        ),
        Recipe(
            "hyq",
            "scales per channel in front of pointwise and depthwise convolutions (HyQ, IJCAI 2024) by a closed form "
            "instead of 1000 steps of Adam; mode full: 4-bit log2 softmax by a line, emulated in float",
            RangeMethod("percentile"),
            gains=True,
            gain_rule="smooth",
            softmax=LogCodes(4, 1, LINE),
        ),
        Recipe(
            "q-hyvit-paper",
            "granularity, scheme and scales of weights and activations by Fisher-weighted block error "
            "(arXiv 2303.12557), channel-wise where neighbours take that",
            RangeMethod("minmax"),
            "mse",
            gains=True,
            folds=frozenset(),
            measure_gains=True,
            reconstruction=replace(TAKE_TURNS, metric="fisher", try_symmetric=True),
        ),
        Recipe(
            "q-hyvit",
            "block reconstruction: ranges, channel gains, weight rounding, ridge, bias correction, mixed precision",
            RangeMethod("mse"),
            "mse",
            gains=True,
            precision=True,
            reconstruction=Reconstruction(),
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: There is none; lists those that exist.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"recipe {name!r} is unknown; expected one of {', '.join(RECIPES)}") from None


def with_weighting(recipe: Recipe, weighting: str | None) -> Recipe:
    """``recipe`` with errors weighted as asked for.

    Args:
        recipe: The recipe.
        weighting: ``mse``, ``fisher`` or ``auto``; None leaves it to the recipe.

    Raises:
        ConfigError: The recipe has no errors that could be weighted.
    """
    if weighting is None:
        return recipe
    if recipe.reconstruction is None:
        able = ", ".join(other.name for other in RECIPES.values() if other.reconstruction is not None)
        raise ConfigError(f"weighting: recipe {recipe.name!r} reconstructs no blocks; those that do are {able}")
    return replace(recipe, reconstruction=replace(recipe.reconstruction, metric=cast("Weighting", weighting)))


def add_recipe(recipe: Recipe) -> None:
    """Make a recipe of one's own known by its name, in this process.

    Args:
        recipe: The recipe; ``QuantConfig(recipe=...)`` then takes its name.

    Raises:
        ConfigError: The name is taken.
    """
    if recipe.name in RECIPES:
        raise ConfigError(f"recipe {recipe.name!r} exists already; give yours another name")
    RECIPES[recipe.name] = recipe
