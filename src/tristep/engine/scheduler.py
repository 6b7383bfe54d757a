"""Continuous batching: requests come and go at any time, and share every pass of the backbone.

What a request is answered does not depend on the others. Its prompt is read in chunks that are always the same, alone;
a row of a pass is computed without regard to its neighbours; and what is drawn is drawn by the request's own seed.
So whatever the order of arrival, the mix, the cancellations and the slots, it writes what it writes alone.

A pass serves one set of weights. Modes that share theirs share a scheduler: transcripts, chats and codes stand in one
batch. A mode whose checkpoint has low-rank updates of its own has them folded into its projections when it is loaded,
and so a backbone and a scheduler of its own: a pass is bound by reading weights, and two thin products more at each of
seven projections a block would cost every row of every mode more than the passes that they save.

    scheduler = Scheduler(backbone)
    scheduler.submit(request)                # from any thread; `BusyError` when too many wait
    scheduler.finish(request)                # whoever waits takes the steps, for everybody
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Condition

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import whole_blocks
from tristep.engine.drafting import MOST_DRAFTED_ROWS, MOST_DRAFTS, Drafter, DraftSources, PassCosts
from tristep.engine.sampling import PROMPT_CHUNK, padded
from tristep.engine.slots import Slots
from tristep.engine.writers import Writer


class BusyError(RuntimeError):
    """The queue is full."""

    def __init__(self, num_waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{num_waiting} requests wait already: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class Request:
    """A prompt, and who writes the answer."""

    prompt: Sequence[int]
    writer: Writer
    audio_embeddings: Tensor | None = None
    """Vectors for the audio slots of the prompt, shape `(N, D)`."""
    is_cancelled: bool = False
    """Set by whoever doesn't want the answer any more; the next step lets go of it."""
    error: Exception | None = None
    """What went wrong in a step, for this request and for all that were in it."""
    began_s: float = 0.0
    """When the reading of its prompt began."""
    unread: deque[Tensor] = field(default_factory=deque)
    """The rest of the prompt, embedded, chunks of shape `(1, T, D)`."""
    company: Sequence[Request] = ()
    """The requests that were submitted together with it, itself among them."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written."""
        return self.is_cancelled or self.error is not None or self.writer.is_done

    @property
    def num_positions(self) -> int:
        """Positions that it can come to need."""
        return len(self.prompt) + self.writer.most_tokens


