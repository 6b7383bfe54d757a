"""Test sets for recognition, read from the layout in which they were published.

Every reader turns a folder (or one manifest file) into the same list of `Clip`s, in a fixed order, and
leaves the sound on disk: `read_clip` reads one clip, and of a long recording only the stretch it needs.
The layout is recognised from the files that are there, so `read_suite(path)` is all that a caller needs.

What is left out: no reader downloads anything, and none cleans transcripts beyond removing the spaces
that word-segmented Chinese transcripts carry; normalisation is `tristep.text`'s, the same for every suite.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from tristep.audio import LISTEN_HZ, read_audio

LANGUAGES = {"english": "en", "chinese": "zh", "mandarin": "zh", "cmn": "zh"}
"""Names that corpora give to a language, beside ISO codes."""


@dataclass(frozen=True)
class Clip:
    """One stretch of sound with what was said in it."""

    id: str
    """Name of the clip, unique in its suite."""
    path: Path
    """The sound file."""
    text: str
    """The reference transcript as published; empty where nothing is said."""
    language: str
    """ISO code, such as `en` or `zh`."""
    start_s: float = 0.0
    """Where the clip begins in the file."""
    duration_s: float | None = None
    """Length of the clip, where the suite says it."""
    speaker: str | None = None
    """Who speaks, where the suite says it."""
    is_whole: bool = True
    """Whether the clip is the whole file; otherwise the stretch that `start_s` and `duration_s` give."""


@dataclass(frozen=True)
class Layout:
    """How one corpus lies on disk: what it is recognised by, and its reader."""

    markers: tuple[str, ...]
    """Patterns of which each must match something in the corpus folder."""
    places: tuple[str, ...]
    """Where the corpus folder may lie, seen from the folder that was named; the first that fits is taken."""
    read: Callable[[Path, str], list[Clip]]
    """Reads one split from the corpus folder."""


def read_suite(path: str | Path, layout: str | None = None, split: str = "test") -> list[Clip]:
    """Read a test set as a list of clips.

    Args:
        path: The corpus folder, or a manifest file (`.jsonl`, or lhotse cuts as `.jsonl` or `.jsonl.gz`).
        layout: A name in `LAYOUTS`; recognised from the files when not given.
        split: The corpus' own name of the split (`test`, `test-clean`, `TEST_NET`); several are joined
            by a plus (`dev+test`), and `all` takes every row of a manifest.

    Raises:
        ValueError: If the layout is not recognised, or the split is not there.
    """
    root, name = _recognised(Path(path), layout)
    clips = [clip for part in split.split("+") for clip in LAYOUTS[name].read(root, part)]
    repeated = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} names the clip {repeated[0]!r} twice: give every clip of a suite its own id")
    return clips


def read_clip(clip: Clip, sample_rate: int = LISTEN_HZ) -> Tensor:
    """Read one clip's waveform, shape `(S,)`; of a long recording only the stretch is decoded."""
    if clip.is_whole:
        return read_audio(clip.path, sample_rate)
    return read_audio(_stretch(clip), sample_rate)


def duration_s(clip: Clip) -> float:
    """Return the length of a clip: what the suite says, or the file's header, or else the decoded sound."""
    if clip.duration_s is not None:
        return clip.duration_s
    try:
        file_s = float(soundfile.info(clip.path).duration)
    except soundfile.LibsndfileError:  # a container that only PyAV reads
        file_s = read_audio(clip.path).shape[-1] / LISTEN_HZ
    return file_s - clip.start_s


def describe_layouts() -> str:
    """List the layouts and the files that each is recognised by, in one line."""
    return "; ".join(f"{name} ({' and '.join(layout.markers)})" for name, layout in LAYOUTS.items())


def _stretch(clip: Clip) -> io.BytesIO:
    """Cut the clip out of its file at the file's own rate, as a WAV file in memory."""
    with soundfile.SoundFile(clip.path) as recording:
        recording.seek(round(clip.start_s * recording.samplerate))
        num_samples = -1 if clip.duration_s is None else round(clip.duration_s * recording.samplerate)
        samples = recording.read(num_samples, dtype="float32", always_2d=True)
        stretch = io.BytesIO()
        soundfile.write(stretch, samples, recording.samplerate, format="WAV", subtype="FLOAT")
    stretch.seek(0)
    return stretch


