"""The codec: speech -> codes, and codes in a voice -> speech, whole or in chunks.

A folder holds it: `codec.toml`, and `tokenizer`, `flow` and `vocoder` as safetensors in bfloat16. The frozen encoder
that the tokenizer stands on is the backbone's own, and is handed in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tristep.audio import SPEAK_HZ, transposition
from tristep.codec.code_listener import CodeListener, Verify
from tristep.codec.flow import UNKNOWN, Flow, FlowStream, Manner, energy_bin, pitch_bin
from tristep.codec.saying import load_cells, silent_codes
from tristep.codec.tokenizer import AudioEncoder, SpeechTokenizer
from tristep.codec.vocoder import Vocoder, VocoderStream
from tristep.codec.voice import Voice, to_listening_rate
from tristep.config import CodecConfig, load_toml

CONFIG = "codec.toml"
CELLS = "phone_cells.safetensors"
"""What the phone dimensions of the codes say; a codec does without where it is not there."""
LISTENER = "code_listener.safetensors"
"""What tells how codes will be heard; a codec does without where it is not there."""
KNEE = 0.7
"""Share of full scale up to which sound is left as it is."""
LFS_POINTER = b"version https://git-lfs"


class Codec(nn.Module):
    """Tokenizer, flow decoder and vocoder."""

    def __init__(self, config: CodecConfig, encoder: AudioEncoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.tokenizer = SpeechTokenizer(config.tokenizer)
        self.flow = Flow(config.flow, config.tokenizer)
        self.vocoder = Vocoder(config.vocoder)
        self.silent = torch.zeros(self.codebook_size, dtype=torch.bool)
        """Which codes are known to say silence, shape `(K,)`."""
        self.verify: Verify | None = None
        """Says how well a word will be understood, and mends it; None where nobody can tell."""
        self.requires_grad_(False).eval()

    @property
    def code_rate_hz(self) -> float:
        """Codes per second."""
        return self.tokenizer.code_rate_hz

    @property
    def codebook_size(self) -> int:
        """Count the codes that there are."""
        return self.tokenizer.lattice.size

    def encode(self, waveform: Tensor, sample_rate: int = SPEAK_HZ) -> Tensor:
        """Return the codes `(T,)` of a waveform `(S,)`.

        Args:
            waveform: One clip of any length.
            sample_rate: 24 000 Hz, or 16 000 Hz as it is listened to.
        """
        heard = to_listening_rate(waveform) if sample_rate == SPEAK_HZ else waveform
        return self.tokenizer.encode(heard, self.encoder)

    def decode(
        self,
        codes: Tensor,
        voice: Voice,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float | None = None,
        semitones: float | None = None,
        decibels: float | None = None,
        tempo: float = 1.0,
    ) -> Tensor:
        """Return the waveform `(S,)` at 24 kHz of codes `(T,)` in a voice; the settings are those of `stream`."""
        stream = self.stream(
            voice, seed=seed, num_steps=num_steps, guidance=guidance,
            semitones=semitones, decibels=decibels, tempo=tempo,
        )  # fmt: skip
        return torch.cat([stream.push(codes), stream.finish()])

    def stream(
        self,
        voice: Voice,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float | None = None,
        semitones: float | None = None,
        decibels: float | None = None,
        tempo: float = 1.0,
    ) -> CodecStream:
        """Begin to speak.

        Args:
            voice: Who speaks.
            seed: Of the noise; the same seed says the same codes in the same way.
            num_steps: Euler steps of the flow, the config's if not given.
            guidance: Strength of the flow's guidance, the config's if not given; 0 costs half.
            semitones: How much higher than usual the voice speaks; as the codes have it if not given.
            decibels: How much louder than usual.
            tempo: How much faster than the codes are, at the same pitch.
        """
        manner = self.manner(voice, semitones, decibels)
        flow = self.flow.stream(manner, seed, num_steps, guidance)
        return CodecStream(flow, self.vocoder.stream(seed), semitones or 0.0, tempo)

    @torch.no_grad()
    def manner(self, voice: Voice, semitones: float | None = None, decibels: float | None = None) -> Manner:
        """Encode a voice and how high and loud it is to speak."""
        bins = [
            UNKNOWN if semitones is None else pitch_bin(semitones),
            UNKNOWN if decibels is None else energy_bin(decibels),
        ]
        device = self.vocoder.window.device
        given = voice.embedding, voice.reference_mel, torch.tensor(voice.reference_mel.shape[1]), torch.tensor(bins)
        manner: Manner = self.flow.manner_encoder(*(field[None].to(device) for field in given))
        return manner

    def save(self, folder: str | Path) -> None:
        """Write the config and the weights into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(as_toml(self.config), encoding="utf-8")
        for part, module in self.parts().items():
            weights = {name: tensor.bfloat16().contiguous() for name, tensor in module.state_dict().items()}
            save_file(weights, folder / f"{part}.safetensors")

    @classmethod
    def load(cls, folder: str | Path, encoder: AudioEncoder, device: str | torch.device = "cpu") -> Codec:
        """Load a codec, to compute in float32.

        Args:
            folder: Where `save` wrote it.
            encoder: The frozen encoder that its tokenizer was trained on, on the same device.
            device: Where its weights go.

        Raises:
            ValueError: If a file is missing, damaged or of another codec.
        """
        folder = Path(folder)
        codec = cls(load_toml(folder / CONFIG, CodecConfig), encoder)
        for part, module in codec.parts().items():
            fill(module, folder / f"{part}.safetensors")
        if (folder / CELLS).is_file():
            codec.silent = silent_codes(load_cells(folder / CELLS), codec.codebook_size)
        if (folder / LISTENER).is_file():
            listener = CodeListener(codec.config.tokenizer)
            fill(listener, folder / LISTENER)
            codec.verify = listener.requires_grad_(False).eval().verify
        return codec.to(device)

    def num_leading_silent(self, codes: Sequence[int]) -> int:
        """Count the codes of silence before the first sound."""
        return next((place for place, code in enumerate(codes) if not self.silent[code]), len(codes))

    def parts(self) -> dict[str, nn.Module]:
        """Return what has weights of its own, by the names of their files."""
        return {"tokenizer": self.tokenizer, "flow": self.flow, "vocoder": self.vocoder}