class Scheduler:
    """A backbone, its cache slots, and the requests that hold them or wait for one."""

    def __init__(
        self, backbone: Backbone, num_slots: int = 8, max_waiting: int = 64, costs: PassCosts | None = None
    ) -> None:
        """Prepare to answer.

        Args:
            backbone: The model.
            num_slots: Requests that write at once.
            max_waiting: Requests that may wait for a slot; the next one is refused.
            costs: What passes cost on this machine; by its kind if not given.
        """
        self.backbone, self.max_waiting = backbone, max_waiting
        self.slots = Slots(backbone, num_slots)
        self.waiting: list[Request] = []
        self.reading: Request | None = None
        """Whose prompt is being read."""
        self.writing: list[Request] = []
        """Who holds which slot."""
        self._hidden = torch.empty(0)  # after the last chunk of a prompt, (1, T, D)
        self._drafter = Drafter(DraftSources(costs=costs), [], self.slots.heads, backbone.embedding.weight.device.type)
        self._request_s = 1.0  # what a request takes, a moving average
        self._turn, self._is_driven = Condition(), False

    @property
    def is_idle(self) -> bool:
        """Whether nobody is served or waits."""
        return not (self.waiting or self.reading or self.writing)

    def submit(self, *requests: Request) -> None:
        """Queue requests: all of them, or none.

        Raises:
            BusyError: If too many wait already.
            ValueError: If there is nothing to read or to write, more than the backbone reads, or not one embedding
                for each audio slot.
        """
        for request in requests:
            check(request, self.backbone.config.decoder.max_positions)
            request.company = requests
            request.unread = deque(torch.split(self.embedded(request), PROMPT_CHUNK, dim=1))
        with self._turn:
            if len(self.waiting) + len(requests) > self.max_waiting:
                raise BusyError(len(self.waiting), math.ceil(self._request_s / self.slots.num_slots))
            self.waiting.extend(requests)

    @torch.inference_mode()
    def step(self) -> None:
        """Let go of who is over, read a chunk of a prompt, and let everybody write."""
        self.release()
        self.admit()
        self.read_prompt()
        if self.writing:
            drafts = self.draft()
            hidden = self.read(drafts)
            self.write(hidden, drafts)

    def release(self) -> None:
        """Take back the slots of those who are over."""
        if self.reading and self.reading.is_over:
            self.reading = None
        for place in reversed(range(len(self.writing))):
            if (request := self.writing[place]).is_over:
                self._request_s += 0.2 * (time.monotonic() - request.began_s - self._request_s)
                self.writing[place] = self.writing[-1]
                self.writing.pop()
                self.slots.free(place)

    def admit(self) -> None:
        """Begin with a prompt, unless one is being read: of whoever has the fewest slots, who has waited longest.

        So the many parts of a long recording don't keep a short one waiting.
        """
        with self._turn:
            self.waiting = [request for request in self.waiting if not request.is_over]
            if self.reading or not self.waiting:
                return
            request = min(self.waiting, key=lambda request: sum(own in self.writing for own in request.company))
            self.waiting.remove(request)
        self.reading, request.began_s = request, time.monotonic()
        self.slots.open_prompt(request.num_positions + MOST_DRAFTS)

    @torch.inference_mode()
    def embedded(self, request: Request) -> Tensor:
        """Embed a prompt, in whole blocks, shape `(1, T, D)`."""
        tokens, _ = padded(self.backbone, [request.prompt], whole_blocks(len(request.prompt)))
        return self.backbone.embed(tokens, request.audio_embeddings)

    def read_prompt(self) -> None:
        """Read a chunk of the prompt; once it is read, and a slot is free, its answer begins."""
        if (request := self.reading) is None:
            return
        if request.unread:
            self._hidden = self.slots.read_prompt(request.unread.popleft())
        if not request.unread and not self.slots.is_full:
            last = (len(request.prompt) - 1) % PROMPT_CHUNK
            request.writer.choose(self.backbone, self._hidden[:, last:][:, :1], [request.writer], [[]])
            self.slots.take(len(request.prompt))
            self.writing.append(request)
            self.reading = None
            self.release()

    def draft(self) -> list[list[int]]:
        """Guess what follows what each of the writers is given, where it pays."""
        writers = [request.writer for request in self.writing]
        on_cpu = self.backbone.embedding.weight.device.type == "cpu"
        pays = not on_cpu or len(writers) <= MOST_DRAFTED_ROWS
        self._drafter.rows = [writer.sources for writer in writers]
        most = [writer.most_drafts if pays else 0 for writer in writers]
        return self._drafter.draft(most, self.slots.lengths, [writer.given[-1] for writer in writers])

    def read(self, drafts: Sequence[list[int]]) -> Tensor:
        """Read what each of the writers is given, and its draft; return the hidden states, shape `(B, T, D)`."""
        given = [request.writer.given for request in self.writing]
        tokens, _ = padded(self.backbone, [[*some, *draft] for some, draft in zip(given, drafts, strict=True)])
        return self.slots.read(tokens)

    def write(self, hidden: Tensor, drafts: Sequence[list[int]]) -> None:
        """Let the writers choose, kind by kind, and forget what was read of wrong drafts."""
        writers = [request.writer for request in self.writing]
        num_kept = [0] * len(writers)
        for kind in dict.fromkeys(map(type, writers)):
            places = [place for place, writer in enumerate(writers) if type(writer) is kind]
            some = [writers[place] for place in places]
            kept = some[0].choose(self.backbone, hidden[places], some, [drafts[place] for place in places])
            for place, num in zip(places, kept, strict=True):
                num_kept[place] = num
        self.slots.keep(num_kept)

    def finish(self, *requests: Request) -> None:
        """Wait for the answers to requests that were submitted."""
        for _ in self.follow(*requests):
            pass

    def follow(self, *requests: Request) -> Iterator[None]:
        """Yield after every step until these requests are over; who stops listening cancels them.

        Raises:
            Exception: What went wrong in a step that one of them was in.
        """
        try:
            while not all(request.is_over for request in requests):
                self.advance()
                yield
        finally:
            for request in requests:
                request.is_cancelled = request.is_cancelled or not request.is_over
        for request in requests:
            if request.error:
                raise request.error

    def advance(self) -> None:
        """Take a step, or wait while another thread does."""
        with self._turn:
            if self._is_driven:
                self._turn.wait()
                return
            self._is_driven = True
        try:
            self.step()
        except Exception as error:
            self.fail(error)
        finally:
            with self._turn:
                self._is_driven = False
                self._turn.notify_all()

    def fail(self, error: Exception) -> None:
        """Let go of all that are being served: what they wrote may be half a step."""
        for request in filter(None, (self.reading, *self.writing)):
            request.error = error


def check(request: Request, most: int) -> None:
    """Refuse what can't be answered by a backbone that reads `most` tokens."""
    if not request.prompt or request.writer.most_tokens < 1:
        raise ValueError(
            f"a prompt of {len(request.prompt)} tokens with room for {request.writer.most_tokens}: give a token to "
            "read and one to write"
        )
    if request.num_positions > most:
        raise ValueError(
            f"a prompt and its answer may take {request.num_positions} tokens, the backbone reads {most}: split it"
        )
