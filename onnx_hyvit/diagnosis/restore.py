"""Find the float weight that a quantized one was made from.

A constant that kept its name and shape (or became the weight of a 1x1 convolution) is known by them, however far a
quantizer has moved it. Rewrites rename, pad and scale weights, so for the others values must lead: rounding moves a
weight by little, and no other weight of the same shape is near. A factor per input or output channel, as channel gains
leave behind, is fitted. Where nothing of the same shape is near, channels may have been added to something smaller (see
``passes.layout.pad_channels``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

NEAR = 0.2  # squared error over power; 4-bit codes give about 0.02, an unrelated weight about 2
NEAR_BY_NAME = 1.0  # a constant of the same name and shape is another one only when it shares nothing
MUCH_BETTER = 0.5
ROUNDS = 4
MOST_ADDED = 16  # channels that a block of the widest kernel may lack, plus one


class FloatWeights:
    """Float constants of a model and of its rewritten forms, by shape.

    Args:
        constants: Name -> array, once for each form; equal arrays are kept once.
    """

    def __init__(self, constants: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._by_shape: dict[tuple[int, ...], dict[bytes, np.ndarray]] = {}
        self._by_name: dict[str, dict[bytes, np.ndarray]] = {}
        for form in constants:
            for name, array in form.items():
                if array.dtype.kind == "f" and array.size > 1:
                    self._by_name.setdefault(name, {}).setdefault(array.tobytes(), array)
                    self._by_shape.setdefault(array.shape, {}).setdefault(array.tobytes(), array)

    def find(self, values: np.ndarray, name: str = "") -> np.ndarray | None:
        """The float array that ``values`` was rounded from, of the same shape and dtype; None when none is near.

        Args:
            values: What the codes stand for.
            name: Name of the constant, where the quantizer kept it.
        """
        named = [form for array in self._by_name.get(name, {}).values() for form in _forms(array, values.shape)]
        found = _nearest(named, values, NEAR_BY_NAME)
        if found is None:
            found = _nearest(self._of_shape(values.shape), values, NEAR)
        return _nearest(self._padded(values.shape), values, NEAR) if found is None else found

    def _of_shape(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Arrays of that shape, and where it is that of a 1x1 convolution, those of linear layers."""
        for before in dict.fromkeys((shape, shape[:2], shape[1::-1])):
            for array in self._by_shape.get(before, {}).values():
                yield from _forms(array, shape)

    def _padded(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Smaller arrays with channels added: outputs repeat the first ones, inputs are 0."""
        for smaller, arrays in self._by_shape.items():
            same = len(smaller) == len(shape) and smaller[2:] == shape[2:] and smaller != shape
            if same and all(0 <= wide - size < MOST_ADDED for size, wide in zip(smaller, shape, strict=True)):
                for array in arrays.values():
                    longer = np.take(array, np.arange(shape[0]) % smaller[0], axis=0)
                    added = [(0, wide - size) for size, wide in zip(longer.shape, shape, strict=True)]
                    yield np.pad(longer, added)


def _forms(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """``array`` when it has that shape, or can be the weight ``[out, in]`` or ``[in, out]`` of a 1x1 convolution."""
    if array.shape == shape:
        yield array
    elif array.ndim == 2 and len(shape) == 4 and shape[2:] == (1, 1):
        for linear in (array, array.T):
            if linear.shape == shape[:2]:
                yield linear.reshape(shape)


def _nearest(arrays: Iterable[np.ndarray], values: np.ndarray, limit: float) -> np.ndarray | None:
    best, error = None, limit
    for array in arrays:
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
