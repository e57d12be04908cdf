"""A number with its unit, and what units there are."""

from __future__ import annotations

import dataclasses
import math

from vidalign.data.words import vocabulary

UNITS = {
    **dict.fromkeys(
        vocabulary("s sec secs second seconds sekunde sekunden seconde secondes segundo segundos secondi секунд секунды 秒"),
        ("time", 1.0),
    ),
    **dict.fromkeys(vocabulary("ms millisecond milliseconds"), ("time", 1e-3)),
    **dict.fromkeys(vocabulary("min mins minute minutes minuten minuto minutos minuti минут минуты 分钟"), ("time", 60.0)),
    **dict.fromkeys(
        vocabulary("h hr hrs hour hours stunde stunden heure heures hora horas ore часа часов 小时"), ("time", 3600.0)
    ),
    **dict.fromkeys(vocabulary("day days 天"), ("time", 86400.0)),
    **dict.fromkeys(vocabulary("week weeks 周"), ("time", 7 * 86400.0)),
    **dict.fromkeys(vocabulary("fps hz"), ("rate", 1.0)),
    **dict.fromkeys(vocabulary("mm millimetre millimetres millimeter millimeters"), ("length", 1e-3)),
    **dict.fromkeys(vocabulary("cm centimetre centimetres centimeter centimeters 厘米"), ("length", 1e-2)),
    **dict.fromkeys(vocabulary("m metre metres meter meters 米"), ("length", 1.0)),
    **dict.fromkeys(vocabulary("km kilometre kilometres kilometer kilometers 公里 kmh kph"), ("length", 1e3)),
    **dict.fromkeys(vocabulary("mi mile miles mph"), ("length", 1609.344)),  # a speed is one "a", as in km/h
    **dict.fromkeys(vocabulary("ft foot feet"), ("length", 0.3048)),
    **dict.fromkeys(vocabulary("inch inches"), ("length", 0.0254)),
    **dict.fromkeys(vocabulary("g gram grams 克"), ("weight", 1.0)),
    **dict.fromkeys(vocabulary("kg kilogram kilograms kilo kilos 公斤"), ("weight", 1e3)),
    **dict.fromkeys(vocabulary("% percent pct prozent 百分之"), ("percent", 1.0)),
}


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a text at characters [start, end). `weak`: a word that is a number only where nothing else is one."""

    value: float
    unit: str
    start: int
    end: int
    weak: bool = False
    hedged: bool = False

    def equals(self, other: Number) -> bool:
        """Whether the two are one quantity: in units of one dimension they are converted; a missing unit fits any."""
        mine, theirs = UNITS.get(self.unit), UNITS.get(other.unit)
        if mine and theirs:
            return mine[0] == theirs[0] and math.isclose(self.value * mine[1], other.value * theirs[1], rel_tol=1e-9)
        scale = 100 if "percent" in {unit[0] for unit in (mine, theirs) if unit} else 1  # 50 % is 0.5, and is 50
        small, large = sorted((abs(self.value), abs(other.value)))
        return math.isclose(self.value, other.value, rel_tol=1e-9) or (
            scale > 1 and math.isclose(small * scale, large, rel_tol=1e-9)
        )

    @property
    def has_unit(self) -> bool:
        return self.unit in UNITS
