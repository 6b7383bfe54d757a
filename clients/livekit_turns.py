"""Through LiveKit's agents, by their plugin for `openai` or for `stepfun`: context, replies, a tool, interruptions."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

from livekit import rtc
from livekit.agents import llm
from livekit_talk import MODELS
from outcome import RATE, Checks, arguments, utterance


@dataclass
class Said:
    """An answer as it comes."""

    message_id: str = ""
    text: str = ""
    num_bytes: int = 0
    calls: list[llm.FunctionCall] = field(default_factory=list)
    is_over: bool = False


@llm.function_tool
async def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


async def main(checks: Checks) -> None:
    """Seed a context, ask, call, interrupt by the program and by a voice."""
    url, path = arguments()
    model = MODELS[plugin](url)
    session = model.session()
    answers: list[Said] = []
    heard: list[str] = []
    tasks = []

    def begin(answer: llm.GenerationCreatedEvent) -> None:
        answers.append(Said())
        tasks.append(asyncio.create_task(listen(answer, answers[-1])))

    session.on("generation_created", begin)
    session.on("input_audio_transcription_completed", lambda event: heard.append(event.transcript))
    session.on("error", lambda event: checks.errors.append(f"{event.error!r}"))
    await session.update_instructions("You are a good friend.")

    context = session.chat_ctx.copy()
    context.add_message(role="user", content="I am Ada.")
    context.add_message(role="assistant", content="Hello, Ada.")
    context.add_message(role="user", content="What came first?")
    await session.update_chat_ctx(context)
    await session.generate_reply()
    await checks.until("a reply to a seeded context", lambda: answers[-1].text == "First you said: I am Ada.")
    await checks.until("the reply is over", lambda: answers[-1].is_over)

    await say(session, path)
    await checks.until("what was spoken is heard", lambda: heard[-1:] == ["quick brown"])
    await checks.until("it is answered", lambda: answers[-1].text == "You said: quick brown" and answers[-1].is_over)

    await session.update_tools([weather])
    await session.generate_reply()
    await checks.until("a tool is called", lambda: answers[-1].calls and answers[-1].is_over)
    call = answers[-1].calls[0]
    result = llm.FunctionCallOutput(name=call.name, call_id=call.call_id, output=await weather("Oslo"), is_error=False)
    context = session.chat_ctx.copy()
    context.items.append(result)
    await session.update_chat_ctx(context)
    await session.generate_reply()
    await checks.until("its result is answered", lambda: answers[-1].text == "The tool says: sunny in Oslo")
    await checks.until("that answer is over", lambda: answers[-1].is_over)

    await ask(session, "Tell me a story.")
    await checks.until("a story begins", lambda: answers[-1].num_bytes)
    await asyncio.sleep(3)
    story = answers[-1]
    session.interrupt()
    session.truncate(message_id=story.message_id, modalities=["audio", "text"], audio_end_ms=3000)
    await checks.until("it is interrupted", lambda: story.is_over)
    await ask(session, "What have you said?")
    await checks.until("what was heard of it is remembered", lambda: answers[-1].is_over)
    checks.that("and no more", answers[-1].text.startswith("I said: On") and "day 9" not in answers[-1].text)

    await ask(session, "Another story, please.")
    await checks.until("another story begins", lambda: answers[-1].num_bytes)
    story = answers[-1]
    await say(session, path)
    await checks.until("a voice interrupts it", lambda: story.is_over and "day 9" not in story.text)
    await checks.until("the voice is answered", lambda: answers[-1].text == "You said: quick brown")
    await session.aclose()
    await model.aclose()


async def ask(session: Any, text: str) -> None:
    """Write something, and ask for an answer."""
    context = session.chat_ctx.copy()
    context.add_message(role="user", content=text)
    await session.update_chat_ctx(context)
    await session.generate_reply()


async def say(session: llm.RealtimeSession, path: str) -> None:
    """Speak the recording."""
    async for frame in utterance(path):
        session.push_audio(rtc.AudioFrame(frame, RATE, 1, len(frame) // 2))


async def listen(answer: llm.GenerationCreatedEvent, said: Said) -> None:
    """Take an answer, until its streams end."""

    async def texts(message: llm.MessageGeneration) -> None:
        async for text in message.text_stream:
            said.text += text

    async for message in answer.message_stream:
        said.message_id = message.message_id
        reading = asyncio.create_task(texts(message))
        async for frame in message.audio_stream:
            said.num_bytes += len(bytes(frame.data))
        await reading
    async for call in answer.function_stream:
        said.calls.append(call)
    said.is_over = True


plugin = sys.argv.pop(1)
Checks.of(f"livekit-plugins-{plugin}, turns", main)
