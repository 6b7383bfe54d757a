"""A conversation through pipecat: a pipeline without a transport around its service for OpenAI's realtime API."""

from __future__ import annotations

import asyncio

from outcome import Outcome, arguments, microphone
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    LLMFullResponseEndFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat_pipeline import Listener, realtime_service, running, spoken


class Talk(Listener):
    """Says when both the transcript and the answer have come."""

    def __init__(self, service: OpenAIRealtimeLLMService, outcome: Outcome) -> None:
        super().__init__(service)
        self.outcome = outcome
        self.is_over = asyncio.Event()

    def take(self, frame: Frame) -> None:
        """Take a frame of the service's."""
        match frame:
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
    service = realtime_service(url, "You are a good friend. You answer in one short sentence.")
    talk = Talk(service, outcome)
    user, assistant = LLMContextAggregatorPair(LLMContext())
    async with running([user, service, assistant], talk) as worker:
        speaking = asyncio.create_task(speak(worker, path))
        await talk.is_over.wait()
        speaking.cancel()


async def speak(worker: PipelineWorker, path: str) -> None:
    """Send the recording."""
    async for samples in microphone(path):
        await worker.queue_frame(spoken(samples))


Outcome.of("pipecat", main)
