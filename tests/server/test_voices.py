"""Voices: listed in everybody's way, made of people who consent, and deleted."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from server.toys import CLIP, DATA, KEY, Server, assert_is_envelope

from tristep.audio import SPEAK_HZ, read_audio
from tristep.codec.voice import read_voice
from tristep.server.jobs import SAME_SPEAKER, check_consent

SAMPLE = DATA / "lj002_0154.opus"


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=server.address, headers=headers, timeout=120) as client:
        yield client


def test_the_list_is_read_by_all_clients(http: httpx2.Client) -> None:
    data = http.get("/v1/audio/voices").json()
    assert {voice["id"]: voice["name"] for voice in data["voices"]} == {"anna": "anna", "bert": "bert"}  # Open WebUI
    assert [voice["id"] for voice in data["data"]] == ["anna", "bert"]
    assert {voice["object"] for voice in data["data"]} == {"audio.voice"}
    assert http.get("/v1/audio/voices?legacy=true").json()["voices"] == ["anna", "bert"]
    system = http.get("/step_plan/v1/audio/system_voices?model=stepaudio-2.5-tts").json()
    assert system["voices"] == list(system["voices-details"]) == ["anna", "bert"]
    assert http.get("/v1/audio/models").json()["models"] == [{"id": "org/toy", "name": "org/toy"}]


def test_a_voice_is_made_by_consent_speaks_and_is_deleted(
    client: openai.OpenAI, http: httpx2.Client, server: Server
) -> None:
    own = server.service.settings.voices
    assert own is not None
    consent = client.audio.voice_consents.create(name="Linda", language="en-US", recording=SAMPLE)
    assert [entry.id for entry in client.audio.voice_consents.list()] == [consent.id]
    voice = client.audio.voices.create(audio_sample=SAMPLE, consent=consent.id, name="linda")
    assert voice.id == voice.name == "linda"
    assert read_voice(own, "linda").licence == f"cloned by the consent {consent.id} of Linda"
    assert len(read_audio(own / "consents" / f"{consent.id}.wav")) > 0
    listed = http.get("/v1/audio/voices").json()
    assert listed["uploaded_voices"] == ["linda"]
    speech = client.audio.speech.create(model="tts-1", voice="linda", input="Oh.", response_format="flac")
    assert len(read_audio(speech.content, SPEAK_HZ)) > 0
    again = http.post("/v1/audio/voices", data={"name": "linda", "consent": consent.id}, files={"audio_sample": b"x"})
    assert_is_envelope(again, 409)
    assert http.delete("/v1/audio/voices/linda").json()["deleted"] is True
    assert http.delete(f"/v1/audio/voice_consents/{consent.id}").json()["deleted"] is True
    assert [path for path in own.rglob("*") if path.is_file()] == []


def test_a_preview_speaks_and_keeps_nothing(client: openai.OpenAI, http: httpx2.Client, server: Server) -> None:
    consent = client.audio.voice_consents.create(name="Linda", language="en-US", recording=SAMPLE)
    response = http.post(
        "/v1/audio/voices/preview",
        data={"consent": consent.id, "text": "what she says", "sample_text": "Oh."},
        files={"audio_sample": SAMPLE.read_bytes()},
    )
    assert response.status_code == 200, response.text
    assert len(read_audio(base64.b64decode(response.json()["sample_audio"]), SPEAK_HZ)) > 0
    assert http.get("/v1/audio/voices").json()["uploaded_voices"] == []
    http.delete(f"/v1/audio/voice_consents/{consent.id}")


@pytest.mark.parametrize(
    ("fields", "files", "status", "code"),
    [
        ({"name": "carl"}, {"audio_sample": b"x"}, 400, "missing_required_parameter"),
        ({"name": "carl", "consent": "cons_none"}, {"audio_sample": b"x"}, 404, "consent_not_found"),
        ({"name": "../carl", "consent": "c"}, {"audio_sample": b"x"}, 400, "invalid_value"),
        ({"name": "carl", "consent": "c", "type": "prompt"}, {"audio_sample": b"x"}, 400, "invalid_value"),
        ({"name": "anna", "consent": "c"}, {"audio_sample": b"x"}, 409, None),
    ],
)  # fmt: skip
def test_a_voice_is_not_made_without_what_it_needs(
    http: httpx2.Client, fields: dict[str, str], files: dict[str, bytes], status: int, code: str | None
) -> None:
    assert_is_envelope(http.post("/v1/audio/voices", data=fields, files=files), status, code)


def test_a_clip_that_is_too_long_is_refused_by_the_librarys_sentence(
    client: openai.OpenAI, http: httpx2.Client
) -> None:
    consent = client.audio.voice_consents.create(name="Linda", language="en", recording=SAMPLE)
    with pytest.raises(openai.BadRequestError, match="expected one channel of 3 to 10 s"):
        client.audio.voices.create(audio_sample=CLIP, consent=consent.id, name="john")
    http.delete(f"/v1/audio/voice_consents/{consent.id}")


def test_another_speakers_consent_is_none() -> None:
    voice = torch.eye(192)[0]
    check_consent(voice, voice + 0.5 * torch.eye(192)[1])
    with pytest.raises(ValueError, match=f"expected at least {SAME_SPEAKER}"):
        check_consent(voice, torch.eye(192)[1])


def test_a_request_of_stepfuns_form_is_told_which_form_is_taken(http: httpx2.Client) -> None:
    body: dict[str, Any] = {"model": "stepaudio-2.5-tts", "file_id": "file-1"}
    assert_is_envelope(http.post("/v1/audio/voices", json=body), 415)


def test_nothing_of_a_shipped_voice_is_deleted(http: httpx2.Client, toy: Path) -> None:
    assert_is_envelope(http.delete("/v1/audio/voices/anna"), 403)
    assert_is_envelope(http.delete("/v1/audio/voices/..%2fvoices%2fanna"), 404)
    assert (toy / "voices" / "anna.safetensors").exists()
