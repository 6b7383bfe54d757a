"""Through OpenAI's agents SDK of Python, `openai-agents`: a tool, texts of the history, and two interruptions."""

from __future__ import annotations

import asyncio

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession
from agents.version import __version__
from outcome import Checks, arguments, utterance

cities: list[str] = []


@function_tool
async def weather(city: str) -> str:
    """Tell the weather."""
    cities.append(city)
    return f"sunny in {city}"


class Listener:
    """Takes what a session brings."""

    def __init__(self, session: RealtimeSession, checks: Checks) -> None:
        self.session, self.checks = session, checks
        self.history: list[tuple[str, str]] = []
        self.num_bytes = self.num_interruptions = 0

    async def listen(self) -> None:
        """Take events for ever."""
        async for event in self.session:
            match event.type:
                case "audio":
                    self.num_bytes += len(event.audio.data)
                case "audio_interrupted":
                    self.num_interruptions += 1
                case "agent_end":
                    self.num_bytes = 0
                case "error":
                    self.checks.errors.append(str(event.error))

    def last(self, role: str) -> str:
        """Return what was said last by a role."""
        items = [item for item in self.session._history if getattr(item, "role", "") == role and item.content]
        part = items[-1].content[0] if items else None
        return (getattr(part, "transcript", None) or getattr(part, "text", None) or "") if part else ""


async def main(checks: Checks) -> None:
    """Take turns."""
    url, path = arguments()
    agent = RealtimeAgent(name="tutor", instructions="You are a good friend.", tools=[weather])
    address = f"{url.replace('http', 'ws', 1)}/realtime?model=gpt-realtime"
    runner = RealtimeRunner(agent)
    async with await runner.run(model_config={"api_key": "not-needed", "url": address}) as session:
        listener = Listener(session, checks)
        listening = asyncio.create_task(listener.listen())
        await converse(session, listener, path, checks)
        listening.cancel()


async def converse(session: RealtimeSession, listener: Listener, path: str, checks: Checks) -> None:
    """Take turns."""
    await say(session, path)
    await checks.until("what was spoken is in the history", lambda: listener.last("user") == "quick brown")
    await checks.until("a tool was called", lambda: cities == ["Oslo"])
    await checks.until("its result was answered", lambda: listener.last("assistant") == "The tool says: sunny in Oslo")

    await session.send_message("What is new?")
    await checks.until("a second turn was answered", lambda: listener.last("assistant") == "You said: What is new?")
    await session.send_message("What came first?")
    await checks.until("the server has the history", lambda: listener.last("assistant").endswith(": quick brown"))

    await session.send_message("Tell me a story.")
    await checks.until("a story is heard", lambda: listener.num_bytes and "day" in listener.last("assistant"))
    await asyncio.sleep(3)
    await session.interrupt()
    await checks.until("the program interrupted it", lambda: listener.num_interruptions == 1)
    await session.send_message("What have you said?")
    # An interruption by the program only cuts what is remembered; the server takes that for the end of the response.
    await checks.until("what was heard is remembered", lambda: listener.last("assistant").startswith("I said: On"))
    checks.that("and no more", "day 9" not in listener.last("assistant"))

    await session.send_message("Another story, please.")
    await checks.until(
        "another story begins", lambda: listener.num_bytes and listener.last("assistant").startswith("On")
    )
    await say(session, path)
    await checks.until("a voice interrupted it", lambda: listener.num_interruptions >= 2)
    await checks.until("the voice was answered", lambda: listener.last("assistant") == "You said: quick brown")


async def say(session: RealtimeSession, path: str) -> None:
    """Speak the recording."""
    async for frame in utterance(path):
        await session.send_audio(frame)


Checks.of(f"openai-agents {__version__}, turns", main)
