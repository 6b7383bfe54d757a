"""Codec training: a recipe becomes one part of the codec, its losses and its data, and the loop runs them.

    tristep train recipes/nano/0_codec_vocoder.toml --out runs/vocoder
    tristep train recipes/nano/0_codec_tokenizer.toml --out runs/tokenizer
    tristep train recipes/nano/0_codec_flow.toml --out runs/flow

A run leaves `trained.safetensors`, from which another run can start, and the part's weights alone, in bfloat16.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.codec.adversary import Adversary, adversarial_losses, loudness, spectral_distance
from tristep.codec.codec import CELLS
from tristep.codec.pitch import bridged
from tristep.codec.saying import read_cells
from tristep.codec.vocoder import PitchPredictor, Vocoder
from tristep.config import Settings, TokenizerConfig, VocoderConfig, load_codec_config, load_toml
from tristep.training import distributed
from tristep.training.checkpoints import load_trained
from tristep.training.codec_tasks import FlowRecipe, TokenizerRecipe, TokenizerTrainee, run_flow, run_tokenizer
from tristep.training.mixture import CorpusSettings, read_clips
from tristep.training.settings import LoopSettings, OptimSettings, lasting
from tristep.training.speech import CodecBatch, SpeechSource
from tristep.training.step import Task
from tristep.training.supervised import train


class SpeechSettings(Settings):
    """What a run reads."""

    corpora: tuple[CorpusSettings, ...]
    dev: tuple[CorpusSettings, ...]
    num_crops: int = Field(default=16, gt=0)
    """Stretches of clips in one micro-batch."""
    num_frames: int = Field(default=100, gt=0)
    """Speaking mel frames in one stretch, 10 ms each."""
    gain_db: tuple[float, float] = (-12.0, 3.0)
    """Each stretch is made louder by a random amount in this range."""
    max_duration_s: float = 30.0


class VocoderLossSettings(Settings):
    """Weights of the vocoder's losses."""

    repulsion: float = Field(default=0.5, ge=0, le=1)
    """How much two draws of noise repel each other: 1 is the energy distance, 0 a plain spectral distance."""
    pitch: float = 0.1
    predicted_pitch: float = Field(default=0.2, ge=0, le=1)
    """Share of the stretches whose pulses follow the predicted pitch instead of the measured one."""
    fool: float = 0.0
    """Weight of the discriminators' verdict; 0 trains without discriminators."""
    match: float = 0.0
    """Weight of the difference between the discriminators' activations on real and vocoded speech."""


class VocoderRecipe(Settings):
    """One run of the vocoder."""

    part: Literal["vocoder"]
    start: str | None = None
    """The folder of an earlier run, whose trained weights this one goes on from."""
    lr: float
    adversary_lr: float = 2e-4
    vocoder: VocoderConfig = VocoderConfig()
    data: SpeechSettings
    loss: VocoderLossSettings = VocoderLossSettings()
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()


CodecRecipe = VocoderRecipe | TokenizerRecipe | FlowRecipe
RECIPES: dict[str | None, type[CodecRecipe]] = {
    "vocoder": VocoderRecipe,
    "tokenizer": TokenizerRecipe,
    "flow": FlowRecipe,
}


class VocoderGame(nn.Module):
    """The vocoder and, where they take part, its discriminators."""

    def __init__(self, config: VocoderConfig, with_adversary: bool) -> None:
        super().__init__()
        self.vocoder = Vocoder(config)
        self.adversary = Adversary() if with_adversary else None


def part_of(recipe_path: Path) -> str | None:
    """Return the part of the codec that a recipe names; None if it is no recipe of the codec's."""
    try:
        part = tomllib.loads(recipe_path.read_text(encoding="utf-8")).get("part")
    except (OSError, ValueError):  # whoever reads it next says what is wrong with it
        return None
    return None if part is None else str(part)


def load_codec_recipe(recipe_path: Path) -> CodecRecipe:
    """Read a recipe of the part of the codec that it names."""
    part = part_of(recipe_path)
    if part not in RECIPES:
        raise ValueError(f"{recipe_path.name} has part = {part!r}: expected 'vocoder', 'tokenizer' or 'flow'")
    return load_toml(recipe_path, RECIPES[part])


