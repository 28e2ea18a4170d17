"""Find the float weight that a quantized one was made from.

Rewrites rename, pad and scale weights, so names do not lead there in every case; values do: rounding moves a weight by
little, and no other weight of the same shape is near. A factor per input or output channel, as channel gains leave
behind, is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

NEAR = 0.2  # squared error over power; 4-bit codes give about 0.02, an unrelated weight about 2
MUCH_BETTER = 0.5
ROUNDS = 4


class FloatWeights:
    """Float constants of a model and of its rewritten forms, by shape.

    Args:
        constants: Name -> array, once for each form; equal arrays are kept once.
    """

    def __init__(self, constants: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._by_shape: dict[tuple[int, ...], dict[bytes, np.ndarray]] = {}
        for form in constants:
            for array in form.values():
                if array.dtype.kind == "f" and array.size > 1:
                    self._by_shape.setdefault(array.shape, {}).setdefault(array.tobytes(), array)

    def find(self, values: np.ndarray) -> np.ndarray | None:
        """The float array that ``values`` was rounded from, of the same shape and dtype; None when none is near."""
        best, error = None, NEAR
        for array in self._by_shape.get(values.shape, {}).values():
            for candidate, worth in _scaled(array.astype(np.float64), values.astype(np.float64)):
                if worth < error:
                    best, error = candidate, worth
        return None if best is None else best.astype(values.dtype)


def _scaled(array: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """``array`` as it is, and with fitted factors along its first two axes, each with its relative squared error.

    A fit always explains a little; its error is raised, so that it is chosen only when it explains much.
    """
    yield array, _error(array, values)
    if array.ndim < 2:
        return
    for axes in ((0,), (1,), (0, 1)):
        candidate = array
        for _ in range(ROUNDS if len(axes) > 1 else 1):
            for axis in axes:
                candidate = candidate * _factors(candidate, values, axis)
        yield candidate, _error(candidate, values) / MUCH_BETTER ** len(axes)


def _factors(array: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(i for i in range(array.ndim) if i != axis)
    power = np.square(array).sum(axis=others, keepdims=True)
    product = (array * values).sum(axis=others, keepdims=True)
    return np.divide(product, power, out=np.ones_like(power), where=(power > 0) & (product != 0))


def _error(array: np.ndarray, values: np.ndarray) -> float:
    power = float(np.square(values).sum())
    return float(np.square(array - values).sum()) / power if power else float("inf")
