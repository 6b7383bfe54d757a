from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tristep.codec.vocoder import Vocoder
from tristep.config import VocoderConfig, load_toml
from tristep.corpus.tones import write_corpus
from tristep.training.codec import (
    VocoderGame,
    VocoderLossSettings,
    VocoderRecipe,
    part_of,
    pitch_losses,
    run_codec,
    vocoder_losses,
)
from tristep.training.speech import CodecBatch

RECIPES = Path(__file__).parents[2] / "recipes"
TOY_RECIPE = RECIPES / "toy" / "codec.toml"
TINY = VocoderConfig(dim=8, num_blocks=2, pitch_dim=8, num_pitch_blocks=1, num_pitch_bins=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    write_corpus(root / "tones", num_clips=30, seed=0)
    return root


def short_recipe(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TOY_RECIPE.read_text()
    small = (("dim = 32", "dim = 8"), ("steps = 100", "steps = 4"), ("_every = 50", "_every = 2"))
    for old, new in (*small, *changes):
        text = text.replace(old, new)
    path = folder / "codec.toml"
    path.write_text(text)
    return path


def some_batch() -> CodecBatch:
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(3, 20 * 240, generator=generator) * 0.1
    f0 = torch.rand(3, 20, generator=generator) * 200 + 80
    f0[:, :5] = 0
    return CodecBatch(
        waveform, torch.randn(3, 80, 20, generator=generator) - 4, torch.full((3,), 20), f0,
        top_hz=torch.tensor([7600.0, 11_400.0, 11_400.0]),
    )  # fmt: skip


def losses_of(settings: VocoderLossSettings, batch: CodecBatch) -> dict[str, Tensor]:
    torch.manual_seed(0)
    game = VocoderGame(TINY, settings.fool > 0)
    torch.manual_seed(1)
    return vocoder_losses(game, batch, settings)


def test_every_recipe_of_the_vocoder_is_valid_and_names_its_part() -> None:
    paths = [*RECIPES.glob("*/0_codec_vocoder*.toml"), TOY_RECIPE]
    assert len(paths) == 4
    for path in paths:
        assert part_of(path) == load_toml(path, VocoderRecipe).part == "vocoder"


def test_a_recipe_of_another_stage_names_no_part(tmp_path: Path) -> None:
    assert part_of(RECIPES / "toy" / "asr.toml") is None
    assert part_of(tmp_path / "missing.toml") is None


def test_an_unknown_part_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "codec.toml"
    path.write_text('part = "vocodre"')
    with pytest.raises(ValueError, match="has part = 'vocodre': expected 'vocoder', 'tokenizer' or 'flow'"):
        run_codec(path, tmp_path / "out")


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    settings = VocoderLossSettings(repulsion=0.8, pitch=0.3, fool=0.2, match=0.4)
    sums = losses_of(settings, some_batch())
    parts = sums["spectral"] - 0.4 * sums["repulsion"] + 0.3 * sums["pitch"]
    parts = parts + 0.2 * sums["fool"] + 0.4 * sums["match"] + sums["discriminate"]
    torch.testing.assert_close(sums["loss"], parts)
    assert sums["num_targets"] == 3


def test_pitch_is_learnt_from_voiced_frames_only() -> None:
    torch.manual_seed(0)
    predictor, batch = Vocoder(TINY).pitch, some_batch()
    logits, _ = predictor(batch.mel)
    logits.retain_grad()
    predictor.forward = lambda mel: (logits, torch.zeros(3, 20))  # type: ignore[method-assign]
    pitch_losses(predictor, batch)[0].backward()
    assert logits.grad is not None
    assert (logits.grad[:, :5] == 0).all()
    assert (logits.grad[:, 5:].abs().sum(-1) > 0).all()


def test_what_a_narrow_recording_lacks_changes_no_loss() -> None:
    batch = some_batch()
    spectrum = torch.fft.rfft(batch.waveform)
    spectrum[0, round(9000 / 12_000 * spectrum.shape[1]) :] = 0
    narrow = CodecBatch(**{**vars(batch), "waveform": torch.fft.irfft(spectrum, batch.waveform.shape[1])})
    settings = VocoderLossSettings(repulsion=0.0, pitch=0.0)
    torch.testing.assert_close(
        losses_of(settings, batch)["loss"], losses_of(settings, narrow)["loss"], rtol=2e-3, atol=0
    )


def test_a_run_in_two_halves_equals_one_run(root: Path, tmp_path: Path) -> None:
    recipe = short_recipe(tmp_path)
    run = partial(run_codec, recipe, data_root=root)
    run(tmp_path / "whole")
    run(tmp_path / "halves", steps=2)
    torch.manual_seed(99)
    run(tmp_path / "halves")
    whole, halves = (load_file(tmp_path / out / "trained.safetensors") for out in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_second_run_starts_from_the_first_with_discriminators(root: Path, tmp_path: Path) -> None:
    run_codec(short_recipe(tmp_path), tmp_path / "first", data_root=root)
    start = ("lr = 2e-3", f'lr = 2e-3\nstart = "{tmp_path / "first"}"')
    second = short_recipe(tmp_path, start, ("repulsion = 1.0", "repulsion = 1.0\nfool = 0.1\nmatch = 0.1"))
    measures = run_codec(second, tmp_path / "second", steps=1, data_root=root)
    assert measures["step"] == 1
    trained = load_file(tmp_path / "second" / "trained.safetensors")
    assert any(name.startswith("adversary.") for name in trained)


def test_a_start_that_is_not_there_is_refused_in_one_sentence(root: Path, tmp_path: Path) -> None:
    start = ("lr = 2e-3", 'lr = 2e-3\nstart = "runs/nowhere"')
    with pytest.raises(ValueError, match="'runs/nowhere' holds no trained"):
        run_codec(short_recipe(tmp_path, start), tmp_path / "out", data_root=root)


def test_the_written_part_is_the_vocoder_alone_in_bfloat16(root: Path, tmp_path: Path) -> None:
    recipe = short_recipe(tmp_path)
    run_codec(recipe, tmp_path / "out", steps=1, data_root=root)
    weights = load_file(tmp_path / "out" / "vocoder.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    Vocoder(load_toml(recipe, VocoderRecipe).vocoder).load_state_dict(weights)