def run_codec(
    recipe_path: Path,
    out: Path,
    steps: int | None = None,
    data_root: Path = Path("data"),
    minutes: float | None = None,
) -> dict[str, float]:
    """Train the part of the codec that a recipe names, and write it to `out/<part>.safetensors`.

    Args:
        recipe_path: A TOML file.
        out: The run's folder; a run that was stopped goes on where it was.
        steps: Stop after this many steps instead of the recipe's.
        data_root: Folder that the recipe's manifests are relative to.
        minutes: Stop taking steps after so long instead of the recipe's time.

    Returns:
        The last evaluation.
    """
    recipe = lasting(load_codec_recipe(recipe_path), minutes)
    if isinstance(recipe, VocoderRecipe):
        measures = run_vocoder(recipe, out, steps, data_root)
    elif isinstance(recipe, TokenizerRecipe):
        measures = run_tokenizer(recipe, out, steps, data_root)
    else:
        measures = run_flow(recipe, out, steps, data_root)
    if distributed.world().rank == 0:
        save_codec(recipe, out)
    return measures


def save_codec(recipe: CodecRecipe, out: Path) -> None:
    """Write what a run of the codec leaves beside `out/trained.safetensors`."""
    save_part(out, recipe.part)
    if isinstance(recipe, TokenizerRecipe):
        save_cells(out, load_codec_config(recipe.codec).tokenizer)


def run_vocoder(recipe: VocoderRecipe, out: Path, steps: int | None, data_root: Path) -> dict[str, float]:
    """Train the vocoder."""
    distributed.start()
    with distributed.leader_first():  # it reads and measures what is missing, once for all
        source, dev = (
            SpeechSource(read_clips(corpora, data_root, recipe.data.max_duration_s), data_root / "speech")
            for corpora in (recipe.data.corpora, recipe.data.dev)
        )
    torch.manual_seed(recipe.optim.seed)
    game = VocoderGame(recipe.vocoder, recipe.loss.fool > 0)
    if recipe.start:
        load_start(game, Path(recipe.start))
    game.to(distributed.device())
    groups: list[dict[str, Any]] = [{"name": "vocoder", "lr": recipe.lr, "params": list(game.vocoder.parameters())}]
    if game.adversary is not None:
        params = list(game.adversary.parameters())
        groups.append({"name": "adversary", "lr": recipe.adversary_lr, "params": params})
    losses = partial(vocoder_losses, settings=recipe.loss)
    task = Task(game, losses, crop_batches(source, recipe), partial(evaluate_vocoder, dev=dev), groups)
    return train(task, recipe.optim, recipe.loop, out, steps)


def load_start(game: VocoderGame, folder: Path) -> None:
    """Put in the weights of an earlier run."""
    path = folder / "trained.safetensors"
    if not path.is_file():
        raise ValueError(f"start = {str(folder)!r} holds no trained.safetensors: name the folder of an earlier run")
    load_trained(game, path)


def save_part(out: Path, part: str) -> None:
    """Write `out/<part>.safetensors`: the trained weights of one part alone, in bfloat16."""
    trained = load_file(out / "trained.safetensors")
    prefix = f"{part}."
    weights = {k.removeprefix(prefix): v.bfloat16() for k, v in trained.items() if k.startswith(prefix)}
    save_file(weights, out / f"{part}.safetensors")
    (out / f"{part}.safetensors").chmod(0o644)


def save_cells(out: Path, config: TokenizerConfig) -> None:
    """Write `out/phone_cells.safetensors`: what the phone dimensions of a trained tokenizer's codes say."""
    trainee = TokenizerTrainee(config).eval()
    load_trained(trainee, out / "trained.safetensors")
    levels = config.levels[: config.num_phone_dims]
    logprobs = read_cells(trainee.reader.phones, levels, config.stride)
    save_file({"logprobs": logprobs}, out / CELLS)


def crop_batches(source: SpeechSource, recipe: VocoderRecipe) -> Callable[[int, int, int, int], CodecBatch]:
    """Return the batch of any step, micro-batch and process: a pure function of them."""

    def batch_at(step: int, micro: int, rank: int, world_size: int) -> CodecBatch:
        rng = np.random.default_rng([recipe.optim.seed, step, micro, rank])
        return source.crops(recipe.data.num_crops, recipe.data.num_frames, recipe.data.gain_db, rng)

    return batch_at


