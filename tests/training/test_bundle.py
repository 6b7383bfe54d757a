from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from tristep.backbone.checkpoints import INDEX, load_backbone, load_encoder, save_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.cli import app
from tristep.config import load_backbone_config
from tristep.corpus.tones import write_corpus
from tristep.training import stages
from tristep.training.bundle import ENCODER, as_opus, checkpoint_files, opened, pack, unpack, write_parts
from tristep.training.exports import bring_home, export, read_export
from tristep.vocab import byte_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes" / "toy"
FIRST = """
[model]
start = "START"
start_mode = "asr"
[learn]
adaptor = 1e-3
[loss]
next_token = 0.0
ctc = 1.0
[data]
corpora = [{ path = "tones/manifest.jsonl" }]
dev = [{ path = "tones/manifest.jsonl", split = "dev" }]
batch_s = 2
noisy_share = 0.0
[optim]
steps = STEPS
[loop]
evaluate_first = true
log_every = 1
save_every = 2
"""
SECOND = FIRST.replace('start_mode = "asr"\n', "").replace("START", "runs/first/model")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with weights that serve two modes, a corpus and two recipes that follow one another."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    add_low_rank(backbone.decoder, 2, ["q_proj"])
    save_backbone(backbone, byte_tokenizer(), "weights/tiny", "fp32", {"asr": backbone, "tts": backbone})
    write_corpus(Path("data/tones"), num_clips=12, seed=0)
    Path("first.toml").write_text(FIRST.replace("START", "weights/tiny").replace("STEPS", "3"))
    Path("second.toml").write_text(SECOND.replace("STEPS", "2"))
    return tmp_path


def packed(part_mb: float = 60.0, opus_kbps: float | None = None) -> Path:
    pack([Path("first.toml"), Path("second.toml")], Path("data"), Path("parts"), part_mb, opus_kbps)
    return Path("parts")


def train_in(bundle: Path, recipe: str, steps: int | None = None) -> dict[str, float]:
    with opened(bundle):
        return stages.run(Path(f"{recipe}.toml"), Path(f"runs/{recipe}"), steps)


def test_no_part_is_larger_than_asked_for_and_the_bundle_says_what_they_are(home: Path) -> None:
    bundle = packed(part_mb=0.1)
    parts = json.loads((bundle / "bundle.json").read_text())["parts"]
    sizes = [(bundle / part["name"]).stat().st_size for part in parts]
    assert len(sizes) > 2
    assert sizes == [100_000] * (len(sizes) - 1) + sizes[-1:] == [part["bytes"] for part in parts]


def test_a_bundle_trains_alone_resumes_and_its_second_recipe_starts_from_the_first(home: Path) -> None:
    alone = stages.run(Path("first.toml"), Path("expected"))
    bundle = packed(part_mb=0.2)
    elsewhere = home / "elsewhere"
    bundle.rename(elsewhere)
    for gone in ("data", "weights"):
        (home / gone).rename(home / f"{gone}.gone")
    assert train_in(elsewhere, "first", steps=2)["step"] == 2
    assert train_in(elsewhere, "first") == alone
    assert train_in(elsewhere, "second")["step"] == 2
    learnt = load_file(elsewhere / "unpacked/runs/first/trained.safetensors")
    expected = load_file("expected/trained.safetensors")
    assert all(torch.equal(learnt[name], tensor) for name, tensor in expected.items())
    assert learnt.keys() == expected.keys()


def test_what_no_recipe_reads_stays_at_home(home: Path) -> None:
    folder = unpack(packed())
    index = json.loads((folder / "weights/tiny" / INDEX).read_text())
    assert set(index["modes"]) == {"asr"}
    assert not list((folder / "weights/tiny").glob("tts-*"))
    rows = [json.loads(line) for line in (folder / "data/tones/manifest.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "dev"}
    assert len(list((folder / "data/sound").iterdir())) == len(rows) == 12


def test_an_encoder_that_is_wanted_alone_travels_alone(home: Path) -> None:
    for name, read in checkpoint_files(Path("weights/tiny"), "there", {ENCODER}).items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(read())
    assert {path.name for path in Path("there").glob("*.safetensors")} == {"audio_encoder-0.safetensors"}
    expected = load_encoder("weights/tiny").state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in load_encoder("there").state_dict().items())


FLOW = """
part = "flow"
codec = "codec-toy"
encoder = "weights/tiny"
speaker = "parts_of_it/speaker.safetensors"
tokenizer = "runs/tokenizer/tokenizer.safetensors"
start = "before"
lr = 1e-3
[data]
corpora = [{ path = "tones/manifest.jsonl", max_clips = 3 }]
dev = [{ path = "tones/manifest.jsonl", split = "dev" }]
[optim]
steps = 3
"""


def test_a_codec_recipe_takes_its_files_its_start_its_tables_and_the_encoder_alone(home: Path) -> None:
    for path in ("parts_of_it/speaker.safetensors", "before/trained.safetensors", "before/more", "data/speech/f0/rows"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path)
    Path("tokenizer.toml").write_text(
        FLOW.replace('"flow"', '"tokenizer"').replace('tokenizer = "runs/tokenizer/tokenizer.safetensors"\n', "")
    )
    Path("flow.toml").write_text(FLOW)
    pack([Path("tokenizer.toml"), Path("flow.toml")], Path("data"), Path("parts"), also=[Path("data/speech")])
    folder = unpack(Path("parts"))
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "sound" not in p.parts}
    assert files == {
        ".bundle", "tokenizer.toml", "flow.toml", "parts_of_it/speaker.safetensors", "before/trained.safetensors",
        "data/tones/manifest.jsonl", "data/speech/f0/rows", "weights/tiny/config.json", "weights/tiny/index.json",
        "weights/tiny/tokenizer.json", "weights/tiny/audio_encoder-0.safetensors",
    }  # fmt: skip


