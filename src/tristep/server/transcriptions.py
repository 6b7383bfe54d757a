"""Sound in, words out: OpenAI's transcriptions, and StepFun's recognition as a stream."""

from __future__ import annotations

import base64
import json
import math
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tristep.engine import captions
from tristep.engine.session import AUDIO_TOKENS_HZ
from tristep.engine.settings import Options, Settings
from tristep.engine.transcription import UNSPACED, Segment, Transcription
from tristep.modes.asr.data import Style
from tristep.server import uploads
from tristep.server.errors import ApiError, envelope, unsupported
from tristep.server.jobs import Transcribe
from tristep.server.service import OfRequest, Service, Streamed, only, while_connected
from tristep.server.uploads import as_list, unpacked
from tristep.server.worker import RefusedError, WorkerError

router = APIRouter()

UNKNOWN_LANGUAGE = "und"
"""BCP 47's name of a language that isn't known: nobody spoke."""
Words = Annotated[list[str], BeforeValidator(as_list)]


class TranscriptionForm(BaseModel):
    """The fields of `POST /v1/audio/transcriptions`, beside `file`."""

    model: str
    language: str | None = None
    languages: Words = []
    prompt: str = ""
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float = Field(0, ge=0, le=1)
    timestamp_granularities: Annotated[list[Literal["word", "segment"]], BeforeValidator(as_list)] = []
    include: Annotated[list[Literal["logprobs"]], BeforeValidator(as_list)] = []
    keywords: Words = []
    hotwords: Words = []
    """StepFun's name of the keywords: names and words to expect."""
    itn: bool = False
    """Ours: write numbers, dates and amounts in digits."""
    stream: bool = False
    chunking_strategy: Annotated[str | dict[str, Any], BeforeValidator(unpacked)] = "auto"
    known_speaker_names: Words = []
    style: Literal["spoken", "written"] | None = None
    """Ours: plain lower case, or capitals and punctuation."""

    @model_validator(mode="after")
    def agree(self) -> TranscriptionForm:
        """Check that the fields go together."""
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities needs response_format verbose_json")
        if self.include and self.response_format != "json":
            raise ValueError("include logprobs needs response_format json")
        if self.stream and self.response_format not in ("json", "text"):
            raise ValueError(f"a stream can't be written as {self.response_format}: give json")
        return self

    def options(self, style: Style) -> Options:
        """Return what the engine is asked for; `style` is the server's own."""
        with_words = self.response_format in ("srt", "vtt") or "word" in self.timestamp_granularities
        return {
            "language": self.language or next(iter(self.languages), None),
            "style": self.style or style,
            "words": with_words,
            "hotwords": [*self.keywords, *self.hotwords],
            "itn": self.itn,
            "tokens": "logprobs" in self.include,
        }


def refuse_what_has_no_effect(form: TranscriptionForm) -> None:
    """Refuse settings that would be ignored: a setting that is taken does something."""
    reasons = {
        "prompt": form.prompt and "give names and words to expect as keywords",
        "languages": len(form.languages) > 1 and "give one language, or none to have it recognised",
        "temperature": form.temperature and "this model writes what is most probable: give 0 or nothing",
        "chunking_strategy": form.chunking_strategy not in ("auto", {"type": "server_vad"})
        and "sound is cut at its pauses by fixed rules: give auto",
        "known_speaker_names": form.known_speaker_names and "speakers are not told apart",
    }
    for param, reason in reasons.items():
        if reason:
            raise unsupported(param, f"{param} can't be heeded: {reason}")


@router.post("/audio/transcriptions", openapi_extra=uploads.described(TranscriptionForm, "file"))
async def transcribe(request: Request, service: OfRequest) -> Response:
    """Write down what is said in a file."""
    async with AsyncExitStack() as stack:
        form, files = await uploads.read_form(request, TranscriptionForm, stack)
        service.check_model(form.model, "asr")
        refuse_what_has_no_effect(form)
        options = checked(form.options(service.settings.style))
        folder = service.enter(stack)
        upload = await uploads.save(files, "file", folder, service.settings.max_file_bytes)
        await while_connected(request, service.decode(upload, folder / "heard.wav"))
        job = Transcribe(folder / "heard.wav", options, by_segment=form.stream)
        if form.stream:
            return Streamed(openai_events(service, job), stack.pop_all(), "text/event-stream")
        return rendered(await while_connected(request, transcribed(service, job)), form)


