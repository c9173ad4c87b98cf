"""Units: the dimensions of the words after a number, and their size in base units."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from segrl.grading.vocabulary import PER_CENT, names


@dataclass(frozen=True)
class Unit:
    """The dimensions of a unit, each with its power, and its size in base units."""

    dimensions: tuple[tuple[str, int], ...] = ()
    size: Fraction = Fraction(1)


NO_UNIT = Unit()
NOT_UNITS = names("not is are or and than between from least most more less over about no nor either but")
_IGNORED = names("unit units a an the of")

# A dimension, its power, and the names of each unit after its size in the base unit.
_TABLE: list[tuple[str, int, dict[str, str]]] = [
    ("length", 1, {
        "1": "m metre metres meter meters", "1/10": "dm decimeter decimeters decimetre",
        "1/100": "cm centimeter centimeters centimetre centimetres",
        "1000": "km kilometer kilometers kilometre kilometres",
        "1/1000": "mm millimeter millimeters millimetre millimetres", "1/1000000000": "nm nanometer nanometers",
        "254/10000": "in inch inches", "3048/10000": "ft foot feet", "9144/10000": "yd yard yards",
        "1609344/1000": "mi mile miles",
    }),
    ("length", 2, {"10000": "hectare hectares"}),
    ("length", 3, {"1/1000": "l L liter liters litre litres", "1/1000000": "ml milliliter milliliters millilitres"}),
    ("mass", 1, {
        "1": "g gram grams", "1000": "kg kilogram kilograms kgs", "1/1000": "mg milligram milligrams",
        "1000000": "t tonne tonnes", "45359237/100000": "lb lbs", "28349523125/1000000000": "oz ounce ounces",
    }),
    ("time", 1, {
        "1": "s sec secs second seconds", "60": "min mins minute minutes", "3600": "h hr hrs hour hours",
        "86400": "day days", "604800": "week weeks", "1/1000": "ms millisecond milliseconds",
    }),
    ("money", 1, {"1": "dollar dollars usd", "1/100": "cent cents"}),
]  # fmt: skip
_SPEEDS = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmph": ("km", "h"), "kmh": ("km", "h"), "mps": ("m", "s")}

UNITS: dict[str, tuple[str, int, Fraction]] = {
    name: (kind, power, Fraction(size))
    for kind, power, sizes in _TABLE
    for size, together in sizes.items()
    for name in together.split()
}
UNIT_NAMES = (
    frozenset(name for name in UNITS if len(name) > 1)
    | names("degrees degree deg radians rad hz ev pa")
    | PER_CENT
    | frozenset(_SPEEDS)
)


def unit_of(factors: list[tuple[str, int]]) -> Unit:
    """The unit of a product of words with powers: ``[("m", 1), ("s", -2)]``. An unknown word is a dimension itself."""
    powers: dict[str, int] = {}
    size = Fraction(1)
    raised = 1
    for word, power in factors:
        if word.lower() in ("square", "sq", "cubic", "cu"):
            raised = 2 if word.lower().startswith("s") else 3
            continue
        for kind, degree, word_size in _base(word):
            powers[kind] = powers.get(kind, 0) + degree * power * raised
            size *= word_size ** (power * raised)
        raised = 1
    return Unit(tuple(sorted((kind, power) for kind, power in powers.items() if power)), size)


def _base(word: str) -> list[tuple[str, int, Fraction]]:
    low = word.lower()
    if low in _IGNORED:
        return []
    if low in _SPEEDS:
        above, below = _SPEEDS[low]
        return [UNITS[above], (UNITS[below][0], -1, 1 / UNITS[below][2])]
    if word in UNITS or (len(low) > 1 and low in UNITS):
        return [UNITS.get(word) or UNITS[low]]
    return [(low[:-1] if low.endswith("s") and len(low) > 3 else low, 1, Fraction(1))]