def test_the_commands_pack_train_in_the_bundle_and_export(home: Path) -> None:
    for command in ("pack first.toml --out parts", "train first.toml --bundle parts --out runs/first"):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    assert json.loads(Path("parts/unpacked/runs/first/export/report.json").read_text())["step"] == 3
    assert Path.cwd() == home


def test_recipes_that_cannot_travel_are_refused(home: Path) -> None:
    for name in ("5_rlhf_asr", "realtime"):
        with pytest.raises(ValueError, match="can't be packed: expected a recipe of ASR, of TTS or of the codec"):
            pack([RECIPES / f"{name}.toml"], Path("data"), Path("alone"))


def test_sound_becomes_opus_of_the_same_length(home: Path) -> None:
    path = Path("data/tones/audio/tones_0000.wav")
    Path("a.opus").write_bytes(as_opus(path, 24))
    assert soundfile.info("a.opus").frames == soundfile.info(path).frames
    folder = unpack(packed(opus_kbps=24))
    assert {sound.suffix for sound in (folder / "data/sound").iterdir()} == {".opus"}


def test_a_missing_or_damaged_part_is_named(home: Path) -> None:
    bundle = packed(part_mb=0.1)
    second = bundle / "part-001"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ValueError, match=r"lacks part-001 of \d+ parts: bring them there too"):
        unpack(bundle)
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="part-001 is damaged"):
        unpack(bundle)
    second.write_bytes(content)
    assert (unpack(bundle) / "first.toml").is_file()


def test_what_is_not_there_or_lies_elsewhere_is_refused_at_home(home: Path) -> None:
    with pytest.raises(ValueError, match=r"second.toml needs start = 'runs/first/model', which is not there"):
        pack([Path("second.toml")], Path("data"), Path("alone"))
    Path("outside.toml").write_text(FIRST.replace("START", str(home / "weights/tiny")).replace("STEPS", "1"))
    with pytest.raises(ValueError, match="lies outside the working folder"):
        pack([Path("outside.toml")], Path("data"), Path("alone"))
    assert not Path("alone").exists()
    packed()
    with pytest.raises(ValueError, match="parts is not empty"):
        packed()


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no bundle: expected bundle.json and its parts"):
        unpack(tmp_path)


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=6), st.integers(1, 300))
def test_parts_joined_are_the_stream(contents: list[bytes], max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        parts = write_parts({f"f{i}": (lambda c=c: c) for i, c in enumerate(contents)}, out, max_bytes)
        total = sum(part["bytes"] for part in parts)
        assert len(parts) == math.ceil(total / max_bytes)
        (out / "bundle.json").write_text(json.dumps({"format": 1, "parts": parts}))
        unpacked = unpack(out)
        assert [(unpacked / f"f{i}").read_bytes() for i in range(len(contents))] == contents


@pytest.fixture
def finished(home: Path) -> Path:
    stages.run(Path("first.toml"), Path("runs/first"))
    return Path("runs/first")


def test_an_export_brought_home_is_the_model(home: Path, finished: Path) -> None:
    report = export(finished, Path("carried"), shard_mb=0.05, packing="fp32")
    sizes = [path.stat().st_size for path in Path("carried").glob("learnt-*.safetensors")]
    assert len(sizes) == len(report["shards"]) > 1
    bring_home(Path("carried"), Path("first.toml"), Path("runs/again"), Path("data"))
    expected, found = (load_backbone(f"runs/{name}/model")[0].state_dict() for name in ("first", "again"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_export_is_small_and_says_what_was_measured(home: Path, finished: Path) -> None:
    report = export(finished, Path("carried"), shard_mb=0.05)
    assert all(path.stat().st_size <= 50_000 for path in Path("carried").glob("learnt-*.safetensors"))
    assert report["step"] == 3
    assert report["measures"].keys() >= {"loss", "ctc", "ctc_wer"}
    assert report["measures"]["loss"].keys() == {"first", "last"}
    learnt = load_file(finished / "trained.safetensors")
    for name, tensor in read_export(report["tensors"], Path("carried")).items():
        expected = learnt[name].bfloat16().float() if learnt[name].is_floating_point() else learnt[name]
        assert torch.equal(tensor, expected), name


def test_a_damaged_export_is_refused(home: Path, finished: Path) -> None:
    export(finished, Path("carried"))
    shard = Path("carried/learnt-0.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"learnt-0.safetensors is damaged"):
        bring_home(Path("carried"), Path("first.toml"), Path("runs/again"), Path("data"))


def test_a_run_that_has_saved_nothing_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no trained\.safetensors"):
        export(tmp_path, tmp_path / "out")
