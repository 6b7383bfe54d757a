"""A process of our own that answers jobs by streams of messages.

The event loop must never wait for a model or for a decoder of foreign files, so each of them lives in a process of its
own. A job goes there as a pickled value; what its answer yields comes back message by message. Whoever stops listening
cancels the job. A session is a job that is told more while it goes on, and has a thread to itself. A process that dies
fails the jobs it had, and another one takes its place.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import logging
import os
import pickle
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Literal

log = logging.getLogger(__name__)

Check = Callable[[], None]
"""A job calls it now and then; it raises where nobody waits for the job's answer any more."""
Answer = Callable[[Any, "Line"], Iterator[Any]]
"""Turns a job into messages; `Line` is also a `Check`."""
Kind = Literal["message", "end", "refused", "failed"]
Word = Literal["job", "session", "told", "left"]
"""What the near end sends: a job, a job that will be told more, more, and that nobody waits."""
THRIFT = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": str(2**17),
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""Settings of the C library and of oneDNN for the processes: threads that come and go would otherwise leave memory
behind in arenas of their own, and every new length of a sound another kernel. What the environment says stays."""
LIBC = ctypes.CDLL(None) if os.name == "posix" else None
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


class Channel:
    """A job that goes on: its messages, and a way to tell it more."""

    def __init__(self, tell: Callable[[Word, Any], None]) -> None:
        self._tell = tell
        self.inbox = asyncio.Queue[tuple[Kind, Any]]()

    def tell(self, message: Any) -> None:
        """Tell a session more."""
        self._tell("told", message)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        kind, payload = await self.inbox.get()
        if kind == "message":
            return payload
        if kind == "refused":
            raise RefusedError(*payload)
        if kind == "failed":
            raise WorkerError(payload)
        raise StopAsyncIteration


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
        self._channels: dict[int, Channel] = {}
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
        os.environ.update({name: value for name, value in THRIFT.items() if name not in os.environ})
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, self.load, self.num_parallel), name=f"tristep-{self.name}", daemon=True
        )
        self._process.start()
        theirs.close()
        self._outbox = SimpleQueue[bytes | None]()
        self._reader = threading.Thread(target=self._read, args=(self._connection, self._outbox), daemon=True)
        self._reader.start()
        threading.Thread(target=write, args=(self._connection, self._outbox), daemon=True).start()

    async def ask(self, job: Any) -> AsyncGenerator[Any, None]:
        """Yield the answer to a job; to leave before its end is to cancel it.

        Raises:
            RefusedError: If the job raised a `ValueError`.
            WorkerError: If it failed in another way.
        """
        async with self.channel(job) as channel:
            async for message in channel:
                yield message

    def session(self, job: Any) -> AbstractAsyncContextManager[Channel]:
        """Begin a job that is told more while it goes on, in a thread of its own; to leave is to cancel it."""
        return self.channel(job, "session")

    @asynccontextmanager
    async def channel(self, job: Any, kind: Word = "job") -> AsyncIterator[Channel]:
        """Begin a job."""
        await self.loaded()
        number = next(self._numbers)
        self._channels[number] = channel = Channel(partial(self._send, number))
        self._send(number, kind, job)
        try:
            yield channel
        finally:
            del self._channels[number]
            self._send(number, "left")

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

    def _send(self, number: int, kind: Word, payload: Any = None) -> None:
        """Have it written by a thread: the pipe may be full."""
        self._outbox.put(pickle.dumps((number, kind, payload)))

    def _read(self, connection: Connection, outbox: SimpleQueue[bytes | None]) -> None:
        """Hand what comes to the event loop, in a thread of its own, until the process ends."""
        with connection:
            while True:
                try:
                    reply = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    break
                self._loop.call_soon_threadsafe(self._deliver, *reply)
            outbox.put(None)
        self._loop.call_soon_threadsafe(self._replace)

    def _deliver(self, number: int, kind: Kind, payload: Any) -> None:
        if number == READY:
            self.failure = payload
            self._loaded.set()
        elif number in self._channels:
            self._channels[number].inbox.put_nowait((kind, payload))

    def _replace(self) -> None:
        """Fail the jobs of a process that died, and start another, unless it could not even load."""
        for channel in self._channels.values():
            channel.inbox.put_nowait(("failed", f"the {self.name} process died"))
        if self._stopping or self.failure:
            return
        if self._killed or self.is_ready:
            log.error("the %s process ended: it is started again", self.name)
            self._loaded.clear()
            self.start()
        else:
            self._deliver(READY, "failed", f"the {self.name} process died while it loaded")


def write(connection: Connection, outbox: SimpleQueue[bytes | None]) -> None:
    """Send what is put into an outbox, until None is, or nobody reads it."""
    while (message := outbox.get()) is not None:
        try:
            connection.send_bytes(message)
        except OSError:  # the process has just died, and its reader is about to say so
            return


class Line:
    """What a job hears from its asker while it works."""

    def __init__(self) -> None:
        self.has_left = threading.Event()
        self.inbox = SimpleQueue[Any]()

    def __call__(self) -> None:
        """Check that somebody waits.

        Raises:
            AbandonedError: If nobody does.
        """
        if self.has_left.is_set():
            raise AbandonedError

    def told(self, wait_s: float = 0) -> list[Any]:
        """Return what a session has been told since, after waiting for so long at most if that is nothing."""
        messages = []
        try:
            messages.append(self.inbox.get(timeout=wait_s) if wait_s else self.inbox.get_nowait())
            while True:
                messages.append(self.inbox.get_nowait())
        except Empty:
            self()
        return messages

    def leave(self) -> None:
        """Say that nobody waits, also to a session that waits itself."""
        self.has_left.set()
        self.inbox.put(None)


@dataclass
class Desk:
    """The far end: works on jobs in threads, and sends what they yield."""

    connection: Connection
    answer: Answer
    lines: dict[int, Line] = field(default_factory=dict)
    """For every job, the line to its asker."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, number: int, kind: Kind, payload: Any = None) -> None:
        """Send one message."""
        with self.lock:
            self.connection.send_bytes(pickle.dumps((number, kind, payload)))

    def work_on(self, number: int, job: Any) -> None:
        """Answer one job."""
        line = self.lines[number]
        try:
            line()
            for message in self.answer(job, line):
                self.send(number, "message", message)
                line()
            self.send(number, "end")
        except AbandonedError:
            log.debug("job %d was cancelled", number)
        except ValueError as error:
            self.send(number, "refused", (str(error), type(error).__name__))
        except Exception as error:
            log.exception("job %d failed", number)
            self.send(number, "failed", f"{type(error).__name__}: see the server's log")
        finally:
            del self.lines[number]
            give_back_memory()

    def serve(self, num_parallel: int) -> None:
        """Take jobs, and what they are told, until the near end is closed."""
        pool = ThreadPoolExecutor(num_parallel)
        while True:
            number, kind, payload = pickle.loads(self.connection.recv_bytes())
            if kind in ("job", "session"):
                self.lines[number] = Line()
            if kind == "job":
                pool.submit(self.work_on, number, payload)
            elif kind == "session":
                threading.Thread(target=self.work_on, args=(number, payload), daemon=True).start()
            elif line := self.lines.get(number):
                line.leave() if kind == "left" else line.inbox.put(payload)


def give_back_memory() -> None:
    """Free what a job that was left in the middle of its work held on to, and return it where the C library can."""
    gc.collect()
    if LIBC and hasattr(LIBC, "malloc_trim"):  # glibc has it
        LIBC.malloc_trim(0)


def work(connection: Connection, load: Callable[[], Answer], num_parallel: int) -> None:
    """Run the far end of a `Worker`; it ends with the near end, which alone heeds signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        answer = load()
    except ValueError as error:
        connection.send_bytes(pickle.dumps((READY, "refused", str(error))))
        return
    gc.collect()
    gc.freeze()  # what was loaded stays: to look through it for what a job has left would take long
    connection.send_bytes(pickle.dumps((READY, "message", None)))
    try:
        Desk(connection, answer).serve(num_parallel)
    except (EOFError, OSError):
        os._exit(0)  # without waiting for jobs whose answers nobody hears
