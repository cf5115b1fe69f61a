"""The jobtree: one node per candidate that the chain may yet visit.

Every node stands for one evaluation of the target. Its `accept` child is the next candidate if it is accepted, its
`reject` child the next one if not; `rival` (the comparison parent) is the state it is tested against: the node itself
for its accept child, its own rival for its reject child. All nodes of one iteration share the random numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shadowserve_capacity.prefetch.problem import Problem, State, accepts


@dataclass(slots=True, eq=False)
class Node:
    """A candidate: its place in the tree, what is known of its density, and who works on it."""

    number: int
    iteration: int
    parent: "Node | None"
    rival: "Node | None"
    theta: State
    log_scale: float
    log_ratio: float
    log_uniform: float
    log_prior: float
    batches: int
    terms: list[float] = field(default_factory=list)
    total: float = 0.0
    accept: "Node | None" = None
    reject: "Node | None" = None
    probability: float = 0.5
    predicted: bool = False
    worker: int | None = None

    @property
    def complete(self) -> bool:
        """Return whether the density is known exactly."""
        return len(self.terms) == self.batches or self.log_prior == float("-inf")

    @property
    def log_density(self) -> float:
        """Return the density of a complete node, added as the serial run adds it."""
        return self.log_prior if self.log_prior == float("-inf") else self.log_prior + self.total

    def add(self, term: float) -> None:
        """Add the next batch's term."""
        self.terms.append(term)
        self.total += term

    def decided(self) -> bool | None:
        """Return whether this candidate is accepted over its rival; None while either is incomplete."""
        rival = self.rival
        if rival is None or not (self.complete and rival.complete):
            return None
        return accepts(self.log_uniform, self.log_ratio, self.log_density, rival.log_density)

    def utility(self) -> float:
        """Return the probability that the chain comes here, by the predictions on the way."""
        result, node, parent = 1.0, self, self.parent
        while parent is not None and result > 0.0:
            result *= parent.probability if parent.accept is node else 1.0 - parent.probability
            node, parent = parent, parent.parent
        return result

    def compared(self) -> Iterator["Node"]:
        """Yield this node and every node that is tested against it: those whose prediction its terms change."""
        yield self
        node = self.accept
        while node is not None:
            yield node
            node = node.reject


class Jobtree:
    """The tree below the current state; grows on demand, loses what the chain can no longer visit."""

    def __init__(self, problem: Problem, start: State, iteration: int, log_scale: float) -> None:
        self._problem = problem
        self._numbers = 0
        self.nodes: dict[int, Node] = {}
        prior = problem.log_prior(start)
        self.state = Node(0, iteration - 1, None, None, start, log_scale, 0.0, 0.0, prior, problem.target.batches)
        self.nodes[0] = self.state
        self.front = self._grow(None, self.state, iteration, log_scale)
        self.state.accept = self.front

    def child(self, node: Node, accepted: bool) -> Node | None:
        """Return the child of `node`, made now if it is new; None past the last iteration."""
        known = node.accept if accepted else node.reject
        if known is not None or node.iteration + 1 >= self._problem.iterations:
            return known
        rival = node if accepted else node.rival
        assert rival is not None
        scale = self._problem.adaptation.next(node.log_scale, node.iteration, accepted)
        made = self._grow(node, rival, node.iteration + 1, scale)
        if accepted:
            node.accept = made
        else:
            node.reject = made
        return made

    def prune(self, node: Node | None) -> list[Node]:
        """Forget `node` and all below it; return those nodes."""
        gone: list[Node] = []
        waiting = [node]
        while waiting:
            dead = waiting.pop()
            if dead is not None:
                gone.append(dead)
                del self.nodes[dead.number]
                waiting += (dead.accept, dead.reject)
        return gone

    def advance(self, accepted: bool) -> None:
        """Take the front's decision: the chain moves to its child (the other side is already pruned)."""
        front = self.front
        following = self.child(front, accepted)
        leaves = self.state if accepted else front
        if accepted:
            self.state = front
            front.rival = front.parent = None
        self.nodes.pop(leaves.number, None)
        if following is not None:
            following.parent = None
            self.state.accept = self.front = following

    def _grow(self, parent: Node | None, rival: Node, iteration: int, log_scale: float) -> Node:
        problem = self._problem
        proposed = problem.propose(rival.theta, log_scale, iteration)
        self._numbers += 1
        node = Node(
            self._numbers, iteration, parent, rival, proposed.theta, log_scale, proposed.log_ratio,
            problem.log_uniform(iteration), problem.log_prior(proposed.theta), problem.target.batches,
        )  # fmt: skip
        self.nodes[node.number] = node
        return node
