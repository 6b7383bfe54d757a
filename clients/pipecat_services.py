"""Through pipecat's services for OpenAI's API: speech, and transcripts of a segment and of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outcome import RATE, Checks, arguments, utterance
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat_pipeline import Listener, running, spoken


class Heard(Listener):
    """Knows what a service said or wrote."""

    def __init__(self, service: FrameProcessor, checks: Checks) -> None:
        super().__init__(service)
        self.checks = checks
        self.text, self.num_bytes = "", 0

    def take(self, frame: Frame) -> None:
        """Take a frame of the service's."""
        match frame:
            case TranscriptionFrame(text=text):
                self.text = text
            case TTSAudioRawFrame(audio=audio):
                self.num_bytes += len(audio)
            case ErrorFrame(error=error):
                self.checks.errors.append(error)


async def main(checks: Checks) -> None:
    """Use each service once."""
    url, path = arguments()
    here: dict[str, Any] = {"api_key": "not-needed", "base_url": url}
    live = here | {"base_url": f"{url.replace('http', 'ws', 1)}/realtime"}
    speech = OpenAITTSService(**here, settings=OpenAITTSService.Settings(voice="alloy"))
    heard = Heard(speech, checks)
    async with running([speech], heard) as worker:
        await worker.queue_frame(TTSSpeakFrame("Good morning."))
        await checks.until("speech", lambda: heard.num_bytes > RATE // 2)

    found = OpenAIRealtimeSTTService(
        **live, settings=OpenAIRealtimeSTTService.Settings(model="gpt-transcribe"),
        turn_detection={"type": "server_vad"},
    )  # fmt: skip
    told: list[tuple[str, FrameProcessor]] = [
        ("a transcript of a segment", OpenAISTTService(**here)),
        ("a transcript of a stream whose turns the client finds", OpenAIRealtimeSTTService(**live)),
        ("a transcript of a stream whose turns the server finds", found),
    ]
    for claim, service in told:
        heard = Heard(service, checks)
        async with running([service], heard) as worker:
            await say(worker.queue_frame, path, marked=service is not found)
            await checks.until(claim, lambda heard=heard: heard.text.strip())


async def say(queue: Callable[[Frame], Any], path: str, *, marked: bool) -> None:
    """Speak the recording, and say where it begins and ends, as a detector in the pipeline would."""
    if marked:
        await queue(VADUserStartedSpeakingFrame())
    async for samples in utterance(path):
        await queue(spoken(samples))
    if marked:
        await queue(VADUserStoppedSpeakingFrame())


Checks.of("pipecat, speech and transcripts", main)
