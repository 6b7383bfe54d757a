"""A conversation through the official `openai` package of Python."""

from __future__ import annotations

import asyncio
import base64

from openai import AsyncOpenAI, __version__
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from outcome import Outcome, arguments, microphone


async def main(outcome: Outcome) -> None:
    """Speak a recording to the server, and listen until it has answered."""
    url, path = arguments()
    # Before version 3 the package makes a wss address of any other.
    client = AsyncOpenAI(base_url=url, websocket_base_url=url.replace("http", "ws", 1), api_key="not-needed")
    async with client.realtime.connect(model="gpt-realtime") as connection:
        heard = {"transcription": {"model": "whisper-1"}}
        await connection.session.update(session={"type": "realtime", "audio": {"input": heard}})
        speaking = asyncio.create_task(speak(connection, path))
        await listen(connection, outcome)
        speaking.cancel()


async def speak(connection: AsyncRealtimeConnection, path: str) -> None:
    """Send the recording."""
    async for frame in microphone(path):
        await connection.input_audio_buffer.append(audio=base64.b64encode(frame).decode())


async def listen(connection: AsyncRealtimeConnection, outcome: Outcome) -> None:
    """Take what comes, until both the transcript and the answer have."""
    async for event in connection:
        match event.type:
            case "conversation.item.input_audio_transcription.completed":
                outcome.transcript = event.transcript
            case "response.output_audio_transcript.delta":
                outcome.answer += event.delta
            case "response.output_audio.delta":
                outcome.sound += base64.b64decode(event.delta)
            case "response.done":
                outcome.is_done = event.response.status == "completed"
            case "error":
                outcome.errors.append(event.error.message)
        if outcome.is_complete:
            return


Outcome.of(f"openai {__version__} (Python)", main)
