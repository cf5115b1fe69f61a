"""Does what a plan says, one object after the other; decides nothing."""

import logging
from dataclasses import dataclass

from shadowserve_operator.cluster import Cluster
from shadowserve_operator.errors import Refused
from shadowserve_operator.kinds import Json, Obstacle
from shadowserve_operator.plan import Action, Plan, Step, taken

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many objects were written, and what the API server refused, or is somebody else's and was left alone."""

    writes: int = 0
    obstacles: tuple[Obstacle, ...] = ()


async def apply(cluster: Cluster, plan: Plan) -> Outcome:
    """Carry the plan out. What is refused is told in the outcome, and the rest goes on.

    Raises `ApiUnavailable` and `Conflict`: what was done until then stays, and the next plan takes it from there.
    """
    written, refusals = 0, list[Obstacle]()
    for step in plan.writes:
        try:
            await _do(cluster, step)
        except Refused as refused:
            refusals.append(Obstacle(step.ref, str(refused)))
            _log.warning("%s was refused: %s", step, refused)
        else:
            written += 1
    return Outcome(written, (*refusals, *(Obstacle(step.ref, step.reason) for step in plan.foreign)))


async def _do(cluster: Cluster, step: Step) -> None:
    if step.action in (Action.DELETE, Action.REPLACE):
        await cluster.delete(step.ref, step.uid)
    if step.action is Action.DELETE:
        return
    assert step.manifest is not None
    if step.action is Action.SCALE:
        await cluster.overwrite(step.manifest)
    elif step.action is not Action.CHANGE:
        await cluster.apply(step.manifest)
    elif not await _changed(cluster, step.manifest):
        await cluster.overwrite(step.manifest)


async def _changed(cluster: Cluster, manifest: Json) -> bool:
    """Return whether server-side apply was enough: it keeps list entries of others, which may even contradict ours."""
    try:
        return taken(manifest, await cluster.apply(manifest))
    except Refused as refused:
        _log.info("%s: %s", manifest["metadata"]["name"], refused)
        return False
