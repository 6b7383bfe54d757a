"""Toy policies that the tests of learning from rewards share: random weights, a few clips of tones, a few letters."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tristep.training.on_ray import RAY_SETTINGS
from tristep.training.reward_workers import Listeners

HEARING = """
mode = "asr"
normalise = {normalise}
[model]
config = "toy"
[learn]
decoder = 1e-2
[rl]
algorithm = "{algorithm}"
group_size = 3
updates = {updates}
critic_warmup = {critic_warmup}
skip_agreed = {skip_agreed}
rehearsal = {rehearsal}
[rewards]
spelling = 0.0
judge = 1.0
[alarms]
{alarms}
[data]
corpora = [{{ path = "tones/manifest.jsonl" }}]
dev = [{{ path = "tones/manifest.jsonl", split = "dev" }}]
batch_s = 1.2
noisy_share = 0.0
[optim]
steps = 4
num_accumulation = 2
[loop]
log_every = 1
evaluate_every = 4
save_every = 2
"""

SPEAKING = """
mode = "tts"
[model]
config = "toy"
[learn]
decoder = 1e-2
grown = 1e-2
[codes]
levels = [2, 2, 2]
rate_hz = 12.5
[rl]
algorithm = "{algorithm}"
group_size = 3
[rewards]
duration = 1.0
obedience = 1.0
variety = 0.5
[data]
corpora = [{{ path = "letters/utterances.jsonl" }}]
dev = [{{ path = "letters/utterances.jsonl", split = "dev" }}]
batch_s = 1.0
[optim]
steps = 2
[loop]
log_every = 1
evaluate_every = 2
save_every = 2
"""

CONVERSING = """
mode = "realtime"
num_prompts = 4
answer_tokens = 8
[model]
config = "toy"
[learn]
decoder = 1e-2
[rl]
algorithm = "{algorithm}"
group_size = 3
updates = {updates}
critic_warmup = {critic_warmup}
skip_agreed = false
rehearsal = {rehearsal}
prompts_at_once = {prompts_at_once}
[rewards]
judge = 1.0
character = 0.5
ending = 0.5
wording = 0.0
[scale]
{scale}
[data]
batch_tokens = 320
row_tokens = 160
noisy_share = 0.0
heard_share = 0.5
[data.corpora]
typed = {{ path = "tones/typed/exchanges.jsonl" }}
spoken = {{ path = "tones/exchanges.jsonl" }}
clips = {{ path = "tones/manifest.jsonl" }}
[data.dev]
typed = {{ path = "tones/typed/exchanges.jsonl", split = "dev" }}
spoken = {{ path = "tones/exchanges.jsonl", split = "dev" }}
[[injections]]
name = "rehearsed"
from_step = 0
shares = {{ typed = 0.5, clips = 0.5 }}
[optim]
steps = 4
num_accumulation = 2
[loop]
log_every = 1
evaluate_every = 4
save_every = 2
"""


def likes_letters(prompt: object, candidate: str, reference: str) -> float:
    """Judge by what random weights differ in: how much of a text is ASCII."""
    return sum(character.isascii() for character in candidate) / max(1, len(candidate)) - 0.5


LISTENERS = Listeners(judge=likes_letters)


def hearing_recipe(folder: Path, name: str = "recipe.toml", **settings: object) -> Path:
    usual = {"algorithm": "grpo", "updates": 1, "critic_warmup": 0, "skip_agreed": "false", "rehearsal": 0.0}
    filled = {**usual, "normalise": "true", "alarms": "", **settings}
    path = folder / name
    path.write_text(HEARING.format(**filled))
    return path


def speaking_recipe(folder: Path, algorithm: str = "grpo") -> Path:
    path = folder / "speak.toml"
    path.write_text(SPEAKING.format(algorithm=algorithm))
    return path


def conversing_recipe(folder: Path, name: str = "converse.toml", **settings: object) -> Path:
    usual = {"algorithm": "grpo", "updates": 1, "critic_warmup": 0, "rehearsal": 0.0, "prompts_at_once": 4, "scale": ""}
    path = folder / name
    path.write_text(CONVERSING.format(**{**usual, **settings}))
    return path


def write_letters(root: Path) -> None:
    """Write utterances in which every letter sounds like two codes, half of them slow."""
    path = root / "letters" / "utterances.jsonl"
    path.parent.mkdir(parents=True)
    rows = []
    for number, text in enumerate(("ab", "ba a", "b", "a b", "bb", "ab b")):
        row = {"id": str(number), "speaker": "s", "split": "dev" if number > 3 else "train", "words": [], "codes": []}
        for word in text.split():
            row["words"].append([word, len(row["codes"])])
            row["codes"] += [code for letter in word for code in ((0, 1) if letter == "a" else (2, 3))]
        rows.append(row | {"manner": {"pace": 1}, "instructions": [{"text": "Slowly.", "manner": {"pace": 1}}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def known_to_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that are started import what the tests can, and be as urgent as the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for name, value in RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
