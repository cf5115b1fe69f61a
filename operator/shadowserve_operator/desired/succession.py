"""When an authority is followed by another one, so that nobody meets a certificate that he cannot trust yet. Pure.

Pods see a Secret change minutes after one another. So a new authority is trusted for a day before it signs anything,
and the old one for a day after its last certificate was replaced.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum

from shadowserve_operator.desired.certificates import Certificate, authority_due

SPREAD = timedelta(days=1)
"""So long everybody is given to see what has changed: a node may have been silent for hours."""


class Turn(StrEnum):
    """What is done about an authority."""

    MAKE = "make the first: there is none, or nobody can trust it any more"
    ANNOUNCE = "make its successor, which is trusted and does not sign yet"
    TAKE_OVER = "let the successor sign, and everything be signed anew; the old one is trusted still"
    FORGET = "trust nobody but the one that signs: the last certificates of the old one were replaced"
    STAY = "nothing"


def turn(
    signer: Certificate | None, successor: Certificate | None, leaves: Iterable[Certificate | None], now: datetime
) -> Turn:
    """Return what to do. `leaves` are the certificates there are, None for one that is missing or cannot be read."""
    if signer is None:
        return Turn.MAKE
    gone = now >= signer.not_after
    if successor is not None:
        return Turn.TAKE_OVER if gone or now - successor.not_before >= SPREAD else Turn.STAY
    if gone:
        return Turn.MAKE
    if authority_due(signer, now):
        return Turn.ANNOUNCE
    if signer.authority != signer.certificate and all(_replaced(leaf, now) for leaf in leaves):
        return Turn.FORGET
    return Turn.STAY


def _replaced(leaf: Certificate | None, now: datetime) -> bool:
    return leaf is not None and leaf.signed_by_authority and now - leaf.not_before >= SPREAD