def checked(options: Options) -> Options:
    """Refuse options that the engine would refuse, before any work is done."""
    try:
        Settings(**options)
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value") from error
    return options


async def transcribed(service: Service, job: Transcribe) -> Transcription:
    """Wait for a transcription, and count it."""
    started = time.perf_counter()
    result: Transcription = await only(service.engine.ask(job))
    service.metrics.worked("asr", result.duration_s, time.perf_counter() - started)
    service.metrics.heard(result.segments)
    return result


def rendered(result: Transcription, form: TranscriptionForm) -> Response:
    """Write a transcription in the form that was asked for."""
    match form.response_format:
        case "text":
            return PlainTextResponse(result.text + "\n")
        case "srt":
            return PlainTextResponse(captions.srt(result))
        case "vtt":
            return PlainTextResponse(captions.vtt(result), media_type="text/vtt")
        case "verbose_json":
            return JSONResponse(verbose(result, form))
    usage = {"type": "duration", "seconds": result.duration_s}
    body = {"text": result.text, "usage": usage, "finish_reason": result.finish_reason}
    return JSONResponse(body | ({"logprobs": logprobs(result.segments)} if form.include else {}))


def logprobs(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """Write how likely each token was."""
    tokens = (token for segment in segments for token in segment.tokens or ())
    return [{"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())} for token in tokens]


def verbose(result: Transcription, form: TranscriptionForm) -> dict[str, Any]:
    """Write all that is known about a transcription."""
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": result.language or form.language or UNKNOWN_LANGUAGE,
        "duration": result.duration_s,
        "text": result.text,
        "usage": {"type": "duration", "seconds": result.duration_s},
        "finish_reason": result.finish_reason,
    }
    if "word" in form.timestamp_granularities:
        words = [word for segment in result.segments for word in segment.words or ()]
        body["words"] = [{"word": word.text, "start": word.start_s, "end": word.end_s} for word in words]
    if form.timestamp_granularities != ["word"]:
        body["segments"] = [segment_body(number, segment) for number, segment in enumerate(result.segments)]
    return body


def segment_body(number: int, segment: Segment) -> dict[str, Any]:
    """Write a segment with every field that the SDKs require."""
    text = segment.text.encode()
    return {
        "id": number,
        "seek": round(100 * segment.start_s),
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": math.log(max(segment.confidence, 1e-10)),
        "compression_ratio": len(text) / len(zlib.compress(text)),
        "no_speech_prob": 0.0,
    }


def event(**fields: Any) -> str:
    """Write one server-sent event."""
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"


async def deltas(service: Service, job: Transcribe) -> AsyncIterator[tuple[str, Segment | Transcription]]:
    """Yield what each segment adds to the text, and the segment; at the end nothing more, and the whole."""
    started, separator, is_first = time.perf_counter(), "", True
    async with aclosing(service.engine.ask(job)) as messages:
        async for message in messages:
            if isinstance(message, Transcription):
                service.metrics.worked("asr", message.duration_s, time.perf_counter() - started)
                service.metrics.heard(message.segments)
                yield "", message
            elif message.text:
                if is_first:
                    service.metrics.time_to_first_token.labels("asr").observe(time.perf_counter() - started)
                is_first = False
                yield separator + message.text, message
                separator = "" if message.language in UNSPACED else " "


async def openai_events(service: Service, job: Transcribe) -> AsyncIterator[str]:
    """Tell a transcription as OpenAI streams it."""
    said = ""
    try:
        async for delta, heard in deltas(service, job):
            said += delta
            if isinstance(heard, Segment):
                yield event(type="transcript.text.delta", delta=delta, **asked_logprobs(job, [heard]))
            else:
                told = asked_logprobs(job, heard.segments)
                yield event(type="transcript.text.done", text=said, usage=usage(heard, "tokens"), **told)
    except (RefusedError, WorkerError) as error:
        yield event(**failure(error))


def usage(heard: Transcription, kind: str) -> dict[str, Any]:
    """Count the tokens of a sound, and of what was written of it."""
    given, written = round(AUDIO_TOKENS_HZ * heard.duration_s), sum(segment.num_tokens for segment in heard.segments)
    return {
        "type": kind,
        "input_tokens": given,
        "input_token_details": {"text_tokens": 0, "audio_tokens": given},
        "output_tokens": written,
        "total_tokens": given + written,
    }


def asked_logprobs(job: Transcribe, segments: Iterable[Segment]) -> dict[str, Any]:
    """Write how likely each token was, where the client asked for that."""
    return {"logprobs": logprobs(segments)} if job.options.get("tokens") else {}


def failure(error: Exception) -> dict[str, Any]:
    """Describe what went wrong after the answer had begun."""
    if isinstance(error, RefusedError):
        return envelope(400, str(error), code="invalid_value")
    return envelope(500, "the engine failed: the server's log says why", code="internal_error")


@router.post("/audio/translations")
async def translate(request: Request) -> Response:
    """Refuse to translate."""
    raise unsupported("model", "this model does not translate: use /v1/audio/transcriptions")


class SoundFormat(BaseModel):
    """How StepFun's clients say what they send."""

    type: Literal["pcm", "ogg", "mp3", "wav"]
    codec: Literal["pcm_s16le"] | None = None
    rate: int | None = Field(None, ge=4000, le=192_000)
    bits: Literal[16] | None = None
    channel: int | None = Field(None, ge=1, le=8)

    @model_validator(mode="after")
    def is_whole(self) -> SoundFormat:
        """Check that headerless samples are described."""
        if self.type == "pcm" and None in (self.rate, self.bits, self.channel):
            raise ValueError("pcm needs rate, bits and channel")
        return self


class StepTranscription(BaseModel):
    """What StepFun's clients want to have written."""

    model: str
    language: str | None = None
    prompt: str = ""
    hotwords: list[str] = []
    enable_itn: bool = False
    enable_timestamp: bool = False


class StepInput(BaseModel):
    """What StepFun's clients send with the sound."""

    transcription: StepTranscription
    format: SoundFormat


class StepAudio(BaseModel):
    """The sound, base64, and what is to be done with it."""

    data: str
    input: StepInput


class StepRequest(BaseModel):
    """The body of `POST /v1/audio/asr/sse`."""

    audio: StepAudio


@router.post("/audio/asr/sse", dependencies=[Depends(uploads.only_json)])
async def recognise(request: Request, body: StepRequest, service: OfRequest) -> Response:
    """Write down what is said, as StepFun streams it."""
    wanted = body.audio.input.transcription
    service.check_model(wanted.model, "asr")
    if wanted.prompt:
        raise unsupported("prompt", "prompt can't be heeded: give names and words to expect as hotwords")
    style = service.settings.style
    options = checked(
        {"language": wanted.language, "style": style, "hotwords": wanted.hotwords, "itn": wanted.enable_itn}
    )
    async with AsyncExitStack() as stack:
        folder = service.enter(stack)
        write_step_audio(body.audio, folder / "file", service.settings.max_file_bytes)
        await while_connected(request, service.decode(folder / "file", folder / "heard.wav"))
        job = Transcribe(folder / "heard.wav", options, by_segment=True)
        events = step_events(service, job, wanted.enable_timestamp)
        return Streamed(events, stack.pop_all(), "text/event-stream")


def write_step_audio(audio: StepAudio, path: Path, max_bytes: int) -> None:
    """Write the sound of a request to a file."""
    try:
        data = base64.b64decode(audio.data, validate=True)
    except ValueError as error:
        raise ApiError(400, f"the audio is no base64 ({error})", code="invalid_value", param="audio.data") from error
    if len(data) > max_bytes:
        raise ApiError(413, f"the audio has {len(data)} bytes: expected at most {max_bytes}", code="file_too_large")
    sound = audio.input.format
    if sound.type == "pcm":
        uploads.write_pcm(path, data, sound.rate or 0, sound.channel or 0)
    else:
        path.write_bytes(data)


async def step_events(service: Service, job: Transcribe, with_times: bool) -> AsyncIterator[str]:
    """Tell a transcription as StepFun streams it."""
    session_id, said = f"sse_{uuid.uuid4().hex}", ""

    def step_event(kind: str, **fields: Any) -> str:
        meta = {"session_id": session_id, "timestamp": round(1000 * time.time())}
        return event(type=kind, meta=meta, **fields)

    try:
        async for delta, heard in deltas(service, job):
            said += delta
            if isinstance(heard, Segment):
                times = {"start_time": round(1000 * heard.start_s), "end_time": round(1000 * heard.end_s)}
                yield step_event("transcript.text.delta", delta=delta, **(times if with_times else {}))
            else:
                yield step_event("transcript.text.done", text=said, usage=usage(heard, "realtime_asr"))
    except (RefusedError, WorkerError) as error:
        yield step_event("error", message=failure(error)["error"]["message"])
