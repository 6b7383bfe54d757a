"""The command line: the same verbs as the API; results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

from tristep import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from tristep.engine.engine import Engine
    from tristep.engine.judging import EndpointPanel
    from tristep.engine.listening import OnProgress
    from tristep.engine.recorded import Exchange
    from tristep.engine.settings import Options
    from tristep.engine.streaming import StreamEvent
    from tristep.engine.transcription import Transcription
    from tristep.training.reward_workers import Listeners

USER_ERROR, INTERRUPTED = 2, 130
LONG_S = 60.0
"""Sound longer than this is worth a progress bar."""
LONG_TEXT = 300
"""Characters of text that are worth one."""
STREAM_CHUNK_S = 1.0
PEER = "faster-whisper:"
"""What the name of a recogniser that is not ours begins with."""

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


class Detection(StrEnum):
    """How the end of a turn is found."""

    server_vad = "server_vad"
    semantic_vad = "semantic_vad"


class Format(StrEnum):
    """How a transcript is printed."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


SUFFIXES = {Format.text: "txt", Format.json: "json", Format.srt: "srt", Format.vtt: "vtt"}


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
        "transcribe --json --words interview.mp3 > interview.json",
        "transcribe --format srt --out captions recordings/*.flac",
    )
)
def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Sound files of any kind and length.")],
    language: Annotated[str | None, typer.Option(help="What is spoken, such as en; else recognised.")] = None,
    style: Annotated[
        Style, typer.Option(help="Plain lower case, or written with capitals and punctuation (nano errs more then).")
    ] = Style.spoken,
    hotwords: Annotated[
        list[str] | None, typer.Option(help="Names to expect, separated by commas; repeatable.")
    ] = None,
    itn: Annotated[bool, typer.Option("--itn", help="Write numbers, dates and amounts in digits.")] = False,
    layout: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: times, confidence, how it ended.")] = False,
    words: Annotated[bool, typer.Option("--words", help="In JSON, say when each word is said.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write a file into for each source.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print as it comes; - is 16-bit PCM, 16 kHz, on stdin.")
    ] = False,
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder.")] = "nano",
    batch_size: Annotated[int, typer.Option(min=1, help="Segments decoded together.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Write down what is said in sound files.

    Text goes to stdout, one line a file, after its name if there are several. A
    file that can't be read is reported on stderr, the others are still
    transcribed, and the exit status is 2.
    """
    with user_errors():
        set_threads(threads)
        layout = check_layout(layout, as_json, words, stream, out, files)
        from tristep.engine.engine import Engine
        from tristep.engine.settings import Settings

        options: Options = {
            "language": language,
            "style": style.value,
            "hotwords": [word.strip() for line in hotwords or () for word in line.split(",") if word.strip()],
            "itn": itn,
            "words": words or layout in (Format.srt, Format.vtt),
        }
        Settings(**options)
        engine = Engine.load(model)
        if stream:
            print_stream(engine, files[0], options)
        elif not print_transcripts(engine, files, layout, out, batch_size, options):
            raise typer.Exit(USER_ERROR)


def check_layout(
    layout: Format, as_json: bool, words: bool, stream: bool, out: Path | None, files: Sequence[Path]
) -> Format:
    """Return how a transcript is laid out, after refusing what does not go together."""
    if as_json and layout not in (Format.text, Format.json):
        raise ValueError(f"--json and --format {layout.value} both say how to print: give one of them")
    layout = Format.json if as_json else layout
    if words and layout is not Format.json:
        raise ValueError(f"--words shows in JSON only, and the format is {layout.value}: add --json, or leave it out")
    if stream and (layout is not Format.text or out or len(files) > 1):
        raise ValueError("--stream prints the text of one source: give one FILE, and leave out --format and --out")
    if layout in (Format.srt, Format.vtt) and len(files) > 1 and out is None:
        raise ValueError(f"{len(files)} files can't share one {layout.value} file: give --out, a folder for theirs")
    if out and len({path.stem for path in files}) < len(files):
        raise ValueError("--out names files after their sources, and two of these have the same name: rename one")
    return layout


def print_transcripts(
    engine: Engine, files: Sequence[Path], layout: Format, out: Path | None, batch_size: int, options: Options
) -> bool:
    """Print what is said in files, or write it into a folder; return whether all of them could be read."""
    from tristep.audio import AudioError

    readable = True
    with progress_bar(files) as on_progress:
        results = engine.transcribe_each(files, batch_size=batch_size, on_progress=on_progress, **options)
        for path, result in zip(files, results, strict=True):
            if isinstance(result, AudioError):
                readable = False
                complain(str(result))
                continue
            text = laid_out(path, result, layout, len(files) > 1 and out is None)
            if out:
                path = write_text(out / f"{path.stem}.{SUFFIXES[layout]}", text)
                text = str(path)
            typer.echo(text)
    return readable


def print_stream(engine: Engine, path: Path, options: Options) -> None:
    """Print what is settled of a sound as it comes, from a file or from stdin."""
    from tristep.audio import stream_audio

    listening = engine.stream_transcription(commit="segment" if options["itn"] else "agreement", **options)
    chunks = stdin_chunks() if str(path) == "-" else stream_audio(path, STREAM_CHUNK_S)
    for chunk in chunks:
        print_committed(listening.push(chunk))
    print_committed(listening.finish())
    typer.echo()


def stdin_chunks() -> Iterator[Tensor]:
    """Yield what arrives on stdin as waveforms `(S,)`, until it ends."""
    import numpy as np
    import torch

    rest = b""
    while data := cast(BufferedReader, sys.stdin.buffer).read1():  # what has arrived, without waiting for more
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield torch.from_numpy(np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768)


def print_committed(events: Sequence[StreamEvent]) -> None:
    """Print what is settled."""
    typer.echo("".join(event.text for event in events if event.kind == "committed"), nl=False)
    sys.stdout.flush()


def write_text(path: Path, text: str) -> Path:
    """Write a text file and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return path


def laid_out(path: Path, result: Transcription, layout: Format, named: bool) -> str:
    """Write one result as the format says."""
    from tristep.engine.captions import srt, vtt

    if layout is Format.json:
        return json.dumps({"path": str(path), **result.to_dict()}, ensure_ascii=False)
    if layout is not Format.text:
        return (srt if layout is Format.srt else vtt)(result).rstrip("\n")
    text = " ".join(result.text.split())
    return f"{path}: {text}" if named else text


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
    speed: Annotated[float, typer.Option(help="How much faster than comes naturally, 0.25 to 4.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Chooses among the ways to say it.")] = 0,
    mark: Annotated[bool, typer.Option(help="Mark it as synthetic, inaudibly and by a tag.")] = True,
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
        talker.marks = mark
        chosen = talker.clone(clone, clone_text) if clone else voice
        with share_bar(len(said)) as on_progress:
            speech = talker.speak(
                said, chosen, instructions=instructions, seed=seed, speed=speed, on_progress=on_progress
            )
        speech.write(out)
        typer.echo(
            f"{out}: {speech.duration_s:.1f} s in the voice {speech.voice}, finish_reason {speech.finish_reason}"
        )


@app.command(
    epilog=examples(
        "converse question.wav --persona 'A patient tutor.' --out answer.wav",
        "converse first.wav second.wav --persona ada.txt --out answers.wav",
        "converse --persona captain.txt",
    )
)
def converse(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Recordings, each a turn; the microphone if none.")
    ] = None,
    persona: Annotated[str, typer.Option(help="Who answers and how: a text, or a text file.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Sound file for the answers to recordings, or for both sides of a talk.")
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Name of a voice; the first there is if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses among the answers and the ways to say them.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, latencies included.")] = False,
    half_duplex: Annotated[
        bool, typer.Option("--half-duplex", help="Do not hear the microphone while an answer sounds.")
    ] = False,
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Talk by microphone and loudspeaker, or answer recorded turns.

    Ctrl-C ends a talk. Speak into an answer to stop it. Wear headphones, or give --half-duplex: the microphone
    must not hear the answers.

    Recordings are answered in text, and aloud into --out. What was heard and answered goes to stdout, two lines a
    turn; how long after the end of speech the answer came goes to stderr.
    """
    with user_errors():
        set_threads(threads)
        if not files:
            if as_json:
                raise ValueError("--json describes the answers to recordings: give a FILE, or leave it out")
            talk_aloud(persona, voice, seed, out, half_duplex, model)
            return
        if half_duplex:
            raise ValueError("--half-duplex is for talks by microphone: leave it out, or give no FILE")
        if voice and out is None:
            raise ValueError("--voice says how answers sound: give --out, a file for them, too")
        from tristep.engine.engine import Engine
        from tristep.engine.recorded import joined

        talk = Engine.load(model).converse(read_persona(persona), voice=voice, seed=seed, aloud=out is not None)
        exchanges = []
        for path in files:
            exchanges.append(talk.hear(path))
            print_exchange(path, exchanges[-1], as_json)
        if out:
            joined(exchanges).write(out)


def talk_aloud(persona: str, voice: str | None, seed: int, out: Path | None, half_duplex: bool, model: str) -> None:
    """Hold a conversation by the default microphone and loudspeaker."""
    with extra("mic"):
        from tristep.terminal.sound_card import SoundCard

        card = SoundCard()
    from rich.console import Console

    from tristep.audio import SPEAK_HZ, write_audio
    from tristep.engine.dialogue import SessionSettings, Transcribing
    from tristep.engine.engine import Engine
    from tristep.engine.session import Session
    from tristep.terminal.loop import VoiceLoop
    from tristep.terminal.talk import both_sides, talk

    settings = SessionSettings(read_persona(persona), voice=voice, transcription=Transcribing(), seed=seed)
    engine = Engine.load(model)
    session = Session(engine, settings)
    _ = engine.thinker  # is loaded before anybody speaks
    if out:
        write_audio(out, both_sides([]), SPEAK_HZ)  # a path that can't be written is a mistake to know of before
    with card:
        typer.echo(f"The microphone is {card.names[0]}, the loudspeaker {card.names[1]}. Ctrl-C ends.", err=True)
        typer.echo(talk(VoiceLoop(session, card, half_duplex=half_duplex), Console()), err=True)
    if out:
        write_audio(out, both_sides(session.items), SPEAK_HZ)


def read_persona(persona: str) -> str:
    """Read a persona from a file, where it names one."""
    may_be_name = len(persona) < 256 and "\n" not in persona
    if not may_be_name or not Path(persona).is_file():
        return persona
    try:
        return Path(persona).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{persona} can't be read ({error}): give a text file, or the persona itself") from error


def print_exchange(path: Path, exchange: Exchange, as_json: bool) -> None:
    """Print a turn, its answer, and how long that took."""
    late = {"first_text_s": exchange.first_text_s, "first_audio_s": exchange.first_audio_s}
    if as_json:
        typer.echo(json.dumps({"path": str(path), "heard": exchange.heard, "text": exchange.text, **late}))
        return
    typer.echo(f"user: {' '.join(exchange.heard.split())}\nanswer: {' '.join(exchange.text.split())}")
    known = ((name, at_s) for name, at_s in zip(("words", "sound"), late.values(), strict=True) if at_s is not None)
    typer.echo(", ".join(f"first {name} after {at_s:.2f} s" for name, at_s in known), err=True)


@app.command(
    epilog=examples(
        "serve",
        "serve --host 0.0.0.0 --api-key-file keys.txt",
        "serve --ray --replicas 2 --max-replicas 4",
    )
)
def serve(
    model: Annotated[str, typer.Option(help="Shipped weights, or a folder.")] = "nano",
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    api_key: Annotated[list[str] | None, typer.Option(envvar="TRISTEP_API_KEY", help="Clients must send it.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File of keys, one a line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Name of this server; repeatable.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Web page that may call; repeatable.")] = None,
    voices: Annotated[Path | None, typer.Option(help="Folder for cloned voices; allows cloning.")] = None,
    open_voices: Annotated[bool, typer.Option("--open-voices", help="List voices without a key.")] = False,
    mark: Annotated[bool, typer.Option(help="Mark speech as synthetic.")] = True,
    style: Annotated[Style, typer.Option(help="How transcripts are written.")] = Style.spoken,
    max_mb: Annotated[int, typer.Option(help="Largest upload, MiB.")] = 25,
    max_minutes: Annotated[int, typer.Option(help="Longest sound.")] = 120,
    max_queue: Annotated[int, typer.Option(help="Requests at once.")] = 16,
    max_rate: Annotated[int, typer.Option(help="Requests a minute by one client.")] = 600,
    max_sessions: Annotated[int, typer.Option(min=0, help="Realtime sessions at once.")] = 4,
    threads: Annotated[int | None, typer.Option(help="Processor threads; all if not given.")] = None,
    telemetry: Annotated[bool, typer.Option("--telemetry", help="Traces for OpenTelemetry.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Serve by replicas on a Ray cluster.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: how many.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="With --ray: most, when busy.")] = None,
) -> None:
    """Serve OpenAI's and StepFun's API: transcriptions, speech, voices, chat, realtime; and a page to try them.

    Point a client, or a browser, at the address that is printed once the model is loaded. Other machines are served
    only with a key. With --ray the cluster is RAY_ADDRESS, or this machine; each replica has the threads (1 if not
    given) and the limits.
    """
    with user_errors():
        if not ray and (replicas, max_replicas) != (1, None):
            raise ValueError("--replicas and --max-replicas are about replicas on a Ray cluster: give --ray too")
        with extra("serve"):
            from tristep.server import app as server
            from tristep.server import replicas as scaled
            from tristep.server.settings import MIB, Settings

        settings = Settings(
            model=model, host=host, port=port, api_keys=(*(api_key or ()), *read_keys(api_key_file)),
            insecure=insecure, allow_hosts=tuple(allow_host or ()), allow_origins=tuple(allow_origin or ()),
            voices=voices, list_voices_openly=open_voices, mark=mark, style=style.value, max_file_bytes=max_mb * MIB,
            max_audio_s=60.0 * max_minutes, max_queue=max_queue, max_requests_per_minute=max_rate,
            max_sessions=max_sessions, threads=threads, telemetry=telemetry,
        )  # fmt: skip
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

        def announce(address: str) -> None:
            typer.echo(served(settings.model_id, address))

        if ray:
            with extra("scale"):
                scaled.run(settings, scaled.Scale(replicas, max_replicas), announce)
        else:
            with extra("telemetry"):
                server.run(settings, announce)


@app.command(epilog=examples("detect answer.wav", "detect recordings/*.mp3"))
def detect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Sound files of any kind and length.")],
) -> None:
    """Say which sounds this program has spoken: its speech bears a mark that nobody hears.

    The number is how clearly the mark stands out: 5 and more is marked, what is not has about 0. Copies keep it, as
    MP3, AAC or Opus too; a loudspeaker and a room, or another speed, take it away.
    """
    from tristep.audio import SPEAK_HZ, read_audio
    from tristep.mark import FOUND, distinctness

    with user_errors():
        for path in files:
            found = distinctness(read_audio(path, SPEAK_HZ))
            typer.echo(f"{path}: {'marked' if found >= FOUND else 'no mark'} ({found:.1f})")


def served(model: str, address: str) -> str:
    """Say where a model is served."""
    return f"{model} is served at {address}/v1\nTalk to it in a browser: {address}"


def read_keys(path: Path | None) -> list[str]:
    """Read a file of keys."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}): give a file of keys, one a line") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"{path} holds no key: expected one a line")
    return keys


@app.command(
    epilog=examples(
        "train recipes/toy/1_align.toml --out runs/toy",
        "train recipes/nano/3_sft.toml --out runs/sft --data corpora",
        "train recipes/gpu/0_flow.toml --bundle parts --out runs/flow",
    )
)
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (.toml).")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics; what is there is resumed.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that the recipe's corpora lie in.")] = Path("data"),
    minutes: Annotated[float | None, typer.Option(min=0.001, help="Stop taking steps after so long.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Work in a bundle of `tristep pack`: all paths are inside it.")
    ] = None,
) -> None:
    """Train a model as a recipe says; in a bundle, export what it learnt."""
    with user_errors():
        with extra("train"):
            from tristep.training import bundle as bundles
            from tristep.training import codec, exports, policies, rlhf, stages
        with bundles.opened(bundle):
            if policies.learns_from_rewards(recipe):
                if minutes:
                    raise ValueError("--minutes is for supervised recipes: set minutes in the recipe's [loop] instead")
                rlhf.run_rlhf(recipe, out, steps, data, partial(hired_listeners, recipe.resolve()))
                return
            run = codec.run_codec if codec.part_of(recipe) else stages.run
            run(recipe, out, steps, data, minutes)
            if bundle:
                exports.export(out, out / "export")


