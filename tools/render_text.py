"""Render seeded lines of text with Pillow: the images on which text recognisers are calibrated and measured.

Each line is made of words, numbers, dates and codes, drawn with one of several fonts and sizes on a noisy background,
then rotated a little, blurred and resized to the recogniser's height. The same seed gives the same pixels (for the
same Pillow and fonts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WORDS = (
    "about above across account address after again against amount annual answer apple arrival article august autumn "
    "balance bottle branch bread bridge bright broken budget building button camera carbon castle center chapter "
    "charge circle city climate coffee column common company contract copper corner country credit customer daily "
    "danger december delivery deposit design detail dinner direct district doctor double drawing east edition effort "
    "electric engine entrance evening exchange express factory family february field figure final flight floor forest "
    "forward freight friday garden general glass gravel ground handle harbour health history hotel house hundred "
    "import income index insurance invoice island issue january journey july june kitchen ladder language large "
    "leather letter level library light limited liquid listen local london machine manager march market material "
    "measure medical member metal method middle million minute mobile model monday month morning mountain museum "
    "music national network north notice november number object october office orange order output oxygen packet "
    "paper parking partner payment people period person petrol phone picture planet plastic platform please pocket "
    "police policy position postal power present price private product project public quality quarter question "
    "receipt record region report result return river road sample saturday school science season second section "
    "september service seven shelter shipping silver simple single sixteen small society south special spring square "
    "standard station steel stone street student subject summer sunday supply surface system table tax telephone "
    "temple thousand thursday ticket timber total tower traffic train travel tuesday twelve union unit university "
    "upper valley value vehicle village visit volume warehouse water wednesday weight west window winter wooden yellow"
).split()
HEIGHT = 48
MIN_WIDTH = 320
WIDTH_STEP = 32
MAX_WIDTH = 1600


@dataclass(frozen=True)
class TextLine:
    """One rendered line: ``image`` uint8 [48, width, 3] RGB, and the text in it."""

    image: np.ndarray
    text: str


def find_fonts(folders: list[Path] | None = None) -> list[Path]:
    """TrueType files to draw with: those of ``folders``, else the DejaVu and Liberation fonts of the system.

    Raises:
        SystemExit: No font was found; says which package brings some.
    """
    roots = folders or [Path("/usr/share/fonts/truetype/dejavu"), Path("/usr/share/fonts/truetype/liberation")]
    fonts = sorted(path for root in roots if root.is_dir() for path in root.glob("*.ttf"))
    fonts = [path for path in fonts if not any(word in path.name for word in ("Math", "Symbol", "ExtraLight"))]
    if not fonts:
        raise SystemExit("no TrueType font found: install fonts-dejavu, or name a folder with --fonts DIR")
    return fonts


def random_text(rng: np.random.Generator) -> str:
    """One to five tokens: words in several cases, numbers, prices, dates, codes."""
    return " ".join(_random_token(rng) for _ in range(int(rng.integers(1, 6))))


def _random_token(rng: np.random.Generator) -> str:
    kind = rng.random()
    word = WORDS[int(rng.integers(len(WORDS)))]
    if kind < 0.35:
        return word
    if kind < 0.55:
        return word.capitalize()
    if kind < 0.65:
        return word.upper()
    if kind < 0.75:
        return str(int(rng.integers(1, 100000)))
    if kind < 0.85:
        return f"{int(rng.integers(1, 1000))}.{int(rng.integers(100)):02d}"
    if kind < 0.93:
        return f"{int(rng.integers(1, 29)):02d}/{int(rng.integers(1, 13)):02d}/{int(rng.integers(1990, 2030))}"
    letters = "".join(chr(65 + int(code)) for code in rng.integers(0, 26, 2))
    return f"{letters}-{int(rng.integers(1000, 10000))}"


def render_line(text: str, font_path: Path, rng: np.random.Generator) -> np.ndarray:
    """Draw ``text`` and disturb it; returns uint8 [48, width, 3] RGB."""
    font = ImageFont.truetype(str(font_path), int(rng.integers(26, 44)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(4, 10))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    paper = rng.integers(190, 256, 3)
    ink = np.clip(paper - rng.integers(110, 190, 3), 0, 255)
    image = Image.new("RGB", size, tuple(int(value) for value in paper))
    draw = ImageDraw.Draw(image)
    draw.text((margin - left, margin - top), text, font=font, fill=tuple(int(value) for value in ink))
    image = image.rotate(
        float(rng.normal(0, 0.7)), Image.Resampling.BICUBIC, expand=True, fillcolor=tuple(int(v) for v in paper)
    )
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.1))))
    width = int(np.clip(round(image.width * HEIGHT / image.height), 8, MAX_WIDTH))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    pixels += rng.normal(0, rng.uniform(0, 12), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def render_lines(count: int, seed: int, fonts: list[Path]) -> Iterator[TextLine]:
    """``count`` lines; line ``i`` depends on the seed and ``i`` alone."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        text = random_text(rng)
        yield TextLine(render_line(text, fonts[int(rng.integers(len(fonts)))], rng), text)


def to_input(image: np.ndarray, width: int | None = None) -> np.ndarray:
    """The recogniser's input: float32 [3, 48, W], BGR, ``x / 127.5 - 1``, padded on the right with zeros.

    Args:
        image: uint8 [48, width, 3] RGB.
        width: Width to pad to; the next multiple of 32 of at least 320 when None.
    """
    target = width or max(MIN_WIDTH, -(-image.shape[1] // WIDTH_STEP) * WIDTH_STEP)
    values = image[:, :target, ::-1].astype(np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    padded = np.zeros((3, HEIGHT, target), np.float32)
    padded[:, :, : values.shape[2]] = values
    return padded
