"""The voices: those there are, and new ones of people who consent in a recording."""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from tristep.audio import SPEAK_HZ
from tristep.codec.voice import Voice, check_name
from tristep.server import uploads
from tristep.server.encoding import Delivery, Encoder
from tristep.server.errors import ApiError
from tristep.server.jobs import Clone, Speak, Spoken
from tristep.server.service import OfRequest, Service, only, while_connected

router = APIRouter()

MAX_CLIP_BYTES = 10 << 20
PREVIEW = "This is how I sound."


class CloneForm(BaseModel):
    """The fields of `POST /v1/audio/voices`, beside `audio_sample`."""

    name: str
    consent: str
    """The id of a recording in which the same speaker consents."""
    type: Literal["audio_sample"] = "audio_sample"
    text: str = Field("", max_length=1000)
    """Ours: what is said in the sample; recognised if not given."""


class PreviewForm(CloneForm):
    """The fields of `POST /v1/audio/voices/preview`."""

    name: str = "preview"
    sample_text: str = Field(PREVIEW, max_length=200)
    """What the voice is to say."""


class ConsentForm(BaseModel):
    """The fields of `POST /v1/audio/voice_consents`, beside `recording`."""

    name: str = Field(max_length=200)
    language: str = Field(max_length=35)


def listed(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a list as OpenAI does, on one page."""
    ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
    return {"object": "list", "data": entries, "has_more": False, **ends}


@router.get("/audio/voices")
async def list_voices(service: OfRequest, legacy: bool = False) -> dict[str, Any]:
    """List the voices in the ways of all clients at once; as names only to Kokoro's older ones."""
    entries = await asyncio.to_thread(service.shelf.entries)
    named: list[Any] = [{"id": entry["id"], "name": entry["name"]} for entry in entries]
    return {
        **listed(entries),
        "voices": [entry["id"] for entry in entries] if legacy else named,
        "uploaded_voices": [entry["id"] for entry in entries if entry["type"] == "cloned"],
    }


@router.get("/audio/system_voices")
async def list_system_voices(service: OfRequest) -> dict[str, Any]:
    """List the voices that ship, as StepFun does."""
    entries = await asyncio.to_thread(service.shelf.entries)
    names = [entry["id"] for entry in entries if entry["type"] == "system"]
    details = {name: {"voice-name": name, "voice-description": "", "recommended_scene": ""} for name in names}
    return {"voices": names, "voices-details": details}


@router.post("/audio/voices", openapi_extra=uploads.described(CloneForm, "audio_sample"))
async def create_voice(request: Request, service: OfRequest) -> dict[str, Any]:
    """Make a voice of a clip, and keep it."""
    async with AsyncExitStack() as stack:
        form, files = await read_clone(request, CloneForm, service, stack)
        if form.name in service.shelf.folders():
            raise ApiError(409, f"there is a voice {form.name!r} already: delete it, or choose another name")
        voice = await while_connected(request, cloned(service, form, files, service.enter(stack)))
        return service.shelf.add(voice)


@router.post("/audio/voices/preview", openapi_extra=uploads.described(PreviewForm, "audio_sample"))
async def preview_voice(request: Request, service: OfRequest) -> dict[str, Any]:
    """Make a voice of a clip, let it say something, and forget it."""
    async with AsyncExitStack() as stack:
        form, files = await read_clone(request, PreviewForm, service, stack)
        voice = await while_connected(request, cloned(service, form, files, service.enter(stack)))
        sample = await while_connected(request, said(service, form.sample_text, voice))
        return {"sample_text": form.sample_text, "sample_audio": base64.b64encode(sample).decode()}


async def read_clone(
    request: Request, kind: type[Any], service: Service, stack: AsyncExitStack
) -> tuple[Any, dict[str, UploadFile]]:
    """Read a form with a clip, and check all that can be checked before it is heard."""
    service.check_model(service.settings.model_id, "tts")
    service.shelf.cloned()
    form, files = await uploads.read_form(request, kind, stack)
    try:
        check_name(form.name)
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value", param="name") from error
    return form, files


async def cloned(service: Service, form: CloneForm, files: dict[str, UploadFile], folder: Path) -> Voice:
    """Make a voice of a clip."""
    consent, recording = service.shelf.consent(form.consent)
    upload = await uploads.save(files, "audio_sample", folder, MAX_CLIP_BYTES)
    sample = folder / "sample.wav"
    await service.decode(upload, sample, SPEAK_HZ)
    licence = f"cloned by the consent {consent.id} of {consent.name}"
    voice: Voice = await only(service.engine.ask(Clone(sample, recording, form.name, form.text, licence)))
    return voice


async def said(service: Service, text: str, voice: Voice) -> bytes:
    """Return a WAV of a text in a voice."""
    chunks = [part async for part in service.engine.ask(Speak(text, voice)) if not isinstance(part, Spoken)]
    encoder = Encoder(Delivery("wav", is_tagged=service.settings.mark), SPEAK_HZ)
    return encoder.push(np.concatenate(chunks)) + encoder.finish()


@router.delete("/audio/voices/{name}")
async def delete_voice(name: str, service: OfRequest) -> dict[str, Any]:
    """Delete a cloned voice."""
    service.shelf.remove(name)
    return {"id": name, "object": "audio.voice", "deleted": True}


@router.get("/audio/voice_consents")
async def list_consents(service: OfRequest) -> dict[str, Any]:
    """List the consents."""
    consents = await asyncio.to_thread(service.shelf.consents)
    return listed([{**asdict(consent), "object": "audio.voice_consent"} for consent in consents.values()])


@router.post("/audio/voice_consents", openapi_extra=uploads.described(ConsentForm, "recording"))
async def create_consent(request: Request, service: OfRequest) -> dict[str, Any]:
    """Keep a recording in which somebody consents to the cloning of their voice."""
    service.shelf.cloned()
    async with AsyncExitStack() as stack:
        form, files = await uploads.read_form(request, ConsentForm, stack)
        folder = service.enter(stack)
        upload = await uploads.save(files, "recording", folder, MAX_CLIP_BYTES)
        await while_connected(request, service.decode(upload, folder / "consent.wav"))
        consent = service.shelf.add_consent(folder / "consent.wav", form.name, form.language)
        return {**asdict(consent), "object": "audio.voice_consent"}


@router.delete("/audio/voice_consents/{name}")
async def delete_consent(name: str, service: OfRequest) -> dict[str, Any]:
    """Delete a consent and its recording."""
    service.shelf.remove_consent(name)
    return {"id": name, "object": "audio.voice_consent", "deleted": True}
