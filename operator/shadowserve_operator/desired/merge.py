"""Strategic merge of a pod template's fragment: what the user says wins, lists of named things merge by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from shadowserve_operator.kinds import Json

_KEYS = {"volumeMounts": "mountPath", "ports": "containerPort", "hostAliases": "ip", "imagePullSecrets": "name"}
_NAMED = frozenset({"containers", "initContainers", "volumes", "env", "volumeDevices", "resourceClaims"})


def merged(base: Mapping[str, Any], fragment: Mapping[str, Any]) -> Json:
    """Return `base` with `fragment` laid over it; null removes a field, as in a patch. Neither is changed."""
    result = dict(base)
    for name, value in fragment.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            old = result.get(name)
            result[name] = merged(old if isinstance(old, Mapping) else {}, value)
        elif isinstance(value, list):
            result[name] = _merged_list(name, result.get(name) or [], value)
        else:
            result[name] = value
    return result


def _merged_list(name: str, base: Sequence[Any], fragment: Sequence[Any]) -> list[Any]:
    key = "name" if name in _NAMED else _KEYS.get(name)
    if key is None:
        return list(fragment)
    theirs = {entry[key]: entry for entry in fragment if key in entry}
    kept = [merged(entry, theirs.pop(entry[key])) if entry.get(key) in theirs else entry for entry in base]
    return [*kept, *(merged({}, entry) for entry in theirs.values())]
