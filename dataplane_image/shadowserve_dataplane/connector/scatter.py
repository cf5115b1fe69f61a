"""Which copies serve an engine's cache."""

from shadowserve_dataplane.connector.layouts import EngineLayout, PagedKv
from shadowserve_dataplane.connector.paged_copy import PagedCopy
from shadowserve_dataplane.connector.scatter_cpu import cpu_paged_copy
from shadowserve_dataplane.connector.scatter_torch import TorchPagedCopy


def copies_for(paged: PagedKv) -> PagedCopy:
    """Return the fastest copies there are for this cache, its device and its layout."""
    device = paged.layers[0].device.type
    if device == "cpu":
        return cpu_paged_copy(paged)
    if device == "cuda" and paged.layout is EngineLayout.STRIDED and _same_strides(paged):
        from shadowserve_dataplane.connector.scatter_cuda import CudaPagedCopy  # Triton needs a GPU to be imported for

        return CudaPagedCopy(paged)
    return TorchPagedCopy(paged)


def _same_strides(paged: PagedKv) -> bool:
    return len({tensor.stride() for tensor in paged.layers}) == 1
