"""A conversation through pipecat: a pipeline without a transport around its service for OpenAI's realtime API."""

from __future__ import annotations

import asyncio

from outcome import RATE, Outcome, arguments, microphone
from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.realtime.events import (
    AudioConfiguration,
    AudioInput,
    InputAudioTranscription,
    SessionProperties,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner


class Listener(BaseObserver):
    """Takes what the service pushes, and ends the pipeline once both the transcript and the answer have come."""

    def __init__(self, service: OpenAIRealtimeLLMService, outcome: Outcome) -> None:
        super().__init__()
        self.service, self.outcome = service, outcome
        self.is_over = asyncio.Event()

    async def on_push_frame(self, data: FramePushed) -> None:
        """Take a frame."""
        if data.source is not self.service:
            return
        match data.frame:
            case TranscriptionFrame(text=text):
                self.outcome.transcript = text
            case TTSTextFrame(text=text):
                self.outcome.answer += text
            case TTSAudioRawFrame(audio=audio):
                self.outcome.sound += audio
            case LLMFullResponseEndFrame():
                self.outcome.is_done = True
            case ErrorFrame(error=error):
                self.outcome.errors.append(error)
        if self.outcome.is_complete:
            self.is_over.set()


async def main(outcome: Outcome) -> None:
    """Speak a recording to the server, and listen until it has answered."""
    url, path = arguments()
    heard = AudioConfiguration(input=AudioInput(transcription=InputAudioTranscription()))
    service = OpenAIRealtimeLLMService(
        api_key="not-needed",
        base_url=f"{url.replace('http', 'ws', 1)}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model="gpt-realtime",
            system_instruction="You are a good friend. You answer in one short sentence.",
            session_properties=SessionProperties(audio=heard),
        ),
    )
    listener = Listener(service, outcome)
    user, assistant = LLMContextAggregatorPair(LLMContext())
    rates = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    worker = PipelineWorker(
        Pipeline([user, service, assistant]), observers=[listener], params=rates, idle_timeout_secs=None
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    speaking = asyncio.create_task(speak(worker, path))
    await listener.is_over.wait()
    speaking.cancel()
    await worker.cancel()
    await running


async def speak(worker: PipelineWorker, path: str) -> None:
    """Send the recording."""
    async for frame in microphone(path):
        await worker.queue_frame(InputAudioRawFrame(audio=frame, sample_rate=RATE, num_channels=1))


Outcome.of("pipecat", main)
