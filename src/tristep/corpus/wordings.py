"""Wordings: instructions as people give them, in sentences that no phrase of `annotate.py` is part of.

    python -m tristep.corpus.wordings held_out.jsonl
    tristep evaluate tts sentences.txt --directives held_out.jsonl --directed 2 --out r.json

SFT teaches the TTS mode what a few dozen phrases ask for. `TAUGHT` ones are for learning from rewards
(`python -m tristep.corpus.directed --wordings`), `HELD_OUT` ones for measuring whether it has learnt more than those.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TAUGHT: dict[str, tuple[str, ...]] = {
    "slow": (
        "Take it slow.", "Don't rush this.", "Draw it out.", "Go easy on the pace.", "Half speed, please.",
        "Say this as though you were tired and in no rush.", "Let each word land before the next.", "Slow down.",
        "Read it the way you would dictate to a beginner.", "Stretch the words.", "Be unhurried here.",
        "Read it like a lullaby.", "Think of honey dripping from a spoon.", "There is plenty of time, so use it.",
        "Let it drag.", "Like an old clock, slow and steady.",
    ),
    "fast": (
        "Hurry up.", "Pick up the pace.", "Rattle it off.", "Speed it up.", "Be quick about it.",
        "Read it like an auctioneer.", "You have two seconds for this.", "Double speed, please.",
        "Get it over with quickly.", "Step on it.", "Race through this.", "Say it in one quick breath.",
        "Make it snappy.", "Say it as though the bus were leaving.", "Fire it off.", "Like a machine gun, fast.",
    ),
    "low": (
        "Drop your pitch.", "Use your deepest register.", "Make your voice low like a cello.", "Make it deep.",
        "Speak like a bass singer.", "Lower your pitch.", "Sound like a big bear.", "Give it a dark, deep voice.",
        "Go down in pitch.", "Let your voice rumble.", "Talk from deep in your throat.", "Put on a gruff, deep voice.",
        "Use a low register, please.", "Sound like an old man with a deep voice.", "Growl it.",
        "Take it down an octave.",
    ),
    "high": (
        "Raise your pitch.", "Use your highest register.", "Sound like a little mouse.", "Speak like a soprano.",
        "Go up in pitch.", "Make your voice high like a flute.", "Squeak a little.", "Talk like a small child.",
        "Give it a thin, high voice.", "Put on a squeaky voice.", "Use a high register, please.", "Make it shrill.",
        "Sing-song and high, like to a puppy.", "Let your voice climb.", "Chirp it.", "Take it up an octave.",
    ),
    "quiet": (
        "Keep your voice down.", "Not so loud, please.", "Turn the volume down.", "Hush your voice a bit.",
        "Speak as you would in a library.", "Be gentle and soft.", "Keep it low so nobody wakes up.",
        "Use your indoor voice.", "Say it so that the neighbours don't hear.", "Make it soft.", "Speak meekly.",
        "A little quieter, please.", "Say it as you would beside a sickbed.", "Tone down the volume.",
        "With half the volume.", "Softer than that.",
    ),
    "loud": (
        "Speak up.", "Raise your voice.", "Shout it.", "Turn up the volume.", "Call it out.", "Yell this.",
        "Say it over the noise of a train.", "Make sure the people at the back hear you.", "Let it boom.",
        "Belt it out.", "More volume, please.", "Bellow it.", "Cry it out across the field.", "Roar it.",
        "Say it as in a noisy bar.", "With twice the volume.",
    ),
    "whisper": (
        "Whisper it.", "Only breathe the words.", "Share it like a secret.", "Speak without voice.",
        "Murmur it breathily in my ear.", "Keep it a whisper.", "Hiss it under your breath.", "Use only your breath.",
        "Say it so softly that only I can hear.", "Be as secretive as a spy.", "Breathe it, don't voice it.",
        "Say it as you would in church during prayer.", "Tell me in confidence, voice off.", "Sigh the words.",
        "Make it a whisper, please.", "Keep it between us and whisper.",
    ),
    "neutral": (
        "Just read it.", "Nothing special.", "Say it as it is.", "Use your own voice.", "Speak as you like.",
        "No particular style.", "Read it like any other line.", "Keep it ordinary.",
    ),
}  # fmt: skip
"""By the style that they ask for."""
HELD_OUT: dict[str, tuple[str, ...]] = {
    "slow": (
        "Take your time with this.", "No need to hurry.", "Ease off the pace.", "Linger on every word.",
        "Speak as if each word cost you effort.", "Crawl through this sentence.", "Put the brakes on.",
        "Dictate it for someone who can hardly write.",
    ),
    "fast": (
        "Rush this one.", "Go as swiftly as your tongue allows.", "Blurt it out.", "Zip through it.",
        "Let the words pour out at speed.", "Speak like a sports commentator at full tilt.", "No time to waste, go.",
        "Say it at a gallop.",
    ),
    "low": (
        "Bring the pitch down.", "Speak from the bottom of your range.", "Do it in a deep, rumbling voice.",
        "Sound like a double bass.", "Give me a baritone.", "Imitate a giant with a deep voice.", "Deepen your voice.",
        "Let it sink to a lower register.",
    ),
    "high": (
        "Bring the pitch up.", "Speak from the top of your range.", "Do it in a squeaky, high voice.",
        "Sound like a piccolo.", "Imitate a tiny fairy with a high voice.", "Lift it to a higher register.",
        "Talk like a cartoon chipmunk.", "Pitch it up for a baby.",
    ),
    "quiet": (
        "Lower the volume.", "Mind the sleeping baby.", "As you would in a museum, please.",
        "Be quiet about it.", "Mute yourself a little.", "Say this gently, as in a hospital corridor.",
        "Keep it hushed.", "Barely raise your voice.",
    ),
    "loud": (
        "As if to someone across the street.", "Say it so the whole hall can hear you.", "Pump up the volume.",
        "Holler it.", "Make it ring out.", "Speak over a running engine.", "Be loud.",
        "Address a crowd without a microphone.",
    ),
    "whisper": (
        "Tell it to me like a secret.", "Drop to a whisper, would you.", "Let me hear only your breath.",
        "Say it in my ear so no one else hears.", "Whisper this line.", "As quiet as breathing.",
        "No voice at all, just air.", "Conspire with me.",
    ),
    "neutral": ("As you would any day.", "Plain reading, please.", "In your own way.", "Without any effect."),
}  # fmt: skip
"""The same, in other words."""
FEATURES: dict[str, tuple[str, bool]] = {
    "slow": ("words_per_s", False), "fast": ("words_per_s", True), "low": ("median_f0_hz", False),
    "high": ("median_f0_hz", True), "quiet": ("level_db", False), "loud": ("level_db", True),
    "whisper": ("level_db", False),
}  # fmt: skip
"""What of an utterance (`tristep.evaluation.speech.Delivery`) a style moves, and whether upwards."""


def directives(wordings: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Yield every wording with what it has to move, as `tristep evaluate tts --directives` reads it."""
    for style, (feature, upwards) in FEATURES.items():
        for wording in wordings[style]:
            yield {"name": style, "wording": wording, "feature": feature, "upwards": upwards}


def main() -> None:
    """Write the held-out wordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file of JSON lines to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in directives(HELD_OUT)), encoding="utf-8")


if __name__ == "__main__":
    main()
