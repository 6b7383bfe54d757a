from __future__ import annotations

from pathlib import Path

import soxr
import torch

from tristep.audio import LISTEN_HZ, SPEAK_HZ, raw_log_mel, speech_mel
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.codec.ear import Ear, Hearing, PhoneReader, listening_mel
from tristep.codec.objective import hearing_losses
from tristep.codec.speaker import SpeakerEncoder
from tristep.config import load_backbone_config
from tristep.phones import PHONES, UNLABELLED


def ear() -> Ear:
    torch.manual_seed(0)
    encoder = AudioEncoder(load_backbone_config("toy").encoder).eval().requires_grad_(False)
    speaker = SpeakerEncoder(width=16, growth=4, num_planes=4)
    return Ear(encoder, PhoneReader(encoder.config.dim).eval().requires_grad_(False), speaker)


def mels(num_frames: int) -> torch.Tensor:
    return torch.randn(2, 80, num_frames, generator=torch.Generator().manual_seed(1)) - 6


def losses_of(heard: Hearing, truth: Hearing, phones: torch.Tensor, num_frames: torch.Tensor,
              lent: tuple[bool, bool] = (False, False)) -> dict[str, torch.Tensor]:  # fmt: skip
    return hearing_losses(heard, truth.frames, truth.voice, phones, num_frames // 2, torch.tensor(lent))


def test_a_speaking_mel_becomes_what_the_ear_would_measure() -> None:
    noise = 0.1 * torch.randn(4 * SPEAK_HZ, generator=torch.Generator().manual_seed(0))
    resampled = torch.from_numpy(soxr.resample(noise.numpy(), SPEAK_HZ, LISTEN_HZ))
    expected, made = raw_log_mel(resampled), listening_mel(speech_mel(noise[None])[0])
    powers = [10.0 ** mel[:78].mean(dim=1) for mel in (expected, made)]  # above, the resampling filter bites
    torch.testing.assert_close(powers[0].log10(), powers[1].log10(), atol=0.15, rtol=0)


def test_a_row_is_heard_as_it_is_alone_but_for_its_last_frames() -> None:
    listening, mel = ear(), mels(60)
    together = listening.hear(mel, torch.tensor([60, 40]))
    alone = listening.hear(mel[1:, :, :40], torch.tensor([40]))
    torch.testing.assert_close(together.frames[1, :20], alone.frames[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.phones[1, :16], alone.phones[0, :16], atol=1e-4, rtol=1e-4)
    assert together.phones.shape == (2, 30, len(PHONES))


def test_gradients_reach_the_mel_where_it_is_valid() -> None:
    mel = mels(60).requires_grad_()
    ear().hear(mel, torch.tensor([60, 40])).phones.square().sum().backward()
    assert mel.grad is not None
    assert mel.grad[0].abs().sum() > 0
    assert mel.grad[1, :, 40:].abs().sum() == 0


def test_a_mel_is_pulled_towards_the_one_that_says_the_phones() -> None:
    listening, true = ear(), mels(40)
    num_frames = torch.tensor([40, 40])
    truth = listening.hear(true, num_frames)
    phones = truth.phones.argmax(dim=-1)
    mel = (true + 2 * torch.randn_like(true)).requires_grad_()
    optimizer = torch.optim.Adam([mel], 0.3)
    losses = []
    for _ in range(25):
        parts = losses_of(listening.hear(mel, num_frames), truth, phones, num_frames)
        loss = parts["phones"] + parts["frames"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_voice_is_heard_in_a_row_as_it_is_alone() -> None:
    listening, mel = ear(), mels(60)
    together = listening.voice(mel, torch.tensor([60, 30]))
    alone = listening.voice(mel[1:, :, :30].repeat(1, 1, 2), torch.tensor([60]))
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_what_is_heard_lacks_nothing_of_the_same_voice_and_gradients_lead_to_it() -> None:
    listening, true = ear(), mels(60)
    num_frames = torch.tensor([60, 60])
    truth = listening.hear(true, num_frames)
    phones = torch.full((2, 30), UNLABELLED)
    assert abs(float(losses_of(truth, truth, phones, num_frames)["voice"])) < 1e-3
    mel = (true + 2 * torch.randn(true.shape, generator=torch.Generator().manual_seed(2))).requires_grad_()
    loss = losses_of(listening.hear(mel, num_frames), truth, phones, num_frames)["voice"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert mel.grad is not None
    nearer = mel.detach() - 0.02 * mel.grad / mel.grad.square().mean().sqrt()
    assert losses_of(listening.hear(nearer, num_frames), truth, phones, num_frames)["voice"] < loss


def test_frames_of_a_row_in_another_voice_count_nothing() -> None:
    listening, num_frames = ear(), torch.tensor([40, 40])
    heard, other = listening.hear(mels(40), num_frames), listening.hear(mels(40).flip(0), num_frames)
    phones = torch.full((2, 20), UNLABELLED)
    both, first = (losses_of(heard, other, phones, num_frames, lent) for lent in ((False, False), (False, True)))
    assert 0 < first["frames"] < both["frames"]
    assert (int(both["frames_targets"]), int(first["frames_targets"])) == (40, 20)
    assert first["voice"] == both["voice"]


def test_frames_without_a_label_count_nothing() -> None:
    listening, num_frames = ear(), torch.tensor([40, 40])
    heard = listening.hear(mels(40), num_frames)
    phones = torch.full((2, 20), UNLABELLED)
    phones[0, :3] = heard.phones[0, :3].argmax(dim=-1)
    parts = losses_of(heard, heard, phones, num_frames)
    assert (int(parts["phones_targets"]), int(parts["right"]), float(parts["frames"])) == (3, 3, 0.0)


def test_a_reader_is_read_back(tmp_path: Path) -> None:
    reader = ear().reader
    reader.save(tmp_path / "reader.safetensors")
    frames = torch.randn(1, 5, reader.stack.in_features)
    assert torch.equal(PhoneReader.load(tmp_path / "reader.safetensors")(frames), reader(frames))
