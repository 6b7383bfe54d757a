from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.audio import LISTEN_HZ, read_audio
from tristep.engine.dialogue import SemanticVad, ServerVad, SessionError, TurnDetection
from tristep.engine.turns import SILENCE_MS, Change, SmartTurn, TurnDetector, smart_turn_mel
from tristep.engine.voice_activity import FRAME_SIZE, VoiceActivity

DATA = Path(__file__).parents[1] / "data"
CLIPS = ["jfk.flac", "kathleen_a0249.opus", "kathleen_b0442.opus", "lj002_0154.opus"]


def loud(frames: Tensor) -> list[float]:
    """Take the mean for how likely a voice is."""
    return frames.mean(dim=1).tolist()


def frames(*voices: tuple[float, int]) -> Tensor:
    """Return so many frames of each probability."""
    return torch.cat([torch.full((num, FRAME_SIZE), prob) for prob, num in voices])


def followed(
    sound: Tensor,
    detection: TurnDetection | None,
    detector: Callable[[Tensor], list[float]] = loud,
    end_of_turn: Callable[[Tensor], float] | None = None,
) -> list[tuple[Change, int]]:
    """Return every change, and the frame after which it was known."""
    turns = TurnDetector(detector, end_of_turn)
    rows = sound[: len(sound) // FRAME_SIZE * FRAME_SIZE].view(-1, FRAME_SIZE) if sound.dim() == 1 else sound
    known = []
    for number, frame in enumerate(rows):
        changes = turns.push(frame, detection, lambda start: rows.flatten()[start : turns.position])
        known += [(change, number) for change in changes]
    return known


def onset(name: str) -> Tensor:
    """Return a clip from where it becomes loud."""
    clip = read_audio(DATA / name)
    levels = clip.unfold(0, 160, 160).square().mean(-1)
    return clip[int((levels > levels.max() * 1e-3).nonzero()[0]) * 160 :]


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("shift", [0, 170, 340, 511])
def test_speech_is_known_within_200_ms(name: str, shift: int) -> None:
    begin = LISTEN_HZ + shift
    sound = torch.cat([torch.zeros(begin), onset(name)[:LISTEN_HZ]])
    known = [(change, frame) for change, frame in followed(sound, ServerVad(), VoiceActivity())]
    change, frame = next((change, frame) for change, frame in known if change.kind == "started")
    assert (frame + 1) * FRAME_SIZE - begin <= 0.2 * LISTEN_HZ
    assert abs(change.position - begin) <= 0.08 * LISTEN_HZ


@pytest.mark.parametrize("duration_ms", [40, 100, 150])
@pytest.mark.parametrize("seed", range(4))
def test_a_cough_is_no_speech(duration_ms: int, seed: int) -> None:
    num_samples = 16 * duration_ms
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))
    burst = 0.3 * noise * torch.exp(-3 * torch.arange(num_samples) / num_samples)
    sound = F.pad(burst, (LISTEN_HZ, LISTEN_HZ))
    assert all(change.kind in ("voice", "noise") for change, _ in followed(sound, ServerVad(), VoiceActivity()))


def test_a_voice_that_soon_stops_is_noise() -> None:
    known = followed(frames((0.0, 3), (0.9, 3), (0.0, 3)), ServerVad())
    assert known == [(Change("voice", 3 * FRAME_SIZE), 3), (Change("noise", 7 * FRAME_SIZE), 6)]


@pytest.mark.parametrize(("silence_ms", "num_silent"), [(0, 1), (200, 7), (500, 16), (1000, 32)])
def test_a_silence_ends_a_turn(silence_ms: int, num_silent: int) -> None:
    known = followed(frames((0.9, 10), (0.0, 40)), ServerVad(silence_duration_ms=silence_ms))
    stopped = [(change, frame) for change, frame in known if change.kind == "stopped"]
    assert stopped == [(Change("stopped", (10 + num_silent) * FRAME_SIZE), 9 + num_silent)]


