"""A toy on disk that listens, speaks and clones, and a server of it on loopback: real code, untrained weights."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from queue import Queue
from typing import Any

import httpx2
import torch

from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.codec.codec import Codec
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.voice import Voice, write_voice
from tristep.config import load_backbone_config, load_codec_config
from tristep.modes.asr.data import turns
from tristep.server.app import build_server, create_app, listen, serve
from tristep.server.service import Service
from tristep.server.settings import Settings
from tristep.vocab import byte_tokenizer

DATA = Path(__file__).parents[1] / "data"
CLIP = DATA / "jfk.flac"
SAID = "quick brown"
"""What the toy hears in every sound, and answers to everybody; no letter comes twice."""
KEY = "a-key-that-opens"


def write_toy(folder: Path) -> None:
    """Write weights for both modes, a codec, a speaker encoder and two voices."""
    backbone, speaking = parrot(), parrot()
    codec = Codec(load_codec_config("codec-toy"), backbone.encode_audio)
    speaking.grow_vocabulary(codec.codebook_size)
    save_backbone(backbone, byte_tokenizer(), folder, packing="fp32", modes={"asr": backbone, "tts": speaking})
    codec.save(folder / "codec")
    SpeakerEncoder().save(folder / "codec" / "speaker.safetensors")
    for name in ("anna", "bert"):
        write_voice(folder / "voices", toy_voice(name))


def parrot() -> Backbone:
    """Build a backbone that writes `SAID` whatever it hears: each token brings forth the next one.

    An answer begins without a language, because it may not have one.
    """
    torch.manual_seed(0)
    config = load_backbone_config("toy")
    decoder = config.decoder.model_copy(update={"tied": False})
    backbone = Backbone(config.model_copy(update={"decoder": decoder}))
    asked = Chat(backbone.vocab, byte_tokenizer()).prompt(turns(1, "spoken"))[-1]
    first, last = backbone.vocab.control("lang_en"), backbone.vocab.control("turn_end")
    chain = [asked, first, *byte_tokenizer().encode(SAID), last]
    with torch.no_grad():
        for name, weight in backbone.decoder.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        rows = [torch.cat([table.weight, table.grown]) for table in (backbone.embedding, backbone.head)]
        rows[1].zero_()
        for token, following in pairwise(chain):
            rows[1][following] = 500 * rows[0][token]
        rows[1][chain[2]] += 250 * rows[0][asked]
        backbone.head.weight.copy_(rows[1][: len(backbone.head.weight)])
        backbone.head.grown.copy_(rows[1][len(backbone.head.weight) :])
    return backbone


def toy_voice(name: str) -> Voice:
    generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
    return Voice(
        name, torch.randn(192, generator=generator), torch.randn(80, 50, generator=generator),
        torch.zeros(5, dtype=torch.long), "what she says", 200.0, -20.0, "CC0",
    )  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    address: str
    service: Service
    stop: Callable[[], None]
    """Tells it to stop, as a signal does."""


@contextmanager
def running(settings: Settings) -> Iterator[Server]:
    """Serve in a thread."""
    service = Service(settings)
    server, addresses = build_server(service), Queue[str]()

    def stop() -> None:
        server.should_exit = True

    with listen(settings) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(server, service, listener, addresses.put)))
        thread.start()
        try:
            yield Server(addresses.get(timeout=300), service, stop)
        finally:
            stop()
            thread.join(60)


def in_process(settings: Settings, **changes: Any) -> httpx2.AsyncClient:
    """Return a client of an app whose processes are not started: for all that needs no model."""
    transport = httpx2.ASGITransport(create_app(Service(replace(settings, **changes))))
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


def assert_is_envelope(response: Any, status: int, code: str | None = None) -> None:
    """Check that a failure has OpenAI's shape, and an id."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] == code
