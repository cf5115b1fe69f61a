"""What a worker does, whatever carries its messages: evaluate batches, answer, look whether it is called off."""

import ctypes
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from shadowserve_capacity.errors import CalledOff, TargetFault
from shadowserve_capacity.prefetch.problem import Target, evaluated
from shadowserve_capacity.prefetch.wire import Answer, Failure, Order

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


class Orders(Protocol):
    """Where a worker gets its orders."""

    def next(self) -> Order | None:
        """Wait for the next order; None when there will be none."""

    def called_off(self, order: Order) -> bool:
        """Return whether `order` has become useless."""

    def answer(self, message: Answer | Failure) -> None:
        """Send terms, or why there are none."""


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed, in this process and for good.

    By default glibc gives the temporary arrays of one batch back to the kernel, which has to map and clear the same
    pages for the next: a fresh process took 4.7 times as long for a batch of 10,000 as one that had freed larger
    arrays before. Does nothing where the C library has no mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def work(target: Target, orders: Orders, clock: Callable[[], float] = time.perf_counter) -> None:
    """Carry out orders until there are no more."""
    while (order := orders.next()) is not None:
        try:
            _carry_out(target, order, orders, clock)
        except TargetFault as fault:
            orders.answer(Failure(order.lane, order.serial, order.node, str(fault)))


def _carry_out(target: Target, order: Order, orders: Orders, clock: Callable[[], float]) -> None:
    terms: list[float] = []
    called_off = partial(orders.called_off, order)
    first, report, began = order.first, order.report, clock()
    for batch in range(order.first, order.stop):
        if called_off():
            break
        try:
            terms.append(evaluated(target, order.theta, batch, called_off))
        except CalledOff:
            break
        if len(terms) == report and batch + 1 < order.stop:
            now = clock()
            orders.answer(Answer(order.lane, order.serial, order.node, first, False, now - began, tuple(terms)))
            first, began, report = batch + 1, now, 2 * report
            terms = []
    orders.answer(Answer(order.lane, order.serial, order.node, first, True, clock() - began, tuple(terms)))
