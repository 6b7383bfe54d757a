"""One call: a realtime session whose sound goes over WebRTC's tracks and whose messages over its data channel.

The engine's end is the same as behind a WebSocket. Here the client's sound becomes `input_audio_buffer.append`, and the
answer's sound is played at the speed at which it is heard. So it is known what was heard of an answer; the engine is
told, and who interrupts is not spoken to any longer, whatever had been made already. There is one rate of sound inside,
24 kHz; Opus is the library's business. No foreign server is asked for addresses: calls are for networks in which the
two ends can reach each other.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from tristep.audio import SPEAK_HZ
from tristep.server.calls import without_formats
from tristep.server.errors import ApiError
from tristep.server.realtime import MAX_UNTAKEN
from tristep.server.realtime_events import Message, message
from tristep.server.realtime_jobs import Taken, parsed
from tristep.server.realtime_openai import error_message
from tristep.server.settings import MIB, Settings
from tristep.server.worker import Channel, RefusedError, WorkerError

FRAME_SIZE = SPEAK_HZ // 50
"""Samples that are played at once: 20 ms."""
TOLD_EVERY = 5
"""Frames between two words to the engine about what was played."""
CONNECT_S = 30.0
"""How long a client may take to connect after its offer was answered."""
MAX_UNREAD = 16 * MIB
"""Bytes of messages that a client may leave unread."""
SOUND = ("response.output_audio.delta", "response.audio.delta")
Tell = Callable[[Message], None]
Samples = np.ndarray[Any, np.dtype[np.int16]]


@dataclass
class Piece:
    """A piece of an answer's sound; where the answer ends, it has no item and no samples."""

    response_id: str
    item_id: str
    samples: Samples


