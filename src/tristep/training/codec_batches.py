"""Whole clips for the tokenizer, and stretches with a reference for the flow decoder: pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tristep.audio import raw_log_mel, speech_mel
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.codec.flow import NO_CODE, UNKNOWN, energy_bin, pitch_bin
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.tokenizer import MEL_PER_FRAME, SpeechTokenizer, windowed_frames
from tristep.codec.voice import level_db
from tristep.config import Settings, TokenizerConfig
from tristep.phones import UNLABELLED, frame_phones
from tristep.training.ahead import ahead
from tristep.training.mixture import Clip, CorpusSettings, Mixture, batch_finder
from tristep.training.settings import OptimSettings
from tristep.training.speech import CodecBatch, SpeechSource, listening

BatchAt = Callable[[int, int, int, int], CodecBatch]


class ClipSettings(Settings):
    """What a run of the tokenizer reads."""

    corpora: tuple[CorpusSettings, ...]
    dev: tuple[CorpusSettings, ...]
    batch_s: float = Field(default=100.0, gt=0)
    """Seconds of sound in one micro-batch of whole clips."""
    max_duration_s: float = 20.0


class VoicedCropSettings(Settings):
    """What a run of the flow decoder reads."""

    corpora: tuple[CorpusSettings, ...]
    dev: tuple[CorpusSettings, ...]
    num_crops: int = Field(default=16, gt=0)
    """Stretches of clips in one micro-batch."""
    crop_s: float = Field(default=3.2, gt=0)
    """Seconds of one stretch."""
    min_reference_s: float = 1.0
    max_reference_s: float = 4.0
    """The reference is of random length: what is asked of the voice must not depend on how long it was heard."""
    gain_db: float = 9.0
    """Half of the stretches are made louder or softer than their reference by up to this much."""
    max_duration_s: float = 20.0


@dataclass(frozen=True)
class HeardClips:
    """Clips with the frozen encoder's frames and the speaker's embedding of each."""

    source: SpeechSource
    frames: str
    """Name of the table of encoder frames."""
    voices: str
    """Name of the table of embeddings."""

    @property
    def clips(self) -> Sequence[Clip]:
        """The clips."""
        return self.source.clips

    def voice(self, clip: Clip) -> Tensor:
        """Return the CAM++ embedding of a clip, shape `(192,)`."""
        return torch.from_numpy(self.source.store(clip).tables[self.voices].rows(clip.id)[0]).float()

    def whole(self, clips: Sequence[Clip]) -> CodecBatch:
        """Pad whole clips to one batch, with everything that the tokenizer learns from."""
        stores = [self.source.store(clip) for clip in clips]
        waveforms = [store.waveform(clip.id) for store, clip in zip(stores, clips, strict=True)]
        frames = [store.tables[self.frames].rows(clip.id) for store, clip in zip(stores, clips, strict=True)]
        phones = [frame_phones(clip.phones, len(rows)) for clip, rows in zip(clips, frames, strict=True)]
        return CodecBatch(
            waveform=pad_sequence(waveforms, batch_first=True),
            mel=padded_mels([speech_mel(waveform[None])[0] for waveform in waveforms]),
            num_mel_frames=torch.tensor([2 * len(rows) for rows in frames]),
            f0=pad_sequence([store.f0(clip.id) for store, clip in zip(stores, clips, strict=True)], batch_first=True),
            frames=pad_sequence([torch.from_numpy(rows).float() for rows in frames], batch_first=True),
            listening_mel=padded_mels([raw_log_mel(listening(waveform)) for waveform in waveforms]),
            voice=torch.stack([self.voice(clip) for clip in clips]),
            phones=pad_sequence(phones, batch_first=True, padding_value=UNLABELLED),
        )


def padded_mels(mels: Sequence[Tensor]) -> Tensor:
    """Pad mels `(M, F)` of several lengths to `(B, M, F)`."""
    return pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)


def hear(
    source: SpeechSource, encoder: AudioEncoder, digest: str, speaker: SpeakerEncoder, config: TokenizerConfig
) -> HeardClips:
    """Compute what the frozen models say of every clip that they have not heard yet.

    Args:
        source: The clips.
        encoder: The frozen encoder.
        digest: Names the encoder's weights.
        speaker: CAM++.
        config: Of the tokenizer, whose windows the encoder hears through.
    """
    windows = f"{config.context_s:g}+{config.hop_s:g}+{config.lookahead_s:g}"
    frames, voices = f"frames-{digest}-{windows}", "voice-campplus"
    encode = partial(frames_of, encoder=encoder, config=config)
    # A GPU waits for mels, which threads can make; on a CPU the encoder's own threads are busy enough.
    num_threads = 1 if encoder.positions.device.type == "cpu" else torch.get_num_threads()
    for name, store in source.stores.items():
        clips = [clip for clip in source.clips if source.store(clip) is source.stores[name]]
        store.fill_table(frames, config.encoder_dim, clips, encode, num_threads)
        store.fill_table(voices, 192, clips, lambda waveform: speaker.embed(waveform)[None])
    return HeardClips(source, frames, voices)


def frames_of(waveform: Tensor, encoder: AudioEncoder, config: TokenizerConfig) -> Tensor:
    """Return the frozen encoder's frames `(N, De)` of a clip `(S,)` at 16 kHz, on the CPU."""
    mel = raw_log_mel(waveform, config.num_mels).to(encoder.positions.device)
    return windowed_frames(mel, encoder, config).cpu()


