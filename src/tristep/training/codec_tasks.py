"""The codec's tokenizer and flow decoder as tasks: what trains, on which losses, and how it is measured.

    tristep train recipes/nano/0_codec_tokenizer.toml --out runs/tokenizer
    tristep train recipes/nano/0_codec_flow.toml --out runs/flow

The flow decoder learns from the codes of a trained tokenizer, which are computed once before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tristep.backbone.checkpoints import load_encoder
from tristep.codec.ear import Ear, PhoneReader
from tristep.codec.flow import Flow, Manner, Velocity
from tristep.codec.objective import (
    crowding,
    flow_path,
    frame_errors,
    hearing_losses,
    mel_loss,
    phone_loss,
    prosody_losses,
    relative_melody,
)
from tristep.codec.saying import PhoneCells
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.tokenizer import CodeReader, Reading, SpeechTokenizer, Tokenized
from tristep.config import CodecConfig, Settings, TokenizerConfig, load_codec_config
from tristep.phones import PHONES, UNLABELLED, frame_phones
from tristep.training import distributed
from tristep.training.checkpoints import load_trained
from tristep.training.codec_batches import (
    ClipSettings,
    FlowBatch,
    HeardClips,
    VoicedCrops,
    VoicedCropSettings,
    hear,
    in_groups,
    tokenize_clips,
    whole_clip_batches,
)
from tristep.training.frames import weights_digest
from tristep.training.mixture import CorpusSettings, read_clips
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.speech import CodecBatch, SpeechSource
from tristep.training.step import Task, means
from tristep.training.supervised import train

EVALUATION_CROPS = 48
"""Held-out stretches that the flow decoder is measured on."""


class TokenizerLossSettings(Settings):
    """Weights of what is read from the codes, each per frame of 10 ms, or of 20 ms for phones."""

    phones: float = 4.0
    early_phones: float = 1.0
    melody: float = 20.0
    voiced: float = 1.0
    energy: float = 0.5
    mel: float = 2.0
    crowding: float = 10.0
    """Of codes that leave room in the lattice; per frame of 10 ms."""


class TokenizerRecipe(Settings):
    """One run of the tokenizer."""

    part: Literal["tokenizer"]
    codec: str = "codec-nano"
    """A codec config: its name, or a .toml file."""
    encoder: str = "nano"
    """The weights whose frozen encoder the tokenizer stands on."""
    speaker: str
    """Weights of CAM++, which says whose voice the reader may take for granted."""
    start: str | None = None
    """The folder of an earlier run, whose trained weights this one goes on from."""
    lr: float
    data: ClipSettings
    loss: TokenizerLossSettings = TokenizerLossSettings()
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()


class FlowLossSettings(Settings):
    """Weights of the flow decoder's losses."""

    guess: float = 1.0
    """Of the code encoder's first guess of the mel, beside the flow's 1."""
    dropped: float = 0.2
    """Share of the stretches whose estimator learns without its condition, for guidance."""
    heard_phones: float = 0.15
    """Of the cross-entropy of the phones that an ear hears in the mel, where the recipe names its reader."""
    heard_frames: float = 0.3
    """Of the error of what the ear's encoder makes of the mel."""
    heard_voice: float = 1.0
    """Of what the cosine between the voice in the mel and the one that was asked for lacks of 1."""


class FlowRecipe(Settings):
    """One run of the flow decoder."""

    part: Literal["flow"]
    codec: str = "codec-nano"
    """A codec config: its name, or a .toml file."""
    encoder: str = "nano"
    """The weights whose frozen encoder the tokenizer stands on."""
    speaker: str
    """Weights of CAM++."""
    tokenizer: str
    """Weights of the tokenizer: a `tokenizer.safetensors`."""
    phone_cells: str | None = None
    """What its codes say, a `phone_cells.safetensors`: codes of clips with known phones are moved to say them."""
    heard_share: float = 0.3
    """Share of such clips whose codes stay as they were heard."""
    phone_reader: str | None = None
    """Hears phones, a `phone_reader.safetensors` of `corpus.phones`: an ear that the mel has to please."""
    start: str | None = None
    """The folder of an earlier run, whose trained weights this one goes on from."""
    lr: float
    data: VoicedCropSettings
    loss: FlowLossSettings = FlowLossSettings()
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()


