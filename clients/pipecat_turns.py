"""Through pipecat's service for OpenAI's realtime API: a context to begin with, a tool, a turn, and an interruption."""

from __future__ import annotations

import asyncio

from outcome import RATE, Checks, arguments, utterance
from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.events import (
    AudioConfiguration,
    AudioInput,
    InputAudioTranscription,
    SessionProperties,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner


class Listener(BaseObserver):
    """Takes what the service pushes."""

    def __init__(self, service: OpenAIRealtimeLLMService, checks: Checks) -> None:
        super().__init__()
        self.service, self.checks = service, checks
        self.heard, self.answer = "", ""
        self.num_bytes = self.num_interruptions = 0
        self.is_over = False

    async def on_push_frame(self, data: FramePushed) -> None:
        """Take a frame."""
        if isinstance(data.frame, InterruptionFrame) and data.destination is self.service:
            self.num_interruptions += 1
        if data.source is not self.service:
            return
        match data.frame:
            case TranscriptionFrame(text=text):
                self.heard = text
            case TTSTextFrame(text=text):
                self.answer += text
                self.is_over = False
            case TTSAudioRawFrame(audio=audio):
                self.num_bytes += len(audio)
            case LLMFullResponseEndFrame():
                self.is_over = True
            case ErrorFrame(error=error):
                self.checks.errors.append(error)

    async def end(self, checks: Checks) -> None:
        """Wait until an answer is over, and forget it."""
        await checks.until("that is over", lambda: self.is_over)
        self.heard, self.answer, self.num_bytes = "", "", 0


async def weather(params: FunctionCallParams, city: str) -> None:
    """Tell the weather.

    Args:
        params: What pipecat gives.
        city: Where.
    """
    await params.result_callback({"weather": f"sunny in {city}"})


async def main(checks: Checks) -> None:
    """Run the service in a pipeline."""
    url, path = arguments()
    heard = AudioConfiguration(input=AudioInput(transcription=InputAudioTranscription()))
    service = OpenAIRealtimeLLMService(
        api_key="not-needed",
        base_url=f"{url.replace('http', 'ws', 1)}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model="gpt-realtime",
            system_instruction="You are a good friend.",
            session_properties=SessionProperties(audio=heard),
        ),
    )
    listener = Listener(service, checks)
    context = LLMContext(messages=[{"role": "user", "content": "I am Ada."}], tools=[weather])
    user, assistant = LLMContextAggregatorPair(context)
    rates = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    worker = PipelineWorker(
        Pipeline([user, service, assistant]), observers=[listener], params=rates, idle_timeout_secs=None
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await converse(worker, listener, path, checks)
    history = str(context.messages)
    texts = ("I am Ada.", "weather", "sunny in Oslo", "What came first?", "On day 1", "You said: quick brown")
    checks.that("the context has all texts", all(text in history for text in texts))
    await worker.cancel()
    await running


async def converse(worker: PipelineWorker, listener: Listener, path: str, checks: Checks) -> None:
    """Take turns."""
    await worker.queue_frame(LLMRunFrame())
    await checks.until("a tool is called and answered", lambda: "sunny in Oslo" in listener.answer)
    await listener.end(checks)
    await say(worker, path)
    await checks.until("what was spoken is heard", lambda: listener.heard == "quick brown")
    await checks.until("it is answered", lambda: listener.answer == "You said: quick brown")
    await listener.end(checks)
    await ask(listener.service, "What came first?")
    await checks.until("the server has the context", lambda: listener.answer == "First you said: I am Ada.")
    await listener.end(checks)
    await ask(listener.service, "Tell me a story.")
    await checks.until("a story is heard", lambda: listener.num_bytes)
    num_interruptions = listener.num_interruptions
    await say(worker, path)
    await checks.until("a voice interrupts it", lambda: listener.num_interruptions > num_interruptions)
    await checks.until("the voice is answered", lambda: listener.answer.endswith("You said: quick brown"))
    checks.that("the story has no end", "day 9" not in listener.answer)


async def ask(service: OpenAIRealtimeLLMService, text: str) -> None:
    """Write something, and ask for an answer."""
    await service.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": text}], run_llm=True))


async def say(worker: PipelineWorker, path: str) -> None:
    """Speak the recording."""
    async for frame in utterance(path):
        await worker.queue_frame(InputAudioRawFrame(audio=frame, sample_rate=RATE, num_channels=1))


Checks.of("pipecat, turns", main)
