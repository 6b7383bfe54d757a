"""The command line: the same verbs as the API; results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tristep import __version__

if TYPE_CHECKING:
    from tristep.engine.engine import OnProgress, Transcription

USER_ERROR, INTERRUPTED = 2, 130
LONG_S = 60.0
"""Sound longer than this is worth a progress bar."""
LONG_TEXT = 300
"""Characters of text that are worth one."""

app = typer.Typer(
    help="One audio-language model that listens and speaks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
evaluate_app = typer.Typer(help="Measure a model on a test set.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate_app, name="evaluate")


class Style(StrEnum):
    """How a transcript is written."""

    written = "written"
    spoken = "spoken"


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"tristep {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options that come before a verb."""


def examples(*commands: str) -> str:
    """Lay out the lines that end a help text."""
    return "\n".join(["\b", "Examples:", *(f"  tristep {command}" for command in commands)])


@app.command(
    epilog=examples(
        "transcribe hello.wav",
        "transcribe --json interview.mp3 > interview.json",
        "transcribe --language en --batch-size 16 recordings/*.flac",
    )
)
def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Sound files of any kind and length.")],
    language: Annotated[
        str | None, typer.Option(help="Language that is spoken, such as en; recognised if not given.")
    ] = None,
    style: Annotated[
        Style, typer.Option(help="Plain lower case, or written with capitals and punctuation (nano errs more then).")
    ] = Style.spoken,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: text, times, confidence, how it ended.")
    ] = False,
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    batch_size: Annotated[int, typer.Option(min=1, help="Segments decoded together.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Write down what is said in sound files.

    Text goes to stdout, one line a file, after its name if there are several. A file that can't be read is
    reported on stderr, the others are still transcribed, and the exit status is 2.
    """
    failed = False
    with user_errors():
        set_threads(threads)
        from tristep.audio import AudioError
        from tristep.engine.engine import Engine, check_settings

        check_settings(language, style.value, batch_size)
        engine = Engine.load(model)
        with progress_bar(files) as on_progress:
            results = engine.transcribe_each(
                files, language=language, style=style.value, batch_size=batch_size, on_progress=on_progress
            )
            for path, result in zip(files, results, strict=True):
                if isinstance(result, AudioError):
                    failed = True
                    complain(str(result))
                else:
                    typer.echo(as_line(path, result, as_json, len(files) > 1))
    if failed:
        raise typer.Exit(USER_ERROR)


def as_line(path: Path, result: Transcription, as_json: bool, several: bool) -> str:
    """Write one result as one line."""
    if as_json:
        return json.dumps({"path": str(path), **result.to_dict()}, ensure_ascii=False)
    text = " ".join(result.text.split())
    return f"{path}: {text}" if several else text


@app.command(
    epilog=examples(
        "speak 'Good morning.' --out morning.wav",
        "speak --out book.mp3 < chapter.txt",
        "speak 'Follow me.' --out a.flac --instructions 'in a whisper, slowly'",
        "speak 'Hello.' --out a.wav --clone me.wav --clone-text 'What I say in it.'",
    )
)
def speak(
    out: Annotated[Path, typer.Option(help="Sound file to write: .wav, .flac, .mp3, .ogg or .opus.")],
    text: Annotated[str | None, typer.Argument(help="What to say; read from stdin if not given.")] = None,
    voice: Annotated[str | None, typer.Option(help="Name of a voice; the first there is if not given.")] = None,
    clone: Annotated[Path | None, typer.Option(help="3 to 10 s of speech in the voice to speak in.")] = None,
    clone_text: Annotated[str, typer.Option(help="What is said in that clip.")] = "",
    instructions: Annotated[str, typer.Option(help="How to say it, in words.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Chooses among the ways to say it.")] = 0,
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Say a text of any length in a voice, and write the sound.

    Cues in round brackets inside the text say how to go on, and are not spoken. The file's name, how long it
    sounds and how it ended go to stdout.
    """
    with user_errors():
        set_threads(threads)
        if clone and voice:
            raise ValueError("--clone and --voice both name a voice: give one of them")
        from tristep.engine.talking import Talker

        said = sys.stdin.read() if text is None else text
        talker = Talker.load(model)
        chosen = talker.clone(clone, clone_text) if clone else voice
        with share_bar(len(said)) as on_progress:
            speech = talker.speak(said, chosen, instructions=instructions, seed=seed, on_progress=on_progress)
        speech.write(out)
        typer.echo(
            f"{out}: {speech.duration_s:.1f} s in the voice {speech.voice}, finish_reason {speech.finish_reason}"
        )


@app.command(
    epilog=examples(
        "train recipes/toy/1_align.toml --out runs/toy",
        "train recipes/nano/3_sft.toml --out runs/sft --data corpora",
    )
)
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (.toml).")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics; what is there is resumed.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that the recipe's corpora lie in.")] = Path("data"),
) -> None:
    """Train a model as a recipe says."""
    with user_errors():
        with extra("train"):
            from tristep.training import codec, stages
        run = codec.run_codec if codec.part_of(recipe) else stages.run
        run(recipe, out, steps, data)


