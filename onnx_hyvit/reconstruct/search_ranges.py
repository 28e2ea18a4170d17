"""Ranges of a block's activations, one after the other, by the error that they leave at the block's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..numerics import QParams, QuantSpec, qparams_from_range

Measure = Callable[[QParams], float]
Rerank = Callable[[Sequence[QParams]], int]
COARSE = (1.25, 0.8, 0.65, 0.5, 0.35)
FINE = (1.1, 0.92)
LEAST_GAIN = 1e-3  # a smaller relative gain is noise of the samples


@dataclass(frozen=True)
class RangeChoice:
    """What the search did to one activation; errors are relative to the size of the block's outputs, squared.

    Args:
        tensor: The activation.
        before: Its range before.
        after: Its range now.
        error_before: The block's error before.
        error_after: The block's error now.
        scheme: ``symmetric`` or ``asymmetric``.
        rank: Place of the choice among the candidates by error; above 0 where the model's outputs decided otherwise.
    """

    tensor: str
    before: tuple[float, float]
    after: tuple[float, float]
    error_before: float
    error_after: float
    scheme: str
    rank: int = 0

    def after_all(self, first: RangeChoice | None) -> RangeChoice:
        """This choice of a later round, with what was before the ``first`` one; itself without one."""
        return self if first is None else replace(self, before=first.before, error_before=first.error_before)


def unchanged(tensor: str, qparams: QParams, error: float) -> RangeChoice:
    """The choice to leave a range as it is."""
    limits = range_of(qparams)
    return RangeChoice(tensor, limits, limits, error, error, scheme_of(qparams))


def range_of(qparams: QParams) -> tuple[float, float]:
    """Smallest and largest value that the codes stand for."""
    scale, zero = float(qparams.scale), int(qparams.zero_point)
    return (qparams.spec.qmin - zero) * scale, (qparams.spec.qmax - zero) * scale


def search_range(
    tensor: str,
    start: QParams,
    error: float,
    measure: Measure,
    steps: Sequence[Sequence[float]] = (COARSE, FINE),
    try_symmetric: bool = False,
    rerank: Rerank | None = None,
    keep: int = 1,
) -> tuple[QParams, RangeChoice]:
    """Improve the range of one activation; the best range found is kept, so without ``rerank`` the error never grows.

    Both ends of the range are scaled by the factors of each step, the low end first; the factors below 1 of a step are
    tried in order until one does not help.

    Args:
        tensor: The activation.
        start: Its scale.
        error: The error with it.
        measure: Error with a given scale instead.
        steps: Factors, coarse to fine.
        try_symmetric: Also try the symmetric scheme (zero point in the middle) before the ends are moved.
        rerank: Chooses among the best candidates, the one of least error first; gives its place.
        keep: How many candidates it gets.

    Returns:
        The scale found, and what was done.
    """
    search = _Search(start, error, measure)
    if try_symmetric and not start.spec.symmetric:
        search.try_symmetric()
    for factors in steps:
        search.step(factors)
    ranked = search.ranked(keep)
    rank = rerank([candidate for candidate, _ in ranked]) if rerank is not None and len(ranked) > 1 else 0
    found, after = ranked[rank]
    return found, RangeChoice(tensor, range_of(start), range_of(found), error, after, scheme_of(found), rank)


def scheme_of(qparams: QParams) -> str:
    """``symmetric`` when the zero point is the middle code, else ``asymmetric``."""
    spec = qparams.spec
    middle = 0 if spec.signed else (spec.qmax + 1) // 2
    return "symmetric" if int(qparams.zero_point) == middle else "asymmetric"


def _codes(qparams: QParams) -> tuple[float, int]:
    return float(qparams.scale), int(qparams.zero_point)


class _Search:
    """State of the search for one tensor."""

    def __init__(self, start: QParams, error: float, measure: Measure) -> None:
        self.best = start
        self.error = error
        self._measure = measure
        self._seen = {_codes(start): (start, error)}
        self.low, self.high = range_of(start)

    def ranked(self, most: int) -> list[tuple[QParams, float]]:
        """The best candidate, then the others tried by their error: ``most`` in all."""
        others = (entry for key, entry in self._seen.items() if key != _codes(self.best))
        return [(self.best, self.error), *sorted(others, key=lambda entry: entry[1])][:most]

    def step(self, factors: Sequence[float]) -> None:
        """Scale the low end, then the high end, by each factor that helps."""
        for end in ("low", "high"):
            limit = getattr(self, end)
            if limit == 0.0 or (end == "low" and self.best.spec.symmetric):
                continue
            for factor in factors:
                moved = {"low": self.low, "high": self.high, end: limit * factor}
                if self._attempt(moved["low"], moved["high"]):
                    setattr(self, end, limit * factor)
                elif factor < 1.0:
                    break

    def try_symmetric(self) -> None:
        """Try a range symmetric around 0."""
        reach = max(-self.low, self.high)
        spec = self.best.spec
        as_symmetric = QuantSpec(spec.bits, spec.signed, True, spec.axis)
        found = qparams_from_range(-reach, reach, as_symmetric)
        if self._accept(QParams(found.scale, found.zero_point, spec)):
            self.low, self.high = range_of(self.best)

    def _attempt(self, low: float, high: float) -> bool:
        if self.best.spec.symmetric:
            low = -high
        return self._accept(qparams_from_range(low, high, self.best.spec))

    def _accept(self, candidate: QParams) -> bool:
        if _codes(candidate) == _codes(self.best):
            return False
        error = self._measure(candidate)
        self._seen[_codes(candidate)] = (candidate, error)
        if error < self.error * (1.0 - LEAST_GAIN):
            self.best, self.error = candidate, error
            return True
        return False
