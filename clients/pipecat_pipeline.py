"""How pipecat's clients run a service: in a pipeline without a transport, and somebody who listens to it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from outcome import RATE
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.events import (
    AudioConfiguration,
    AudioInput,
    InputAudioTranscription,
    SessionProperties,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner


class Listener(BaseObserver, ABC):
    """Takes what a service pushes."""

    def __init__(self, service: FrameProcessor) -> None:
        super().__init__()
        self.service = service

    async def on_push_frame(self, data: FramePushed) -> None:
        """Take a frame, if it is the service's."""
        if data.source is self.service:
            self.take(data.frame)

    @abstractmethod
    def take(self, frame: Frame) -> None:
        """Take a frame of the service's."""


@asynccontextmanager
async def running(processors: Sequence[FrameProcessor], listener: Listener) -> AsyncIterator[PipelineWorker]:
    """Run processors in a pipeline of their own, until the block ends."""
    rates = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    worker = PipelineWorker(Pipeline(list(processors)), observers=[listener], params=rates, idle_timeout_secs=None)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    yield worker
    await worker.cancel()
    await running


def realtime_service(url: str, instructions: str) -> OpenAIRealtimeLLMService:
    """Prepare pipecat's service for OpenAI's realtime API, which also tells what it heard."""
    heard = AudioConfiguration(input=AudioInput(transcription=InputAudioTranscription()))
    return OpenAIRealtimeLLMService(
        api_key="not-needed",
        base_url=f"{url.replace('http', 'ws', 1)}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model="gpt-realtime",
            system_instruction=instructions,
            session_properties=SessionProperties(audio=heard),
        ),
    )


def spoken(samples: bytes) -> InputAudioRawFrame:
    """Wrap what a microphone gives."""
    return InputAudioRawFrame(audio=samples, sample_rate=RATE, num_channels=1)