class TokenizerTrainee(nn.Module):
    """The tokenizer and the reader that teaches it."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.tokenizer = SpeechTokenizer(config)
        self.reader = CodeReader(config, len(PHONES))

    def forward(self, batch: CodecBatch) -> tuple[Tokenized, Reading]:
        """Tokenize a batch of whole clips and read the codes back."""
        assert batch.frames is not None
        assert batch.listening_mel is not None
        assert batch.voice is not None
        num_frames = batch.num_mel_frames // 2
        tokenized = self.tokenizer(batch.frames, batch.listening_mel, num_frames)
        return tokenized, self.reader(tokenized, batch.voice)


def tokenizer_losses(trainee: nn.Module, batch: CodecBatch, weights: TokenizerLossSettings) -> dict[str, Tensor]:
    """Compute the weighted sum of the reader's losses, per frame of 10 ms, and its parts."""
    tokenized, reading = trainee(batch)
    parts = reading_losses(reading, batch)
    parts["crowding"] = crowding(tokenized.points, tokenized.num_codes) * batch.num_mel_frames.sum()
    total = sum(weight * parts[name] for name, weight in weights.model_dump().items())
    return {"loss": torch.as_tensor(total), "num_targets": batch.num_mel_frames.sum(), **parts}


def reading_losses(reading: Reading, batch: CodecBatch) -> dict[str, Tensor]:
    """Compare what was read with phones, prosody and mel of the clips, as sums over their targets."""
    assert batch.phones is not None
    num_frames = batch.num_mel_frames // 2 * 2
    length = int(num_frames.max())
    mel = batch.mel[:, :, :length]
    num_labelled = (batch.phones != UNLABELLED).sum()
    return {
        "phones": phone_loss(reading.phones, batch.phones),
        "phones_targets": num_labelled,
        "early_phones": phone_loss(reading.early_phones, batch.phones),
        "early_phones_targets": num_labelled,
        "mel": mel_loss(reading.mel[:, :, :length], mel, num_frames),
        **prosody_losses(reading.prosody[:, :length], batch.f0[:, :length], mel, num_frames),
    }


def evaluate_tokenizer(trainee: nn.Module, dev: Sequence[CodecBatch]) -> dict[str, float]:
    """Measure what the codes carry on held-out clips.

    Returns:
        The losses' parts; `phone_accuracy` of frames, from codes and `early`, before them; `melody_correlation` over
        voiced frames; `code_entropy_bits` and `codes_used`, the share of the codebook that occurs.
    """
    assert isinstance(trainee, TokenizerTrainee)
    device = next(trainee.parameters()).device
    sums: dict[str, float] = {}
    melodies: list[Tensor] = []
    counts = torch.zeros(trainee.tokenizer.lattice.size, dtype=torch.long)
    for batch in (clips.to(device) for clips in dev):
        tokenized, reading = trainee(batch)
        parts = reading_losses(reading, batch) | phones_right(reading, batch)
        parts["num_targets"] = batch.num_mel_frames.sum()
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in parts.items()}
        melodies.append(voiced_melodies(reading, batch))
        for codes, num in zip(tokenized.codes, tokenized.num_codes.tolist(), strict=True):
            counts += codes[:num].cpu().bincount(minlength=len(counts))
    return {
        **means(sums),
        "melody_correlation": float(torch.corrcoef(torch.cat(melodies, dim=1))[0, 1]),
        "code_entropy_bits": float(torch.special.entr(counts / counts.sum()).sum()) / math.log(2),
        "codes_used": float((counts > 0).double().mean()),
    }


def phones_right(reading: Reading, batch: CodecBatch) -> dict[str, Tensor]:
    """Count the labelled frames whose phone was read right, from codes and before them."""
    assert batch.phones is not None
    num_labelled = (batch.phones != UNLABELLED).sum()
    counted: dict[str, Tensor] = {}
    for name, logits in (("phone_accuracy", reading.phones), ("early_phone_accuracy", reading.early_phones)):
        counted[name] = (logits[:, : batch.phones.shape[1]].argmax(dim=-1) == batch.phones).sum()
        counted[f"{name}_targets"] = num_labelled
    return counted


def voiced_melodies(reading: Reading, batch: CodecBatch) -> Tensor:
    """Gather the true and the read melody of all voiced frames, shape `(2, n)`."""
    num_frames = batch.num_mel_frames // 2 * 2
    f0 = batch.f0[:, : int(num_frames.max())]
    known = torch.arange(f0.shape[1], device=f0.device) < num_frames[:, None]
    voiced = (f0 > 0) & known
    read = reading.prosody[:, : f0.shape[1], 0].float()
    return torch.stack([relative_melody(f0, num_frames)[voiced], read[voiced]]).cpu()


