"""The jobtree: one node per candidate that the chain may yet visit.

Every node stands for one evaluation of the target. Its `accept` child is the next candidate if it is accepted, its
`reject` child the next one if not; `rival` (the comparison parent) is the state it is tested against: the node itself
for its accept child, its own rival for its reject child. All nodes of one iteration share the random numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shadowserve_capacity.errors import CapacityError
from shadowserve_capacity.prefetch.evidence import Normal, Pairs
from shadowserve_capacity.prefetch.problem import Problem, State, accepts, added

NOWHERE = float("-inf")
UNKNOWN = float("nan")


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
    terms: list[float]
    """Of each batch; NaN where it is not known. Batches may come in any order and are added left to right."""
    missing: int
    total: float = UNKNOWN
    pairs: Pairs = field(default_factory=Pairs)
    accept: "Node | None" = None
    reject: "Node | None" = None
    probability: float = 0.5
    expected: Normal | None = None
    """The difference to the rival, as guessed before any data."""
    best: float = 0.0
    """Highest probability, seen from here, of a node at or below here that wants a worker."""
    free: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of batches that nobody has or does."""
    holders: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Workers by what they have yet to do."""
    entered: bool = False
    """Whether the predictor has seen it."""
    fault: CapacityError | None = None
    """Why it cannot be evaluated; matters only if the chain really comes here."""

    @property
    def batches(self) -> int:
        """Return how many terms the density has."""
        return len(self.terms)

    @property
    def complete(self) -> bool:
        """Return whether the density is known exactly."""
        return self.missing == 0

    @property
    def log_density(self) -> float:
        """Return the density of a complete node, added as the serial run adds it."""
        return self.log_prior if self.log_prior == NOWHERE else self.log_prior + self.total

    def take(self, batch: int, term: float) -> None:
        """Set an unknown term, and tell every node it can be compared with."""
        self.terms[batch] = term
        self.missing -= 1
        if self.missing == 0:
            self.total = added(self.terms)
        if self.rival is not None:
            old = self.rival.terms[batch]
            if old == old:
                self.pairs.add(term, old)
        for other in self.tested():
            new = other.terms[batch]
            if new == new:
                other.pairs.add(new, term)

    def decided(self) -> bool | None:
        """Return whether this candidate is accepted over its rival; None while either is incomplete."""
        rival = self.rival
        if rival is None or self.missing or rival.missing or self.fault is not None or rival.fault is not None:
            return None
        return accepts(self.log_uniform, self.log_ratio, self.log_density, rival.log_density)

    def utility(self) -> float:
        """Return the probability that the chain comes here, by the predictions on the way."""
        result, node, parent = 1.0, self, self.parent
        while parent is not None and result > 0.0:
            result *= parent.probability if parent.accept is node else 1.0 - parent.probability
            node, parent = parent, parent.parent
        return result

    def tested(self) -> Iterator["Node"]:
        """Yield every node whose rival this is."""
        node = self.accept
        while node is not None:
            yield node
            node = node.reject

    def claim(self, worker: int, most: int) -> tuple[int, int]:
        """Give `worker` the first free batches, at most `most`; return their range."""
        start, stop = self.free.pop(0)
        end = min(stop, start + most)
        if end < stop:
            self.free.insert(0, (end, stop))
        self.holders[worker] = (start, end)
        return start, end

    def release(self, worker: int) -> None:
        """Take back from `worker` what it has not done."""
        start, stop = self.holders.pop(worker)
        self.give_back(start, stop)

    def give_back(self, start: int, stop: int) -> None:
        """Make the unknown batches of a range free."""
        for batch in range(start, stop):
            term = self.terms[batch]
            if term != term:
                self.free.append((batch, batch + 1))
        self.free.sort()
        joined: list[tuple[int, int]] = []
        for first, last in self.free:
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        self.free = joined


class Jobtree:
    """The tree below the current state; grows on demand, loses what the chain can no longer visit."""

    def __init__(self, problem: Problem, start: State, iteration: int, log_scale: float) -> None:
        self._problem = problem
        self._numbers = 0
        self.nodes: dict[int, Node] = {}
        batches = problem.target.batches
        prior = problem.log_prior(start)
        self.state = Node(
            0, iteration - 1, None, None, start, log_scale, 0.0, 0.0, prior, [UNKNOWN] * batches, batches
        )  # fmt: skip
        self.state.free.append((0, batches))
        self.nodes[0] = self.state
        self.front = self._grow(None, self.state, iteration, log_scale)
        self.state.accept = self.front

    def may_grow(self, node: Node) -> bool:
        """Return whether the chain goes on after `node`."""
        return node.iteration + 1 < self._problem.iterations and node.fault is None

    def child(self, node: Node, accepted: bool) -> Node | None:
        """Return the child of `node`, made now if it is new; None past the last iteration."""
        known = node.accept if accepted else node.reject
        if known is not None or not self.may_grow(node):
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
        problem, fault = self._problem, None
        theta, log_ratio, prior = rival.theta, 0.0, 0.0
        try:
            proposed = problem.propose(rival.theta, log_scale, iteration)
            theta, log_ratio = proposed.theta, proposed.log_ratio
            prior = problem.log_prior(theta)
        except CapacityError as error:
            fault = error
        self._numbers += 1
        batches = problem.target.batches
        node = Node(
            self._numbers, iteration, parent, rival, theta, log_scale, log_ratio, problem.log_uniform(iteration),
            prior, [UNKNOWN] * batches, batches, fault=fault,
        )  # fmt: skip
        if prior == NOWHERE:
            node.missing = 0
        elif fault is None:
            node.free.append((0, batches))
        self.nodes[node.number] = node
        return node