def whole_clip_batches(heard: HeardClips, batch_s: float, optim: OptimSettings) -> BatchAt:
    """Return the batch of whole clips of any step, micro-batch and process."""
    durations_s = heard.source.num_frames / 100
    repeats = np.array([clip.corpus.repeat for clip in heard.clips])
    find = batch_finder(Mixture(durations_s, repeats, batch_s, optim.seed))

    def batch_at(step: int, micro: int, rank: int, world_size: int) -> CodecBatch:
        found = find(step, micro, optim.num_accumulation, rank, world_size)
        return heard.whole([heard.clips[index] for index in found])

    return batch_at


def in_groups(heard: HeardClips, size: int = 16) -> list[CodecBatch]:
    """Return all clips in batches of similar length."""
    order = np.argsort(heard.source.num_frames, kind="stable").tolist()
    return [heard.whole([heard.clips[i] for i in order[start : start + size]]) for start in range(0, len(order), size)]


@torch.no_grad()
def tokenize_clips(heard: HeardClips, tokenizer: SpeechTokenizer, size: int = 16) -> list[Tensor]:
    """Return the codes `(T,)` of every clip on the CPU, a last incomplete code left out."""
    device = next(tokenizer.parameters()).device
    order = np.argsort(heard.source.num_frames, kind="stable").tolist()
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    codes: dict[int, Tensor] = {}
    whole = ahead(lambda group: heard.whole([heard.clips[index] for index in group]), groups, 1, 2)
    for group, padded in zip(groups, whole, strict=True):
        batch = padded.to(device)
        assert batch.frames is not None
        assert batch.listening_mel is not None
        found = tokenizer(batch.frames, batch.listening_mel, batch.num_mel_frames // 2).codes.cpu()
        num_codes = (batch.num_mel_frames // tokenizer.mel_frames_per_code).tolist()
        codes |= {index: found[row, : num_codes[row]] for row, index in enumerate(group)}
    return [codes[index] for index in range(len(order))]


@dataclass(frozen=True)
class FlowBatch:
    """Stretches of speech as the flow decoder learns from them."""

    codes: Tensor
    """Those of the stretch and of its lookahead, shape `(B, T + lookahead)`."""
    mel: Tensor
    """Speaking mel of the stretch, shape `(B, M, F)`."""
    num_mel_frames: Tensor
    """Shape `(B,)`."""
    voice: Tensor
    """CAM++ embedding of the reference's clip, shape `(B, 192)`."""
    reference_mel: Tensor
    """Shape `(B, M, R)`."""
    num_reference_frames: Tensor
    """Shape `(B,)`."""
    prosody: Tensor
    """Bins of pitch and energy against the reference, -1 where unknown, shape `(B, 2)`."""
    phones: Tensor
    """What is said at 50 Hz, indices into `PHONES` or `UNLABELLED`, shape `(B, F / 2)`."""

    def with_lent_voices(self) -> tuple[FlowBatch, Tensor]:
        """Let every fourth stretch be spoken in the voice of the one before it, as what nano says is spoken in any.

        Returns:
            The stretches, and which of them have another's voice, shape `(B,)`; how high and loud those are is unknown.
        """
        places = torch.arange(len(self.codes), device=self.codes.device)
        lent = places % 4 == 3
        owners = places - lent.long()
        return replace(
            self,
            voice=self.voice[owners],
            reference_mel=self.reference_mel[owners],
            num_reference_frames=self.num_reference_frames[owners],
            prosody=self.prosody.masked_fill(lent[:, None], UNKNOWN),
        ), lent

    def rows(self, chosen: slice) -> FlowBatch:
        """Take some of the stretches."""
        return replace(self, **{name: value[chosen] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> FlowBatch:
        """Move every tensor."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Stretch:
    """A piece of a clip, in mel frames."""

    clip: int
    start: int
    num_frames: int


class VoicedCrops:
    """Draws stretches of clips, each with another stretch of the same speaker as its reference."""

    def __init__(self, heard: HeardClips, codes: Sequence[Tensor], settings: VoicedCropSettings, lookahead: int,
                 frames_per_code: int) -> None:  # fmt: skip
        self.heard, self.codes, self.settings, self.lookahead = heard, codes, settings, lookahead
        self.frames_per_code = frames_per_code
        self.num_frames = round(settings.crop_s * 100 / frames_per_code) * frames_per_code
        self.num_known = np.array([len(row) * frames_per_code for row in codes])
        self.by_speaker: dict[str, list[int]] = {}
        for index, clip in enumerate(heard.clips):
            self.by_speaker.setdefault(clip.speaker, []).append(index)

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each clip is drawn: by its length and its corpus."""
        weights = np.array([clip.corpus.repeat for clip in self.heard.clips]) * self.num_known
        return np.asarray(weights / weights.sum())

    def draw(self, rng: np.random.Generator) -> FlowBatch:
        """Draw one batch."""
        chosen = rng.choice(len(self.codes), self.settings.num_crops, p=self.weights)
        stretches = [self.stretch(int(clip), rng) for clip in chosen]
        return self.batch(stretches, [self.reference(stretch, rng) for stretch in stretches], rng)

    def stretch(self, clip: int, rng: np.random.Generator) -> Stretch:
        """Draw a stretch of a clip that begins with a code."""
        num_frames = int(min(self.num_frames, self.num_known[clip]))
        num_starts = (int(self.num_known[clip]) - num_frames) // self.frames_per_code + 1
        return Stretch(clip, int(rng.integers(num_starts)) * self.frames_per_code, num_frames)

    def reference(self, stretch: Stretch, rng: np.random.Generator) -> Stretch:
        """Draw a stretch of another clip of the speaker, or of the longer side of the same clip."""
        shortest, longest = (round(s * 100) for s in (self.settings.min_reference_s, self.settings.max_reference_s))
        wanted = int(rng.integers(shortest, longest + 1))
        others = [i for i in self.by_speaker[self.heard.clips[stretch.clip].speaker] if i != stretch.clip]
        if others:
            clip = int(rng.choice(others))
            room = int(self.num_known[clip])
            num_frames = min(wanted, room)
            return Stretch(clip, int(rng.integers(room - num_frames + 1)), num_frames)
        end = stretch.start + stretch.num_frames
        before, after = stretch.start, int(self.num_known[stretch.clip]) - end
        if max(before, after) < shortest:  # nothing else is known of this speaker
            return stretch
        num_frames = min(wanted, max(before, after))
        if before >= after:
            return Stretch(stretch.clip, int(rng.integers(before - num_frames + 1)), num_frames)
        return Stretch(stretch.clip, end + int(rng.integers(after - num_frames + 1)), num_frames)

    def batch(
        self, stretches: Sequence[Stretch], references: Sequence[Stretch], rng: np.random.Generator | None = None
    ) -> FlowBatch:
        """Read stretches and their references; with `rng`, some at another loudness and some with unknown prosody."""
        mels, prosody = [], []
        for stretch, reference in zip(stretches, references, strict=True):
            mel, bins = self.sound(stretch, reference, rng)
            mels.append(mel)
            prosody.append(bins)
        reference_mels = [speech_mel(self.read(reference)[0][None])[0] for reference in references]
        return FlowBatch(
            codes=pad_sequence([self.codes_of(s) for s in stretches], batch_first=True, padding_value=NO_CODE),
            mel=padded_mels(mels),
            num_mel_frames=torch.tensor([stretch.num_frames for stretch in stretches]),
            voice=torch.stack([self.heard.voice(self.heard.clips[reference.clip]) for reference in references]),
            reference_mel=padded_mels(reference_mels),
            num_reference_frames=torch.tensor([mel.shape[1] for mel in reference_mels]),
            prosody=torch.stack(prosody),
            phones=pad_sequence([self.phones_of(s) for s in stretches], batch_first=True, padding_value=UNLABELLED),
        )

    def sound(self, stretch: Stretch, reference: Stretch, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the mel `(M, F)` of a stretch and its prosody bins `(2,)` against its reference."""
        waveform, f0 = self.read(stretch)
        unknown = torch.full((2,), UNKNOWN)
        if rng is not None and rng.random() < 0.5:
            limit = 1 / max(float(waveform.abs().max()), 1e-3)
            waveform = waveform * min(10 ** (rng.uniform(-1, 1) * self.settings.gain_db / 20), limit)
        elif rng is not None and rng.random() < 0.6:
            return speech_mel(waveform[None])[0], unknown
        return speech_mel(waveform[None])[0], prosody_bins(waveform, f0, *self.read(reference))

    def read(self, stretch: Stretch) -> tuple[Tensor, Tensor]:
        """Read the waveform and the pitch of a stretch."""
        clip = self.heard.clips[stretch.clip]
        return self.heard.source.crop(clip, stretch.start, stretch.num_frames)

    def phones_of(self, stretch: Stretch) -> Tensor:
        """Return a stretch's phones, shape `(F / 2,)`."""
        labels = frame_phones(self.heard.clips[stretch.clip].phones, int(self.num_known[stretch.clip]) // MEL_PER_FRAME)
        first, num = stretch.start // MEL_PER_FRAME, stretch.num_frames // MEL_PER_FRAME
        return labels[first : first + num]

    def codes_of(self, stretch: Stretch) -> Tensor:
        """Return a stretch's codes, and -1 for every one of its lookahead that the clip lacks."""
        first, num = stretch.start // self.frames_per_code, stretch.num_frames // self.frames_per_code
        codes = self.codes[stretch.clip][first : first + num + self.lookahead]
        missing = num + self.lookahead - len(codes)
        return torch.nn.functional.pad(codes, (0, missing), value=NO_CODE)


def prosody_bins(waveform: Tensor, f0: Tensor, reference: Tensor, reference_f0: Tensor) -> Tensor:
    """Return the bins `(2,)` of a stretch's pitch and energy against its reference's; `UNKNOWN` pitch if unvoiced.

    Args:
        waveform: The stretch at 24 kHz, shape `(S,)`.
        f0: Its pitch, Hz, 0 where unvoiced, shape `(F,)`.
        reference: The reference at 24 kHz, shape `(R,)`.
        reference_f0: Its pitch.
    """
    energy = energy_bin(level_db(waveform) - level_db(reference))
    if not (f0 > 0).any() or not (reference_f0 > 0).any():
        return torch.tensor([UNKNOWN, energy])
    octaves = f0[f0 > 0].median().log2() - reference_f0[reference_f0 > 0].median().log2()
    return torch.tensor([pitch_bin(12 * float(octaves)), energy])
