"""Through LiveKit's plugin for `openai`: speech by server-sent events, and transcripts of a file and of a stream."""

from __future__ import annotations

import asyncio
from typing import Any

from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import openai
from outcome import RATE, Checks, arguments, samples, utterance


async def main(checks: Checks) -> None:
    """Use each service once."""
    url, path = arguments()
    given: dict[str, Any] = {"base_url": url, "api_key": "not-needed"}
    async with utils.http_context.open():
        for model, response_format in (("gpt-4o-mini-tts", "pcm"), ("gpt-4o-mini-tts", "mp3"), ("tts-1", "wav")):
            tts = openai.TTS(model=model, voice="alloy", response_format=response_format, **given)
            frames = [said.frame async for said in tts.synthesize("Good morning.")]
            checks.that(f"{model} speaks {response_format}", sum(frame.duration for frame in frames) > 0.3)
            await tts.aclose()

        data = samples(path)
        spoken = rtc.AudioFrame(data, RATE, 1, len(data) // 2)
        for name in ("whisper-1", "gpt-4o-mini-transcribe"):
            heard = await openai.STT(model=name, **given).recognize([spoken])
            checks.that(f"{name} transcribes", heard.alternatives[0].text.strip())

        live = openai.STT(model="gpt-4o-mini-transcribe", use_realtime=True, **given)
        async with live.stream() as stream:
            speaking = asyncio.create_task(say(stream, path))
            kinds: list[stt.SpeechEventType] = []
            async for event in stream:
                kinds.append(event.type)
                if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                    break
            checks.that("a stream is transcribed", event.alternatives[0].text.strip())
            checks.that("its beginning is told", stt.SpeechEventType.START_OF_SPEECH in kinds)
            speaking.cancel()
        await live.aclose()


async def say(stream: stt.SpeechStream, path: str) -> None:
    """Speak the recording."""
    async for frame in utterance(path):
        stream.push_frame(rtc.AudioFrame(frame, RATE, 1, len(frame) // 2))


Checks.of("livekit-plugins-openai, speech and transcripts", main)
