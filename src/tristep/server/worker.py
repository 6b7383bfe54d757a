"""A process of our own that answers jobs by streams of messages.

The event loop must never wait for a model or for a decoder of foreign files, so each of them lives in a process of its
own. A job goes there as a pickled value; what its answer yields comes back message by message. Whoever stops listening
cancels the job. A process that dies fails the jobs it had, and another one takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal

log = logging.getLogger(__name__)

Check = Callable[[], None]
"""A job calls it now and then; it raises where nobody waits for the job's answer any more."""
Answer = Callable[[Any, Check], Iterator[Any]]
"""Turns a job into messages."""
Kind = Literal["message", "end", "refused", "failed"]
READY = -1
"""Number of the message that says that a process is ready."""


class RefusedError(ValueError):
    """A job that was refused with a `ValueError`: the sentence, and the class of the error."""

    def __init__(self, sentence: str, kind: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class WorkerError(RuntimeError):
    """A job that failed, or whose process died."""


class AbandonedError(Exception):
    """Nobody waits for the answer."""


class Worker:
    """The near end of a process: asks it, and keeps it alive."""

    def __init__(self, name: str, load: Callable[[], Answer], num_parallel: int = 1) -> None:
        """Prepare a process.

        Args:
            name: What to call it in the log.
            load: Called in the process, once; picklable.
            num_parallel: Jobs that it works on at once, each in a thread.
        """
        self.name, self.load, self.num_parallel = name, load, num_parallel
        self.failure: str | None = None
        """Why the process can't be started, if it can't."""
        self._loaded = asyncio.Event()  # or it never will be
        self._numbers = itertools.count()
        self._inboxes: dict[int, asyncio.Queue[tuple[Kind, Any]]] = {}
        self._killed = self._stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether jobs are answered now."""
        return self._loaded.is_set() and self.failure is None

    async def loaded(self) -> None:
        """Wait until jobs are answered.

        Raises:
            WorkerError: If they never will be.
        """
        await self._loaded.wait()
        if self.failure:
            raise WorkerError(self.failure)

    def start(self) -> None:
        """Start the process; it is ready once it has loaded."""
        self._loop, self._killed = asyncio.get_running_loop(), False
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, self.load, self.num_parallel), name=f"tristep-{self.name}", daemon=True
        )
        self._process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, args=(self._connection,), daemon=True)
        self._reader.start()

    async def ask(self, job: Any) -> AsyncGenerator[Any, None]:
        """Yield the answer to a job; to leave before its end is to cancel it.

        Raises:
            RefusedError: If the job raised a `ValueError`.
            WorkerError: If it failed in another way.
        """
        await self.loaded()
        number, inbox = next(self._numbers), asyncio.Queue[tuple[Kind, Any]]()
        self._inboxes[number] = inbox
        self._send(number, job)
        try:
            while (reply := await inbox.get())[0] == "message":
                yield reply[1]
        finally:
            del self._inboxes[number]
            self._send(number, None)
        if reply[0] == "refused":
            raise RefusedError(*reply[1])
        if reply[0] == "failed":
            raise WorkerError(reply[1])

    def kill(self) -> None:
        """End the process at once; another one takes its place."""
        self._killed = True
        self._loaded.clear()
        self._process.kill()

    async def stop(self) -> None:
        """End the process for good."""
        self._stopping = True
        self.kill()
        await asyncio.to_thread(self._reader.join)
        await asyncio.to_thread(self._process.join)
        self._process.close()

    def _send(self, number: int, job: Any) -> None:
        try:
            self._connection.send_bytes(pickle.dumps((number, job)))
        except OSError:  # it has just died, and the reader is about to say so
            log.debug("the %s process is gone", self.name)

    def _read(self, connection: Connection) -> None:
        """Hand what comes to the event loop, in a thread of its own, until the process ends."""
        with connection:
            while True:
                try:
                    reply = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    break
                self._loop.call_soon_threadsafe(self._deliver, *reply)
        self._loop.call_soon_threadsafe(self._replace)

    def _deliver(self, number: int, kind: Kind, payload: Any) -> None:
        if number == READY:
            self.failure = payload
            self._loaded.set()
        elif number in self._inboxes:
            self._inboxes[number].put_nowait((kind, payload))

    def _replace(self) -> None:
        """Fail the jobs of a process that died, and start another, unless it could not even load."""
        for inbox in self._inboxes.values():
            inbox.put_nowait(("failed", f"the {self.name} process died"))
        if self._stopping or self.failure:
            return
        if self._killed or self.is_ready:
            log.error("the %s process ended: it is started again", self.name)
            self._loaded.clear()
            self.start()
        else:
            self._deliver(READY, "failed", f"the {self.name} process died while it loaded")


@dataclass
class Desk:
    """The far end: works on jobs in threads, and sends what they yield."""

    connection: Connection
    answer: Answer
    left: dict[int, threading.Event] = field(default_factory=dict)
    """For every job, whether its asker has left."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, number: int, kind: Kind, payload: Any = None) -> None:
        """Send one message."""
        with self.lock:
            self.connection.send_bytes(pickle.dumps((number, kind, payload)))

    def work_on(self, number: int, job: Any) -> None:
        """Answer one job."""

        def check_in() -> None:
            if self.left[number].is_set():
                raise AbandonedError

        try:
            check_in()
            for message in self.answer(job, check_in):
                self.send(number, "message", message)
                check_in()
            self.send(number, "end")
        except AbandonedError:
            log.debug("job %d was cancelled", number)
        except ValueError as error:
            self.send(number, "refused", (str(error), type(error).__name__))
        except Exception as error:
            log.exception("job %d failed", number)
            self.send(number, "failed", f"{type(error).__name__}: see the server's log")
        finally:
            del self.left[number]

    def serve(self, num_parallel: int) -> None:
        """Take jobs and cancellations until the near end is closed."""
        pool = ThreadPoolExecutor(num_parallel)
        while True:
            number, job = pickle.loads(self.connection.recv_bytes())
            if job is not None:
                self.left[number] = threading.Event()
                pool.submit(self.work_on, number, job)
            elif left := self.left.get(number):
                left.set()


def work(connection: Connection, load: Callable[[], Answer], num_parallel: int) -> None:
    """Run the far end of a `Worker`; it ends with the near end, which alone heeds signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        answer = load()
    except ValueError as error:
        connection.send_bytes(pickle.dumps((READY, "refused", str(error))))
        return
    connection.send_bytes(pickle.dumps((READY, "message", None)))
    try:
        Desk(connection, answer).serve(num_parallel)
    except (EOFError, OSError):
        os._exit(0)  # without waiting for jobs whose answers nobody hears
