"""How soon a spoken turn is answered aloud, one table: tristep beside a cascade, the same recordings in one run.

    python benchmarks/turns.py script.jsonl --model nano --whisper base --llama SmolLM2-135M-Instruct.Q4_1.gguf \
        --piper en_US-joe-medium.onnx --threads 1 --out turns.json

The cascade is what is built of good parts: once the turn is over faster-whisper (int8) writes down all of it, a
language model by llama.cpp writes the first sentence of an answer, and Piper says that. Each stage is whole before the
next begins, and each has as many threads as tristep. Both find the end of a turn by the same detector and the same
silence; the table has the times with that wait and without it. Every recording is answered by both, one after the
other, each a conversation of its own, warmed up by the first of them; while the user speaks, time passes.

The cascade's answers are not made to their end, so it has no real-time factor. A system that is not named by its
options is left out.

`pip install faster-whisper llama-cpp-python onnxruntime phonemizer-fork espeakng-loader` first; none is a dependency of
the package.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from asr_worker import whisper_folder
from machine import machine
from rich.console import Console
from torch import Tensor
from tts import piper

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.codec.voice import to_listening_rate
from tristep.engine.dialogue import AudioDelta, ServerVad, SessionSettings, SpeechStopped, TextDelta
from tristep.engine.engine import Engine
from tristep.engine.microphone import Microphone
from tristep.engine.turns import TurnDetector
from tristep.engine.voice_activity import VoiceActivity
from tristep.evaluation.tts import Synthesise
from tristep.evaluation.turn_cases import Case, build_cases, chosen, read_recordings
from tristep.evaluation.turn_driver import Course
from tristep.evaluation.turn_report import as_table, write_report
from tristep.evaluation.turn_taking import Sessions, System, evaluate_turns

PERSONA = "You are a friendly person and talk with someone. Answer in one or two short sentences."
PACKAGES = ("tristep", "torch", "faster-whisper", "llama-cpp-python", "onnxruntime")
SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)
MAX_TOKENS = 64
MAX_SILENCE_S = 2.0


def main() -> None:
    """Let every system answer the recordings, and print one table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    clips = chosen(read_recordings(arguments.recordings, split=arguments.split), arguments.limit, arguments.seed)
    cases = [case for case in build_cases(clips, num_noises=0, seed=arguments.seed) if case.kind == "question"]
    tried = dict(systems(arguments))
    report = evaluate_turns(tried, cases, model=arguments.model or "-")
    Console(width=None if sys.stdout.isatty() else 160).print(as_table(report))
    for name, system in tried.items():
        if isinstance(system, Cascade):
            print(f"{name}: {system.describe_stages()}")
    print(machine(PACKAGES))
    if arguments.out:
        write_report(report, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="what users say: dialogues, a manifest, or a corpus")
    parser.add_argument("--split", default="test", help="the corpus' name of the split")
    parser.add_argument("--limit", type=int, default=50, help="the most recordings")
    parser.add_argument("--seed", type=int, default=0, help="draws them")
    parser.add_argument("--model", help="tristep's model: a name or a folder")
    parser.add_argument("--voice", help="tristep's voice; the first there is if not given")
    parser.add_argument("--whisper", help="faster-whisper's model: a name or a CTranslate2 folder")
    parser.add_argument("--llama", type=Path, help="the language model, a .gguf file")
    parser.add_argument("--piper", type=Path, help="Piper's .onnx file, its .json beside it")
    parser.add_argument("--persona", default=PERSONA, help="who answers, told to both")
    parser.add_argument("--silence-ms", type=int, default=ServerVad().silence_duration_ms, help="it ends a turn")
    parser.add_argument("--threads", type=int, default=1, help="of tristep, and of each stage of the cascade")
    parser.add_argument("--skip-idle", action="store_true", help="do not wait where there is no work")
    parser.add_argument("--out", type=Path, help="write the numbers here (.json), and the page beside them (.html)")
    return parser.parse_args()


