"""Calls: a peer of another make sends real speech over loopback, and hears the answer; and what a call plays when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from server.talks import Message, silence, speech, types
from server.toys import KEY, SAID, Server, assert_is_envelope

aiortc = pytest.importorskip("aiortc")

import av  # noqa: E402
from aiortc.mediastreams import MediaStreamError  # noqa: E402

from tristep.server.calls import without_formats  # noqa: E402
from tristep.server.webrtc import FRAME_SIZE, Player  # noqa: E402

BEARER = {"Authorization": f"Bearer {KEY}"}


class Microphone(aiortc.MediaStreamTrack):  # type: ignore[misc]
    """A track of a sound, 24 kHz, shape `(S,)`, and of silence after it."""

    kind = "audio"

    def __init__(self, waveform: torch.Tensor) -> None:
        super().__init__()
        self.samples = (waveform * 32767).short().numpy()
        self.position = 0

    async def recv(self) -> av.AudioFrame:
        now = asyncio.get_running_loop().time()
        self.begun = getattr(self, "begun", now)
        await asyncio.sleep(max(0.0, self.begun + self.position / 24_000 - now))
        piece = np.zeros((1, 480), np.int16)
        taken = self.samples[self.position : self.position + 480]
        piece[0, : len(taken)] = taken
        frame = av.AudioFrame.from_ndarray(piece, "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 24_000, Fraction(1, 24_000), self.position
        self.position += 480
        return frame


class Peer:
    """One client."""

    def __init__(self, server: Server, waveform: torch.Tensor) -> None:
        self.server = server
        self.connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.connection.addTrack(Microphone(waveform))
        self.messages: list[Message] = []
        self.news = asyncio.Event()
        self.loudest = 0
        self.events = self.connection.createDataChannel("oai-events")
        self.events.on("message", self.take)
        self.connection.on("track", lambda track: setattr(self, "hearing", asyncio.create_task(self.hear(track))))

    def take(self, text: str) -> None:
        self.messages.append(json.loads(text))
        self.news.set()

    async def hear(self, track: Any) -> None:
        with suppress(MediaStreamError):  # the server has hung up
            while True:
                frame = await track.recv()
                self.loudest = max(self.loudest, int(np.abs(frame.to_ndarray().astype(int)).max()))

    async def call(self, session: Message, headers: dict[str, str] = BEARER) -> str:
        """Call the server, and return where the call is."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        form = {
            "sdp": (None, self.connection.localDescription.sdp, "application/sdp"),
            "session": (None, json.dumps(session), "application/json"),
        }
        async with httpx2.AsyncClient(base_url=self.server.address, headers=headers) as client:
            response = await client.post("/v1/realtime/calls", files=form)
        assert (response.status_code, response.headers["content-type"]) == (201, "application/sdp"), response.text
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(response.text, "answer"))
        return str(response.headers["location"])

    async def until(self, kind: str) -> Message:
        """Wait for the first message of a type."""
        async with asyncio.timeout(60):
            while kind not in types(self.messages):
                self.news.clear()
                await self.news.wait()
        return next(message for message in self.messages if message["type"] == kind)

    def send(self, kind: str, **fields: Any) -> None:
        self.events.send(json.dumps({"type": kind, **fields}))


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(120):
            await main()

    asyncio.run(within())


def test_a_peer_speaks_is_answered_aloud_and_hangs_up(server: Server) -> None:
    async def main() -> None:
        peer = Peer(server, torch.cat([speech(), silence()]))
        heard = {"transcription": {"model": "whisper-1"}, "format": {"type": "audio/pcmu"}}
        place = await peer.call({"type": "realtime", "model": "gpt-realtime", "audio": {"input": heard}})
        created = await peer.until("session.created")
        assert created["session"]["audio"]["input"]["format"]["type"] == "audio/pcm"
        peer.send("input_audio_buffer.append", audio="AAAA", event_id="mine")
        assert (await peer.until("error"))["error"]["event_id"] == "mine"
        completed = await peer.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == SAID
        stopped = await peer.until("output_audio_buffer.stopped")
        assert stopped["response_id"] == (await peer.until("response.done"))["response"]["id"]
        assert peer.loudest > 300
        order = types(peer.messages)
        assert "response.output_audio.delta" not in order
        begun = order.index("output_audio_buffer.started")
        assert order.index("response.created") < begun < order.index("output_audio_buffer.stopped")
        async with httpx2.AsyncClient(base_url=server.address, headers=BEARER) as client:
            assert (await client.post(f"{place}/hangup")).status_code == 200
            while place.rpartition("/")[2] in server.service.calls:
                await asyncio.sleep(0)
            assert_is_envelope(await client.post(f"{place}/hangup"), 404, "call_not_found")
        await peer.connection.close()

    run(main)


def test_an_ephemeral_key_opens_its_call(server: Server) -> None:
    async def main() -> None:
        async with httpx2.AsyncClient(base_url=server.address, headers=BEARER) as client:
            made = await client.post("/v1/realtime/client_secrets", json={"session": {"instructions": "Be brief."}})
        peer = Peer(server, silence())
        await peer.call({}, {"Authorization": f"Bearer {made.json()['value']}"})
        assert (await peer.until("session.created"))["session"]["instructions"] == "Be brief."
        await peer.connection.close()
        while server.service.calls:
            await asyncio.sleep(0)

    run(main)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [("v=0", "application/sdp", 400), ("", "application/sdp", 400), ("{}", "application/json", 415),
     ("x", "multipart/form-data", 400)],
)  # fmt: skip
def test_what_is_no_offer_is_refused_and_takes_no_place(server: Server, content: str, kind: str, status: int) -> None:
    response = httpx2.post(
        f"{server.address}/v1/realtime/calls", content=content, headers={**BEARER, "content-type": kind}
    )
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert not server.service.calls


def test_how_sound_is_written_is_not_for_the_client_to_say() -> None:
    wanted = {"voice": "anna", "input_audio_format": "pcm16", "audio": {"output": {"format": {}, "voice": "bert"}}}
    assert without_formats(wanted) == {"voice": "anna", "audio": {"output": {"voice": "bert"}}}


# What is played


class Told(list[Message]):
    """What a player said, to the client and to the engine."""

    def named(self) -> list[Any]:
        return [(message["type"], message.get("response_id") or message.get("played_ms")) for message in self]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def player(told: Told) -> Player:
    return Player(told.append, told.append)


def ones(num_frames: float) -> Any:
    return np.ones(round(num_frames * FRAME_SIZE), np.int16)


def test_sound_is_played_in_order_and_told_at_its_begin_and_end(player: Player, told: Told) -> None:
    player.push("resp", "item", ones(0.5))
    player.push("resp", "item", 2 * ones(0.75))
    player.finish("resp")
    played = np.concatenate([player.next_samples() for _ in range(3)])
    assert played.tolist() == [1] * 240 + [2] * 360 + [0] * 840
    assert told.named() == [
        ("output_audio_buffer.started", "resp"), ("tristep.played", 20), ("output_audio_buffer.stopped", "resp"),
        ("tristep.played", 25),
    ]  # fmt: skip


def test_who_interrupts_hears_nothing_more(player: Player, told: Told) -> None:
    player.push("resp", "item", ones(10))
    player.next_samples()
    assert player.is_waiting("item")
    player.clear()
    player.finish("resp")
    assert not player.next_samples().any()
    assert not player.is_waiting("item")
    assert told.named()[-1] == ("output_audio_buffer.cleared", "resp")


def test_silence_is_not_cleared(player: Player, told: Told) -> None:
    player.clear()
    assert not told
