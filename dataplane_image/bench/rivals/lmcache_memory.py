"""Tensors as the memory objects that LMCache's serdes take; imported after LMCache is told to be quiet."""

import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj


def memory_obj(tensor: torch.Tensor) -> TensorMemoryObj:
    """Return the tensor as a memory object that nobody frees."""
    raw = tensor.view(torch.uint8).flatten()
    described = MemoryObjMetadata(
        shape=tensor.shape, dtype=tensor.dtype, address=0, phy_size=raw.numel(), ref_count=1, fmt=MemoryFormat.KV_2LTD
    )
    return TensorMemoryObj(raw_data=raw, parent_allocator=None, metadata=described)
