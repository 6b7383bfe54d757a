"""Through pipecat's services for OpenAI's API: speech, and transcripts of a segment and of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from outcome import RATE, Checks, arguments, utterance
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner


class Listener(BaseObserver):
    """Takes what a service pushes."""

    def __init__(self, service: FrameProcessor, checks: Checks) -> None:
        super().__init__()
        self.service, self.checks = service, checks
        self.heard, self.num_bytes = "", 0

    async def on_push_frame(self, data: FramePushed) -> None:
        """Take a frame."""
        if data.source is not self.service:
            return
        match data.frame:
            case TranscriptionFrame(text=text):
                self.heard = text
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
    async with running(speech, checks) as (worker, listener):
        await worker.queue_frame(TTSSpeakFrame("Good morning."))
        await checks.until("speech", lambda: listener.num_bytes > RATE // 2)

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
        async with running(service, checks) as (worker, listener):
            await say(worker.queue_frame, path, marked=service is not found)
            await checks.until(claim, lambda: listener.heard.strip())


@asynccontextmanager
async def running(service: FrameProcessor, checks: Checks) -> AsyncIterator[tuple[PipelineWorker, Listener]]:
    """Run a service in a pipeline of its own."""
    listener = Listener(service, checks)
    rates = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    worker = PipelineWorker(Pipeline([service]), observers=[listener], params=rates, idle_timeout_secs=None)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    yield worker, listener
    await worker.cancel()
    await running


async def say(queue: Callable[[Frame], Any], path: str, *, marked: bool) -> None:
    """Speak the recording, and say where it begins and ends, as a detector in the pipeline would."""
    if marked:
        await queue(VADUserStartedSpeakingFrame())
    async for frame in utterance(path):
        await queue(InputAudioRawFrame(audio=frame, sample_rate=RATE, num_channels=1))
    if marked:
        await queue(VADUserStoppedSpeakingFrame())


Checks.of("pipecat, speech and transcripts", main)
