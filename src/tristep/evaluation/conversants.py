"""Conversants: weights become what `evaluate_realtime` holds conversations with, and a text model its judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tristep.audio import read_audio
from tristep.backbone.checkpoints import load_backbone, served_modes
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import Precision, compute_in
from tristep.chat import Chat, Turn
from tristep.engine.answers import Answer, answers, mean_logprob
from tristep.engine.engine import Engine
from tristep.evaluation.realtime import Converse, Judge, Reply, Situation
from tristep.modes.realtime.data import remembered, turns
from tristep.modes.realtime.decoding import Clauses

FirstSound = Callable[[str], float]
"""Says a text and returns how long its first sound took, in seconds."""
TEXT_MODEL, FROM_TEXT, FROM_SOUND = "text model, text", "realtime, text", "realtime, sound"


def load_models(
    name: str | Path,
    is_spoken: bool,
    first_sound: FirstSound | None = None,
    only: Collection[str] = (),
    precision: Precision = "fp32",
) -> tuple[dict[str, Converse], Judge]:
    """Load weights as conversants: their realtime mode, on text and on sound, and the text model that it grew from.

    Args:
        name: Shipped weights, or a folder of them: a run's too, whose model counts as realtime, and as the text model
            without its low-rank updates.
        is_spoken: Whether there is sound to be given.
        first_sound: What speaks, where the weights can.
        only: The names of those that are wanted; all if none is given.
        precision: What the decoder computes in: bf16 takes half the time, and answers a little differently.

    Returns:
        The conversants by name, and the text model as a judge.

    Raises:
        ValueError: If one is wanted that there is not.
    """
    modes = served_modes(name)
    text_model, text_chat = ready(name, None, keep_updates=False, precision=precision)
    models = {TEXT_MODEL: from_text(text_model, text_chat, first_sound)}
    if not modes or "realtime" in modes:
        backbone, chat = ready(name, "realtime" if modes else None, precision=precision)
        models[FROM_TEXT] = from_text(backbone, chat, first_sound)
        if is_spoken:
            models[FROM_SOUND] = from_sound(Engine(backbone, chat.tokenizer), first_sound)
    if unknown := sorted(set(only) - models.keys()):
        raise ValueError(f"there is no conversant {unknown[0]!r} here: expected some of {'; '.join(models)}")
    return {name: models[name] for name in models if not only or name in only}, likelihood(text_model, text_chat)


def ready(
    name: str | Path, mode: str | None, keep_updates: bool = True, precision: Precision = "fp32"
) -> tuple[Backbone, Chat]:
    """Load a backbone to be asked, with what it has learnt by low rank or without."""
    backbone, tokenizer = load_backbone(name, mode=mode)
    for parameter_name, parameter in backbone.named_parameters():
        if parameter_name.endswith(".up") and not keep_updates:
            parameter.data.zero_()
    merge_low_rank(backbone)
    if precision != "fp32":
        compute_in(backbone, precision)
    return backbone.eval(), Chat(backbone.vocab, tokenizer)


def from_text(backbone: Backbone, chat: Chat, first_sound: FirstSound | None = None) -> Converse:
    """Let a backbone answer what the user said, given as text."""

    def converse(situations: Sequence[Situation]) -> list[Reply]:
        asked = [turns(each.persona, history(each), each.said.text) for each in situations]
        return [reply(answer, chat, first_sound) for answer in answers(backbone, chat, asked)]

    return converse


def from_sound(engine: Engine, first_sound: FirstSound | None = None) -> Converse:
    """Let a backbone hear what the user said, note it and answer it; hearing counts as part of the time."""

    def converse(situations: Sequence[Situation]) -> list[Reply]:
        waveforms = [read_audio(path) for each in situations if (path := each.said.audio)]
        start = time.perf_counter()
        heard = engine.hear(waveforms)
        hearing_s = time.perf_counter() - start
        slots = heard.shown.sum(dim=1).tolist()
        asked = [turns(each.persona, history(each), num) for each, num in zip(situations, slots, strict=True)]
        said = answers(engine.backbone, engine.chat, asked, heard.flat())
        return [reply(answer, engine.chat, first_sound, hearing_s) for answer in said]

    return converse


def history(situation: Situation) -> list[Turn]:
    """Return the turns before the one that is answered."""
    return [remembered(role, text) for role, text in situation.history]


def reply(answer: Answer, chat: Chat, first_sound: FirstSound | None, hearing_s: float = 0.0) -> Reply:
    """Time an answer: its first sound comes after its first clause."""
    heard = answer.trace.heard if answer.trace else None
    if not answer.times_s:
        return Reply(answer.text, heard)
    first_audio_s = None
    if first_sound and answer.text:
        clause = next(iter([*Clauses().push(answer.text + " "), answer.text]))
        num_tokens = len(chat.tokenizer.encode(clause.strip()))
        written_s = answer.times_s[min(num_tokens, len(answer.times_s)) - 1]
        first_audio_s = hearing_s + written_s + first_sound(clause)
    return Reply(answer.text, heard, hearing_s + answer.times_s[0], first_audio_s)


def speaking(talker: Any, voice: str | None = None) -> FirstSound:
    """Turn what speaks, by its `stream_speech`, into a measure of how long its first sound takes."""

    def first_sound(text: str) -> float:
        start = time.perf_counter()
        next(iter(talker.stream_speech(text, voice=voice)))
        return time.perf_counter() - start

    return first_sound


def likelihood(backbone: Backbone, chat: Chat) -> Judge:
    """Let a text model say how likely an answer is after a turn, without any persona."""

    def judge(said: str, answer: str) -> float:
        return mean_logprob(backbone, chat.prompt(turns("", [], said)), chat.tokenizer.encode(answer))

    return judge
