"""Work done ahead of its turn by threads: in order, and never further ahead than asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    compute: Callable[[Item], Result], items: Iterable[Item], num_threads: int, num_ahead: int
) -> Iterator[Result]:
    """Yield `compute(item)` for each item in turn, while threads compute up to `num_ahead` of those that follow."""
    with ThreadPoolExecutor(num_threads, "ahead") as threads:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(threads.submit(compute, item))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
