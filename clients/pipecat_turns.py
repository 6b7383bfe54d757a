"""Through pipecat's service for OpenAI's realtime API: a context to begin with, a tool, a turn, and an interruption."""

from __future__ import annotations

from outcome import Checks, arguments, utterance
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.observers.base_observer import FramePushed
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat_pipeline import Listener, realtime_service, running, spoken


class Turns(Listener):
    """Knows what came of the turn that is going on."""

    def __init__(self, service: OpenAIRealtimeLLMService, checks: Checks) -> None:
        super().__init__(service)
        self.checks = checks
        self.heard, self.answer = "", ""
        self.num_bytes = self.num_interruptions = 0
        self.is_over = False

    async def on_push_frame(self, data: FramePushed) -> None:
        """Take a frame, also an interruption that goes to the service."""
        if isinstance(data.frame, InterruptionFrame) and data.destination is self.service:
            self.num_interruptions += 1
        await super().on_push_frame(data)

    def take(self, frame: Frame) -> None:
        """Take a frame of the service's."""
        match frame:
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
    service = realtime_service(url, "You are a good friend.")
    listener = Turns(service, checks)
    context = LLMContext(messages=[{"role": "user", "content": "I am Ada."}], tools=[weather])
    user, assistant = LLMContextAggregatorPair(context)
    async with running([user, service, assistant], listener) as worker:
        await converse(worker, listener, path, checks)
        check_history(context, checks)


def check_history(context: LLMContext, checks: Checks) -> None:
    """Look for everything that was said in what pipecat remembers."""
    history = str(context.messages)
    texts = ("I am Ada.", "weather", "sunny in Oslo", "What came first?", "On day 1", "You said: quick brown")
    checks.that("the context has all texts", all(text in history for text in texts))


async def converse(worker: PipelineWorker, listener: Turns, path: str, checks: Checks) -> None:
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
    async for samples in utterance(path):
        await worker.queue_frame(spoken(samples))


Checks.of("pipecat, turns", main)
