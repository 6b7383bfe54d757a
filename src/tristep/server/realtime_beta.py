"""The older names of the realtime protocol, which StepFun's API and its clients use: a renaming in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tristep.server.realtime_events import Message

FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
OLD_FORMATS = {new: old for old, new in FORMATS.items()}
PREFIXES = {
    "response.output_audio_transcript.": "response.audio_transcript.",
    "response.output_audio.": "response.audio.",
    "response.output_text.": "response.text.",
}
"""How types of messages begin: now, and then."""
PARTS = {"output_text": "text", "output_audio": "audio"}
FLAT = ("modalities", "input_audio_format", "output_audio_format", "voice", "turn_detection",
        "input_audio_transcription")  # fmt: skip
"""Fields that lie at the top of an old session object, and nowhere near it in a new one."""
SAME = ("instructions", "tools", "tool_choice", "temperature", "tracing", "include", "prompt")

MAX_DIGITS = 9
"""Of a number that is written as text."""


def is_beta(given: Message) -> bool:
    """Say whether the first update of a session is written in the old names."""
    session = given.get("session")
    if given.get("type") == "transcription_session.update":
        return True
    return isinstance(session, dict) and "type" not in session and any(name in session for name in FLAT)


def from_beta(given: Message) -> Message:
    """Write a client's message in the new names."""
    match given.get("type"):
        case "session.update" | "transcription_session.update":
            return {**given, "type": "session.update", "session": session_from_beta(given.get("session"))}
        case "response.create" if isinstance(given.get("response"), dict):
            return {**given, "response": response_from_beta(given["response"])}
    return given


def session_from_beta(session: Any) -> Any:
    """Write a session object in the new names; one that has new names already stays."""
    if not isinstance(session, dict) or "audio" in session:
        return session
    heard = picked(session, {"input_audio_transcription": "transcription", "turn_detection": "turn_detection",
                             "input_audio_noise_reduction": "noise_reduction"})  # fmt: skip
    said = picked(session, {"voice": "voice", "speed": "speed"})
    if "input_audio_format" in session:
        heard["format"] = format_from_beta(session["input_audio_format"])
    if "output_audio_format" in session:
        said["format"] = format_from_beta(session["output_audio_format"])
    body = {name: session[name] for name in SAME if name in session} | output_from_beta(session)
    audio = {name: part for name, part in (("input", heard), ("output", said)) if part}
    return body | ({"audio": audio} if audio else {})


def response_from_beta(response: Message) -> Message:
    """Write what a client wants of a response in the new names."""
    said = picked(response, {"voice": "voice"})
    if response.get("output_audio_format"):
        said["format"] = format_from_beta(response["output_audio_format"])
    return response | output_from_beta(response) | ({"audio": {"output": said}} if said else {})


def output_from_beta(given: Message) -> Message:
    """Rename how an answer is given: sound was never without text."""
    body: Message = {}
    modes = given.get("modalities")
    if isinstance(modes, list) and modes:
        body["output_modalities"] = ["audio"] if "audio" in modes else ["text"]
    limit = given.get("max_response_output_tokens", given.get("max_output_tokens"))
    if limit is not None:
        is_number = isinstance(limit, str) and limit.isdecimal() and len(limit) <= MAX_DIGITS
        body["max_output_tokens"] = int(limit) if is_number else limit
    return body


def picked(given: Message, names: dict[str, str]) -> Message:
    """Take some fields under new names."""
    return {new: given[old] for old, new in names.items() if old in given}


def format_from_beta(name: Any) -> Any:
    """Write a format as an object."""
    return {"type": FORMATS.get(name, name)} if isinstance(name, str) else name


def to_beta(message: Message) -> Iterator[Message]:
    """Write a message for a client in the old names; of the two that tell of an item, only the first was there."""
    kind = message["type"]
    if kind == "conversation.item.done":
        return
    for new, old in PREFIXES.items():
        if kind.startswith(new):
            kind = old + kind.removeprefix(new)
            break
    renamed = {**message, "type": "conversation.item.created" if kind == "conversation.item.added" else kind}
    if "item" in message:
        renamed["item"] = item_to_beta(message["item"])
    if "response" in message:
        renamed["response"] = response_to_beta(message["response"])
    if "session" in message:
        renamed["session"] = session_to_beta(message["session"])
        if message["session"]["type"] == "transcription":
            renamed["type"] = f"transcription_{kind}"
    yield renamed


def item_to_beta(item: Message) -> Message:
    """Rename the parts of an item."""
    if "content" not in item:
        return item
    return {**item, "content": [{**part, "type": PARTS.get(part["type"], part["type"])} for part in item["content"]]}


def response_to_beta(response: Message) -> Message:
    """Write a response in the old names."""
    body = {name: value for name, value in response.items() if name not in ("audio", "output_modalities")}
    body["output"] = [item_to_beta(item) for item in response["output"]]
    body["modalities"] = modalities(response["output_modalities"])
    if output := response.get("audio", {}).get("output"):
        body |= {"voice": output["voice"], "output_audio_format": OLD_FORMATS[output["format"]["type"]]}
    return body


def session_to_beta(session: Message) -> Message:
    """Write a session object in the old names."""
    heard = session["audio"]["input"]
    body = {
        "id": session["id"],
        "object": session["object"],
        "expires_at": session["expires_at"],
        "input_audio_format": OLD_FORMATS[heard["format"]["type"]],
        "input_audio_transcription": heard["transcription"],
        "input_audio_noise_reduction": heard["noise_reduction"],
        "turn_detection": heard["turn_detection"],
    }
    if session["type"] == "transcription":
        return body | {"modalities": ["text"]}
    output = session["audio"]["output"]
    return body | {
        **{name: session[name] for name in ("model", "instructions", "tools", "tool_choice", "tracing")},
        "temperature": session.get("temperature", 0.7),
        "modalities": modalities(session["output_modalities"]),
        "voice": output["voice"],
        "speed": output["speed"],
        "output_audio_format": OLD_FORMATS[output["format"]["type"]],
        "max_response_output_tokens": session["max_output_tokens"],
    }


def modalities(given: list[str]) -> list[str]:
    """Return what an answer is given in: sound comes with its text."""
    return ["text", "audio"] if "audio" in given else ["text"]
