"""A limit on what one process may spend at an endpoint, held before money is spent and not after."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from ragtune.errors import ModelError


@dataclass
class Bill:
    """What a request counts as: the most that it can cost, until it is known better."""

    cost: float


class Budget:
    """What may be spent, and what was. Each request sets the most that it can cost aside before it is sent."""

    def __init__(self, name: str, limit: float, currency: str) -> None:
        self.name = name
        self.limit = limit
        self.currency = currency
        self.spent = 0.0
        self._reserved: list[float] = []
        self._settled = threading.Condition()

    @contextmanager
    def bill(self, most: float) -> Iterator[Bill]:
        """Set `most` aside for a request; what its bill says at the end of the block is spent.

        While there is too little left it waits for requests under way, which seldom cost what was set aside for them.

        Raises: ModelError when the request may exceed the limit.
        """
        with self._settled:
            self._settled.wait_for(lambda: not self._reserved or self._fits(most))
            if not self._fits(most):
                raise ModelError(
                    f"generators.{self.name} stopped before max_spend: {self.spent:.4g} of {self.limit:g} "
                    f"{self.currency} is spent and the next request may cost {most:.2g}; answers so far are kept, so "
                    f"raise max_spend to go on"
                )
            self._reserved.append(most)
        bill = Bill(most)
        try:
            yield bill
        finally:
            with self._settled:
                self._reserved.remove(most)
                self.spent += bill.cost
                self._settled.notify_all()

    def _fits(self, most: float) -> bool:
        return self.spent + math.fsum(self._reserved) + most <= self.limit


def shared_budget(name: str, fingerprint: str, limit: float | None, currency: str) -> Budget:
    """The budget of an endpoint: one for the whole process, however often the endpoint is opened.

    None means no limit. Another limit than before holds from now on, for what was spent before, too.
    """
    budget = _of_process(name, fingerprint, currency)
    budget.limit = math.inf if limit is None else limit
    return budget


@cache
def _of_process(name: str, fingerprint: str, currency: str) -> Budget:
    return Budget(name, math.inf, currency)
