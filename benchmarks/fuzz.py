"""Send a server what no client should, one table: nothing may fail, hang, get in, or be left behind.

    python benchmarks/fuzz.py                                   # 10,000 realtime messages, 1,000 requests, and more
    python benchmarks/fuzz.py --messages 500 --requests 100 --seed 7
    python benchmarks/fuzz.py --model weights/nano

A real `tristep serve` runs in processes of its own, with keys, voices that may be cloned, and a limit of one minute on
sound. It gets realtime messages in both dialects (`tests/server/nonsense.py` writes them, the same for a seed), and
what comes back is checked as a client would; requests that schemathesis writes from the server's own OpenAPI document;
bodies that JSON, base64 or Unicode make odd; wrong keys on every route and every socket; names of voices that would be
paths; and small files that claim, or unfold into, hours. After each part a well-behaved client has to be served.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import soundfile
from machine import machine
from rich.console import Console
from rich.table import Table
from served import BEARER, KEY, TESTS, Served, held, serving, toy
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

PACKAGES = ("tristep", "torch", "uvicorn", "websockets", "schemathesis")
CLIP = TESTS / "data/jfk.flac"
MEMORY_MB = 64.0
"""Most memory that a bomb may leave behind it."""
AT_ONCE = 50
"""Messages that go to one session."""
DIALECTS = {"ga": "/v1/realtime", "beta": "/step_plan/v1/realtime"}
SOCKETS = ("/realtime", "/realtime/asr/stream", "/realtime/audio", "/realtime/nowhere")
PREFIXES = ("/v1", "/step_plan/v1")
PUBLIC = frozenset({"/", "/health", "/readyz", "/page/page.js", "/page/worklet.js", "/page/page.css"})
WRONG: tuple[dict[str, str], ...] = (
    {}, {"Authorization": KEY}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY[:-1]}"}, {"Authorization": "Bearer ek_0123"},
    {"api-key": "x" * 5000}, {"X-API-Key": KEY.upper()}, {"Cookie": f"key={KEY}"},
)  # fmt: skip
PATHS = (
    "nobody", "../anna", "../../../../etc/passwd", "/etc/passwd", "..%2fanna", "%2e%2e/anna", "..\\anna", "anna\0.wav",
    "anna\0", "anna.safetensors", "a" * 10_000, "\u2024\u2024/anna", "anna/../bert", "file:///etc/passwd", "~", ".",
    "..", "CON", "anna\n", "\ud800", "${HOME}", "consents/x",
)  # fmt: skip


@dataclass
class Part:
    """One kind of nonsense, and what came of it."""

    name: str
    num_sent: int = 0
    num_refused: int = 0
    """Answered by an error that says what is wrong."""
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def note(self, what: str, status: int, seconds: float, allowed: Iterable[int] = range(200, 500)) -> None:
        """Note how something was answered."""
        self.num_sent += 1
        self.num_refused += status >= 400
        self.slowest_s = max(self.slowest_s, seconds)
        if status not in allowed:
            self.failures.append(f"{what[:100]}: {status}")


def main() -> None:
    """Send everything, print what came of it, and fail if anything did."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="tristep-voices-") as voices:
        limits = ("--max-minutes", "1", "--max-rate", "10000000", "--max-sessions", "8", "--threads", "1")
        with serving(arguments.model, "--voices", voices, *limits) as served:
            parts = list(all_parts(replace(served, patience_s=arguments.patience), arguments))
            faults = served.faults()
    parts.append(Part("lines of the log that tell of failures", len(faults), failures=faults[:9]))
    Console(width=None if sys.stdout.isatty() else 120).print(as_table(parts))
    for failure in itertools.chain.from_iterable(part.failures[:9] for part in parts):
        print(failure)
    print(conditions(arguments))
    if arguments.json:
        document = {"conditions": conditions(arguments), "parts": [asdict(part) for part in parts]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(part.failures for part in parts) else 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy", help="a name or a folder; toy: that of the tests")
    parser.add_argument("--messages", type=int, default=10_000, help="realtime messages, half in each dialect")
    parser.add_argument("--requests", type=int, default=1000, help="requests that schemathesis writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=60.0, metavar="S", help="longest wait for an answer")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser.parse_args()


def all_parts(served: Served, arguments: argparse.Namespace) -> Iterator[Part]:
    """Send one kind of nonsense after the other, and see after each that a good client is served."""
    parts: list[Callable[[Served], Part]] = [
        lambda served: realtime(served, "ga", arguments.messages // 2, arguments.seed),
        lambda served: realtime(served, "beta", arguments.messages // 2, arguments.seed),
        lambda served: by_schema(served, arguments.requests, arguments.seed),
        odd_bodies,
        wrong_keys,
        paths,
        bombs,
    ]
    for send in parts:
        part = send(served)
        part.failures += [f"after {part.name}: {wrong}" for wrong in good_client(served)]
        yield part


# Realtime


def realtime(served: Served, dialect: str, count: int, seed: int) -> Part:
    """Send messages over sessions, so many to each."""
    toy()  # makes the tests' modules known
    nonsense, part = import_module("server.nonsense"), Part(f"realtime messages, {dialect}")

    async def all_sessions() -> None:
        texts = nonsense.messages(seed, dialect, count)
        while batch := list(itertools.islice(texts, AT_ONCE)):
            await one_session(served, DIALECTS[dialect], batch, nonsense.Ledger(), part)

    asyncio.run(all_sessions())
    return part


async def one_session(served: Served, path: str, batch: list[str | bytes], ledger: Any, part: Part) -> None:
    """Send messages to a session and read until the last one is answered; nothing may close it."""
    begun = time.monotonic()
    address = served.socket_address + path
    try:
        async with asyncio.timeout(served.patience_s), connected(served, address, BEARER) as socket:
            sending = asyncio.create_task(send_all(socket, batch))
            try:
                part.num_refused += await count_errors(socket, ledger)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except (ConnectionClosed, TimeoutError, AssertionError, KeyError, ValueError) as error:
        part.failures.append(f"{path}, messages {part.num_sent} and on: {type(error).__name__} {error}"[:300])
    part.num_sent += len(batch)
    part.slowest_s = max(part.slowest_s, time.monotonic() - begun)


async def count_errors(socket: Any, ledger: Any) -> int:
    """Read until the last message is answered; return how many others were refused."""
    num_errors = 0
    while True:
        message = ledger.read(await socket.recv())
        if message.get("error", {}).get("event_id") == "the last one":
            return num_errors
        num_errors += message["type"] == "error"


async def send_all(socket: Any, batch: list[str | bytes]) -> None:
    """Send messages, and one whose answer is known."""
    for given in batch:
        await socket.send(given)
    await socket.send(json.dumps({"type": "no.such.message", "event_id": "the last one"}))


# Requests


def by_schema(served: Served, count: int, seed: int) -> Part:
    """Send what schemathesis writes from the OpenAPI document."""
    part = Part("requests by schemathesis")
    try:
        import requests
        import schemathesis
    except ImportError:
        part.failures.append("schemathesis is not installed: pip install 'tristep[dev]'")
        return part
    import hypothesis
    from hypothesis import strategies

    with requests.Session() as session:
        session.headers.update(BEARER)
        document = session.get(f"{served.address}/openapi.json").json()
        results: Any = schemathesis.openapi.from_dict(document).get_all_operations()
        operations = [result.ok() for result in results]

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(strategies.one_of(*(operation.as_strategy() for operation in operations)))
        def send(case: Any) -> None:
            begun, asked = time.monotonic(), f"{case.method} {case.formatted_path}"
            try:
                response = case.call(base_url=served.address, session=session, timeout=served.patience_s)
            except requests.RequestException as error:
                part.failures.append(f"{asked[:100]}: {type(error).__name__}")
            else:
                part.note(asked, response.status_code, time.monotonic() - begun)

        send()
    return part


def odd_bodies(served: Served) -> Part:
    """Send bodies that are right but for one odd thing."""
    part = Part("odd bodies")
    with client(served) as http:
        for path, body in bodies():
            for odd in ODD:
                content = json.dumps(body).replace('"HERE"', odd).encode()
                ask(http, part, "POST", path, content=content, headers={"Content-Type": "application/json"})
        for kind, content in FORMS:
            ask(http, part, "POST", "/v1/audio/transcriptions", content=content, headers={"Content-Type": kind})
    return part


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield requests with the word HERE where something odd is to stand."""
    hello = [{"role": "user", "content": "HERE"}]
    heard = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "HERE", "format": "wav"}}]}]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"x": "HERE"}}}
    model = {"model": "gpt-realtime"}
    yield "/v1/audio/speech", {"model": "tts-1", "voice": "alloy", "input": "HERE"}
    yield "/v1/audio/speech", {"model": "tts-1", "voice": "alloy", "input": "Hello.", "speed": "HERE"}
    yield "/v1/audio/speech", {"model": "tts-1", "voice": "HERE", "input": "Hello."}
    yield "/v1/audio/speech", {"model": "HERE", "voice": "alloy", "input": "Hello."}
    yield "/v1/chat/completions", model | {"messages": hello, "max_tokens": 4}
    yield "/v1/chat/completions", model | {"messages": heard, "max_tokens": 4}
    yield "/v1/chat/completions", model | {"messages": "HERE"}
    yield "/v1/chat/completions", model | {"messages": hello, "max_tokens": 4, "tools": [tool]}
    yield "/v1/chat/completions", model | {"messages": hello, "max_tokens": 4, "temperature": "HERE"}
    yield "/v1/chat/completions", model | {"messages": hello, "max_tokens": 4, "tool_choice": "HERE"}
    yield "/v1/realtime/client_secrets", {"session": {"type": "realtime", "instructions": "HERE"}}
    yield "/v1/realtime/client_secrets", {"session": {"type": "realtime", "tracing": "HERE"}}
    yield "/v1/realtime/client_secrets", {"session": {"type": "HERE", "audio": {"output": {"voice": "HERE"}}}}
    yield "/v1/realtime/sessions", {"voice": "HERE", "max_response_output_tokens": "HERE"}
    yield "/v1/realtime/transcription_sessions", {"input_audio_transcription": {"language": "HERE"}}
    yield "/v1/audio/asr/sse", {"audio": {"data": "HERE", "input": {
        "transcription": {"model": "step-asr"}, "format": {"type": "wav"}}}}  # fmt: skip


DEEP = 500
ODD = (
    '""', '"\\ud800"', '"\\u0000"', '"\u00e9\u00e9\u00e9\u00e9"', '"AAA"', '"UklGRg=="', "NaN", "-Infinity", "1e999",
    "1e-45", "9" * 400, "9" * 5000, "null", "true", "[]", "{}", "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP, "[" * 100_000,
    '"' + "x" * 500_000 + '"', '"' + "\u6c34" * 90_000 + '"', '"../../etc/passwd"', '"data:;base64,%%"',
    '{"id": ["x"]}', '"' + "9" * 5000 + '"', '"\U0001f4a5\u202e\ufeff"', "}", "1, 2", "0.0000001",
)  # fmt: skip
"""Pieces of JSON, and some that only look like it."""
BOUNDARY = "multipart/form-data; boundary=x"
PART_OF = b"--x\r\nContent-Disposition: form-data"
FORMS = (
    ("multipart/form-data", b"x"), ("multipart/form-data; boundary=", b"--\r\n"), (BOUNDARY, b""),
    (BOUNDARY + "; charset=nonsense", PART_OF + b'; name="model"\r\n\r\n\xff\r\n--x--'),
    (BOUNDARY, PART_OF + b"\r\n\r\n1\r\n--x--\r\n"),
    (BOUNDARY, PART_OF + b'; name="file"; filename="../../x"\r\n\r\n1\r\n--x--'),
    (BOUNDARY, PART_OF + b'; name="\xff"\r\n\r\n1\r\n--x--\r\n'),
    (BOUNDARY + "x" * 5000, b"--x--"), ("text/plain", b"\xff\xfe\0"), ("nonsense", b"{}"),
)  # fmt: skip
"""Types of bodies, and bodies that are no such thing."""


# Keys


def wrong_keys(served: Served) -> Part:
    """Ask for every route, and for every socket, with keys that are none."""
    part = Part("wrong keys")
    with client(served, {}) as http:
        document = http.get("/openapi.json", headers=BEARER).json()
        for path, verbs in document["paths"].items():
            paths = [path, f"/step_plan{path}"] if path.startswith("/v1") else [path]
            for place, verb, headers in itertools.product(paths, verbs, WRONG):
                allowed = (200, 503) if place in PUBLIC else (401,)
                ask(http, part, verb.upper(), place.replace("{name}", "anna"), allowed, headers=headers)
        for headers in WRONG:
            ask(http, part, "GET", "/no/such/route", (401,), headers=headers)
    asyncio.run(wrong_upgrades(served, part))
    return part


async def wrong_upgrades(served: Served, part: Part) -> None:
    """Try to open every socket with keys that are none."""
    offered = ("openai-insecure-api-key.x", "openai-insecure-api-key.ek_0123", f"openai-insecure-api-key.{KEY}x")
    ways: list[tuple[dict[str, str], list[str] | None]] = [(headers, None) for headers in WRONG]
    ways += [({}, ["realtime", name]) for name in offered]
    for prefix, door, (headers, names) in itertools.product(PREFIXES, SOCKETS, ways):
        begun = time.monotonic()
        status = await upgraded(served, prefix + door, headers, names)
        part.note(f"WS {prefix}{door} {headers or names}", status, time.monotonic() - begun, (401,))


async def upgraded(served: Served, path: str, headers: dict[str, str], names: Any) -> int:
    """Return how an upgrade is answered."""
    try:
        async with connected(served, served.socket_address + path, headers, names):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


# Names that are no names


def paths(served: Served) -> Part:
    """Ask for voices, consents and models by names that would be paths."""
    part, wrong = Part("paths in names"), (400, 401, 403, 404, 405, 422)
    before = listing(served)
    with client(served) as http:
        for name in PATHS:
            speech = {"model": "tts-1", "input": "Hello.", "voice": name}
            ask(http, part, "POST", "/v1/audio/speech", wrong, content=json.dumps(speech),
                headers={"Content-Type": "application/json"})  # fmt: skip
            # A client resolves dots of its own accord, and would ask for something else.
            place = quote(name, safe="", errors="surrogatepass").replace(".", "%2E")
            for verb, door in (("DELETE", "audio/voices"), ("DELETE", "audio/voice_consents"), ("GET", "models")):
                ask(http, part, verb, f"/v1/{door}/{place}", wrong)
            form = {"name": name.encode(errors="replace"), "consent": name.encode(errors="replace")}
            ask(http, part, "POST", "/v1/audio/voices", wrong, data=form, files={"audio_sample": b"x"})
    if listing(served) != before:
        part.failures.append(f"the voices are not what they were: {listing(served)}")
    return part


def listing(served: Served) -> Any:
    """Return the voices that there are."""
    with client(served) as http:
        return http.get("/v1/audio/voices").json()["voices"]


# Bombs


def bombs(served: Served) -> Part:
    """Send small files that claim, or unfold into, far more than they are."""
    part, before = Part("decompression bombs"), held(served.process.pid).resident_mb
    with client(served) as http:
        for name, data in bomb_files().items():
            for path, body in carriers(data):
                ask(http, part, "POST", path, (400, 413) if "minutes" in name else range(200, 500), name, **body)
    growth = held(served.process.pid).resident_mb - before
    if growth > MEMORY_MB:
        part.failures.append(f"the server holds {growth:.0f} MiB more after the bombs: expected at most {MEMORY_MB:g}")
    return part


def carriers(data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every request that a file may come in."""
    data64 = base64.b64encode(data).decode()
    yield "/v1/audio/transcriptions", {"data": {"model": "whisper-1"}, "files": {"file": data}}
    yield "/v1/audio/voice_consents", {"data": {"name": "anna", "language": "en"}, "files": {"recording": data}}
    step = {"data": data64, "input": {"transcription": {"model": "step-asr"}, "format": {"type": "ogg"}}}
    yield "/v1/audio/asr/sse", {"json": {"audio": step}}
    content = [{"type": "input_audio", "input_audio": {"data": data64, "format": "wav"}}]
    yield (
        "/v1/chat/completions",
        {"json": {"model": "gpt-realtime", "messages": [{"role": "user", "content": content}]}},
    )


def bomb_files() -> dict[str, bytes]:
    """Make the files."""
    flac = compressed("FLAC", "PCM_16", 180)
    hours = bytearray(flac)
    hours[21:26] = (hours[21] & 0xF0 | 0xF).to_bytes(
        1, "big"
    ) + b"\xff\xff\xff\xff"  # samples, of the 36 bits there are
    wav = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 2**32 - 1, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16,
                      b"data", 2**32 - 9)  # fmt: skip
    wide = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 2**31, b"WAVE", b"fmt ", 16, 1, 65535, 2**31 - 1, 2**32 - 1,
                       65535, 16, b"data", 2**31)  # fmt: skip
    return {
        "FLAC of 3 minutes": flac,
        "FLAC that claims days": bytes(hours),
        "Opus of 3 minutes": compressed("OGG", "OPUS", 180, 48_000),
        "WAV that claims 37 hours": wav + bytes(100),
        "WAV of 65535 channels": wide + bytes(1000),
        "MP4 of endless boxes": struct.pack(">I4s4sI", 16, b"ftyp", b"M4A ", 0)
        + struct.pack(">I4sQ", 1, b"moov", 2**62) * 99,
        "ID3 tag of 256 MiB": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
        "Ogg pages of nothing": b"OggS\0\x02" + bytes(20) + b"\xff" + b"\xff" * 255,
        "Matroska of unknown size": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(500),
        "zip": b"PK\x03\x04" + b"\xff" * 1000,
        "gzip": b"\x1f\x8b\x08\0" + b"\xff" * 1000,
        "playlist": b"#EXTM3U\n#EXTINF:99999,\nfile:///etc/passwd\nhttp://127.0.0.1:1/x\n",
        "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "AIFF of minus one": b"FORM\xff\xff\xff\xffAIFFCOMM\xff\xff\xff\xff" + bytes(100),
    }


def compressed(container: str, codec: str, seconds: int, rate: int = 16_000) -> bytes:
    """Compress silence."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format=container, subtype=codec) as sound:
        for _ in range(seconds):
            sound.write(np.zeros(rate, np.int16))
    return file.getvalue()


# What all of them need


def connected(served: Served, address: str, headers: dict[str, str], names: Any = None) -> connect:
    """Return a socket that is being opened."""
    return connect(
        address, additional_headers=headers, subprotocols=names, max_size=None, open_timeout=served.patience_s,
        ping_timeout=served.patience_s, max_queue=None,  # a client whose queue is full does not hear the goodbye
    )  # fmt: skip


def client(served: Served, headers: dict[str, str] = BEARER) -> httpx2.Client:
    """Return a client."""
    return httpx2.Client(base_url=served.address, headers=headers, timeout=served.patience_s)


def ask(
    http: httpx2.Client, part: Part, verb: str, path: str, allowed: Iterable[int] = range(200, 500), what: str = "",
    **request: Any,
) -> None:  # fmt: skip
    """Send a request, and note how it was answered."""
    begun = time.monotonic()
    try:
        response = http.request(verb, path, **request)
    except (httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.ReadError) as error:
        part.failures.append(f"{verb} {path[:80]} {what}: {type(error).__name__}")
        return
    except (httpx2.InvalidURL, httpx2.LocalProtocolError, UnicodeEncodeError):
        return  # it can't be sent
    told = f"{verb} {path[:80]} {what} {str(request.get('content', ''))[:80]}"
    part.note(told, response.status_code, time.monotonic() - begun, allowed)
    if b"root:" in response.content:
        part.failures.append(f"{told}: a file of the machine came back")


def good_client(served: Served) -> list[str]:
    """Return what a well-behaved client has to complain of."""
    if not served.is_alive:
        return ["the server is gone"]
    wrong = []
    with client(served) as http:
        response = http.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": CLIP.read_bytes()})
        if response.status_code != 200 or not response.json()["text"]:
            wrong.append(f"a transcription is answered by {response.status_code} {response.text[:200]}")
        messages = [{"role": "user", "content": "Hello."}]
        response = http.post(
            "/v1/chat/completions", json={"model": "gpt-realtime", "messages": messages, "max_tokens": 8}
        )
        if response.status_code != 200:
            wrong.append(f"a chat is answered by {response.status_code} {response.text[:200]}")
    return wrong


def as_table(parts: list[Part]) -> Table:
    """Lay the parts out."""
    table = Table("what")
    for column in ("sent", "refused", "slowest, s", "failures"):
        table.add_column(column, justify="right")
    for part in parts:
        slowest = f"{part.slowest_s:.1f}"
        table.add_row(part.name, str(part.num_sent), str(part.num_refused), slowest, str(len(part.failures)))
    return table


def conditions(arguments: argparse.Namespace) -> str:
    """Say on what it was measured."""
    return f"{arguments.model}, seed {arguments.seed}; {machine(PACKAGES)}"


if __name__ == "__main__":
    main()
