"""Names that others read: what is written into clusters must keep its form."""

import re

from shadowserve_crds import names


def test_every_label_and_annotation_has_a_form_that_kubernetes_takes() -> None:
    keys = [value for name, value in vars(names).items() if name.endswith(("_LABEL", "_ANNOTATION"))]
    assert keys
    for key in keys:
        prefix, _, name = key.partition("/")
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", prefix), key
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", name), key


def test_container_names_are_dns_labels() -> None:
    for name in (names.CONNECTOR_CONTAINER, names.SIDECAR_CONTAINER):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
