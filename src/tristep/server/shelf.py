"""The voices that there are: those that ship with the weights, and those that were cloned here, with their consents.

A voice is looked up among the names of the files that lie in the two folders; what a client writes is never joined to
a path.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tristep.backbone.checkpoints import find_weights
from tristep.codec.voice import SUFFIX, Voice, list_voices, read_voice, write_voice
from tristep.server.errors import ApiError
from tristep.server.settings import Settings

CONSENTS, RECORDING = "consents", ".wav"
LISTS = {"voice": "voices", "consent": "voice_consents"}
"""Where to look, by what is looked for."""
STAND_INS = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
    "cixingnansheng", "ganliannvsheng", "jingdiannvsheng", "linjiajiejie", "qingchunshaonv", "wenrounansheng",
)  # fmt: skip
"""Voices of OpenAI and StepFun, whose clients let their users choose no others. Each stands for one of ours."""


@dataclass(frozen=True)
class Consent:
    """A recording in which somebody consents to the cloning of their voice."""

    id: str
    name: str
    language: str
    created_at: int
    sha256: str
    """Of the recording, which lies beside this."""


class Shelf:
    """Two folders of voices."""

    def __init__(self, settings: Settings) -> None:
        self.shipped = find_weights(settings.model) / "voices"
        self.own = settings.voices
        """Cloned voices; None where there is no cloning."""

    def folders(self) -> dict[str, Path]:
        """Return the folder of every voice by its name."""
        own = dict.fromkeys(list_voices(self.own), self.own) if self.own else {}
        return own | dict.fromkeys(list_voices(self.shipped), self.shipped)

    def find(self, name: str) -> Voice:
        """Read a voice by its name, or by the name of one that it stands in for.

        Raises:
            ApiError: If there is none; the sentence is the same for whatever isn't one.
        """
        folders = self.folders()
        if name in STAND_INS and name not in folders and folders:
            name = sorted(folders)[STAND_INS.index(name) % len(folders)]
        if name not in folders:
            raise missing("voice", name)
        try:
            return read_voice(folders[name], name)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param="voice") from error

    def entries(self) -> list[dict[str, str | int]]:
        """Describe all voices, as OpenAI and StepFun do."""
        return [self.entry(name, folder) for name, folder in sorted(self.folders().items())]

    def entry(self, name: str, folder: Path) -> dict[str, str | int]:
        """Describe one voice."""
        created_at = int((folder / f"{name}{SUFFIX}").stat().st_mtime)
        kind = "cloned" if folder == self.own else "system"
        return {"id": name, "object": "audio.voice", "name": name, "created_at": created_at, "type": kind}

    def add(self, voice: Voice) -> dict[str, str | int]:
        """Keep a cloned voice."""
        write_voice(self.cloned(), voice)
        return self.entry(voice.name, self.cloned())

    def remove(self, name: str) -> None:
        """Delete a cloned voice."""
        folders = self.folders()
        if name not in folders:
            raise missing("voice", name, status=404)
        if folders[name] != self.own:
            raise ApiError(403, f"the voice {name!r} came with the weights: only cloned ones can be deleted")
        (folders[name] / f"{name}{SUFFIX}").unlink(missing_ok=True)

    def cloned(self) -> Path:
        """Return the folder for cloned voices.

        Raises:
            ApiError: If there is none.
        """
        if self.own is None:
            raise ApiError(403, "this server clones no voices: start it with --voices FOLDER to let it")
        return self.own

    def consents(self) -> dict[str, Consent]:
        """Return all consents by their ids, oldest first."""
        files = (self.cloned() / CONSENTS).glob("*.json")
        read = (Consent(**json.loads(path.read_text(encoding="utf-8"))) for path in files)
        return {consent.id: consent for consent in sorted(read, key=lambda consent: (consent.created_at, consent.id))}

    def consent(self, name: str) -> tuple[Consent, Path]:
        """Find a consent and its recording by its id."""
        consents = self.consents()
        if name not in consents:
            raise missing("consent", name, status=404)
        return consents[name], self.cloned() / CONSENTS / f"{consents[name].id}{RECORDING}"

    def add_consent(self, recording: Path, name: str, language: str) -> Consent:
        """Keep a consent, given its recording as WAV."""
        folder = self.cloned() / CONSENTS
        folder.mkdir(parents=True, exist_ok=True)
        data = recording.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        consent = Consent(f"cons_{uuid.uuid4().hex}", name, language, int(time.time()), digest)
        (folder / f"{consent.id}{RECORDING}").write_bytes(data)
        (folder / f"{consent.id}.json").write_text(json.dumps(asdict(consent), ensure_ascii=False), encoding="utf-8")
        return consent

    def remove_consent(self, name: str) -> None:
        """Delete a consent and its recording; voices that were made by it stay until they are deleted too."""
        _, recording = self.consent(name)
        recording.unlink(missing_ok=True)
        recording.with_suffix(".json").unlink(missing_ok=True)


def missing(kind: str, name: str, status: int = 400) -> ApiError:
    """Say that there is no such voice or consent."""
    message = f"there is no {kind} {name[:40]!r}: GET /v1/audio/{LISTS[kind]} lists those there are"
    return ApiError(status, message, code=f"{kind}_not_found", param=kind)
