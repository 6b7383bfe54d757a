"""A conversation through LiveKit's agents, by their plugin for `openai` or for `stepfun`, without a room."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from livekit import rtc
from livekit.agents import llm
from livekit.plugins import openai, stepfun
from outcome import RATE, Outcome, arguments, microphone

MODELS: dict[str, Callable[[str], llm.RealtimeModel]] = {
    "openai": lambda url: openai.realtime.RealtimeModel(model="gpt-realtime", base_url=url, api_key="not-needed"),
    "stepfun": lambda url: stepfun.realtime.RealtimeModel(base_url=url, api_key="not-needed"),
}


async def main(outcome: Outcome) -> None:
    """Speak a recording to the server, and listen until it has answered."""
    url, path = arguments()
    model = MODELS[plugin](url)
    session = model.session()
    answers: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
    has_heard = asyncio.Event()

    def heard(event: Any) -> None:
        outcome.transcript = event.transcript
        if event.is_final:
            has_heard.set()

    session.on("generation_created", answers.put_nowait)
    session.on("input_audio_transcription_completed", heard)
    session.on("error", lambda event: outcome.errors.append(f"{event.error!r}"))
    await session.update_instructions("You are a good friend. You answer in one short sentence.")
    speaking = asyncio.create_task(speak(session, path))
    await listen(await answers.get(), outcome)
    await has_heard.wait()
    speaking.cancel()
    await session.aclose()
    await model.aclose()


async def speak(session: llm.RealtimeSession, path: str) -> None:
    """Send the recording."""
    async for frame in microphone(path):
        session.push_audio(rtc.AudioFrame(frame, RATE, 1, len(frame) // 2))


async def listen(answer: llm.GenerationCreatedEvent, outcome: Outcome) -> None:
    """Take an answer, until its streams end."""
    async for message in answer.message_stream:
        async for frame in message.audio_stream:
            outcome.sound += bytes(frame.data)
        async for text in message.text_stream:
            outcome.answer += text
    outcome.is_done = True


if __name__ == "__main__":
    plugin = sys.argv.pop(1)
    Outcome.of(f"livekit-plugins-{plugin}", main)