@evaluate_app.command(
    "asr",
    epilog=examples(
        "evaluate asr --manifest clips.jsonl --split all --out r.json",
        "evaluate asr --manifest LibriSpeech --split test-clean --out r.json",
    ),
)
def evaluate_asr(
    manifest: Annotated[list[Path], typer.Option(help="Manifest (.jsonl) or corpus folder; repeatable.")],
    out: Annotated[Path, typer.Option(help="JSON file for the report; its page (.html) goes beside it.")],
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    layout: Annotated[str | None, typer.Option(help="The corpus' layout; recognised if not given.")] = None,
    split: Annotated[str, typer.Option(help="The corpus' name of the split; dev+test joins two.")] = "test",
    style: Annotated[Style, typer.Option(help="How the model is asked to write.")] = Style.spoken,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips decoded together.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Measure word or character error rates, with intervals, and the real-time factor."""
    with user_errors():
        set_threads(threads)
        with extra("evaluate"):
            from tristep.evaluation import asr, report, suites
        from tristep.engine.engine import Engine

        clips = {suite_name(path): suites.read_suite(path, layout, split) for path in manifest}
        transcriber = asr.from_model(Engine.load(model), style=style.value)
        result = asr.evaluate_asr(transcriber, clips, model=f"{model}, {style.value}", batch_size=batch_size)
        data, page = report.write_report(result, out)
        print_table(report.as_table(result))
        typer.echo(f"written to {data} and {page}", err=True)


@evaluate_app.command(
    "tts",
    epilog=examples(
        "evaluate tts --sentences harvard.txt --lines 601-720 --out r.json",
        "evaluate tts --sentences harvard.txt --directed 40 --out r.json",
    ),
)
def evaluate_tts(
    sentences: Annotated[Path, typer.Option(help="Text file, one sentence a line.")],
    out: Annotated[Path, typer.Option(help="JSON file for the report; its page (.html) goes beside it.")],
    lines: Annotated[str | None, typer.Option(help="Which sentences, such as 601-720; all if not given.")] = None,
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    voice: Annotated[list[str] | None, typer.Option(help="Name of a voice; repeatable.")] = None,
    voices: Annotated[Path | None, typer.Option(help="Folder of voices, to compare with what was said.")] = None,
    directed: Annotated[int, typer.Option(min=0, help="Sentences to try each instruction and cue on.")] = 0,
    recogniser: Annotated[str, typer.Option(help="faster-whisper's model: a name or a folder.")] = "base",
    speaker: Annotated[Path | None, typer.Option(help="CAM++ weights; needed to compare voices.")] = None,
    mos: Annotated[bool, typer.Option(help="Predict opinion scores by DistillMOS.")] = True,
    distillmos: Annotated[Path | None, typer.Option(help="Folder of that package, if not installed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every sentence.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Measure how speech is understood, how it sounds, and whether it does as it is told."""
    with user_errors():
        set_threads(threads)
        with extra("evaluate"):
            from tristep.evaluation import speech, tts, tts_report
        from tristep.codec.voice import read_voice
        from tristep.engine.talking import Talker

        if voices and not (voice and speaker):
            raise ValueError("--voices compares with the voices that are named: give --voice and --speaker too")
        ways = (*tts.INSTRUCTIONS, *tts.CUES) if directed else ()
        prompts = tts.build_prompts(tts.read_sentences(sentences, lines), voice or (None,), ways, directed)
        targets = {name: read_voice(voices, name).embedding for name in voice or ()} if voices else {}
        judges = speech.load_judges(recogniser, speaker, distillmos, mos=mos, threads=threads or 2)
        synthesise = tts.from_model(Talker.load(model))
        measured = tts.evaluate_tts(synthesise, prompts, judges, targets=targets, model=model, seed=seed)
        data, page = tts_report.write_report(measured.report, measured.waveforms, out)
        print_table(tts_report.voice_table([measured.report]))
        if measured.report.directives:
            print_table(tts_report.directive_table([measured.report]))
        typer.echo(f"written to {data} and {page}", err=True)


def suite_name(path: Path) -> str:
    """Name a suite after its folder, and after its manifest only where that says more."""
    return path.resolve().parent.name if path.stem in ("manifest", "cuts") else path.stem


def print_table(table: Any) -> None:
    """Print a table to stdout; where that is no terminal, as wide as it needs."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def set_threads(threads: int | None) -> None:
    """Limit the threads that computing may use."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read once, when torch is imported
        import torch

        torch.set_num_threads(threads)


@contextmanager
def share_bar(num_characters: int) -> Iterator[OnProgress]:
    """Draw how much of a text has been said, where somebody watches and there is much of it."""
    if not sys.stderr.isatty() or num_characters < LONG_TEXT:
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("speaking", total=1.0)
        yield lambda share: progress.advance(task, share)


@contextmanager
def progress_bar(files: Sequence[Path]) -> Iterator[OnProgress]:
    """Draw how much sound has been heard, where somebody watches and there is much of it."""
    total_s = sum(map(known_duration_s, files)) if sys.stderr.isatty() else 0.0
    if total_s < LONG_S:
        yield lambda seconds: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("listening", total=total_s)
        yield lambda seconds: progress.advance(task, seconds)


def known_duration_s(path: Path) -> float:
    """Return what a file's header says of its length, 0 where it says nothing."""
    import soundfile

    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, OSError, TypeError):
        return 0.0


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which optional part of the package is missing, where one is."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: run pip install 'tristep[{name}]'") from error


@contextmanager
def user_errors() -> Iterator[None]:
    """End with one sentence and status 2 where the user was mistaken, and quietly where they interrupted."""
    try:
        yield
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(USER_ERROR) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def complain(sentence: str) -> None:
    """Write one line to stderr."""
    typer.echo(f"tristep: {' '.join(sentence.split())}", err=True)


def main() -> NoReturn:
    """Run the command line."""
    try:
        app(prog_name="tristep")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)
