from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from server import answers

from tristep.server.worker import RefusedError, Worker, WorkerError


@asynccontextmanager
async def worker(load: Callable[[], Any] = answers.load, num_parallel: int = 1) -> AsyncIterator[Worker]:
    started = Worker("test", load, num_parallel)
    started.start()
    try:
        yield started
    finally:
        await started.stop()


async def all_of(worker: Worker, *job: Any) -> list[Any]:
    return [message async for message in worker.ask(job)]


def test_jobs_are_answered_side_by_side_and_refused_and_failed_each_in_its_way() -> None:
    async def main() -> None:
        async with worker(num_parallel=2) as asked:
            results = await asyncio.gather(
                all_of(asked, "count", 3), all_of(asked, "count", 500), all_of(asked, "count", 0)
            )
            assert results == [[0, 1, 2], list(range(500)), []]
            with pytest.raises(RefusedError, match="because of that") as refused:
                await all_of(asked, "refuse", "because of that")
            assert refused.value.kind == "ValueError"
            with pytest.raises(WorkerError, match="KeyError: see the server's log"):
                await all_of(asked, "fail", "secret")
            assert asked.is_ready

    asyncio.run(main())


def test_a_job_is_cancelled_when_its_asker_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        async with worker() as asked:
            answer = asked.ask(("count for ever", tmp_path / "mark"))
            assert [await anext(answer), await anext(answer)] == [0, 1]
            await answer.aclose()
            assert await all_of(asked, "count", 1) == [0]  # it has one thread, which the first job has left by now
            assert (tmp_path / "mark").read_text() == "left"

    asyncio.run(main())


def test_a_session_is_told_more_beside_other_jobs_until_its_asker_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        async with worker() as asked:
            async with asked.session(("echo", tmp_path / "mark")) as first, asked.session(("echo", tmp_path)) as second:
                first.tell("one")
                second.tell("two")
                assert [await anext(first), await anext(second)] == ["one", "two"]
                assert await all_of(asked, "count", 1) == [0]  # its only thread is free
                for number in range(100):
                    first.tell(bytes(10_000) + bytes([number]))
                assert [(await anext(first))[-1] for _ in range(100)] == list(range(100))
            while not (tmp_path / "mark").exists():
                assert await all_of(asked, "count", 1) == [0]

    asyncio.run(main())


def test_a_process_that_dies_fails_its_jobs_and_is_replaced() -> None:
    async def main() -> None:
        async with worker() as asked:
            with pytest.raises(WorkerError, match="the test process died"):
                await all_of(asked, "die", None)
            assert await all_of(asked, "count", 2) == [0, 1]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("load", "reason"),
    [(answers.load_nothing, "there are no weights 'gone'"), (answers.die, "died while it loaded")],
)
def test_a_process_that_can_not_load_says_why(load: Callable[[], Any], reason: str) -> None:
    async def main() -> None:
        async with worker(load) as asked:
            with pytest.raises(WorkerError, match=reason):
                await asked.loaded()
            assert not asked.is_ready
            with pytest.raises(WorkerError, match=reason):
                await all_of(asked, "count", 1)

    asyncio.run(main())
