from __future__ import annotations

import threading
from collections import OrderedDict

from .statistics import Statistics
from .weights import Floats


class Feedback:
    def __init__(self, hessian: Floats) -> None:
        self.hessian = hessian


class Feedbacks:
    """Error feedback by name of the weight, from ``statistics``; the last few are kept.

    A factor is as large as its Hessian, and products that follow each other share them.
    """

    KEPT = 2

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._kept: OrderedDict[tuple[int, int], Feedback] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, weight: str) -> Feedback | None:
        """None for a weight whose products were not measured."""
        place = self._statistics.hessian_id(weight)
        if place is None:
            return None
        with self._lock:
            if place not in self._kept:
                hessian = self._statistics.hessian(weight)
                assert hessian is not None
                self._kept[place] = Feedback(hessian)
                while len(self._kept) > self.KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(place)
            return self._kept[place]

    def hessian(self, weight: str) -> Floats | None:
        """X^T X / tokens of the products with a weight."""
        found = self.of(weight)
        return None if found is None else found.hessian