def systems(arguments: argparse.Namespace) -> Iterator[tuple[str, System]]:
    """Load the systems that were asked for."""
    detection = ServerVad(silence_duration_ms=arguments.silence_ms)
    if arguments.model:
        settings = SessionSettings(arguments.persona, voice=arguments.voice, turn_detection=detection)
        sessions = Sessions(Engine.load(arguments.model), settings, is_live=not arguments.skip_idle)
        yield f"tristep {Path(arguments.model).name}", sessions
    if arguments.whisper and arguments.llama and arguments.piper:
        stages = (
            recogniser(arguments.whisper, arguments.threads),
            language_model(arguments.llama, arguments.persona, arguments.threads, arguments.seed),
            piper(arguments.piper, arguments.threads),
        )
        name = f"whisper {Path(arguments.whisper).name}, {arguments.llama.stem}, {arguments.piper.stem}"
        yield name, Cascade(*stages, detection, is_live=not arguments.skip_idle)


@dataclass
class Cascade:
    """Three models, one after the other, once a turn is over."""

    transcribe: Callable[[Tensor], str]
    answer: Callable[[str], str]
    """Writes the first sentence of an answer."""
    read: Synthesise
    detection: ServerVad
    is_live: bool = True
    stages_s: list[tuple[float, ...]] = field(default_factory=list)
    """What each stage took, for every case."""

    def __call__(self, case: Case) -> Course:
        stopped_s = end_of_turn(case.waveform, self.detection)
        if self.is_live:
            time.sleep(stopped_s)
        marks_s = [time.perf_counter()]
        heard = self.transcribe(to_listening_rate(case.waveform[: round(stopped_s * SPEAK_HZ)]))
        marks_s.append(time.perf_counter())
        said = self.answer(heard)
        marks_s.append(time.perf_counter())
        waveform = self.read(said, None, None, 0).waveform
        marks_s.append(time.perf_counter())
        self.stages_s.append(tuple(after - before for before, after in pairwise(marks_s)))
        first_s = stopped_s + marks_s[-1] - marks_s[0]
        text, sound = TextDelta("", "", 0, 0, "audio", said), AudioDelta("", "", 0, 0, waveform)
        return Course([(stopped_s, SpeechStopped("", 0)), (first_s, text), (first_s, sound)])

    def describe_stages(self) -> str:
        """Say what each stage took, half of the times; the first case was a warm-up."""
        names = ("hearing", "thinking", "speaking")
        halves = (statistics.median(column) for column in zip(*self.stages_s[1:], strict=True))
        return ", ".join(f"{name} {1000 * half_s:.0f} ms" for name, half_s in zip(names, halves, strict=True))


def end_of_turn(waveform: Tensor, detection: ServerVad) -> float:
    """Return when the last turn in a sound, 24 kHz of shape `(S,)`, is held to be over, in seconds."""
    turns = TurnDetector(VoiceActivity())
    sound = torch.cat([waveform, torch.zeros(round(MAX_SILENCE_S * SPEAK_HZ))])
    frames = Microphone().push(sound, SPEAK_HZ)
    changes = [change for frame in frames for change in turns.push(frame, detection, lambda start: torch.zeros(0))]
    return max(
        (change.position / LISTEN_HZ for change in changes if change.kind == "stopped"), default=len(sound) / SPEAK_HZ
    )


def recogniser(model: str, threads: int) -> Callable[[Tensor], str]:
    """Load faster-whisper with int8 weights; greedy, which is its fastest."""
    from faster_whisper import WhisperModel

    with whisper_folder(model) as folder:
        whisper = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(waveform: Tensor) -> str:
        options = {"language": "en", "beam_size": 1, "temperature": 0.0, "without_timestamps": True}
        segments, _ = whisper.transcribe(waveform.numpy(), **options)
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def language_model(path: Path, persona: str, threads: int, seed: int) -> Callable[[str], str]:
    """Load a language model; it stops after its first sentence, and keeps what it has read of the persona."""
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, seed=seed, verbose=False)

    def answer(heard: str) -> str:
        messages = [{"role": "system", "content": persona}, {"role": "user", "content": heard}]
        said = ""
        for part in llama.create_chat_completion(messages, max_tokens=MAX_TOKENS, temperature=0.7, stream=True):
            said += part["choices"][0]["delta"].get("content") or ""
            if sentence := SENTENCE.match(said):
                return sentence[0].strip()
        return said.strip()

    return answer


if __name__ == "__main__":
    main()
