"""Scales, ticks and SVG elements. Colours are CSS classes, so that one drawing reads in light and in dark.

All text and attribute values pass through markupsafe; a name from a model cannot become markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

# Drawing units; a figure is shown at about this many CSS pixels, on a wide page and on a phone alike.
WIDTH = 400
HEIGHT = 330
# Mean advance of a system sans-serif at 11 units, used to keep labels apart; a guess on the wide side.
LETTER = 6.7
_LINE = 13.0


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] in drawing units, linearly or logarithmically (then low > 0).

    A scale of whole things, such as epochs, has its ticks at whole numbers.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        """The position of `value`."""
        return self.start + self._share(value) * (self.end - self.start)

    def _share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the scale: steps of 1, 2 or 5, or a 1-2-5 series over a decade or more."""
        if self.log and self.high / self.low > 10:
            return log_ticks(self.low, self.high)
        ticks = linear_ticks(self.low, self.high, count)
        return [tick for tick in ticks if tick == round(tick)] if self.whole else ticks


def scale(values: Iterable[float], start: float, end: float, log: bool = False, pad: float = 0.06) -> Scale:
    """A scale around `values` with a margin of `pad` of their span on either side."""
    known = list(values)
    low, high = min(known), max(known)
    if low == high:
        low, high = (low / 1.1, high * 1.1) if log else (low - 0.5, high + 0.5)
    if log:
        margin = (high / low) ** pad
        return Scale(low / margin, high * margin, start, end, log)
    return Scale(low - pad * (high - low), high + pad * (high - low), start, end)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if m * power >= 0.7 * rough)  # rather too many than too few
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten inside [low, high]; beyond three decades only the powers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low <= 1000 else (1,)
    return [m * 10.0**k for k in decades for m in steps if low <= m * 10.0**k <= high]


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """One SVG element; `class_` becomes class, `stroke_width` stroke-width; strings are escaped."""
    pairs = ((name.rstrip("_").replace("_", "-"), v) for name, v in attributes.items() if v is not None)
    text = Markup("").join(Markup(' {}="{}"').format(name, _number(value)) for name, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, text, Markup("").join(children))


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, text: str, class_: str = "", anchor: str | None = None) -> Markup:
    """Text at a baseline; `anchor` is start, middle or end."""
    return element("text", text, x=x, y=y, class_=f"t {class_}".strip(), text_anchor=anchor)


def path(points: Sequence[tuple[float, float]], class_: str, closed: bool = False, title: str = "") -> Markup:
    """A polyline or polygon through `points`, with a tooltip."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")
    return element("path", *([element("title", title)] if title else []), d=d, class_=class_)


def dot(x: float, y: float, class_: str, title: str) -> Markup:
    """A marker with a tooltip; the headline's is larger."""
    return element("circle", element("title", title), cx=x, cy=y, r=5.5 if "headline" in class_ else 4.2, class_=class_)


def svg(children: Iterable[str], alt: str, height: float = HEIGHT) -> Markup:
    """The figure, scaled to its container; `alt` is what a screen reader says."""
    box = f"0 0 {WIDTH} {height:.0f}"
    body = [element("title", alt), *children]
    return element("svg", *body, viewBox=box, role="img", aria_label=alt)


def shorten(name: str, most: int = 24) -> str:
    """`name` cut to `most` characters, with an ellipsis in its middle."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


@dataclass(frozen=True)
class Box:
    """A rectangle that labels keep clear of."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def place_labels(points: Sequence[tuple[float, float, str, str]], frame: Box, obstacles: Sequence[Box]) -> list[Markup]:
    """Labels of (x, y, text, class) beside their points: the first free place around each, else the right."""
    taken = [*obstacles, *(Box(x - 5, y - 5, x + 5, y + 5) for x, y, _, _ in points)]
    labels = []
    for x, y, text, class_ in points:
        places = [(_text_box(x, y, side, rise, len(text) * LETTER), side) for side, rise in _PLACES]
        inside = [place for place in places if _inside(place[0], frame)] or places
        box, side = next((p for p in inside if not any(map(p[0].meets, taken))), inside[0])
        taken.append(box)
        at, anchor = {1: (box.left, "start"), 0: (x, "middle"), -1: (box.right, "end")}[side]
        labels.append(label(at, box.bottom - 3.5, text, class_, anchor))
    return labels


# Side (−1 left, 0 centred, 1 right) and rise (in lines, downwards) of a label about its point.
_RISES = (0.0, -0.8, 0.8, -1.7, 1.7, -2.6, 2.6, -3.5, 3.5)
_PLACES = [(side, rise) for rise in _RISES for side in ((1, -1) if abs(rise) != 1.7 else (1, -1, 0))]


def _text_box(x: float, y: float, side: int, rise: float, width: float) -> Box:
    left = {1: x + 9, 0: x - width / 2, -1: x - 9 - width}[side]
    middle = y + rise * _LINE
    return Box(left, middle - _LINE / 2, left + width, middle + _LINE / 2)


def _inside(box: Box, frame: Box) -> bool:
    across = frame.left <= box.left and box.right <= frame.right
    return across and frame.top <= box.top and box.bottom <= frame.bottom
