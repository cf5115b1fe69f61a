"""The master: gives out work, takes in terms, and emits the chain. It does no I/O and knows no clock."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shadowserve_capacity.errors import CapacityError, TargetFault
from shadowserve_capacity.prefetch.chain import Chain, Position, Step
from shadowserve_capacity.prefetch.evidence import Comparison, Decision
from shadowserve_capacity.prefetch.jobtree import NOWHERE, Jobtree, Node
from shadowserve_capacity.prefetch.policy import Policy, Task, Verdict
from shadowserve_capacity.prefetch.predictors import Predictor, clipped
from shadowserve_capacity.prefetch.problem import Problem, checked_term

_AUDIT_EVERY = 64


class Master:
    """Owns the jobtree of one chain. Terms may come late, twice or never: they cost time, not the result."""

    def __init__(
        self, problem: Problem, predictor: Predictor, policy: Policy = Policy(), at: Position | None = None
    ) -> None:
        self._problem = problem
        self._predictor = predictor
        self._policy = policy
        self._rng = None if policy.descent is None else np.random.default_rng(policy.descent)
        self._at = at or Position.first(problem)
        self._tree = Jobtree(problem, self._at.theta, self._at.iteration, self._at.log_scale)
        if self._tree.state.log_prior == NOWHERE:
            raise TargetFault("the start lies outside the prior's support")
        self._working: dict[int, Node] = {}
        self._called_off: list[int] = []
        self._audit: Task | None = None
        self.steps: list[Step] = []
        self.useful_terms = 0
        self.accepted = 0
        self._enter(self._tree.front)

    @property
    def done(self) -> bool:
        """Return whether the whole chain is out."""
        return len(self.steps) == self.iterations

    @property
    def iterations(self) -> int:
        """Return how many iterations are asked for, from where the chain was taken up."""
        return self._problem.iterations - self._at.iteration

    def share(self, split: int | None) -> None:
        """From now on give shares of at least `split` batches, or whole evaluations; what is given out stays."""
        if split == self._policy.split:
            return
        self._policy = replace(self._policy, split=split)
        for number in sorted(self._tree.nodes, reverse=True):  # children before their parents
            node = self._tree.nodes[number]
            node.best = 1.0 if self._wanting(node) else max(self._sides(node))

    @property
    def position(self) -> Position:
        """Return where the chain stands: taken up from there, it goes on with the same bytes."""
        if self.done:
            return Position(self._problem.iterations, self._tree.state.theta, self._after_last())
        front = self._tree.front
        return Position(front.iteration, self._tree.state.theta, front.log_scale)

    def _after_last(self) -> float:
        front_scale, last = self._tree.front.log_scale, self._problem.iterations - 1
        if not self.steps:
            return self._at.log_scale
        return self._problem.adaptation.next(front_scale, last, self.steps[-1].accepted)

    @property
    def split(self) -> int | None:
        """Return the least share of an evaluation that is given out; None when evaluations are not shared."""
        return self._policy.split

    @property
    def chain(self) -> Chain:
        """Return the chain so far."""
        return Chain.of(self.steps, self._problem.start.shape[0])

    def assign(self, worker: int) -> Task | None:
        """Return the most probable work that nobody does, now `worker`'s; None when there is none."""
        self.lost(worker)
        if self._audit is not None:
            task, self._audit = self._audit, None
            return task
        node = None if self.done else self._drawn() if self._rng is not None else self._best()
        if node is None:
            return None
        start, stop = node.claim(worker, self._share(node))
        self._working[worker] = node
        self._refresh(node)
        return Task(node.number, node.theta, start, stop)

    def look_ahead(self) -> None:
        """Grow the tree to the most probable work that nobody does, so that its expectation is there when one asks."""
        if self._rng is None and not self.done:
            self._best()

    def lost(self, worker: int) -> None:
        """Free what `worker` had: it died, stalled, or asks for something else. Its terms stay."""
        node = self._working.pop(worker, None)
        if node is not None:
            node.release(worker)
            self._refresh(node)

    def called_off(self) -> list[int]:
        """Return, once, the workers whose task has become useless since the last call."""
        workers, self._called_off = self._called_off, []
        return workers

    def update(self, worker: int, number: int, first: int, terms: Sequence[float]) -> Verdict:
        """Take terms of consecutive batches; raises TargetFault when they contradict earlier ones."""
        node = self._tree.nodes.get(number)
        if node is None:
            return Verdict.CONTINUE if self._policy.finish_dead else Verdict.STOP
        fresh = False
        for batch, term in enumerate(terms, first):
            known = node.terms[batch]
            if known == known:
                self._same(node, batch, term)
                continue
            try:
                node.take(batch, checked_term(term, batch))
            except TargetFault as error:
                self.failed(number, error)
                return Verdict.STOP
            fresh = True
        self._progress(worker, node, first + len(terms))
        if fresh:
            self._settle(node)
        return self._verdict(worker, number)

    def failed(self, number: int, fault: CapacityError) -> None:
        """Note that a candidate cannot be evaluated; raises when the chain has come to it."""
        node = self._tree.nodes.get(number)
        if node is None:
            return
        node.fault = fault
        node.free.clear()
        self._free_holders(node)
        self._refresh(node)
        self._emit()

    def _same(self, node: Node, batch: int, term: float) -> None:
        if node.terms[batch] != term:
            raise TargetFault(
                f"the target changed its answer: batch {batch} of iteration {node.iteration} "
                f"was {node.terms[batch]!r}, then {term!r}"
            )

    def _progress(self, worker: int, node: Node, done: int) -> None:
        if self._working.get(worker) is not node:
            return
        _, stop = node.holders[worker]
        if done >= stop:
            self.lost(worker)
        else:
            node.holders[worker] = (done, stop)

    def _verdict(self, worker: int, number: int) -> Verdict:
        node = self._working.get(worker)
        if node is None or node.number != number:
            return Verdict.STOP
        return Verdict.STOP if self._better(node) else Verdict.CONTINUE

    def _better(self, node: Node) -> bool:
        """Return whether something that nobody does is clearly more probable than `node`."""
        if node is self._tree.state or not self._policy.speculate:
            return False
        if self._rng is not None:
            other = self._drawn()
            return other is not None and other.utility() >= self._policy.reassign * node.utility()
        best = 1.0 if self._wanting(self._tree.state) else self._tree.front.best
        return best > self._policy.reassign * node.utility()

    def _settle(self, changed: Node) -> None:
        self._predict(changed)
        for node in changed.tested():
            self._predict(node)
        if changed.complete:
            self._free_holders(changed)
            self._refresh(changed)
        self._emit()

    def _free_holders(self, node: Node) -> None:
        for worker in list(node.holders):
            self._called_off.append(worker)
            self.lost(worker)

    def _predict(self, node: Node) -> None:
        if node.rival is None:
            return
        decided = node.decided()
        if decided is None:
            if node.log_prior != NOWHERE:
                node.probability = clipped(self._predictor.probability(_comparison(node)))
            self._refresh(node)
            return
        node.probability = float(decided)
        losing = node.reject if decided else node.accept
        if decided:
            node.reject = None
        else:
            node.accept = None
        for dead in self._tree.prune(losing):
            self._bury(dead)
        self._refresh(node)

    def _bury(self, dead: Node) -> None:
        for worker in dead.holders:
            del self._working[worker]
            if not self._policy.finish_dead:
                self._called_off.append(worker)
        dead.holders.clear()

    def _emit(self) -> None:
        while not self.done:
            state, front = self._tree.state, self._tree.front
            if state.fault is not None:
                raise state.fault
            if front.fault is not None and state.complete:
                raise front.fault
            accepted = front.decided()
            if accepted is None:
                return
            self._predict(front)
            self._learn(front, accepted)
            self.useful_terms += front.batches if front.log_prior != NOWHERE else 0
            self._tree.advance(accepted)
            self._enter(self._tree.front)
            state = self._tree.state
            self.accepted += accepted
            self.steps.append(Step(accepted, state.theta, state.log_density))
            if len(self.steps) % _AUDIT_EVERY == 1:
                batch = len(self.steps) // _AUDIT_EVERY % state.batches
                self._audit = Task(state.number, state.theta, batch, batch + 1)

    def _learn(self, front: Node, accepted: bool) -> None:
        rival = front.rival
        assert rival is not None
        new, old = front.log_density, rival.log_density
        self._predictor.learn(
            Decision(accepted, front.theta, rival.theta, new, old, front.pairs, front.expected),
        )

    def _enter(self, node: Node) -> None:
        """Give a node that is new its expectation and prediction."""
        if node.entered or node.rival is None:
            return
        node.entered = True
        if node.fault is None and node.log_prior == NOWHERE:
            node.probability = 0.0
        elif node.fault is None:
            node.expected = self._predictor.expect(node.theta, node.rival.theta)
        self._predict(node)

    def _wanting(self, node: Node) -> bool:
        return bool(node.free) and (self._policy.split is not None or not node.holders)

    def _share(self, node: Node) -> int:
        """Return how many batches to give: a worker's part of what is free, so that all end together."""
        if self._policy.split is None:
            return node.batches
        if not self._policy.speculate:
            return max(self._policy.split, -(-node.batches // self._policy.workers))
        free = sum(stop - start for start, stop in node.free)
        return max(self._policy.split, free // self._policy.workers)

    def _refresh(self, node: Node | None) -> None:
        """Bring `best` up to date from `node` upwards."""
        while node is not None:
            best = 1.0 if self._wanting(node) else max(self._sides(node))
            if best == node.best:
                return
            node.best = best
            node = node.parent

    def _sides(self, node: Node) -> tuple[float, float]:
        unborn = 1.0 if self._tree.may_grow(node) else 0.0
        accept, reject = node.accept, node.reject
        return (
            node.probability * (unborn if accept is None else accept.best),
            (1.0 - node.probability) * (unborn if reject is None else reject.best),
        )

    def _grown(self, node: Node, accepted: bool) -> Node | None:
        known = node.accept if accepted else node.reject
        if known is not None:
            return known
        child = self._tree.child(node, accepted)
        if child is not None:
            self._enter(child)
            self._refresh(node)
        return child

    def _best(self) -> Node | None:
        """Return the most probable node that wants a worker; the tree grows on the way."""
        if self._wanting(self._tree.state):
            return self._tree.state
        if not self._policy.speculate:
            front = self._tree.front
            return front if self._tree.state.complete and self._wanting(front) else None
        node: Node | None = self._tree.front
        while node is not None and node.best > 0.0:
            if self._wanting(node):
                return node
            accept, reject = self._sides(node)
            fresh = (node.accept if accept >= reject else node.reject) is None
            child = self._grown(node, accept >= reject)
            node = self._tree.front if fresh and (child is None or not self._wanting(child)) else child
        return None

    def _drawn(self) -> Node | None:
        """Return the node at the end of a random path drawn by the predictions, as the published scheduler does."""
        assert self._rng is not None
        if self._wanting(self._tree.state):
            return self._tree.state
        node: Node | None = self._tree.front
        while node is not None and not self._wanting(node):
            node = self._grown(node, bool(self._rng.random() < node.probability))
        return node


def _comparison(node: Node) -> Comparison:
    assert node.rival is not None
    return Comparison(
        node.batches,
        node.log_prior - node.rival.log_prior,
        node.log_uniform + node.log_ratio,
        node.pairs,
        node.expected,
    )
