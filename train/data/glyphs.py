"""Glyphs: the characters 0-9 A-Z rendered in the text fonts that matplotlib ships, grey 32×32.

Font families are held apart: DejaVu Sans, Mono, Serif and Computer Modern Roman train, Computer Modern
Typewriter validates, STIX General and Computer Modern Sans test. Every image is a function of (data_seed,
split, index): jittered by an affine map, blurred, its contrast lowered or inverted, and noise added.
"""

from __future__ import annotations

import string
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ...records import DataSpec
from .dataset import Dataset, Split

CLASSES = tuple(string.digits + string.ascii_uppercase)
SIZE = 32
FAMILIES = {
    "train": (
        "DejaVuSans.ttf",
        "DejaVuSans-Bold.ttf",
        "DejaVuSans-Oblique.ttf",
        "DejaVuSansMono.ttf",
        "DejaVuSansMono-Bold.ttf",
        "DejaVuSerif.ttf",
        "DejaVuSerif-Bold.ttf",
        "DejaVuSerif-Italic.ttf",
        "cmr10.ttf",
        "cmb10.ttf",
        "cmti10.ttf",
    ),
    "validation": ("cmtt10.ttf",),
    "test": ("STIXGeneral.ttf", "cmss10.ttf"),
}
_CANVAS = 3 * SIZE  # drawn large and scaled down by the affine map: clean edges under rotation
_GLYPH_HEIGHT = 20.0  # pixels of the 32, before jitter
_NUMBER = {"train": 0, "validation": 1, "test": 2}


def load_glyphs(spec: DataSpec) -> Dataset:
    """Render the three splits that `spec` asks for; the same numbers give the same pixels."""
    validation_size = max(1, round(spec.train_size * spec.validation_share))
    sizes = {"train": spec.train_size, "validation": validation_size, "test": spec.test_size}
    splits = {part: _split(part, size, spec.data_seed) for part, size in sizes.items()}
    return Dataset(
        name="glyphs",
        classes=CLASSES,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        mean=tuple(spec.mean),
        std=tuple(spec.std),
    )


@cache
def _split(part: str, size: int, seed: int) -> Split:
    """Rendered once a process: a comparison trains several networks on the same images."""
    images = np.empty((size, 1, SIZE, SIZE), np.uint8)
    labels = np.arange(size) % len(CLASSES)
    for index in range(size):
        rng = np.random.default_rng([seed, _NUMBER[part], index])
        font = str(rng.choice(FAMILIES[part]))
        images[index, 0] = _degraded(_drawn(CLASSES[labels[index]], font), rng)
    return Split(images, labels.astype(np.int64))


@cache
def _drawn(character: str, font_file: str) -> Image.Image:
    """White on black, as large on the canvas as the jitter allows, centred by its own ink."""
    font = ImageFont.truetype(str(_font_path(font_file)), size=_CANVAS * _GLYPH_HEIGHT / SIZE)
    image = Image.new("L", (_CANVAS, _CANVAS), 0)
    left, top, right, bottom = font.getbbox(character)
    origin = ((_CANVAS - right - left) / 2, (_CANVAS - bottom - top) / 2)
    ImageDraw.Draw(image).text(origin, character, fill=255, font=font)
    return image


def _font_path(font_file: str) -> Path:
    found = find_spec("matplotlib")  # not imported, which takes a while
    assert found is not None, "the extra `train` brings it along"
    return Path(found.origin or "").with_name("mpl-data") / "fonts" / "ttf" / font_file


def _degraded(canvas: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Affine jitter, blur, contrast and polarity, noise: in that order, as a camera would."""
    small = canvas.transform((SIZE, SIZE), Image.Transform.AFFINE, _jitter(rng), Image.Resampling.BICUBIC)
    blurred = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    ink = np.asarray(blurred, np.float32) / 255
    contrast = rng.uniform(0.35, 1.0) * rng.choice([-1.0, 1.0])
    background = 0.5 - contrast / 2 + rng.uniform(-0.1, 0.1)
    noisy = background + contrast * ink + rng.normal(0, rng.uniform(0.02, 0.10), ink.shape)
    return np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8)


def _jitter(rng: np.random.Generator) -> tuple[float, float, float, float, float, float]:
    """Output-to-canvas map: rotation ±12°, shear ±0.2, scale 0.8-1.2 each way, shift ±3 pixels."""
    angle = np.deg2rad(rng.uniform(-12, 12))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, rng.uniform(-0.2, 0.2)], [0.0, 1.0]])
    scale = np.diag(rng.uniform(0.8, 1.2, 2))
    linear = np.linalg.inv(rotation @ shear @ scale) * (_CANVAS / SIZE)
    centre = np.full(2, (SIZE - 1) / 2) + rng.uniform(-3, 3, 2)
    offset = np.full(2, (_CANVAS - 1) / 2) - linear @ centre
    (a, b), (c, d) = linear
    return (float(a), float(b), float(offset[0]), float(c), float(d), float(offset[1]))
