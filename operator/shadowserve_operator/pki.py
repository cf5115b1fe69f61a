"""Makes and reads certificates and passwords: the one place with cryptography and chance. Called by the reconcile."""

import secrets
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shadowserve_operator.desired.certificates import AUTHORITY_LIFE, CERTIFICATE_LIFE, Certificate, Wanted
from shadowserve_operator.desired.secrets import SecretValues

_SALT_BYTES = 32
_EARLIER = timedelta(minutes=5)
"""Clocks differ: a certificate is good from a little before it was made."""


def fresh_values() -> SecretValues:
    """Return new passwords and a new salt."""
    return SecretValues(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_bytes(_SALT_BYTES))


def make_authority(name: str, now: datetime) -> Certificate:
    """Return a new authority, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Certificate(pem, _pem(key), pem, (), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def issue(wanted: Wanted, authority: Certificate, now: datetime) -> Certificate:
    """Return a certificate for clients and servers, signed by the authority, never living longer than it."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = x509.load_pem_x509_certificate(authority.certificate)
    signing_key = _load_key(authority.key)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    life = min(CERTIFICATE_LIFE, authority.not_after - now)
    builder = (
        _builder(_name(wanted.secret), signer.subject, key.public_key(), now, life)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in wanted.names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )
    certificate = builder.sign(signing_key, hashes.SHA256())
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        _pem(key),
        authority.certificate,
        wanted.names,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def read(files: tuple[bytes, bytes, bytes] | None, authority: Certificate | None = None) -> Certificate | None:
    """Return what a Secret holds; None when that is not a certificate with its key.

    `authority` is who should have signed it; without one it is not asked.
    """
    if files is None:
        return None
    pem, key, trusted = files
    try:
        parsed = x509.load_pem_x509_certificate(pem)
        if _load_key(key).public_key() != parsed.public_key():
            return None
    except (ValueError, TypeError):
        return None
    try:
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(found.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        names = ()
    good = authority is None or _signed(parsed, authority)
    return Certificate(pem, key, trusted, names, parsed.not_valid_before_utc, parsed.not_valid_after_utc, good)


def _signed(certificate: x509.Certificate, authority: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)
