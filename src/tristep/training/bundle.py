"""Bundles: all that some recipes need, to be carried to a machine that is rented by the minute.

    tristep pack recipes/gpu/1_hear.toml recipes/gpu/0_flow.toml --data data --out parts --part-mb 60
    tristep train recipes/gpu/1_hear.toml --bundle parts --out runs/1_hear --minutes 8

Recipes, starting weights, manifests and sound become one compressed stream that is cut into parts of at most a given
size; `bundle.json` holds the checksum of each. Unpacked, every file lies where the recipe looks for it: what is
relative to `--data` under `data/`, weights that go by a name under `weights/`, all else where it was. Only the rows of
the splits that are read travel, and of a checkpoint only the modes that a run starts from. Sound is kept as it is, or
becomes Opus. What an earlier recipe of the bundle will leave in `runs/<its name>` need not be there yet.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
import torch
from rich.progress import track

from tristep.audio import LISTEN_HZ, SPEAK_HZ, read_audio
from tristep.backbone.checkpoints import CONFIG, INDEX, TOKENIZER, find_weights, read_json, sha256
from tristep.training.ahead import ahead
from tristep.training.codec import load_codec_recipe, part_of
from tristep.training.hearing import HearingRecipe
from tristep.training.policies import learns_from_rewards
from tristep.training.speaking import SpeakingRecipe
from tristep.training.stages import load_recipe

FORMAT = 1
DESCRIPTION, UNPACKED = "bundle.json", "unpacked"
DATA, WEIGHTS, SOUND = "data", "weights", "data/sound"
NAMES_OF_FILES = frozenset({"start", "encoder", "decoder", "speaker", "tokenizer", "phone_cells", "phone_reader"})
"""Settings of recipes that name weights: a file, a folder, or a checkpoint by its name."""
NAMES_OF_CONFIGS = frozenset({"codec", "config"})
"""Settings that name a config: a file, or one that ships with the package."""
ENCODER = "audio_encoder."
LOSSY = frozenset({".opus", ".ogg", ".mp3", ".m4a"})

Contents = dict[str, Callable[[], bytes]]
"""The files of a bundle, by where they lie in it."""


@dataclass
class Wanted:
    """What the recipes of a bundle need."""

    files: Contents = field(default_factory=dict)
    checkpoints: dict[Path, tuple[str, set[str | None]]] = field(default_factory=dict)
    """Of each folder its place in the bundle, and the modes that are needed: None is all of them, `ENCODER` none."""
    splits: dict[str, set[str]] = field(default_factory=dict)
    """Of each corpus the splits that are read."""
    silent: set[str] = field(default_factory=set)
    """Corpora whose codes are read, and not their sound."""


def pack(
    recipes: Sequence[Path],
    data_root: Path,
    out: Path,
    part_mb: float = 60.0,
    opus_kbps: float | None = None,
    also: Sequence[Path] = (),
) -> Path:
    """Write a bundle into a folder of its own.

    Args:
        recipes: TOML files in the order in which they will run, as the later commands will name them.
        data_root: Folder that the recipes' corpora are relative to.
        out: An empty folder, or one that is made.
        part_mb: Largest size of a part, in millions of bytes.
        opus_kbps: Rate at which sound that is not compressed with loss becomes Opus; none keeps it as it is.
        also: More files and folders below `data_root`, such as tables of an earlier run.

    Returns:
        The bundle's description, `bundle.json`.

    Raises:
        ValueError: If something that a recipe names is not there, or cannot travel.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a bundle a folder of its own")
    wanted = Wanted()
    for number, recipe in enumerate(recipes):
        want(recipe, wanted, made={f"runs/{earlier.stem}" for earlier in recipes[:number]})
    for folder, (place, modes) in wanted.checkpoints.items():
        wanted.files |= checkpoint_files(folder, place, modes)
    wanted.files |= corpus_files(wanted, data_root, opus_kbps)
    for path in also:
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        wanted.files |= {f"{DATA}/{p.relative_to(data_root).as_posix()}": p.read_bytes for p in below if p.is_file()}
    out.mkdir(parents=True, exist_ok=True)
    parts = write_parts(wanted.files, out, round(part_mb * 1e6))
    description = {
        "format": FORMAT, "recipes": [recipe.as_posix() for recipe in recipes], "files": len(wanted.files),
        "parts": parts,
    }  # fmt: skip
    (out / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return out / DESCRIPTION


def want(path: Path, wanted: Wanted, made: set[str]) -> None:
    """Note what one recipe needs; what lies in a folder of `made` will be there by then."""
    recipe: Any = load_codec_recipe(path) if part_of(path) else load_recipe(path)
    speaks = isinstance(recipe, SpeakingRecipe)
    if learns_from_rewards(path) or not (part_of(path) or speaks or isinstance(recipe, HearingRecipe)):
        raise ValueError(f"{path} can't be packed: expected a recipe of ASR, of TTS or of the codec")
    wanted.files[place_of(str(path))] = path.read_bytes
    for corpus in (*recipe.data.corpora, *recipe.data.dev):
        wanted.splits.setdefault(corpus.path, set()).add(corpus.split)
        if speaks:
            wanted.silent.add(corpus.path)
    table = recipe.model_dump(exclude_none=True)
    model = table.get("model", {})
    if "start" in model:
        table["model"] = {"start": model["start"]}
    for name, value in named_files(table):
        if PurePosixPath(*PurePosixPath(value).parts[:2]).as_posix() not in made:
            want_file(path, name, value, wanted, ENCODER if name == "encoder" else model.get("start_mode"))


def named_files(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find the settings of a recipe that name files."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from named_files(value)
        elif isinstance(value, str) and (name in NAMES_OF_FILES or (name in NAMES_OF_CONFIGS and ".toml" in value)):
            yield name, value


def want_file(recipe: Path, name: str, value: str, wanted: Wanted, mode: str | None) -> None:
    """Note a file, a checkpoint, the folder of an earlier run, or foreign weights."""
    path = Path(value)
    if path.is_file():
        wanted.files[place_of(value)] = path.read_bytes
    elif (path / "trained.safetensors").is_file():
        wanted.files[place_of(f"{value}/trained.safetensors")] = (path / "trained.safetensors").read_bytes
    elif path.is_dir() and not (path / INDEX).is_file():
        wanted.files |= {place_of(str(p)): p.read_bytes for p in sorted(path.rglob("*")) if p.is_file()}
    else:
        try:
            folder = find_weights(value)
        except ValueError as error:
            raise ValueError(
                f"{recipe.name} needs {name} = {value!r}, which is not there: give a path below the working folder, "
                "or pack the recipe that makes it before this one"
            ) from error
        place = place_of(value) if path.exists() else f"{WEIGHTS}/{value}"
        wanted.checkpoints.setdefault(folder, (place, set()))[1].add(mode)


def place_of(path: str) -> str:
    """Return where a file that a recipe names lies in a bundle: at the same path.

    Raises:
        ValueError: If it does not lie below the working folder.
    """
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{path!r} lies outside the working folder: name it by a path below it, so that it can travel")
    return place.as_posix()


def checkpoint_files(folder: Path, place: str, modes: set[str | None]) -> Contents:
    """Return the files of a checkpoint that some modes need, and an index of those alone."""
    index = read_json(folder / INDEX)
    if modes == {ENCODER}:
        index["tensors"] = {name: entry for name, entry in index["tensors"].items() if name.startswith(ENCODER)}
    if None not in modes:
        index["modes"] = {mode: own for mode, own in index["modes"].items() if mode in modes}
    entries = [*index["tensors"].values(), *(e for own in index["modes"].values() for e in own["tensors"].values())]
    shards = {shard for entry in entries for shard in entry["shards"]}
    index["shards"] = {shard: digest for shard, digest in index["shards"].items() if shard in shards}
    text = json.dumps(index, indent=1).encode()
    names = (CONFIG, TOKENIZER, *sorted(shards))
    return {f"{place}/{INDEX}": lambda: text, **{f"{place}/{name}": (folder / name).read_bytes for name in names}}


def corpus_files(wanted: Wanted, data_root: Path, opus_kbps: float | None) -> Contents:
    """Return the corpora's rows of the splits that are read, and their sound, each once."""
    files: Contents = {}
    places: dict[Path, str] = {}
    for name, splits in wanted.splits.items():
        path, place = data_root / name, f"{DATA}/{name}"
        sounds = name not in wanted.silent
        rows = [row for row in read_rows(path, sounds) if row.get("split") is None or row["split"] in splits]
        for row in rows if sounds else ():
            sound = (path.parent / row["audio"]).resolve()
            if sound not in places:
                kbps = None if sound.suffix.lower() in LOSSY else opus_kbps
                places[sound] = f"{SOUND}/{len(places):06d}{'.opus' if kbps else sound.suffix}"
                files[places[sound]] = partial(as_opus, sound, kbps) if kbps else sound.read_bytes
            row["audio"] = os.path.relpath(places[sound], Path(place).parent)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        files[place] = partial(bytes, text)
    return files


def read_rows(path: Path, sounds: bool) -> list[dict[str, Any]]:
    """Read the rows of a manifest, or of utterances."""
    if (sounds and path.name != "manifest.jsonl") or not path.is_file():
        raise ValueError(f"{str(path)!r} can't be packed: expected a manifest.jsonl or utterances that are there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_opus(path: Path, kbps: float) -> bytes:
    """Compress a sound, at a rate that keeps what the model hears of it."""
    rate = LISTEN_HZ if soundfile.info(path).samplerate <= LISTEN_HZ else SPEAK_HZ
    written = io.BytesIO()
    # The library maps its level 0 to 256 kbit/s and 1 to 6.
    soundfile.write(written, read_audio(path, rate).numpy(), rate, format="OGG", subtype="OPUS",
                    compression_level=(256 - kbps) / 250)  # fmt: skip
    return written.getvalue()


def write_parts(files: Contents, out: Path, max_bytes: int) -> list[dict[str, Any]]:
    """Write the files as one compressed stream in parts; return what the parts are."""
    num_threads = torch.get_num_threads()
    contents = ahead(lambda read: read(), files.values(), num_threads, 2 * num_threads)
    with PartWriter(out, max_bytes) as parts, tarfile.open(fileobj=parts, mode="w|gz", bufsize=1 << 20) as stream:
        for place in track(files, description=f"packing {out.name}"):
            content = next(contents)
            entry = tarfile.TarInfo(place)
            entry.size = len(content)
            stream.addfile(entry, io.BytesIO(content))
    return [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(out.glob("part-*"))
    ]


class PartWriter(io.RawIOBase):
    """A stream that is written to `part-000`, `part-001`, ..., each of at most `max_bytes`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        super().__init__()
        self.folder, self.max_bytes = folder, max_bytes
        self.number = self.room = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while len(view):
            if self.room == 0:
                self.number, self.room = self.number + 1, self.max_bytes
            piece, view = view[: self.room], view[self.room :]
            with (self.folder / f"part-{self.number - 1:03d}").open("ab") as file:
                file.write(piece)
            self.room -= len(piece)
        return len(data)


class PartReader(io.RawIOBase):
    """Files read one after the other, as the one stream that they were."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths, self.file = list(paths), io.BytesIO()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        while not data and self.paths:
            self.file = io.BytesIO(self.paths.pop(0).read_bytes())
            data = self.file.read(size)
        return data


def unpack(bundle: Path) -> Path:
    """Check the parts of a bundle and unpack them into it, once; runs that are in there already stay.

    Returns:
        The folder that the bundle's paths are relative to.

    Raises:
        ValueError: If a part is missing or damaged.
    """
    if not (bundle / DESCRIPTION).is_file():
        raise ValueError(f"{bundle} is no bundle: expected {DESCRIPTION} and its parts, as `tristep pack` writes them")
    description = read_json(bundle / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise ValueError(f"{bundle} is of format {description.get('format')!r}, expected {FORMAT}: pack it again")
    folder = bundle / UNPACKED
    digest = hashlib.sha256((bundle / DESCRIPTION).read_bytes()).hexdigest()
    marker = folder / ".bundle"
    if marker.is_file() and marker.read_text() == digest:
        return folder
    check_parts(bundle, description["parts"])
    marker.unlink(missing_ok=True)
    with tarfile.open(
        fileobj=PartReader([bundle / part["name"] for part in description["parts"]]), mode="r|gz"
    ) as stream:
        stream.extractall(folder, filter="data")
    marker.write_text(digest)
    return folder


def check_parts(bundle: Path, parts: Sequence[dict[str, Any]]) -> None:
    """Check that every part is there and is what was packed."""
    missing = [part["name"] for part in parts if not (bundle / part["name"]).is_file()]
    if missing:
        raise ValueError(f"{bundle} lacks {', '.join(missing)} of {len(parts)} parts: bring them there too")
    for part in parts:
        if sha256(bundle / part["name"]) != part["sha256"]:
            raise ValueError(f"{bundle / part['name']} is damaged (its SHA-256 is another): bring it there again")


@contextmanager
def opened(bundle: Path | None) -> Iterator[None]:
    """Work in a bundle's folder, where its paths lead to its files; without one, where we are."""
    if bundle is None:
        yield
        return
    homes = os.environ.get("TRISTEP_WEIGHTS")
    with chdir(unpack(bundle)):
        os.environ["TRISTEP_WEIGHTS"] = str(Path(WEIGHTS).absolute())
        try:
            yield
        finally:
            os.environ.pop("TRISTEP_WEIGHTS")
            if homes is not None:
                os.environ["TRISTEP_WEIGHTS"] = homes
