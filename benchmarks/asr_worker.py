"""One recogniser in a process of its own, for `asr_accuracy.py`: a job on stdin, an answer in a file.

Only the system under test is imported, so that the memory and the start that are measured are its own.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Written = dict[str, Any]
Transcribe = Callable[[str, str], str]
"""From a sound file and its language to the transcript."""
Loaded = tuple[str, Transcribe]


def main() -> None:
    """Do the job and write the answer."""
    job = json.load(sys.stdin)
    with load(job["system"], job["model"], job["threads"]) as (name, transcribe):
        path, language = next(iter(job["suites"].values()))[0]
        attempt(transcribe, path, language)
        cold_start_s = time.time() - job["started"]
        suites = {suite: run(transcribe, clips) for suite, clips in job["suites"].items()}
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    answer = {"name": name, "cold_start_s": cold_start_s, "peak_memory_mb": peak_memory_mb, "suites": suites}
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def run(transcribe: Transcribe, clips: list[list[str]]) -> list[Written]:
    """Transcribe a suite, one clip after the other."""
    written = []
    for index, (path, language) in enumerate(clips, start=1):
        written.append(attempt(transcribe, path, language))
        print(f"\r{index} of {len(clips)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return written


def attempt(transcribe: Transcribe, path: str, language: str) -> Written:
    """Transcribe one clip and take its time; a failure is part of the result."""
    start = time.perf_counter()
    try:
        text, error = transcribe(path, language), None
    except Exception as failure:  # whatever a system raises belongs into the table
        text, error = "", f"{type(failure).__name__}: {failure}"
        print(f"\r{path}: {error}", file=sys.stderr)
    return {"text": text, "seconds": time.perf_counter() - start, "error": error}


def load(system: str, model: str, threads: int) -> contextlib.AbstractContextManager[Loaded]:
    """Load a system: its name for the table, and a function from a file to its transcript."""
    return load_tristep(model, threads) if system == "tristep" else load_whisper(system, model, threads)


@contextlib.contextmanager
def load_tristep(model: str, threads: int) -> Iterator[Loaded]:
    """Load this project's engine."""
    import torch

    import tristep

    torch.set_num_threads(threads)
    engine = tristep.load(model)
    yield (
        f"tristep {Path(model).name}",
        lambda path, language: engine.transcribe(path, language=language).text,
    )


@contextlib.contextmanager
def load_whisper(system: str, model: str, threads: int) -> Iterator[Loaded]:
    """Load faster-whisper with int8 weights; models that only know English are named so."""
    # CTranslate2 imports torch where it is installed, though it needs it only to convert models.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from faster_whisper import WhisperModel

    with whisper_folder(model) as folder:
        whisper = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)

        def transcribe(path: str, language: str) -> str:
            segments, _ = whisper.transcribe(path, language=language, beam_size=1, temperature=0.0)
            return "".join(segment.text for segment in segments).strip()

        yield system if whisper.model.is_multilingual else f"{system}.en", transcribe


@contextlib.contextmanager
def whisper_folder(name: str) -> Iterator[str]:
    """Return a folder that faster-whisper loads, adding the vocabulary file where it is missing.

    CTranslate2 wants the tokens in the order of their ids beside `model.bin`; `tokenizer.json` says the same.
    """
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("vocabulary.*")):
        yield name
        return
    with tempfile.TemporaryDirectory() as completed:
        for file in ("config.json", "tokenizer.json", "model.bin", "preprocessor_config.json"):
            if (folder / file).exists():
                (Path(completed) / file).symlink_to((folder / file).resolve())
        (Path(completed) / "vocabulary.json").write_text(json.dumps(vocabulary(folder / "tokenizer.json")))
        yield completed


def vocabulary(tokenizer: Path) -> list[str]:
    """List a tokenizer's tokens by id."""
    description = json.loads(tokenizer.read_text(encoding="utf-8"))
    tokens = {number: token for token, number in description["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in description["added_tokens"]}
    return [tokens[number] for number in range(len(tokens))]


if __name__ == "__main__":
    main()
