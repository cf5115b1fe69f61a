"""Settings of the operator: one frozen record, read from the environment once."""

from collections.abc import Mapping
from dataclasses import dataclass

from shadowserve_crds import names
from shadowserve_operator.errors import SettingsError


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """`namespaces`: those that are watched; none = all of the cluster. Times in seconds."""

    version: str = "0.1.0"
    namespaces: tuple[str, ...] = ()
    dataplane_image: str = "ghcr.io/shadowserve/dataplane:0.1.0"
    store_image: str = "docker.io/valkey/valkey:8.1"
    drift_interval: float = 60.0
    metrics_port: int = names.OPERATOR_METRICS_PORT

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "OperatorSettings":
        """Return what the `SHADOWSERVE_*` variables say. Raises `SettingsError` naming the variable."""
        defaults = cls()
        namespaces = environment.get("SHADOWSERVE_WATCH_NAMESPACES", "")
        return cls(
            namespaces=tuple(name.strip() for name in namespaces.split(",") if name.strip()),
            dataplane_image=environment.get("SHADOWSERVE_DATAPLANE_IMAGE") or defaults.dataplane_image,
            store_image=environment.get("SHADOWSERVE_STORE_IMAGE") or defaults.store_image,
            drift_interval=_number(environment, "SHADOWSERVE_DRIFT_SECONDS", defaults.drift_interval),
            metrics_port=int(_number(environment, "SHADOWSERVE_METRICS_PORT", defaults.metrics_port)),
        )


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value <= 0:
        raise SettingsError(f"{name}={text!r} is not a positive number")
    return value