class FlowTrainee(nn.Module):
    """The flow decoder under the name that its weights are saved by."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.flow = Flow(config.flow, config.tokenizer)

    def forward(self, batch: FlowBatch, noisy: Tensor, time: Tensor, dropped: Tensor) -> Velocity:
        """Estimate the velocity of a batch at a time `(B,)`, `dropped` `(B,)` of its rows without their condition."""
        return self.flow.velocity(noisy, time, batch.codes, self.manner(batch), dropped)

    def spoken(self, batch: FlowBatch, noise: Tensor) -> Tensor:
        """Return the mel that is spoken for a batch, from noise `(B, N, 2 M)`: scaled, in pairs, of the same shape."""
        return self.flow.speak(batch.codes, self.manner(batch), noise)

    def manner(self, batch: FlowBatch) -> Manner:
        """Encode whose voice it is and how it speaks."""
        manner: Manner = self.flow.manner_encoder(
            batch.voice, batch.reference_mel, batch.num_reference_frames, batch.prosody
        )
        return manner


def flow_losses(trainee: nn.Module, batch: FlowBatch, weights: FlowLossSettings, ear: Ear | None) -> dict[str, Tensor]:
    """Compute the flow decoder's losses as sums over pairs of frames, at random times and for random noise."""
    B, device = len(batch.codes), batch.codes.device
    # As many early times as the steps of decoding take.
    time = 1 - torch.cos(torch.rand(B, device=device) * math.pi / 2)
    dropped = torch.rand(B, device=device) < weights.dropped
    noise = torch.randn(B, batch.mel.shape[2] // 2, 2 * batch.mel.shape[1], device=device)
    return velocity_losses(trainee, batch, noise, time, dropped, weights, ear)


def velocity_losses(
    trainee: nn.Module,
    batch: FlowBatch,
    noise: Tensor,
    time: Tensor,
    dropped: Tensor,
    weights: FlowLossSettings,
    ear: Ear | None,
) -> dict[str, Tensor]:
    """Compare the estimated with the straight path's velocity, the first guess with the mel, and what an ear hears.

    The ear listens to the first guess in every other row, and elsewhere to the mel that would be spoken; in half of
    those rows by somebody else, as the codes that the backbone draws are nobody's own.
    """
    assert isinstance(trainee, FlowTrainee)
    flow, num_pairs = trainee.flow, batch.num_mel_frames // 2
    mel = flow.scaled(batch.mel)
    noisy, wanted = flow_path(noise, mel, time)
    estimated = trainee(batch, noisy, time, dropped)
    error = frame_errors(estimated.velocity, wanted, num_pairs, power=2)
    guess = frame_errors(estimated.guess, mel, num_pairs, power=1)
    sums = {"loss": error + weights.guess * guess, "num_targets": num_pairs.sum(), "flow": error, "guess": guess}
    if ear is None:
        return sums
    spoken, lent = batch.with_lent_voices()
    listened = estimated.guess.float().clone()
    listened[1::2] = trainee.spoken(spoken.rows(slice(1, None, 2)), noise[1::2]).float()
    with torch.no_grad():
        truth = ear.frames(batch.mel, batch.num_mel_frames)
    heard = ear.hear(flow.unscaled(listened), batch.num_mel_frames)
    parts = hearing_losses(heard, truth, spoken.voice, batch.phones, num_pairs, lent)
    heard_weights = {"phones": weights.heard_phones, "frames": weights.heard_frames, "voice": weights.heard_voice}
    sums["loss"] = sums["loss"] + sum(weight * parts[name] for name, weight in heard_weights.items())
    return sums | parts


def evaluate_flow(
    trainee: nn.Module, dev: Sequence[FlowBatch], weights: FlowLossSettings, ear: Ear | None
) -> dict[str, float]:
    """Measure the losses on held-out stretches at fixed times and noise, each with its condition."""
    sums: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    device = next(trainee.parameters()).device
    for batch in dev:
        noise = torch.randn(len(batch.codes), batch.mel.shape[2] // 2, 2 * batch.mel.shape[1], generator=generator)
        time = torch.linspace(0.02, 0.98, len(batch.codes))
        dropped = torch.zeros(len(batch.codes), dtype=torch.bool, device=device)
        losses = velocity_losses(trainee, batch.to(device), noise.to(device), time.to(device), dropped, weights, ear)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return means(sums)


def run_tokenizer(recipe: TokenizerRecipe, out: Path, steps: int | None, data_root: Path) -> dict[str, float]:
    """Train the tokenizer."""
    config = load_codec_config(recipe.codec)
    heard, dev = heard_corpora(recipe, config.tokenizer, data_root)
    torch.manual_seed(recipe.optim.seed)
    trainee = TokenizerTrainee(config.tokenizer)
    batch_at = whole_clip_batches(heard, recipe.data.batch_s, recipe.optim)
    losses = partial(tokenizer_losses, weights=recipe.loss)
    evaluate = partial(evaluate_tokenizer, dev=in_groups(dev))
    return run_task(trainee, recipe, losses, batch_at, evaluate, out, steps)


def run_flow(recipe: FlowRecipe, out: Path, steps: int | None, data_root: Path) -> dict[str, float]:
    """Train the flow decoder on the codes of a trained tokenizer."""
    config = load_codec_config(recipe.codec)
    heard, dev = heard_corpora(recipe, config.tokenizer, data_root)
    tokenizer = load_tokenizer(config.tokenizer, Path(recipe.tokenizer))
    cells = PhoneCells.load(recipe.phone_cells, config.tokenizer) if recipe.phone_cells else None
    codes = say_phones(heard, tokenize_clips(heard, tokenizer), cells, recipe.heard_share)
    dev_codes = say_phones(dev, tokenize_clips(dev, tokenizer), cells, 0.0)
    crops, dev_crops = (
        VoicedCrops(clips, found, recipe.data, config.flow.lookahead, tokenizer.mel_frames_per_code)
        for clips, found in ((heard, codes), (dev, dev_codes))
    )
    torch.manual_seed(recipe.optim.seed)
    num_batches = -(-EVALUATION_CROPS // recipe.data.num_crops)
    held_out = [dev_crops.draw(np.random.default_rng([0, number])) for number in range(num_batches)]

    def batch_at(step: int, micro: int, rank: int, world_size: int) -> FlowBatch:
        return crops.draw(np.random.default_rng([recipe.optim.seed, step, micro, rank]))

    ear = load_ear(recipe)
    losses = partial(flow_losses, weights=recipe.loss, ear=ear)
    evaluate = partial(evaluate_flow, dev=held_out, weights=recipe.loss, ear=ear)
    return run_task(FlowTrainee(config), recipe, losses, batch_at, evaluate, out, steps)


def run_task(
    trainee: nn.Module,
    recipe: TokenizerRecipe | FlowRecipe,
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    batch_at: Callable[[int, int, int, int], Any],
    evaluate: Callable[[nn.Module], dict[str, float]],
    out: Path,
    steps: int | None,
) -> dict[str, float]:
    """Run the loop on a part, from the start that its recipe names."""
    if recipe.start:
        load_trained(trainee, Path(recipe.start) / "trained.safetensors")
    trainee.to(distributed.device())
    distributed.shard(trainee, [], ["spoken"] if isinstance(trainee, FlowTrainee) else [])
    groups = [{"name": recipe.part, "params": list(trainee.parameters()), "lr": recipe.lr}]
    return train(Task(trainee, losses, batch_at, evaluate, groups), recipe.optim, recipe.loop, out, steps)


def heard_corpora(
    recipe: TokenizerRecipe | FlowRecipe, config: TokenizerConfig, data_root: Path
) -> tuple[HeardClips, HeardClips]:
    """Read a recipe's corpora and held-out corpora, and let the frozen models hear what is new in them."""
    distributed.start()
    encoder = load_encoder(recipe.encoder).to(distributed.device())
    speaker = SpeakerEncoder.load(recipe.speaker)

    def heard(corpora: Sequence[CorpusSettings]) -> HeardClips:
        clips = read_clips(corpora, data_root, recipe.data.max_duration_s)
        source = SpeechSource(clips, data_root / "speech")
        return hear(source, encoder, weights_digest(encoder), speaker, config)

    with distributed.leader_first():
        return heard(recipe.data.corpora), heard(recipe.data.dev)


def load_ear(recipe: FlowRecipe) -> Ear | None:
    """Load the ear that the mel has to please, if the recipe names its reader."""
    if recipe.phone_reader is None:
        return None
    if not Path(recipe.phone_reader).is_file():
        raise ValueError(f"there is no {recipe.phone_reader!r}: `python -m tristep.corpus.phones` writes it")
    device = distributed.device()
    return Ear(
        load_encoder(recipe.encoder).to(device),
        PhoneReader.load(recipe.phone_reader).to(device),
        SpeakerEncoder.load(recipe.speaker).to(device),
    )


def say_phones(heard: HeardClips, codes: list[Tensor], cells: PhoneCells | None, heard_share: float) -> list[Tensor]:
    """Move the codes of clips with known phones to say them, but for a share that stays as it was heard."""
    if cells is None:
        return codes
    stays = np.random.default_rng(0).random(len(codes)) < heard_share
    labels = (frame_phones(clip.phones, cells.stride * len(own)) for clip, own in
              zip(heard.clips, codes, strict=True))  # fmt: skip
    return [own if stay else cells.say(own, phones) for own, phones, stay in zip(codes, labels, stays, strict=True)]


def load_tokenizer(config: TokenizerConfig, path: Path) -> SpeechTokenizer:
    """Load trained weights of a tokenizer, to use and not to train it."""
    if not path.is_file():
        raise ValueError(f"there is no tokenizer {str(path)!r}: train it first, or name its tokenizer.safetensors")
    tokenizer = SpeechTokenizer(config)
    tokenizer.load_state_dict(load_file(path))
    return tokenizer.to(distributed.device()).eval().requires_grad_(False)
