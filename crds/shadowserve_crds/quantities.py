"""Kubernetes quantities (`16Gi`, `500m`) and Go durations (`50ms`, `1h30m`): parsed, compared, printed as written."""

import re
from decimal import Decimal
from functools import total_ordering
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_BINARY = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FACTORS = {**_BINARY, **{suffix: Decimal(10) ** power for suffix, power in _DECIMAL.items()}}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGTPE]i|[numkMGTPE])?")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[numkMGTPE])?$"


class _Text(str):
    """Text of one form, as pydantic and JSON schema know it; equal only to the same text."""

    json_schema: ClassVar[dict[str, Any]] = {"type": "string"}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # a quantity may be a bare number in YAML
        numbers = core_schema.no_info_plain_validator_function(lambda value: cls(_as_text(value)))
        return core_schema.json_or_python_schema(
            numbers, numbers, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return dict(cls.json_schema)


def _as_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be text, got {value!r}")
    return str(value)


@total_ordering
class Quantity(_Text):
    """An amount of a resource. Raises `ValueError` for other text. Compares by value, prints as written."""

    json_schema = {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": QUANTITY_PATTERN,
        "x-kubernetes-int-or-string": True,
    }

    def __new__(cls, text: str) -> "Quantity":
        """Return the checked text."""
        if not _QUANTITY.fullmatch(text):
            raise ValueError(f"{text!r} is not a quantity; examples: 500m, 2, 512Mi, 16Gi")
        return super().__new__(cls, text)

    @property
    def amount(self) -> Decimal:
        """The exact value: bytes, cores, pieces."""
        match = _QUANTITY.fullmatch(self)
        assert match is not None, "checked by the constructor"
        return Decimal(match[1]) * _FACTORS[match[2] or ""]

    def __int__(self) -> int:
        return int(self.amount)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.amount == other.amount

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Quantity):
            return NotImplemented
        return self.amount < other.amount

    def __hash__(self) -> int:
        return hash(self.amount)


class Duration(_Text):
    """A duration as Go writes it. Raises `ValueError` for other text."""

    json_schema = {"type": "string", "pattern": DURATION_PATTERN}

    def __new__(cls, text: str) -> "Duration":
        """Return the checked text."""
        if not re.match(DURATION_PATTERN, text):
            raise ValueError(f"{text!r} is not a duration; examples: 20ms, 5s, 1h30m")
        return super().__new__(cls, text)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(self))
