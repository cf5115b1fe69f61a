"""Tiers: how coarsely a chunk's values are kept, and how restored chunks land."""

from enum import IntEnum, StrEnum

from shadowserve_dataplane.errors import SettingsError


class Tier(IntEnum):
    """Quality of a stored chunk; the number is its code in the chunk header."""

    LOSSLESS = 0
    HIGH = 1
    BALANCED = 2
    COMPACT = 3

    @property
    def label(self) -> str:
        """The name users write."""
        return self.name.capitalize()

    @property
    def step_in_sigmas(self) -> float:
        """Quantiser step as a share of a plane's standard deviation; 0 for `LOSSLESS`, which has no quantiser."""
        return {Tier.LOSSLESS: 0.0, Tier.HIGH: 0.2, Tier.BALANCED: 0.35, Tier.COMPACT: 0.48}[self]

    @classmethod
    def parse(cls, label: str) -> "Tier":
        """Return the tier named `label`. Raises `SettingsError` naming those there are."""
        for tier in cls:
            if tier.label == label:
                return tier
        raise SettingsError(f"tier: {label!r} is none of {', '.join(tier.label for tier in cls)}")


class LandingMode(StrEnum):
    """What lands: 8-bit codes that the scatter dequantizes, or finished values."""

    CODES = "Codes"
    VALUES = "Values"