def vocoder_losses(game: nn.Module, batch: CodecBatch, settings: VocoderLossSettings) -> dict[str, Tensor]:
    """Compute the vocoder's losses, and the discriminators' where they take part, as sums over stretches."""
    assert isinstance(game, VocoderGame)
    B = len(batch.mel)
    pitch_loss, predicted = pitch_losses(game.vocoder.pitch, batch)
    measured = torch.stack([bridged(row) for row in batch.f0.cpu()]).to(predicted.device)
    follows = torch.rand(B, 1, device=predicted.device) < settings.predicted_pitch
    low, high = game.vocoder.config.min_f0_hz, game.vocoder.config.max_f0_hz
    f0 = torch.where(follows, predicted, measured.clamp(low, high))
    seeds = torch.randint(0, 1 << 31, (B, 2 if settings.repulsion else 1), device=f0.device)
    offset = torch.rand(B, device=f0.device, dtype=torch.float64)
    drawn = game.vocoder.synthesise(batch.mel, f0, seeds, start_cycles=offset)  # (B, K, S)
    wanted = loudness(batch.waveform)
    draws = [loudness(drawn[:, k]) for k in range(drawn.shape[1])]
    distance = torch.stack([spectral_distance(draw, wanted, batch.top_hz) for draw in draws]).mean(0).sum()
    loss = distance + settings.pitch * pitch_loss
    sums = {"spectral": distance, "pitch": pitch_loss}
    if settings.repulsion:
        sums["repulsion"] = spectral_distance(draws[0], draws[1], batch.top_hz).sum()
        loss = loss - settings.repulsion / 2 * sums["repulsion"]
    if game.adversary is not None:
        terms = adversarial_losses(game.adversary, batch.waveform, drawn[:, 0])
        sums |= {name: B * value for name, value in terms.items()}
        loss = loss + settings.fool * sums["fool"] + settings.match * sums["match"] + sums["discriminate"]
    return {"loss": loss, "num_targets": torch.tensor(float(B)), **sums}


def pitch_losses(predictor: PitchPredictor, batch: CodecBatch) -> tuple[Tensor, Tensor]:
    """Compute the pitch predictor's loss, summed over stretches, and the pitch it reads, shape `(B, F)`."""
    logits, voiced_logits = predictor(batch.mel)
    voiced = batch.f0 > 0
    places = predictor.places(batch.f0.clamp(min=1.0))[..., None]  # (B, F, 1)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    targets = (-((classes - places) ** 2) / 2).softmax(-1)
    class_loss = -(targets * logits.log_softmax(-1)).sum(-1) * voiced  # (B, F)
    voiced_loss = nn.functional.binary_cross_entropy_with_logits(voiced_logits, voiced.float(), reduction="none")
    return (class_loss + voiced_loss).mean(1).sum(), predictor.frequency(logits.detach())


def evaluate_vocoder(game: nn.Module, dev: SpeechSource) -> dict[str, float]:
    """Vocode held-out clips from their true mels: spectral distance, pitch error, and PESQ and STOI if installed."""
    assert isinstance(game, VocoderGame)
    device = game.vocoder.window.device
    rows: list[dict[str, float]] = []
    for clip in dev.clips:
        batch = dev.whole(clip).to(device)
        vocoded = game.vocoder(batch.mel)
        spectral = spectral_distance(loudness(vocoded), loudness(batch.waveform), batch.top_hz)
        rows.append(
            {"spectral": float(spectral)}
            | pitch_errors(game.vocoder, batch)
            | reference_scores(batch.waveform[0].cpu(), vocoded[0].float().cpu())
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def pitch_errors(vocoder: Vocoder, batch: CodecBatch) -> dict[str, float]:
    """Measure the pitch predictor: share of voiced frames off by more than a semitone, share of wrong voicing."""
    logits, voiced_logits = vocoder.pitch(batch.mel)
    voiced = batch.f0 > 0
    semitones = 12 * (vocoder.pitch.frequency(logits) / batch.f0.clamp(min=1)).log2().abs()
    off = ((semitones > 1) & voiced).sum() / voiced.sum().clamp(min=1)
    return {"pitch_off": float(off), "voicing_off": float(((voiced_logits > 0) != voiced).float().mean())}


def reference_scores(waveform: Tensor, vocoded: Tensor) -> dict[str, float]:
    """Compare with the original, shape `(S,)` both, by PESQ (wide band) and STOI.

    Nothing comes where they are not installed, or of clips under a second, which they can't judge.
    """
    try:
        from pesq import NoUtterancesError, pesq
        from pystoi import stoi
    except ModuleNotFoundError:
        return {}
    if len(waveform) < SPEAK_HZ:
        return {}
    reference, heard = (soxr.resample(w.numpy(), SPEAK_HZ, LISTEN_HZ) for w in (waveform, vocoded))
    scores = {"stoi": float(stoi(reference, heard, LISTEN_HZ))}
    with suppress(NoUtterancesError):
        scores["pesq_wb"] = float(pesq(LISTEN_HZ, reference, heard, "wb"))
    return scores
