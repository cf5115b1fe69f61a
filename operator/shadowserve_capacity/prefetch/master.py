"""The master: gives out work, takes in terms, and emits the chain. It does no I/O and knows no clock."""

import heapq
from dataclasses import dataclass
from enum import Enum

from shadowserve_capacity.errors import TargetFault
from shadowserve_capacity.prefetch.chain import Chain, Step
from shadowserve_capacity.prefetch.jobtree import Jobtree, Node
from shadowserve_capacity.prefetch.predictors import Comparison, Predictor, clipped
from shadowserve_capacity.prefetch.problem import Problem, State, checked_term

_REASSIGN = 1.1


@dataclass(frozen=True, slots=True)
class Task:
    """Evaluate batches of `theta` from `batch` on, one after the other, until told to stop."""

    node: int
    theta: State
    batch: int


class Verdict(Enum):
    """What a worker does after a term: go on with the next batch, or ask for another task."""

    CONTINUE = "Continue"
    STOP = "Stop"


class Master:
    """Owns the jobtree of one chain. Terms may come late, twice or never: they cost time, not the result."""

    def __init__(self, problem: Problem, predictor: Predictor) -> None:
        self._problem = problem
        self._predictor = predictor
        self._tree = Jobtree(problem, problem.start, 0, problem.adaptation.log_scale)
        if self._tree.state.log_prior == float("-inf"):
            raise TargetFault("the start lies outside the prior's support")
        self._working: dict[int, Node] = {}
        self._abandoned: list[int] = []
        self.steps: list[Step] = []
        self.useful_terms = 0

    @property
    def done(self) -> bool:
        """Return whether the whole chain is out."""
        return len(self.steps) == self._problem.iterations

    @property
    def chain(self) -> Chain:
        """Return the chain so far."""
        return Chain.of(self.steps, self._problem.start.shape[0])

    def assign(self, worker: int) -> Task | None:
        """Return the most probable work that nobody does, now `worker`'s; None when the chain is out."""
        self.lost(worker)
        node = None if self.done else self._best()
        if node is None:
            return None
        node.worker = worker
        self._working[worker] = node
        return Task(node.number, node.theta, len(node.terms))

    def lost(self, worker: int) -> None:
        """Free what `worker` had: it died, stalled, or asks for something else. Its terms stay."""
        node = self._working.pop(worker, None)
        if node is not None:
            node.worker = None

    def abandoned(self) -> list[int]:
        """Return, once, the workers whose task died since the last call."""
        workers, self._abandoned = self._abandoned, []
        return workers

    def update(self, worker: int, number: int, batch: int, term: float) -> Verdict:
        """Take the term of one batch; raises TargetFault when it is not finite or contradicts an earlier answer."""
        checked_term(term, batch)
        node = self._tree.nodes.get(number)
        if node is None or batch > len(node.terms):
            return Verdict.STOP
        if batch < len(node.terms):
            self._same(node, batch, term)
        else:
            node.add(term)
            self._settle(node)
        return self._verdict(worker, number)

    def _same(self, node: Node, batch: int, term: float) -> None:
        if node.terms[batch] != term:
            raise TargetFault(
                f"the target changed its answer: batch {batch} of iteration {node.iteration} "
                f"was {node.terms[batch]!r}, then {term!r}"
            )

    def _verdict(self, worker: int, number: int) -> Verdict:
        node = self._working.get(worker)
        if node is None or node.number != number or node.complete:
            return Verdict.STOP
        other = self._best()
        if other is not None and other.utility() > _REASSIGN * node.utility():
            return Verdict.STOP
        return Verdict.CONTINUE

    def _settle(self, changed: Node) -> None:
        for node in changed.compared():
            self._predict(node)
        if changed.complete and changed.worker is not None:
            self.lost(changed.worker)
        self._emit()

    def _predict(self, node: Node) -> None:
        if node.rival is None:
            return
        node.predicted = True
        decided = node.decided()
        if decided is None:
            node.probability = clipped(self._predictor.probability(_comparison(node)))
            return
        node.probability = float(decided)
        losing = node.reject if decided else node.accept
        if decided:
            node.reject = None
        else:
            node.accept = None
        for dead in self._tree.prune(losing):
            if dead.worker is not None:
                self._abandoned.append(dead.worker)
                self.lost(dead.worker)

    def _emit(self) -> None:
        while not self.done:
            front = self._tree.front
            accepted = front.decided()
            if accepted is None:
                return
            assert front.rival is not None
            self._predict(front)
            self._predictor.learn(accepted, front.log_density - front.rival.log_density)
            self.useful_terms += len(front.terms)
            self._tree.advance(accepted)
            state = self._tree.state
            self.steps.append(Step(accepted, state.theta, state.log_density))

    def _best(self) -> Node | None:
        """Return the idle, incomplete node of the highest utility, growing the tree best first."""
        state = self._tree.state
        if not state.complete and state.worker is None:
            return state
        self._emit()
        if self.done:
            return None
        heap: list[tuple[float, int, Node]] = [(-1.0, self._tree.front.number, self._tree.front)]
        while heap:
            negative, _, node = heapq.heappop(heap)
            if node.worker is None and not node.complete:
                return node
            self._fresh(node)
            for accepted, share in ((True, node.probability), (False, 1.0 - node.probability)):
                child = self._tree.child(node, accepted) if share > 0.0 else None
                if child is not None:
                    heapq.heappush(heap, (negative * share, child.number, child))
        return None

    def _fresh(self, node: Node) -> None:
        if not node.predicted:
            self._predict(node)


def _comparison(node: Node) -> Comparison:
    assert node.rival is not None
    seen = min(len(node.terms), len(node.rival.terms))
    return Comparison(
        node.batches,
        node.log_prior - node.rival.log_prior,
        node.log_uniform + node.log_ratio,
        tuple(node.terms[:seen]),
        tuple(node.rival.terms[:seen]),
    )
