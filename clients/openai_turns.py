"""Through the official `openai` package of Python, version 2 or 3, its blocking client and its other one.

A recording is transcribed, a text is spoken, a tool is called and a response cancelled, by the same steps for both.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
from outcome import Checks, arguments, samples

SESSION = {
    "type": "realtime",
    "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}],
    "audio": {"input": {"turn_detection": None, "transcription": {"model": "whisper-1"}}},
}
Steps = Generator[Any, Any, None]
"""What a client's methods return goes out; what comes of it comes in."""


async def main(checks: Checks) -> None:
    """Take the steps with both clients."""
    url, path = arguments()
    # Before version 3 the package makes a wss address of any other.
    given: dict[str, Any] = {"base_url": url, "websocket_base_url": url.replace("http", "ws", 1), "api_key": "unused"}
    await asyncio.to_thread(walk, steps(openai.OpenAI(**given), list, path, checks))
    await stroll(steps(openai.AsyncOpenAI(**given), listed, path, checks))


def walk(path: Steps) -> None:
    """Take steps that block."""
    result = None
    with suppress(StopIteration):
        while True:
            result = path.send(result)


async def stroll(path: Steps) -> None:
    """Take steps that have to be waited for."""
    result = None
    with suppress(StopIteration):
        while True:
            result = await path.send(result)


async def listed(stream: openai.AsyncStream[Any]) -> list[Any]:
    """Take what a stream brings."""
    return [event async for event in stream]


def steps(client: Any, collect: Callable[[Any], Any], path: str, checks: Checks) -> Steps:
    """Use a client."""
    kind = type(client).__name__
    models = yield client.models.list()
    model = yield client.models.retrieve(models.data[0].id)
    checks.that(f"{kind}: models", model.id == models.data[0].id)

    told = yield client.audio.transcriptions.create(file=Path(path), model="whisper-1", response_format="verbose_json")
    checks.that("a transcript", told.text and told.duration > 1)
    stream = yield client.audio.transcriptions.create(file=Path(path), model="gpt-4o-transcribe", stream=True)
    events = yield collect(stream)
    checks.that("a stream of it", events[-1].type == "transcript.text.done" and events[-1].text == told.text)
    said = yield client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.", response_format="wav")
    checks.that("speech", said.content[:4] == b"RIFF" and len(said.content) > 10_000)

    connection = yield client.realtime.connect(model="gpt-realtime").enter()
    yield connection.session.update(session=SESSION)
    yield connection.input_audio_buffer.append(audio=base64.b64encode(samples(path)).decode())
    yield connection.input_audio_buffer.commit()
    yield connection.response.create()
    call = (yield from answer(connection)).output[0]
    checks.that("a tool was called", (call.name, call.arguments) == ("weather", '{"city": "Oslo"}'))
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny in Oslo"}
    yield connection.conversation.item.create(item=result)
    yield connection.response.create()
    words = (yield from answer(connection)).output[0].content[0].transcript
    checks.that("its result was answered", words == "The tool says: sunny in Oslo")

    story = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Tell me a story."}]}
    yield connection.conversation.item.create(item=story)
    yield connection.response.create()
    yield from until(connection, "response.output_audio.delta")
    yield connection.response.cancel()
    checks.that("a response was cancelled", (yield from answer(connection)).status == "cancelled")
    yield connection.close()


def answer(connection: Any) -> Generator[Any, Any, Any]:
    """Take what comes up to the end of a response, and return that."""
    return (yield from until(connection, "response.done")).response


def until(connection: Any, kind: str) -> Generator[Any, Any, Any]:
    """Take what comes up to an event of a type."""
    while (event := (yield connection.recv())).type != kind:
        assert event.type != "error", event
    return event


Checks.of(f"openai {openai.__version__} (Python), files and turns", main)
