"""HTTP to pods, through the API server: works wherever kubectl does, whatever the pods' network."""

from types import TracebackType

from shadowserve_crds import names
from shadowserve_lab.engine_client import EngineClient, Metrics
from shadowserve_lab.processes import Program, free_port
from shadowserve_testbed.kubectl import Kubectl

_READY_SECONDS = 20.0


class Access:
    """`kubectl proxy`, from `__enter__` to `__exit__`; it ends with the process that made it."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._port = free_port()
        self._proxy: Program | None = None

    def __enter__(self) -> "Access":
        command = [str(self._kubectl.program), "--kubeconfig", str(self._kubectl.kubeconfig), "proxy"]
        log = self._kubectl.kubeconfig.parent / "proxy.log"
        self._proxy = Program("kubectl proxy", [*command, f"--port={self._port}"], log)
        self._proxy.wait_ready(self._answers, _READY_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._proxy is not None:
            self._proxy.stop()

    def url(self, namespace: str, pod: str, port: int) -> str:
        """Return where a pod's port is."""
        return f"http://127.0.0.1:{self._port}/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy"

    def engine(self, namespace: str, pod: str, model: str) -> EngineClient:
        """Return a client of the engine in a pod."""
        return EngineClient(self.url(namespace, pod, 8000), model)

    def sidecar(self, namespace: str, pod: str) -> Metrics:
        """Return the metrics of the sidecar in a pod."""
        return Metrics.scrape(f"{self.url(namespace, pod, names.SIDECAR_METRICS_PORT)}/metrics")

    def data_plane(self, namespace: str, pod: str) -> Metrics:
        """Return the metrics of a data plane."""
        return Metrics.scrape(f"{self.url(namespace, pod, names.DATA_PLANE_METRICS_PORT)}/metrics")

    def _answers(self) -> bool:
        try:
            Metrics.scrape(f"http://127.0.0.1:{self._port}/readyz")
        except OSError:
            return False
        return True
