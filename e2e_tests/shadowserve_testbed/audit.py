"""The API server's audit log: who wrote what, and when. Nobody else knows all writers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True, slots=True)
class Write:
    """A request that the API server took, to change something; `resource` may end in a subresource."""

    user: str
    verb: str
    resource: str
    name: str
    when: datetime


def audit_flags(policy: Path, log: Path) -> dict[str, str]:
    """Write the policy that records writes, and return the API server's arguments for it."""
    recorded = {"level": "Metadata", "verbs": list(_WRITES), "omitStages": ["RequestReceived"]}
    body = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [recorded, {"level": "None"}]}
    policy.write_text(json.dumps(body))
    return {"audit-policy-file": str(policy), "audit-log-path": str(log)}


def writes(log: Path) -> Iterator[Write]:
    """Yield the writes that were accepted, but for questions that nothing is kept of (access reviews, dry runs)."""
    for line in log.read_text().splitlines():
        event = json.loads(line)
        about = event.get("objectRef", {})
        if event["responseStatus"].get("code", 500) >= 400 or "dryRun" in event["requestURI"]:
            continue
        if about.get("apiGroup", "") in ("authorization.k8s.io", "authentication.k8s.io"):
            continue
        resource = "/".join(filter(None, (about.get("resource", ""), about.get("subresource", ""))))
        when = datetime.fromisoformat(event["requestReceivedTimestamp"])
        yield Write(event["user"]["username"], event["verb"], resource, about.get("name", ""), when)