class Player(MediaStreamTrack):
    """The track that the client hears: answers as they come, and silence between them."""

    kind = "audio"

    def __init__(self, tell_client: Tell, tell_engine: Tell) -> None:
        """Begin with silence.

        Args:
            tell_client: Takes messages about the beginning and the end of what is heard.
            tell_engine: Takes messages about how much of an answer has been heard.
        """
        super().__init__()
        self._tell_client, self._tell_engine = tell_client, tell_engine
        self._pieces: deque[Piece] = deque()
        self._playing: str | None = None  # the response that is heard
        self._played: dict[str, int] = {}  # samples, by item
        self._begun: float | None = None
        self._position = 0

    def push(self, response_id: str, item_id: str, samples: Samples) -> None:
        """Play samples `(S,)` after what is there."""
        self._pieces.append(Piece(response_id, item_id, samples))

    def finish(self, response_id: str) -> None:
        """Take a response to be complete."""
        if self._playing == response_id or any(piece.response_id == response_id for piece in self._pieces):
            self._pieces.append(Piece(response_id, "", np.zeros(0, np.int16)))

    def clear(self) -> None:
        """Fall silent, and forget what has not been played."""
        waiting = self._playing or (self._pieces[0].response_id if self._pieces else None)
        self._pieces.clear()
        if waiting:
            self._playing = None
            self._tell_client(message("output_audio_buffer.cleared", response_id=waiting))

    async def recv(self) -> av.AudioFrame:
        """Return the next 20 ms when it is time for them."""
        now = asyncio.get_running_loop().time
        self._begun = now() if self._begun is None else self._begun
        await asyncio.sleep(max(0.0, self._begun + self._position / SPEAK_HZ - now()))
        frame = av.AudioFrame.from_ndarray(self.next_samples()[None], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = SPEAK_HZ, Fraction(1, SPEAK_HZ), self._position
        self._position += FRAME_SIZE
        return frame

    def next_samples(self) -> Samples:
        """Return the next 20 ms, shape `(FRAME_SIZE,)`."""
        samples = np.zeros(FRAME_SIZE, np.int16)
        filled, item_id = 0, None
        while self._pieces and filled < FRAME_SIZE:
            piece = self._pieces[0]
            taken = piece.samples[: FRAME_SIZE - filled]
            samples[filled : filled + len(taken)] = taken
            filled += len(taken)
            piece.samples = piece.samples[len(taken) :]
            if len(taken):
                item_id = self._hear(piece, len(taken))
            if not len(piece.samples):
                self._leave(self._pieces.popleft())
        if item_id and (not self._pieces or self._position // FRAME_SIZE % TOLD_EVERY == 0):
            played_ms = 1000 * self._played[item_id] // SPEAK_HZ
            self._tell_engine({"type": "tristep.played", "item_id": item_id, "played_ms": played_ms})
        return samples

    def is_waiting(self, item_id: str) -> bool:
        """Say whether some of an item has not been played yet."""
        return any(piece.item_id == item_id for piece in self._pieces)

    def _hear(self, piece: Piece, num_samples: int) -> str:
        """Count what is heard of an item, and return its id."""
        if self._playing != piece.response_id:
            self._playing, self._played = piece.response_id, {}
            self._tell_client(message("output_audio_buffer.started", response_id=piece.response_id))
        self._played[piece.item_id] = self._played.get(piece.item_id, 0) + num_samples
        return piece.item_id

    def _leave(self, piece: Piece) -> None:
        """Say that a response has been heard to its end, if this piece was that."""
        if not piece.item_id and self._playing == piece.response_id:
            self._playing = None
            self._tell_client(message("output_audio_buffer.stopped", response_id=piece.response_id))


class Call:
    """One client."""

    def __init__(self, channel: Channel, settings: Settings) -> None:
        """Begin a call.

        Args:
            channel: To the engine.
            settings: The server's.
        """
        self.channel, self.settings = channel, settings
        self.player = Player(self._send, self._tell)
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._events: RTCDataChannel | None = None
        self._unsent: list[str] = []  # from before the data channel opened
        self._num_untaken = 0
        self._is_over = asyncio.Event()
        self._hearing: set[asyncio.Task[None]] = set()
        self._connection.addTrack(self.player)
        self._connection.on("track", self._listen)
        self._connection.on("datachannel", self._open)
        self._connection.on("connectionstatechange", self._change)

    async def answer(self, offer: str) -> str:
        """Answer an offer; both are SDP.

        Raises:
            ApiError: If it is no offer of sound.
        """
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # a stranger's text breaks the library's reader in many ways
            await self._connection.close()
            raise ApiError(
                400, "sdp can't be answered: send an offer of one audio track and a data channel",
                code="invalid_value", param="sdp",
            ) from error  # fmt: skip
        return str(self._connection.localDescription.sdp)

    async def run(self) -> None:
        """Let it go on until one side ends it, or the time is over."""
        giving_up = asyncio.get_running_loop().call_later(CONNECT_S, self._give_up)
        over, speaking = asyncio.create_task(self._is_over.wait()), asyncio.create_task(self._speak())
        tasks: set[asyncio.Task[object]] = {over, speaking}
        try:
            await asyncio.wait(tasks, timeout=self.settings.max_session_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            giving_up.cancel()
            everything = tasks | self._hearing
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            await self._connection.close()

    def _give_up(self) -> None:
        if self._connection.connectionState != "connected":
            self._is_over.set()

    def _change(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            self._is_over.set()

    # From the client

    def _listen(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._hearing.add(asyncio.create_task(self._hear(track)))

    async def _hear(self, track: MediaStreamTrack) -> None:
        """Pass on what the client's track brings."""
        resampler = av.AudioResampler("s16", "mono", SPEAK_HZ)
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, av.AudioFrame)
            data = b"".join(piece.to_ndarray().tobytes() for piece in resampler.resample(frame))
            self._tell({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()})

    def _open(self, events: RTCDataChannel) -> None:
        """Take the client's data channel, and send what there was to say before."""
        self._events = events
        events.on("message", self._receive)
        events.on("close", self._is_over.set)
        for text in self._unsent:
            events.send(text)
        self._unsent.clear()

    def _receive(self, text: str | bytes) -> None:
        """Do what the client asks, or pass it on."""
        given = read_message(text)
        match given.get("type"):
            case "input_audio_buffer.append":
                sentence = "in a call, sound comes by the track: send none in messages"
                self._send(error_message(sentence, "invalid_value", "type", given.get("event_id")))
            case "output_audio_buffer.clear":
                self.player.clear()
            case "session.update" | "response.create" as kind:
                asked = kind.partition(".")[0]
                self._tell(given | {asked: without_formats(given.get(asked))})
            case _:
                self._tell(given)

    def _tell(self, given: Message) -> None:
        """Tell the engine, unless it is too far behind: then the call ends."""
        text = json.dumps(given)
        self._num_untaken += len(text)
        if self._num_untaken > MAX_UNTAKEN:
            self._is_over.set()
        else:
            self.channel.tell(text)

    # To the client

    async def _speak(self) -> None:
        """Pass on what the engine says."""
        try:
            async for said in self.channel:
                if isinstance(said, Taken):
                    self._num_untaken -= said.num_characters
                    continue
                for text in said:
                    self._pass_on(json.loads(text))
        except RefusedError as error:
            self._send(error_message(str(error), "invalid_value"))
        except WorkerError:
            self._send(error_message("The engine failed: the server's log says why.", "internal_error"))

    def _pass_on(self, said: Message) -> None:
        """Play sound, and send all else."""
        if said["type"] in SOUND:
            samples = np.frombuffer(base64.b64decode(said["delta"]), np.int16)
            self.player.push(said["response_id"], said["item_id"], samples)
            return
        self._send(said)
        if said["type"] == "response.done":
            details = said["response"]["status_details"] or {}
            if details.get("reason") == "turn_detected":
                self.player.clear()
            self.player.finish(said["response"]["id"])
        elif said["type"] == "conversation.item.truncated" and self.player.is_waiting(said["item_id"]):
            self.player.clear()

    def _send(self, said: Message) -> None:
        text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
        if self._events is None:
            self._unsent.append(text)
        elif self._events.bufferedAmount > MAX_UNREAD:
            self._is_over.set()
        elif self._events.readyState == "open":
            self._events.send(text)


def read_message(text: str | bytes) -> Message:
    """Read a client's message; what is none has no type, and the engine says so."""
    try:
        return parsed(text)
    except ValueError:
        return {}
