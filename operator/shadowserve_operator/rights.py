"""What the operator has to be allowed to do: `shadowserve doctor` asks for it; a test holds the manifests to it."""

from collections.abc import Iterator
from dataclasses import dataclass

from shadowserve_crds import names

_READ = ("get", "list", "watch")
_KEEP = (*_READ, "create", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource; `resource` may end in a subresource, as `prefixcaches/status`."""

    verb: str
    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


def _rights(verbs: tuple[str, ...], group: str, *resources: str) -> Iterator[Right]:
    return (Right(verb, group, resource) for resource in resources for verb in verbs)


IN_CLUSTER = (
    *_rights(_READ, "", "nodes"),
    *_rights(_KEEP, names.GROUP, "dpubindings"),
    *_rights(("patch",), names.GROUP, "dpubindings/status"),
    *_rights(("get",), "cert-manager.io", "clusterissuers"),
)
"""In the whole cluster."""
IN_NAMESPACE = (
    *_rights((*_READ, "patch"), names.GROUP, "prefixcaches", "inferencepools"),
    *_rights(("patch",), names.GROUP, "prefixcaches/status", "inferencepools/status"),
    *_rights(("update",), names.GROUP, "prefixcaches/finalizers", "inferencepools/finalizers"),
    *_rights(_KEEP, "", "configmaps", "secrets", "services"),
    *_rights(_KEEP, "apps", "daemonsets", "deployments", "statefulsets"),
    *_rights(_KEEP, "policy", "poddisruptionbudgets"),
    *_rights((*_READ, "patch"), "", "pods"),
    *_rights(("get",), "", "persistentvolumeclaims"),
    *_rights(_KEEP, "cert-manager.io", "certificates"),
    *_rights(_KEEP, "inference.networking.k8s.io", "inferencepools"),
    *_rights(("get",), "cert-manager.io", "issuers"),
    *_rights(("create",), "", "events"),
)
"""In every watched namespace."""
TO_INSTALL = (
    *_rights(("create", "patch"), "apiextensions.k8s.io", "customresourcedefinitions"),
    *_rights(("create", "patch"), "rbac.authorization.k8s.io", "clusterroles", "clusterrolebindings"),
    *_rights(("create", "patch"), "admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    *_rights(("create",), "", "namespaces"),
    *_rights(("create", "patch"), "apps", "deployments"),
)
"""What whoever applies install.yaml has to be allowed to do in the whole cluster."""