@app.command(epilog=examples("pack recipes/gpu/0_flow.toml --out parts --part-mb 60 --opus-kbps 32"))
def pack(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes (.toml), in the order in which they will run.")],
    out: Annotated[Path, typer.Option(help="Empty folder for the parts.")],
    data: Annotated[Path, typer.Option(help="Folder that the recipes' corpora lie in.")] = Path("data"),
    part_mb: Annotated[float, typer.Option(min=0.001, help="Largest part, in millions of bytes.")] = 60.0,
    opus_kbps: Annotated[
        float | None, typer.Option(min=6, max=256, help="Compress sound that is not yet, to so many kbit/s.")
    ] = None,
    also: Annotated[list[Path] | None, typer.Option(help="Another file or folder below the data folder.")] = None,
) -> None:
    """Pack all that recipes need, to train on another machine."""
    with user_errors():
        with extra("train"):
            from tristep.training import bundle
        typer.echo(bundle.pack(recipes, data, out, part_mb, opus_kbps, also or ()))


def hired_listeners(recipe: Path) -> Listeners:
    """Load who hears and judges the rollouts of a recipe; those that are not ours are known to evaluation."""
    from tristep.evaluation import speech
    from tristep.training import policies, reward_workers, stages

    loaded = stages.load_recipe(recipe)
    named = loaded.listeners if isinstance(loaded, policies.Rewarded) else policies.ListenerSettings()
    model = named.recogniser or ""
    peer = speech.load_recogniser(model.removeprefix(PEER)) if model.startswith(PEER) else None
    panel = endpoint_panel(named.judge_endpoint, named.judge_model) if named.judge_endpoint else None
    return reward_workers.load_listeners(named, peer, speech.load_distillmos() if named.mos else None, panel)


