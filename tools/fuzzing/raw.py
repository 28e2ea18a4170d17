"""Damage bytes and text, reproducibly."""

from __future__ import annotations

import re

import numpy as np

INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff\x0f", b"\x00" * 8, b"\xff" * 8)
CHARACTERS = "\x00\t\n\x1b\"',=[]{}\u202e"
TOKENS = (
    "0",
    "-1",
    "1e999",
    "nan",
    "inf",
    "99999999999999999999999",
    '""',
    '"\\u001b[31m"',
    "[]",
    "{}",
    "[[[[]]]]",
    "true",
    "null",
    "1979-05-27",
    '"../../x"',
    "[0, 0, 0]",
    "'a\nb'",
)


def damage_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Single bytes in place; or edits that move the rest: pieces cut, doubled or moved, the end cut off."""
    found = bytearray(data)
    if found and rng.random() < 0.5:  # lengths stay right: most formats still parse
        for _ in range(int(rng.integers(1, 9))):
            found[int(rng.integers(len(found)))] = int(rng.integers(256))
        return bytes(found)
    for _ in range(int(rng.integers(1, 5))):
        if not found:
            break
        start = int(rng.integers(len(found)))
        length = int(min(len(found) - start, 2 ** rng.integers(0, 11)))
        piece = bytes(found[start : start + length])
        kind = int(rng.integers(6))
        if kind == 0:
            found[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            new = INTERESTING[int(rng.integers(len(INTERESTING)))]
            found[start : start + len(new)] = new
        elif kind == 2:
            del found[start : start + length]
        elif kind == 3:
            found[start:start] = piece * int(rng.integers(1, 4))
        elif kind == 4:
            del found[start : start + length]
            found[int(rng.integers(len(found) + 1)) :][:0] = piece
        else:
            del found[start:]
    return bytes(found)


def damage_text(text: str, rng: np.random.Generator) -> bytes:
    """One to three edits of words, values, lines or characters; now and then of the encoded bytes."""
    if rng.random() < 0.5:  # one value: the form stays right
        values = list(re.finditer(r"(?<=[=:\[,] )[^\s,=:\[\]{}]+", text))
        value = values[int(rng.integers(len(values)))] if values else None
        token = TOKENS[int(rng.integers(len(TOKENS)))]
        return (text[: value.start()] + token + text[value.end() :] if value else token).encode()
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(6))
        words = list(re.finditer(r"[^\s,=:\[\]{}]+", text))
        lines = text.splitlines(keepends=True)
        if kind == 0 and words:
            word = words[int(rng.integers(len(words)))]
            text = text[: word.start()] + TOKENS[int(rng.integers(len(TOKENS)))] + text[word.end() :]
        elif kind == 1 and words:
            word, other = (words[int(rng.integers(len(words)))] for _ in range(2))
            text = text[: word.start()] + other.group() + text[word.end() :]
        elif kind == 2 and lines:
            del lines[int(rng.integers(len(lines)))]
            text = "".join(lines)
        elif kind == 3 and lines:
            lines.insert(int(rng.integers(len(lines) + 1)), lines[int(rng.integers(len(lines)))])
            text = "".join(lines)
        elif kind == 4 and text:
            at = int(rng.integers(len(text)))
            text = text[:at] + CHARACTERS[int(rng.integers(len(CHARACTERS)))] + text[at:]
        else:
            text = text[: int(rng.integers(len(text) + 1))]
    data = text.encode("utf-8", "surrogatepass")
    return damage_bytes(data, rng) if rng.random() < 0.2 else data
