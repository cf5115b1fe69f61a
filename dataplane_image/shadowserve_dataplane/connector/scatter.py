"""Which copies serve an engine's cache."""

from shadowserve_dataplane.connector.layouts import PagedKv
from shadowserve_dataplane.connector.paged_copy import PagedCopy
from shadowserve_dataplane.connector.scatter_cpu import cpu_paged_copy
from shadowserve_dataplane.connector.scatter_torch import TorchPagedCopy


def copies_for(paged: PagedKv) -> PagedCopy:
    """Return the fastest copies there are for this cache, its device and its layout."""
    device = paged.layers[0].device.type
    if device == "cpu":
        return cpu_paged_copy(paged)
    return TorchPagedCopy(paged)
