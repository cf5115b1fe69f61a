"""The authority and certificates of one PrefixCache: what its Secrets hold, and what is issued anew. Uses `pki`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator import pki
from shadowserve_operator.authorities import Authorities, moved_on
from shadowserve_operator.desired.certificates import (
    Certificate,
    Wanted,
    authority_secret_name,
    certificates_due,
    files_of,
    tls_secret,
    wanted_certificates,
)
from shadowserve_operator.desired.issued import Issued, adopted, certificate_manifest
from shadowserve_operator.kinds import Json


@dataclass(frozen=True, slots=True)
class Identities:
    """What is there, by Secret: None for what is missing or cannot be read."""

    wanted: tuple[Wanted, ...]
    authorities: Authorities | None
    existing: Mapping[str, Certificate | None]

    @classmethod
    def read(cls, cache: PrefixCache, secrets: Mapping[str, Json], now: datetime) -> "Identities":
        """Return what the Secrets hold."""
        wanted = wanted_certificates(cache)
        there = Authorities.read(secrets.get(authority_secret_name(cache), {})) if wanted else None
        signer = there.signer if there else None
        existing = {each.secret: pki.read(files_of(secrets.get(each.secret, {})), signer) for each in wanted}
        return cls(wanted, there, existing)

    @classmethod
    def of_others(cls, cache: PrefixCache, issued: Issued) -> "Identities":
        """Return what cert-manager's Secrets hold."""
        wanted = wanted_certificates(cache)
        return cls(
            wanted, None, {each.secret: pki.read(files_of(issued.secrets.get(each.secret, {}))) for each in wanted}
        )

    def requests(self, cache: PrefixCache, issued: Issued) -> list[Json]:
        """Return what cert-manager is asked for, and that what it made goes with the cache."""
        asked = [certificate_manifest(cache, each) for each in self.wanted]
        return [*asked, *(adopted(cache, issued.certificates[name]) for name in sorted(issued.adoptable))]

    def manifests(self, cache: PrefixCache, now: datetime) -> list[Json]:
        """Return the Secrets as they should be; what is due is issued. The authority's key is mounted by nobody."""
        if not self.wanted:
            return []
        name = f"shadowserve {cache.namespace}/{cache.name}"
        authorities, renewed = moved_on(self.authorities, self.existing.values(), name, now)
        due = {each.wanted for each in certificates_due(self.wanted, self.existing, now)}
        found = [tls_secret(cache, authority_secret_name(cache), authorities.signer, authorities.more())]
        for each in self.wanted:
            there = self.existing[each.secret]
            kept = there is not None and each not in due and not renewed
            content = authorities.trusted_in(there) if there and kept else authorities.issue(each, now)
            found.append(tls_secret(cache, each.secret, content))
        return found