def _recognised(path: Path, layout: str | None) -> tuple[Path, str]:
    """Return the corpus folder (or manifest file) and the name of its layout."""
    if not path.exists():
        raise ValueError(f"there is no test set at {str(path)!r}: give a corpus folder or a manifest file")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if path.is_file() and path.name == "WenetSpeech.json":
        return path.parent, "wenetspeech"
    if path.is_file():
        return path, layout or _manifest_layout(path)
    for name in [layout] if layout else LAYOUTS:
        for place in LAYOUTS[name].places:
            if all(any((path / place).glob(marker)) for marker in LAYOUTS[name].markers):
                return path / place, name
    raise ValueError(
        f"{str(path)!r} is not laid out as {layout or 'a known test set'}: expected one of {describe_layouts()}"
    )


def _manifest_layout(path: Path) -> str:
    """Tell our manifest from lhotse's cuts by the first row."""
    row = next(_rows(path), {})
    if "audio" in row:
        return "manifest"
    if "supervisions" in row or "recording" in row:
        return "lhotse"
    raise ValueError(
        f"{str(path)!r} is no manifest of clips: expected one JSON object a line, with 'audio' and 'text' "
        "(manifest) or with 'recording' and 'supervisions' (lhotse cuts)"
    )


def _text(path: Path) -> str:
    """Read a text file, gzipped or not."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}): fetch or unpack it again") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON ({error}): write one object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is {row!r}: expected an object with the clip's fields")
        yield row


def _table(path: Path, *columns: str, delimiter: str = "\t") -> list[dict[str, str]]:
    """Read some columns of a table with a header; corpora write quotation marks as they are."""
    reader = csv.DictReader(io.StringIO(_text(path)), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}: expected a header with {', '.join(columns)}")
    return [{column: row[column] or "" for column in columns} for row in reader]


def _pairs(path: Path) -> dict[str, str]:
    """Read lines of `key value...`, as Kaldi writes them, apart by a space or a tab."""
    lines = (line.strip().split(maxsplit=1) for line in _text(path).split("\n"))
    return {line[0]: line[1] if len(line) > 1 else "" for line in lines if line}


def _language(name: str) -> str:
    """Return the ISO code of `en`, `en_us`, `zh-CN`, `cmn_hans_cn` or `Chinese`."""
    code = name.lower().replace("-", "_").split("_")[0]
    return LANGUAGES.get(code, code)


def _no_split(root: Path, split: str, splits: set[str]) -> ValueError:
    """Say which splits there are instead of the one that was asked for."""
    return ValueError(f"{str(root)!r} has no split {split!r}: it has {', '.join(sorted(splits)) or 'none'}")


def read_manifest(path: Path, split: str) -> list[Clip]:
    """Read our own `manifest.jsonl`: id, audio (relative to it), text, speaker, language, duration, split."""
    path = path / "manifest.jsonl" if path.is_dir() else path
    rows = list(_rows(path))
    kept = [row for row in rows if split in ("all", row.get("split", split))]
    if not kept:
        raise _no_split(path, split, {str(row.get("split")) for row in rows})
    return [_manifest_clip(path, row) for row in kept]


def _manifest_clip(path: Path, row: dict[str, Any]) -> Clip:
    missing = [field for field in ("audio", "text") if field not in row]
    if missing:
        raise ValueError(f"{path}: the clip {row.get('id')!r} has no {missing[0]!r}: add it to its row")
    return Clip(
        id=str(row.get("id", row["audio"])),
        path=path.parent / row["audio"],
        text=row["text"],
        language=_language(row.get("language") or "en"),
        duration_s=row.get("duration"),
        speaker=row.get("speaker"),
    )


def read_lhotse(path: Path, split: str) -> list[Clip]:
    """Read lhotse cuts: one file, or the file of a folder whose name holds the split (`cuts_test.jsonl.gz`).

    A cut is one clip; what its supervisions say is joined in the order in which they begin.
    """
    try:
        from lhotse import CutSet
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} holds lhotse cuts, and lhotse is not installed: pip install lhotse") from error

    if path.is_dir():
        manifests = sorted(path.glob("*cuts*.jsonl*"))
        named = [file for file in manifests if split in file.name]
        if len(named) != 1:
            raise _no_split(path, split, {file.name for file in manifests})
        path = named[0]
    return [_cut_clip(path, cut) for cut in CutSet.from_file(path)]


def _cut_clip(path: Path, cut: Any) -> Clip:
    if not getattr(cut, "has_recording", False) or len(cut.recording.sources) != 1:
        raise ValueError(f"{path}: the cut {cut.id!r} is not from one sound file: save mixed cuts as files")
    said = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    source = Path(cut.recording.sources[0].source)
    return Clip(
        id=cut.id,
        path=source if source.exists() else path.parent / source,
        text=" ".join(supervision.text or "" for supervision in said).strip(),
        language=_language(next((s.language for s in said if s.language), "en")),
        start_s=cut.start,
        duration_s=cut.duration,
        speaker=next((s.speaker for s in said if s.speaker), None),
        is_whole=cut.start == 0 and abs(cut.duration - cut.recording.duration) < 1e-3,
    )


def read_librispeech(root: Path, split: str) -> list[Clip]:
    """Read LibriSpeech: `SPLIT/SPEAKER/CHAPTER/*.flac` with `SPEAKER-CHAPTER.trans.txt` beside them.

    The folder is the corpus (`LibriSpeech`) or one split of it (`test-clean`).
    """
    if not any(root.glob("*/*/*.trans.txt")):
        splits = {transcript.parents[2].name for transcript in root.glob("*/*/*/*.trans.txt")}
        if split not in splits:
            raise _no_split(root, split, splits)
        root = root / split
    return [
        Clip(name, transcript.parent / f"{name}.flac", text, "en", speaker=transcript.parents[1].name)
        for transcript in sorted(root.glob("*/*/*.trans.txt"))
        for name, text in _pairs(transcript).items()
    ]


def read_aishell_1(root: Path, split: str) -> list[Clip]:
    """Read AISHELL-1: `wav/SPLIT/SPEAKER/*.wav` and `transcript/aishell_transcript_v0.8.txt`.

    The transcript is cut into words by spaces, which are removed. As in every published recipe, a file
    without a transcript is left out.
    """
    splits = {folder.name for folder in (root / "wav").iterdir() if folder.is_dir()}
    if split not in splits:
        raise _no_split(root, split, splits)
    texts = _pairs(root / "transcript" / "aishell_transcript_v0.8.txt")
    return [
        Clip(path.stem, path, texts[path.stem].replace(" ", ""), "zh", speaker=path.parent.name)
        for path in sorted((root / "wav" / split).glob("*/*.wav"))
        if path.stem in texts
    ]


def read_aishell_2(root: Path, split: str) -> list[Clip]:
    """Read AISHELL-2: `iOS/SPLIT/wav.scp` (id, path) and `iOS/SPLIT/trans.txt` (id, tab, transcript).

    The folder is the corpus, one recording device of it, or one split. The paths of `wav.scp` are
    relative to the folder that holds it.
    """
    if not (root / "wav.scp").exists():
        splits = {file.parent.name for file in root.glob("*/wav.scp")}
        if split not in splits:
            raise _no_split(root, split, splits)
        root = root / split
    texts = _pairs(root / "trans.txt")
    return [
        Clip(name, root / path, texts[name].replace(" ", ""), "zh", speaker=Path(path).parent.name)
        for name, path in _pairs(root / "wav.scp").items()
        if name in texts
    ]


def read_wenetspeech(root: Path, split: str) -> list[Clip]:
    """Read WenetSpeech: the segments that `WenetSpeech.json` puts into a subset, such as `TEST_NET`.

    A segment is a stretch of a long `.opus` recording under `audio/`. The file describes the whole
    corpus and is read at once, as the authors' own tools do.
    """
    audios = json.loads(_text(root / "WenetSpeech.json"))["audios"]
    segments = [(audio, segment) for audio in audios for segment in audio["segments"]]
    subset = split.upper()
    kept = [_wenetspeech_clip(root, audio, s) for audio, s in segments if subset in s["subsets"]]
    if not kept:
        raise _no_split(root, split, {name for _, segment in segments for name in segment["subsets"]})
    return kept


def _wenetspeech_clip(root: Path, audio: dict[str, Any], segment: dict[str, Any]) -> Clip:
    start_s, end_s = float(segment["begin_time"]), float(segment["end_time"])
    return Clip(
        id=segment["sid"],
        path=root / audio["path"],
        text=segment["text"].strip(),
        language="zh",
        start_s=start_s,
        duration_s=end_s - start_s,
        is_whole=False,
    )


def read_fleurs(root: Path, split: str) -> list[Clip]:
    """Read one language of FLEURS: `SPLIT.tsv` and `audio/SPLIT/*.wav`.

    The table has no header; its columns are id, file name, raw transcript, transcript, the transcript as
    characters, number of samples at 16 kHz, gender. The transcript is the fourth, which the corpus'
    authors score. The language is the folder's name (`en_us`, `cmn_hans_cn`).
    """
    table = _split_table(root, f"{split}.tsv", "*.tsv")
    rows = [line.split("\t") for line in _text(table).split("\n") if line]
    if any(len(row) < 6 for row in rows):
        raise ValueError(f"{table} has rows of fewer than 6 columns: expected FLEURS' 7 and no header")
    return [
        Clip(
            id=Path(row[1]).stem,
            path=root / "audio" / split / row[1],
            text=row[3],
            language=_language(root.resolve().name),
            duration_s=int(row[5]) / 16_000,
        )
        for row in rows
    ]


def read_common_voice(root: Path, split: str) -> list[Clip]:
    """Read one language of Common Voice: `SPLIT.tsv` (client_id, path, sentence, locale), `clips/*.mp3`."""
    table = _split_table(root, f"{split}.tsv", "*.tsv")
    rows = _table(table, "client_id", "path", "sentence", "locale")
    return [
        Clip(
            id=Path(row["path"]).stem,
            path=root / "clips" / (row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"),
            text=row["sentence"],
            language=_language(row["locale"] or root.resolve().name),
            speaker=row["client_id"],
        )
        for row in rows
    ]


def read_voxpopuli(root: Path, split: str) -> list[Clip]:
    """Read one language of VoxPopuli: `asr_SPLIT.tsv` and `YEAR/ID.ogg`, as its own script cuts them.

    The columns are id, raw_text, normalized_text, speaker_id, split, gender. The normalised text is
    scored; where it is empty, the raw one. The sound may also be `.wav`, and lie without year folders.
    The language is the folder's name.
    """
    table = _split_table(root, f"asr_{split}.tsv", "asr_*.tsv")
    rows = _table(table, "id", "raw_text", "normalized_text", "speaker_id")
    return [
        Clip(
            id=row["id"],
            path=_voxpopuli_path(root, row["id"]),
            text=row["normalized_text"] or row["raw_text"],
            language=_language(root.resolve().name),
            speaker=row["speaker_id"],
        )
        for row in rows
    ]


def _voxpopuli_path(root: Path, name: str) -> Path:
    places = [folder / f"{name}{suffix}" for folder in (root / name[:4], root) for suffix in (".ogg", ".wav")]
    return next((path for path in places if path.exists()), places[0])


def read_earnings22(root: Path, split: str) -> list[Clip]:
    """Read Earnings-22: `metadata.csv`, `media/ID.mp3` and `transcripts/nlp_references/ID.nlp`.

    Assumed, from the corpus' repository: the metadata's first column is `File ID` and it has a column
    `File Length (seconds)`, rounded, which is not used; an `.nlp` file has a header, then one token a
    line as `token|speaker|ts|endTs|punctuation|case|tags|wer_tags`, the token spelt in its case and the
    punctuation following it; times are mostly empty. So each call, up to two hours, is one clip. All of
    it is the test split. Marks such as `<laugh>` stay in the text, for the normaliser to remove.
    """
    if split != "test":
        raise _no_split(root, split, {"test"})
    references = root / "transcripts" / "nlp_references"
    calls = [row["File ID"] for row in _table(root / "metadata.csv", "File ID", delimiter=",")]
    return [Clip(call, root / "media" / f"{call}.mp3", _said(references / f"{call}.nlp"), "en") for call in calls]


def _said(path: Path) -> str:
    """Join the tokens of an `.nlp` file, each with the punctuation that follows it."""
    rows = _table(path, "token", "punctuation", delimiter="|")
    return " ".join(row["token"] + row["punctuation"] for row in rows)


def _split_table(root: Path, name: str, pattern: str) -> Path:
    """Return the table of a split, or say which tables there are."""
    if not (root / name).exists():
        raise _no_split(root, name, {path.name for path in root.glob(pattern)})
    return root / name


LAYOUTS = {
    "manifest": Layout(("manifest.jsonl",), ("",), read_manifest),
    "lhotse": Layout(("*cuts*.jsonl*",), ("",), read_lhotse),
    "librispeech": Layout(("**/*-*.trans.txt",), ("LibriSpeech", ""), read_librispeech),
    "aishell-1": Layout(("transcript/aishell_transcript_v0.8.txt", "wav"), ("", "data_aishell"), read_aishell_1),
    "aishell-2": Layout(("**/wav.scp", "**/trans.txt"), ("AISHELL-2/iOS", "iOS", ""), read_aishell_2),
    "wenetspeech": Layout(("WenetSpeech.json",), ("",), read_wenetspeech),
    "fleurs": Layout(("*.tsv", "audio/*"), ("",), read_fleurs),
    "common-voice": Layout(("*.tsv", "clips"), ("",), read_common_voice),
    "voxpopuli": Layout(("asr_*.tsv",), ("",), read_voxpopuli),
    "earnings22": Layout(("metadata.csv", "transcripts/nlp_references/*.nlp"), ("", "earnings22"), read_earnings22),
}
"""The layouts that are read, in the order in which they are tried."""


__all__ = ["LAYOUTS", "Clip", "Layout", "describe_layouts", "duration_s", "read_clip", "read_suite"]
