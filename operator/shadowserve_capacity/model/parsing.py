"""Reads observations, loads and objectives from JSON values; everything that is wrong is named by row and field."""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from shadowserve_capacity.errors import InputFault
from shadowserve_capacity.model.hardware import HARDWARE
from shadowserve_capacity.model.observations import (
    DEFAULT_MAX_SEQUENCES,
    Fetches,
    Histogram,
    Observations,
    Pool,
    Window,
)
from shadowserve_capacity.model.planning import Objective, Quantity
from shadowserve_capacity.model.work import Load, check_load

_NO_HISTOGRAM = Histogram((), (0,))


class Fields:
    """One JSON object being read: every problem is noted under its path, and reading goes on with a stand-in."""

    def __init__(self, value: object, path: str, problems: list[str]) -> None:
        self.path, self.problems = path, problems
        self._value: Mapping[str, Any] = value if isinstance(value, dict) else {}
        self._known: set[str] = set()
        if not isinstance(value, dict):
            self.refuse("", f"wanted an object, got {_shown(value)}")

    def refuse(self, name: str, problem: str) -> None:
        """Note a problem of a field, or of the whole object."""
        place = ".".join(filter(None, (self.path, name))) or "input"
        self.problems.append(f"{place}: {problem}")

    def has(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        self._known.add(name)
        return self._value.get(name) is not None

    def raw(self, name: str) -> object:
        """Return the field as it is, None when it is missing."""
        self._known.add(name)
        return self._value.get(name)

    def number(self, name: str, default: float | None = None, least: float = 0.0) -> float:
        """Return a finite number that is at least `least`."""
        if not self.has(name):
            return self._missing(name, default)
        value = self._value[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(name, f"wanted a number, got {_shown(value)}")
            return least
        if value < least:
            self.refuse(name, f"{value:g} is {'negative' if least == 0.0 else f'less than {least:g}'}")
            return least
        return float(value)

    def count(self, name: str, default: int | None = None, least: int = 0) -> int:
        """Return a whole number that is at least `least`."""
        value = self.number(name, default, least)
        if value != int(value):
            self.refuse(name, f"{value:g} is not a whole number")
        return int(value)

    def finish(self) -> None:
        """Refuse the fields that nobody asked for: most are misspelt."""
        for name in sorted(set(self._value) - self._known):
            self.refuse(name, f"unknown field; known are {', '.join(sorted(self._known))}")

    def _missing(self, name: str, default: float | None) -> float:
        if default is None:
            self.refuse(name, "is missing")
            return 0.0
        return default


def read_observations(value: object) -> Observations:
    """Return the observations in a JSON value; raises `InputFault` that names everything wrong with it."""
    problems: list[str] = []
    fields = Fields(value, "", problems)
    pool = read_pool(fields)
    rows = fields.raw("windows")
    if not isinstance(rows, list) or not rows:
        fields.refuse("windows", "wanted at least one window")
        rows = []
    fields.finish()
    windows = tuple(_window(Fields(row, f"windows[{index}]", problems)) for index, row in enumerate(rows))
    if problems:
        raise InputFault(problems)
    return Observations(pool, windows)


def read_pool(fields: Fields) -> Pool:
    """Return the pool whose fields are among those of `fields`."""
    hardware = fields.raw("hardware") if fields.has("hardware") else "unknown"
    if hardware not in HARDWARE:
        fields.refuse("hardware", f"{_shown(hardware)} is no class of hardware; known are {', '.join(HARDWARE)}")
    return Pool(str(hardware), fields.count("max_sequences", DEFAULT_MAX_SEQUENCES, least=1))


def _window(fields: Fields) -> Window:
    window = Window(
        seconds=fields.number("seconds"),
        replicas=fields.count("replicas", least=1),
        arrivals=fields.count("arrivals"),
        prompt_tokens=fields.count("prompt_tokens"),
        hit_tokens=fields.count("hit_tokens", 0),
        output_tokens=fields.count("output_tokens"),
        ttft=_histogram(fields, "ttft") if fields.has("ttft") else _missing_histogram(fields, "ttft"),
        tpot=_histogram(fields, "tpot") if fields.has("tpot") else _NO_HISTOGRAM,
        hit_requests=fields.count("hit_requests") if fields.has("hit_requests") else None,
        running=fields.number("running") if fields.has("running") else None,
        waiting=fields.number("waiting") if fields.has("waiting") else None,
        fetches=_fetches(fields) if fields.has("fetches") else Fetches(),
        ttft_p90=fields.number("ttft_p90") if fields.has("ttft_p90") else None,
    )
    fields.finish()
    _refuse_contradictions(window, fields)
    return window


def _missing_histogram(fields: Fields, name: str) -> Histogram:
    fields.refuse(name, "is missing")
    return Histogram((1.0,), (1, 0))


def _histogram(fields: Fields, name: str) -> Histogram:
    inner = Fields(fields.raw(name), f"{fields.path}.{name}", fields.problems)
    bounds, counts = inner.raw("bounds"), inner.raw("counts")
    inner.finish()
    if not (isinstance(bounds, list) and bounds and all(_positive(bound) for bound in bounds)):
        inner.refuse("bounds", "wanted upper bounds in seconds, all above 0")
    elif any(after <= before for before, after in itertools.pairwise(bounds)):
        inner.refuse("bounds", "must rise")
    elif not (isinstance(counts, list) and all(_whole(count) for count in counts)):
        inner.refuse("counts", "wanted whole numbers of at least 0, not cumulative")
    elif len(counts) != len(bounds) + 1:
        inner.refuse("counts", f"wanted {len(bounds) + 1} counts for {len(bounds)} bounds, got {len(counts)}")
    else:
        return Histogram(tuple(float(bound) for bound in bounds), tuple(int(count) for count in counts))
    return Histogram((1.0,), (1, 0))


def _fetches(fields: Fields) -> Fetches:
    inner = Fields(fields.raw("fetches"), f"{fields.path}.fetches", fields.problems)
    fetches = Fetches(inner.count("count"), inner.number("seconds"), inner.number("bytes"))
    inner.finish()
    if fetches.count and not (fetches.seconds > 0.0 and fetches.bytes > 0.0):
        inner.refuse("count", f"{fetches.count} fetches without seconds or bytes")
    elif not fetches.count and (fetches.seconds or fetches.bytes):
        inner.refuse("count", "seconds or bytes without a fetch")
    return fetches


def _refuse_contradictions(window: Window, fields: Fields) -> None:
    if window.seconds == 0.0:
        fields.refuse("seconds", "must be above 0")
    if window.arrivals == 0:
        fields.refuse("arrivals", "an empty window says nothing; leave it out")
    if window.hit_tokens > window.prompt_tokens:
        fields.refuse("hit_tokens", f"{window.hit_tokens} is more than prompt_tokens ({window.prompt_tokens})")
    if window.prompt_tokens < window.arrivals:
        fields.refuse("prompt_tokens", f"{window.prompt_tokens} is less than one token for each arrival")
    if window.ttft.total == 0:
        fields.refuse("ttft.counts", "no first token in the whole window; leave it out")
    if window.hit_requests is not None:
        _refuse_hit_requests(window, window.hit_requests, fields)
    if window.fetches.count and window.hit_tokens == 0:
        fields.refuse("fetches.count", f"{window.fetches.count} fetches but no hit_tokens")


def _refuse_hit_requests(window: Window, hit_requests: int, fields: Fields) -> None:
    if hit_requests > window.arrivals:
        fields.refuse("hit_requests", f"{hit_requests} is more than arrivals ({window.arrivals})")
    if (hit_requests == 0) != (window.hit_tokens == 0):
        fields.refuse("hit_requests", f"{hit_requests} contradicts hit_tokens ({window.hit_tokens})")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)[:60]


def read_load(value: object) -> Load:
    """Return the load in a JSON value; raises `InputFault` that names everything wrong with it."""
    problems: list[str] = []
    fields = Fields(value, "", problems)
    load = Load(
        arrival_rate=fields.number("arrival_rate"),
        prompt_tokens=fields.number("prompt_tokens"),
        hit_tokens=fields.number("hit_tokens", 0.0),
        output_tokens=fields.number("output_tokens", 1.0),
        hit_share=fields.number("hit_share", 1.0),
        fetched_bytes=fields.number("fetched_bytes", 0.0),
        seconds=fields.number("seconds", 300.0),
    )
    fields.finish()
    problems += [] if problems else check_load(load)
    if problems:
        raise InputFault(problems)
    return load


_OBJECTIVE = re.compile(r"(ttft|tpot)\s*p(\d+(?:\.\d+)?)\s*(?:<=|<|:)?\s*(\d+(?:\.\d+)?)\s*(ms|s)", re.IGNORECASE)


def read_objective(text: str) -> Objective:
    """Return the objective in words, for example `TTFT p90 <= 2s`; raises `InputFault` saying how to write it."""
    found = _OBJECTIVE.fullmatch(text.strip())
    if found is None:
        raise InputFault([f"objective {text!r}: write it like `TTFT p90 <= 2s` or `TPOT p50 <= 80ms`"])
    share, seconds = float(found[2]) / 100.0, float(found[3]) * (1e-3 if found[4].lower() == "ms" else 1.0)
    if not (0.0 < share < 1.0 and seconds > 0.0):
        raise InputFault([f"objective {text!r}: wanted a quantile between p0 and p100 and a time above 0"])
    return Objective(Quantity(found[1].lower()), share, seconds)
