"""Quantities and durations: what Kubernetes and Go write is understood exactly, the rest is refused."""

from decimal import Decimal

import pytest

from shadowserve_crds.quantities import Duration, Quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2", 2),
        ("500m", Decimal("0.5")),
        ("1.5", Decimal("1.5")),
        ("16Gi", 16 * 2**30),
        ("0.5Gi", 2**29),
        ("1k", 1000),
        ("1M", 10**6),
        ("3Ki", 3072),
        ("7n", Decimal("7e-9")),
    ],
)
def test_a_quantity_has_its_exact_value(text: str, amount: Decimal | int) -> None:
    assert Quantity(text).amount == amount
    assert str(Quantity(text)) == text


def test_quantities_compare_by_value() -> None:
    assert Quantity("1Gi") == Quantity("1024Mi")
    assert hash(Quantity("1Gi")) == hash(Quantity("1024Mi"))
    assert Quantity("900m") < Quantity("1") < Quantity("1Ki")
    assert max(Quantity("1Gi"), Quantity("1G")) == Quantity("1Gi")


@pytest.mark.parametrize("text", ["", "Gi", "512MB", "-1", "1 Gi", "1e3", "0x10", "1gi"])
def test_other_text_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        Quantity(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("5s", 5), ("1h30m", 5400), ("1.5s", 1.5), ("250us", 0.00025), ("1m1s", 61)]
)
def test_a_duration_has_its_length(text: str, seconds: float) -> None:
    assert Duration(text).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5sec", "-5s", "5s "])
def test_other_text_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        Duration(text)