def test_a_short_pause_ends_none() -> None:
    known = followed(frames((0.9, 10), (0.0, 10), (0.9, 5), (0.0, 20)), ServerVad())
    assert [change.kind for change, _ in known] == ["voice", "started", "paused", "paused", "stopped"]
    assert known[2][0].position == 10 * FRAME_SIZE


def test_speech_goes_on_a_little_below_what_began_it() -> None:
    known = followed(frames((0.5, 5), (0.4, 30)), ServerVad())
    assert [change.kind for change, _ in known] == ["voice", "started"]
    assert followed(frames((0.4, 30)), ServerVad()) == []


def test_the_threshold_decides_what_a_voice_is() -> None:
    assert followed(frames((0.7, 30)), ServerVad(threshold=0.8)) == []
    assert followed(frames((0.3, 30)), ServerVad(threshold=0.2))


@pytest.mark.parametrize("eagerness", SILENCE_MS)
def test_without_a_judge_eagerness_is_a_silence(eagerness: str) -> None:
    detection = SemanticVad(eagerness)  # type: ignore[arg-type]
    known = followed(frames((0.9, 10), (0.0, 60)), detection)
    (stopped,) = (change for change, _ in known if change.kind == "stopped")
    waited_ms = (stopped.position - 10 * FRAME_SIZE) / 16
    assert SILENCE_MS[detection.eagerness] <= waited_ms < SILENCE_MS[detection.eagerness] + 32


@pytest.mark.parametrize(("prob", "num_silent"), [(0.9, 7), (0.1, 63)])
def test_a_judge_says_whether_the_turn_is_finished(prob: float, num_silent: int) -> None:
    asked: list[int] = []

    def judge(turn: Tensor) -> float:
        asked.append(len(turn))
        return prob

    known = followed(frames((0.0, 4), (0.9, 10), (0.0, 80)), SemanticVad("high"), end_of_turn=judge)
    (stopped,) = (change for change, _ in known if change.kind == "stopped")
    assert stopped.position == (14 + num_silent) * FRAME_SIZE
    assert asked == [17 * FRAME_SIZE]  # from the beginning of the speech to now


def test_without_detection_a_turn_does_not_end() -> None:
    known = followed(frames((0.9, 10), (0.0, 400)), None)
    assert [change.kind for change, _ in known] == ["voice", "started", "paused"]


@pytest.mark.parametrize("changes", [{"threshold": 1.5}, {"silence_duration_ms": -1}, {"prefix_padding_ms": 20_000}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(SessionError, match=f"{next(iter(changes))} is .*: expected 0 to"):
        ServerVad(**changes)  # type: ignore[arg-type]


def test_an_unknown_eagerness_is_refused() -> None:
    with pytest.raises(SessionError, match="expected low, medium, high or auto"):
        SemanticVad("keen")  # type: ignore[arg-type]


def test_weights_that_are_not_there_judge_nothing(tmp_path: Path) -> None:
    assert SmartTurn.load(tmp_path) is None


def test_smart_turn_reads_the_last_eight_seconds() -> None:
    sound = torch.rand(9 * LISTEN_HZ, generator=torch.Generator().manual_seed(0))
    assert smart_turn_mel(sound).shape == (80, 800)
    assert torch.equal(smart_turn_mel(sound), smart_turn_mel(sound[LISTEN_HZ:]))
    assert torch.equal(smart_turn_mel(sound[-100:]), smart_turn_mel(F.pad(sound[-100:], (500, 0))))


def test_smart_turn_passes_on_what_its_model_says() -> None:
    class Model:
        def run(self, outputs, inputs):  # type: ignore[no-untyped-def]
            assert inputs["input_features"].shape == (1, 80, 800)
            return [torch.tensor([[0.25]]).numpy()]

    assert SmartTurn(Model())(torch.zeros(100)) == 0.25
