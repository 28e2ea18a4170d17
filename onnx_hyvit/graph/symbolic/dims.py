"""Dimensions as numbers or as one product ``c * N * M ...`` of a number and symbols; everything else is unknown.

Symbols stand for sizes of at least 1. Operations return None (unknown) instead of leaving this form.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

_FACTOR = re.compile(r"\d+|[^\s*()+-]+")


@dataclass(frozen=True)
class Monomial:
    """``coefficient`` times the product of ``symbols`` (sorted, at least one)."""

    coefficient: Fraction
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        """``N``, ``4*N``: readable as a dimension's name."""
        product = "*".join(self.symbols)
        return product if self.coefficient == 1 else f"{self.coefficient}*{product}"


Dim = int | Monomial | None
Number = int | float | bool
Element = Number | Monomial | None


def parse_dim(dim: object) -> Dim:
    """A dimension as ``gs`` stores it: a number, a name (a product such as ``4*N`` too), or nothing.

    Names that shape inference generates (``unk__``) are not unique over several runs, so they count as unknown.
    """
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    if not isinstance(dim, str) or not dim or dim.startswith("unk__"):
        return None
    factors = [part.strip() for part in dim.split("*")]
    if not all(_FACTOR.fullmatch(part) for part in factors):
        return Monomial(Fraction(1), (dim,))
    numbers = math.prod(int(part) for part in factors if part.isdigit())
    return product_of(numbers, tuple(part for part in factors if not part.isdigit()))


def product_of(coefficient: Fraction | int, symbols: tuple[str, ...]) -> int | Monomial | None:
    """The value ``coefficient * symbols``, as a number when there are no symbols or the coefficient is 0."""
    coefficient = Fraction(coefficient)
    if not symbols or coefficient == 0:
        return int(coefficient) if coefficient.denominator == 1 else None
    return Monomial(coefficient, tuple(sorted(symbols)))


def _split(value: Number | Monomial) -> tuple[Fraction, tuple[str, ...]]:
    if isinstance(value, Monomial):
        return value.coefficient, value.symbols
    return Fraction(value), ()


def multiply(a: Element, b: Element) -> Element:
    """``a * b``."""
    if a is None or b is None:
        return None
    if not isinstance(a, Monomial) and not isinstance(b, Monomial):
        return a * b
    (ca, sa), (cb, sb) = _split(a), _split(b)
    return product_of(ca * cb, sa + sb)


def add(a: Element, b: Element) -> Element:
    """``a + b``; known for two numbers, or like terms."""
    if a is None or b is None:
        return None
    if not isinstance(a, Monomial) and not isinstance(b, Monomial):
        return a + b
    (ca, sa), (cb, sb) = _split(a), _split(b)
    if sa == sb:
        return product_of(ca + cb, sa)
    return a if cb == 0 else b if ca == 0 else None


def subtract(a: Element, b: Element) -> Element:
    """``a - b``; known for two numbers, or like terms."""
    return add(a, multiply(b, -1))


def divide(a: Element, b: Element, whole: bool) -> Element:
    """``a / b``; ``whole`` asks for ONNX's integer division (towards zero), which must be exact for symbols."""
    if a is None or b is None or (not isinstance(b, Monomial) and b == 0):
        return None
    if not isinstance(a, Monomial) and not isinstance(b, Monomial):
        return math.trunc(Fraction(a) / Fraction(b)) if whole else a / b
    (ca, sa), (cb, sb) = _split(a), _split(b)
    rest = list(sa)
    for symbol in sb:
        if symbol not in rest:
            return None
        rest.remove(symbol)
    ratio = ca / cb
    if not rest and not whole:
        return float(ratio)
    return None if whole and ratio.denominator != 1 else product_of(ratio, tuple(rest))


def modulo(a: Element, b: Element) -> Element:
    """``a mod b``; for symbols only when it is 0."""
    if a is None or b is None or (not isinstance(b, Monomial) and b == 0):
        return None
    if not isinstance(a, Monomial) and not isinstance(b, Monomial):
        return a % b
    return 0 if divide(a, b, whole=True) is not None else None


def floor(a: Element) -> Element:
    """Rounding of any kind: exact for whole products, unknown for others."""
    if isinstance(a, Monomial):
        return a if a.coefficient.denominator == 1 else None
    return None if a is None else float(math.floor(a))


def to_integer(a: Element) -> Element:
    """Cast to an integer type."""
    return floor(a) if isinstance(a, Monomial) else None if a is None else int(a)


def equal(a: Element, b: Element) -> bool | None:
    """``a == b``; a positive product differs from every number below 1, and from other products unknowably."""
    if a is None or b is None:
        return None
    if a == b:
        return True
    if not isinstance(a, Monomial) and not isinstance(b, Monomial):
        return False
    (ca, sa), (cb, sb) = _split(a), _split(b)
    if sa == sb:
        return False
    known, product = (cb, ca) if sa else (ca, cb)
    if (not sa or not sb) and product > 0 and known < product:
        return False
    return None


def maximum(a: Element, b: Element) -> Element:
    """``max(a, b)``: known for two numbers, like terms, and 0 or 1 beside a whole product."""
    if a is None or b is None:
        return None
    if not isinstance(a, Monomial) and not isinstance(b, Monomial):
        return max(a, b)
    (ca, sa), (cb, sb) = _split(a), _split(b)
    if sa == sb:
        return a if ca >= cb else b
    if (not sa and ca <= cb) or (not sb and cb <= ca):
        return b if not sa else a
    return None