class CodecStream:
    """Speaks codes as they come: the chunks joined are what `Codec.decode` returns."""

    def __init__(self, flow: FlowStream, vocoder: VocoderStream, semitones: float = 0.0, tempo: float = 1.0) -> None:
        self.flow, self.vocoder = flow, vocoder
        self._moved = transposition(semitones) if semitones else None
        self._pace = Pace(tempo)

    def push(self, codes: Tensor) -> Tensor:
        """Take the next codes `(T,)` and return the samples that they settle, shape `(S,)`."""
        return limited(self.vocoder.push(self._changed(self.flow.push(codes))))

    def finish(self) -> Tensor:
        """Return the samples that were waiting for more codes, shape `(S,)`."""
        return limited(torch.cat([self.vocoder.push(self._changed(self.flow.finish())), self.vocoder.finish()]))

    def _changed(self, mel: Tensor) -> Tensor:
        """Move a mel `(M, F)` in pitch and pace: codes have some of both, so the flow alone hardly obeys."""
        return self._pace.push(mel if self._moved is None else self._moved.to(mel.device) @ mel)


def limited(waveform: Tensor) -> Tensor:
    """Bend a waveform `(S,)` where it is loud, so that no peak is cut off at full scale."""
    over = (waveform.abs() - KNEE).clamp(min=0)
    bent = (1 - KNEE) * torch.tanh(over / (1 - KNEE))
    return waveform - waveform.sign() * (over - bent)


class Pace:
    """Changes the pace of a mel as it comes: between its frames lie the frames of the faster or slower one."""

    def __init__(self, tempo: float) -> None:
        self.tempo = tempo
        self._held: Tensor | None = None
        self._first = self._num_out = 0
        """The frame that is held first, and how many have been returned."""

    def push(self, mel: Tensor) -> Tensor:
        """Take frames `(M, F)` and return those that they settle; the whole gives what its chunks give."""
        if self.tempo == 1:
            return mel
        self._held = mel if self._held is None else torch.cat([self._held, mel], dim=1)
        if not (num_held := self._held.shape[1]):
            return mel
        num = math.floor((self._first + num_held - 1) / self.tempo) + 1
        places = torch.arange(self._num_out, num, dtype=torch.float64, device=mel.device) * self.tempo - self._first
        before = places.floor().long()
        share = (places - before).to(mel.dtype)
        after = (before + 1).clamp(max=num_held - 1)
        frames = self._held[:, before] * (1 - share) + self._held[:, after] * share
        self._num_out = num
        passed = min(math.floor(num * self.tempo) - self._first, num_held - 1)
        self._held, self._first = self._held[:, passed:], self._first + passed
        return frames


def load_tokenizer(folder: str | Path) -> SpeechTokenizer:
    """Load only the speech tokenizer of a codec's folder; nothing else of it need be trained yet."""
    folder = Path(folder)
    tokenizer = SpeechTokenizer(load_toml(folder / CONFIG, CodecConfig).tokenizer)
    fill(tokenizer, folder / "tokenizer.safetensors")
    return tokenizer.requires_grad_(False).eval()


def fill(module: nn.Module, path: Path) -> None:
    """Read a file of weights into a module.

    Raises:
        ValueError: If the file is missing, a Git LFS pointer, damaged, or of a module of other sizes.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: fetch the whole codec")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull'")
    try:
        module.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not fit {CONFIG} beside it ({reason}): fetch both again") from error


def as_toml(config: CodecConfig) -> str:
    """Write a config as TOML; JSON's numbers, strings and lists are TOML's too."""
    lines = []
    for name, value in config.model_dump(mode="json", exclude_none=True).items():
        table = value if isinstance(value, dict) else None
        lines.append(f"\n[{name}]" if table is not None else f"{name} = {json.dumps(value)}")
        lines += [f"{key} = {json.dumps(setting)}" for key, setting in (table or {}).items()]
    return "\n".join(lines) + "\n"
