"""What a worker does, whatever carries its messages: evaluate batches, answer, look whether it is called off."""

import time
from collections.abc import Callable
from typing import Protocol

from shadowserve_capacity.errors import TargetFault
from shadowserve_capacity.prefetch.problem import Target, evaluated
from shadowserve_capacity.prefetch.wire import Answer, Failure, Order


class Orders(Protocol):
    """Where a worker gets its orders."""

    def next(self) -> Order | None:
        """Wait for the next order; None when there will be none."""

    def called_off(self, order: Order) -> bool:
        """Return whether `order` has become useless."""

    def answer(self, message: Answer | Failure) -> None:
        """Send terms, or why there are none."""


def work(target: Target, orders: Orders, clock: Callable[[], float] = time.perf_counter) -> None:
    """Carry out orders until there are no more."""
    while (order := orders.next()) is not None:
        try:
            _carry_out(target, order, orders, clock)
        except TargetFault as fault:
            orders.answer(Failure(order.lane, order.serial, order.node, str(fault)))


def _carry_out(target: Target, order: Order, orders: Orders, clock: Callable[[], float]) -> None:
    terms: list[float] = []
    first, began = order.first, clock()
    for batch in range(order.first, order.stop):
        if orders.called_off(order):
            break
        terms.append(evaluated(target, order.theta, batch))
        if len(terms) == order.report and batch + 1 < order.stop:
            now = clock()
            orders.answer(Answer(order.lane, order.serial, order.node, first, False, now - began, tuple(terms)))
            first, began = batch + 1, now
            terms = []
    orders.answer(Answer(order.lane, order.serial, order.node, first, True, clock() - began, tuple(terms)))
