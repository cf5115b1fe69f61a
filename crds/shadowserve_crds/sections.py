"""Sections that several parts of a custom resource have."""

from typing import Annotated

from pydantic import Field

from shadowserve_crds.base import Section
from shadowserve_crds.quantities import Quantity


class ComputeResources(Section):
    """Cores and memory of one container; requests and limits are equal."""

    cpu: Quantity = Quantity("1")
    """Cores. A change restarts the containers that have them."""
    memory: Quantity = Quantity("1Gi")
    """Memory. A change restarts the containers that have it."""


class SecretReference(Section):
    """A Secret of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its name."""