def endpoint_panel(url: str, model: str) -> EndpointPanel:
    """Let a chat model behind an endpoint judge."""
    from tristep.engine.judging import EndpointPanel

    with extra("train"):
        from openai import OpenAI

        from tristep.corpus.endpoint import ask
    client = OpenAI(base_url=url)
    return EndpointPanel(lambda task, question: ask(client, model, task, question), model)


@app.command(
    epilog=examples(
        "label talks --out labelled --join-s 600",
        "label clips --out new --recogniser nano --recogniser my/weights",
    )
)
def label(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of recordings, or of a manifest.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for labels and cuts; what is there is resumed.")],
    recogniser: Annotated[
        list[str] | None, typer.Option(help="nano, weights, or faster-whisper:MODEL; repeatable, best first.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Language that is spoken; recognised if not given.")] = None,
    max_disagreement: Annotated[
        float, typer.Option(min=0.0, help="Share of disputed places that drops a piece.")
    ] = 0.05,
    join_s: Annotated[float, typer.Option(min=0.0, help="Join neighbours to samples of this length, s.")] = 0.0,
    endpoint: Annotated[str | None, typer.Option(help="URL of a chat endpoint that restores writing.")] = None,
    endpoint_model: Annotated[str, typer.Option(help="The model's name at the endpoint.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Write transcripts for recordings that have none, by the votes of recognisers.

    What becomes of each piece is counted on stdout; manifest.jsonl holds what is kept, summary.html says more.
    """
    with user_errors():
        set_threads(threads)
        with extra("train"):
            from tristep.corpus import label as labelling
            from tristep.corpus import recognisers

            repair = labelling.repair_by(endpoint, endpoint_model) if endpoint else None
            voters = recognisers.load_recognisers(recogniser or ["nano"])
            settings = labelling.Settings(language, max_disagreement, max_joined_s=join_s)
            counts = labelling.label_folder(folder, out, voters, settings, repair)
        typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
        typer.echo(f"written to {out / 'manifest.jsonl'} and {out / 'summary.html'}", err=True)


@app.command(
    epilog=examples(
        "arena out/sft out/rlhf out/piper --store v.jsonl",
        "arena out/sft out/rlhf --store v.jsonl --ratings --pairs p.jsonl",
    )
)
def arena(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Sounds of a system, named by prompt.")],
    store: Annotated[Path, typer.Option(help="JSON lines that verdicts are added to.")],
    prompts: Annotated[Path | None, typer.Option(help="JSON lines: id, text, instructions.")] = None,
    ratings: Annotated[bool, typer.Option("--ratings", help="Print ratings and listeners, and serve no page.")] = False,
    pairs: Annotated[Path | None, typer.Option(help="With --ratings: JSON lines of pairs to learn from.")] = None,
    traps: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of traps that screen listeners.")] = 0.1,
    max_trials: Annotated[int | None, typer.Option(min=1, help="The most pairs of one listener.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every listener's order.")] = 0,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 8010,
) -> None:
    """Let listeners compare systems blindly, in pairs, on a page of this machine; rate the systems."""
    with user_errors():
        with extra("evaluate"):
            from tristep.evaluation import arena as compared
        asked = compared.read_prompts(prompts) if prompts else {}
        place = compared.Arena(
            compared.read_systems(folders), store, asked, trap_share=traps, max_trials=max_trials, seed=seed
        )
        if ratings:
            print_ratings(place, pairs)
            return
        with extra("serve"):
            from tristep.evaluation import arena_page
        typer.echo(f"{len(place.names)} prompts, {len(place.systems)} systems: listen at http://{host}:{port}/")
        arena_page.run(place, host, port)


def print_ratings(place: Any, pairs: Path | None) -> None:
    """Print what listeners made of the systems, and write the pairs to learn from if a file is given."""
    from tristep.evaluation.arena import counted, listeners, listeners_table, ratings_table
    from tristep.evaluation.preferences import training_pairs

    verdicts = place.verdicts()
    kept = counted(verdicts)
    print_table(listeners_table(listeners([verdict for verdict in verdicts if verdict.source == "human"])))
    print_table(ratings_table(kept))
    if pairs:
        rows = training_pairs(kept)
        write_text(pairs, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        typer.echo(f"{len(rows)} pairs written to {pairs}", err=True)


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
    directives: Annotated[Path | None, typer.Option(help="Other ways of asking, by corpus.wordings.")] = None,
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
        usual = tts.read_directives(directives) if directives else (*tts.INSTRUCTIONS, *tts.CUES)
        ways = usual if directed else ()
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


@evaluate_app.command(
    "realtime",
    epilog=examples(
        "evaluate realtime --dialogues script.jsonl --out r.json",
        "evaluate realtime --dialogues script.jsonl --model runs/converse/model --out r.json",
    ),
)
def evaluate_realtime(
    dialogues: Annotated[Path, typer.Option(help="The user's side, by python -m tristep.corpus.personas script.")],
    out: Annotated[Path, typer.Option(help="JSON file for the report; its page (.html) goes beside it.")],
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    dialogue_limit: Annotated[int | None, typer.Option(min=1, help="Take only the first dialogues.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="One who answers: 'realtime, text'. Repeatable; all.")] = None,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 takes half the time.")] = "fp32",
    speak: Annotated[bool, typer.Option("--speak", help="Also time the first sound of answers.")] = False,
    voice: Annotated[str | None, typer.Option(help="Name of the voice that answers.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Dialogues held at once.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Measure whether a persona stays in character and to the point, and how soon it answers.

    The text model that the weights grew from holds the same dialogues, prompted by text; dialogues whose turns are
    all recorded are held in sound too.
    """
    with user_errors():
        set_threads(threads)
        with extra("evaluate"):
            from tristep.evaluation import conversants, realtime, realtime_report
        from tristep.engine.talking import Talker

        scripts = realtime.read_scripts(dialogues, dialogue_limit)
        first_sound = conversants.speaking(Talker.load(model), voice) if speak else None
        models, judge = conversants.load_models(
            model, all(script.is_spoken for script in scripts), first_sound, only or (), precision
        )
        result = realtime.evaluate_realtime(models, scripts, judge, model=model, batch_size=batch_size)
        data, page = realtime_report.write_report(result, out)
        print_table(realtime_report.as_table(result))
        typer.echo(f"written to {data} and {page}", err=True)


@evaluate_app.command(
    "turns",
    epilog=examples(
        "evaluate turns --recordings script.jsonl --out r.json",
        "evaluate turns --full-duplex-bench v1_0 --out r.json",
    ),
)
def evaluate_turns(
    out: Annotated[Path, typer.Option(help="JSON file for the report; its page (.html) goes beside it.")],
    recordings: Annotated[Path | None, typer.Option(help="What users say: dialogues, a manifest, a corpus.")] = None,
    split: Annotated[str, typer.Option(help="The corpus' name of the split.")] = "test",
    full_duplex_bench: Annotated[Path | None, typer.Option(help="Folder of that benchmark, v1.0.")] = None,
    sounds: Annotated[Path | None, typer.Option(help="Folder for its output.wav, for its own scripts.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most recordings, noises, samples of a part.")] = 50,
    detection: Annotated[list[Detection] | None, typer.Option(help="How turns end; repeatable. Both.")] = None,
    smart_turn: Annotated[Path | None, typer.Option(help="Folder of smart-turn.onnx; else the model's.")] = None,
    model: Annotated[str, typer.Option(help="Name of shipped weights, or a folder of weights.")] = "nano",
    persona: Annotated[str, typer.Option(help="Who answers and how: a text, or a text file.")] = "",
    voice: Annotated[str | None, typer.Option(help="Name of the voice that answers.")] = None,
    skip_idle: Annotated[bool, typer.Option("--skip-idle", help="Do not wait where there is no work.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Draws recordings, pauses and noises.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Measure how soon a session answers and yields, and whether it keeps out of pauses, in time as it passes."""
    with user_errors():
        set_threads(threads)
        with extra("evaluate"):
            from tristep.evaluation import duplex_bench, turn_cases, turn_report, turn_taking
        from tristep.engine.dialogue import SessionSettings
        from tristep.engine.engine import Engine

        clips = turn_cases.read_recordings(recordings, split=split) if recordings else []
        cases = turn_cases.build_cases(turn_cases.chosen(clips, limit, seed), limit, seed) if clips else []
        samples = duplex_bench.read_bench(full_duplex_bench, limit) if full_duplex_bench else []
        if not cases and not samples:
            raise ValueError("there is nothing to try: give --recordings, --full-duplex-bench or both")
        judge = turn_taking.read_end_of_turn(smart_turn) if smart_turn else None
        names = [each.value for each in detection or Detection]
        settings = SessionSettings(read_persona(persona), voice=voice)
        systems = turn_taking.build_systems(Engine.load(model), settings, names, judge, not skip_idle)
        duplex = [
            found for name in names for found in duplex_bench.evaluate_bench(name, systems[name].talk, samples, sounds)
        ]
        kinds = dict.fromkeys(names[1:], turn_taking.ENDS_OF_TURNS)
        result = turn_taking.evaluate_turns(systems, cases, kinds, duplex=duplex, model=model)
        data, page = turn_report.write_report(result, out)
        for table in turn_report.tables(result):
            print_table(table)
        typer.echo(f"written to {data} and {page}", err=True)


@evaluate_app.command(
    "judge",
    epilog=examples(
        "evaluate judge --pairs judge/speech.jsonl --model runs/judge/model",
        "evaluate judge --pairs p.jsonl --endpoint URL --endpoint-model NAME",
    ),
)
def evaluate_judge(
    pairs: Annotated[list[Path], typer.Option(help="Judged pairs (.jsonl); repeatable.")],
    model: Annotated[str, typer.Option(help="Weights of a judge: a name or a folder.")] = "nano",
    split: Annotated[str, typer.Option(help="Which of the pairs.")] = "held_out",
    max_pairs: Annotated[int | None, typer.Option(min=1, help="The most pairs of each file.")] = None,
    readings: Annotated[int, typer.Option(min=1, help="Verdicts for each order of a pair.")] = 1,
    hears: Annotated[bool, typer.Option("--hears", help="The judge hears the sounds too.")] = False,
    text_model: Annotated[
        str | None, typer.Option(help="Weights of a text model that measures how well replies fit.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of a chat endpoint that judges instead.")] = None,
    endpoint_model: Annotated[str, typer.Option(help="The model's name at the endpoint.")] = "",
    store: Annotated[Path | None, typer.Option(help="JSON lines of preferences to add its verdicts to.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all if not given.")] = None,
) -> None:
    """Measure how often a judge prefers what is known to be better, from either side, and how sure it is."""
    with user_errors():
        set_threads(threads)
        with extra("evaluate"):
            from tristep.evaluation import judge as judging
        from tristep.engine.fitting import Reader
        from tristep.engine.judging import BackbonePanel

        reader = Reader.load(text_model) if text_model else None
        panel: Any = endpoint_panel(endpoint, endpoint_model) if endpoint else BackbonePanel.load(model)
        found = {
            suite_name(path): judging.evaluate_judge(panel, path, split, max_pairs, readings, hears, reader)
            for path in pairs
        }
        print_table(judging.as_table(found))
        judging.write_results(found, out, store, panel.name)


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
