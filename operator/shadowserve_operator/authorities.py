"""An authority with the one that follows it, in one Secret that nobody mounts; moved on when it is time. Uses `pki`.

`ca.crt` has all that are trusted. The key of a successor is kept beside until it signs.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from shadowserve_operator import pki
from shadowserve_operator.desired.certificates import Certificate, Wanted, files_of
from shadowserve_operator.desired.succession import Turn, turn
from shadowserve_operator.kinds import Json

_CERTIFICATE, _KEY = "next.crt", "next.key"


@dataclass(frozen=True, slots=True)
class Authorities:
    """`signer` signs, and its `authority` is what everybody is to trust; `successor` will sign."""

    signer: Certificate
    successor: Certificate | None = None

    @classmethod
    def read(cls, secret: Json) -> "Authorities | None":
        """Return what a Secret holds, None if that is no authority."""
        signer, data = pki.read(files_of(secret)), secret.get("data") or {}
        return None if signer is None else cls(signer, _successor(data))

    def issue(self, wanted: Wanted, now: datetime) -> Certificate:
        """Return a new certificate, with all that are trusted."""
        return self.trusted_in(pki.issue(wanted, self.signer, now))

    def trusted_in(self, certificate: Certificate) -> Certificate:
        """Return a certificate with all that are to be trusted now."""
        return replace(certificate, authority=self.signer.authority)

    def more(self) -> dict[str, str]:
        """Return what the Secret holds beside the signer, as in `data`."""
        if self.successor is None:
            return {}
        files = {_CERTIFICATE: self.successor.certificate, _KEY: self.successor.key}
        return {key: b64encode(value).decode() for key, value in files.items()}


def moved_on(
    before: Authorities | None, leaves: Iterable[Certificate | None], name: str, now: datetime
) -> tuple[Authorities, bool]:
    """Return the authorities as they should be now, and whether another one signs; a new one is called `name`."""
    if before is None:
        return Authorities(pki.make_authority(name, now)), True
    signer, successor = before.signer, before.successor
    match turn(signer, successor, leaves, now):
        case Turn.MAKE:
            return Authorities(pki.make_authority(name, now)), True
        case Turn.TAKE_OVER if successor is not None:
            both = successor.certificate + signer.certificate
            return Authorities(replace(successor, authority=both)), True
        case Turn.ANNOUNCE:
            return _trusting(signer, pki.make_authority(name, now)), False
        case Turn.FORGET:
            return _trusting(signer, None), False
    if successor is None and signer.certificate in signer.authority:
        return before, False
    return _trusting(signer, successor), False


def _trusting(signer: Certificate, successor: Certificate | None) -> Authorities:
    trusted = signer.certificate + (successor.certificate if successor is not None else b"")
    return Authorities(replace(signer, authority=trusted), successor)


def _successor(data: Mapping[str, str]) -> Certificate | None:
    try:
        pem, key = b64decode(data[_CERTIFICATE]), b64decode(data[_KEY])
    except (KeyError, ValueError):
        return None
    return pki.read((pem, key, pem))
