"""Every layout is written in miniature, as it was published, and read back."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tristep.evaluation.suites import LAYOUTS, Clip, duration_s, read_clip, read_suite

RATE = 16_000


def write_sound(path: Path, length_s: float = 0.2, sample_rate: int = RATE) -> Path:
    """Write a rising ramp, so that a stretch of it can be told by its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    num_samples = round(length_s * sample_rate)
    samples = np.arange(num_samples, dtype=np.float32) / num_samples / 2
    encoding = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, samples, sample_rate, **encoding)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_table(path: Path, header: list[str], *rows: list[str], delimiter: str = "\t") -> Path:
    return write_text(path, "".join(delimiter.join(row) + "\n" for row in (header, *rows)))


def write_manifest(path: Path, *rows: dict[str, object]) -> Path:
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_librispeech(root: Path) -> Path:
    for split, speaker in (("test-clean", "1089"), ("test-other", "367")):
        chapter = root / split / speaker / "134686"
        name = f"{speaker}-134686"
        write_sound(chapter / f"{name}-0000.flac")
        write_sound(chapter / f"{name}-0001.flac")
        write_text(chapter / f"{name}.trans.txt", f"{name}-0000 HE HOPED\n{name}-0001 STUFF IT INTO YOU\n")
    return root


def write_aishell_1(root: Path) -> Path:
    write_sound(root / "wav" / "test" / "S0764" / "BAC009S0764W0121.wav")
    write_sound(root / "wav" / "test" / "S0764" / "BAC009S0764W0122.wav")
    write_sound(root / "wav" / "train" / "S0002" / "BAC009S0002W0122.wav")
    write_text(
        root / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市\nBAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况\n",
    )
    return root


def write_aishell_2(root: Path) -> Path:
    for split, name in (("test", "IT0011W0001"), ("dev", "ID0012W0007")):
        folder = root / "iOS" / split
        write_sound(folder / "wav" / name[:6] / f"{name}.wav")
        write_text(folder / "wav.scp", f"{name}\twav/{name[:6]}/{name}.wav\n")
        write_text(folder / "trans.txt", f"{name}\t换一首歌\n")
    return root


def write_wenetspeech(root: Path) -> Path:
    write_sound(root / "audio" / "test_net" / "B00000" / "TEST_NET_Y0000000000.opus", length_s=3.0)
    segments = [
        {"sid": "Y0_S00000", "begin_time": 0, "end_time": 1.0, "subsets": ["TEST_NET"], "text": "你好"},
        {"sid": "Y0_S00001", "begin_time": 1.5, "end_time": 2.25, "subsets": ["TEST_NET"], "text": "再见 "},
        {"sid": "Y0_S00002", "begin_time": 2.25, "end_time": 3, "subsets": ["TEST_MEETING"], "text": "开会"},
    ]
    audio = {
        "aid": "TEST_NET_Y0000000000",
        "duration": 3.0,
        "path": "audio/test_net/B00000/TEST_NET_Y0000000000.opus",
        "segments": segments,
    }
    write_text(root / "WenetSpeech.json", json.dumps({"audios": [audio]}))
    return root


def write_fleurs(root: Path) -> Path:
    row = ["1906", "977.wav", 'Er sagte "Ja".', "er sagte ja", "e r | s a g t e | j a |", "3200", "MALE"]
    write_sound(root / "audio" / "test" / "977.wav")
    write_text(root / "test.tsv", "\t".join(row) + "\n")
    return root


def write_common_voice(root: Path) -> Path:
    write_sound(root / "clips" / "common_voice_de_1.mp3")
    header = ["client_id", "path", "sentence", "up_votes", "down_votes", "locale"]
    write_table(root / "test.tsv", header, ["abc", "common_voice_de_1.mp3", '"Ja", sagte er.', "2", "0", "de"])
    return root


def write_voxpopuli(root: Path) -> Path:
    write_sound(root / "2009" / "20090112-0900-PLENARY-3-en_1.ogg")
    write_sound(root / "2010" / "20100113-0900-PLENARY-3-en_2.wav")
    header = ["id", "raw_text", "normalized_text", "speaker_id", "split", "gender"]
    write_table(
        root / "asr_test.tsv",
        header,
        [
            "20090112-0900-PLENARY-3-en_1",
            "Thank you, Mr President.",
            "thank you mr president",
            "7",
            "test",
            "male",
        ],
        ["20100113-0900-PLENARY-3-en_2", "It is over.", "", "8", "test", "female"],
    )
    return root


def write_earnings22(root: Path) -> Path:
    write_sound(root / "media" / "4468679.mp3", sample_rate=22_050)
    header = ["File ID", "Ticker Symbol", "Country by Ticker", "File Length (seconds)", "Sampling Rate (Hz)"]
    write_table(root / "metadata.csv", header, ["4468679", "PAM", "Argentina", "1", "22050"], delimiter=",")
    write_text(
        root / "transcripts" / "nlp_references" / "4468679.nlp",
        "token|speaker|ts|endTs|punctuation|case|tags|wer_tags\n"
        "Good|0||||UC|[]|[]\n"
        "morning|0|||,|LC|['5:TIME']|['5']\n"
        "<laugh>|0||||LC|[]|[]\n"
        "everyone|0|||.|LC|[]|[]\n",
    )
    return root


def write_lhotse(root: Path) -> Path:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    recording = Recording.from_file(write_sound(root / "audio" / "long.wav", length_s=2.0))
    said = [
        SupervisionSegment("s2", "long", start=0.5, duration=0.2, text="world", language="English", speaker="ann"),
        SupervisionSegment("s1", "long", start=0.0, duration=0.4, text="hello", language="English", speaker="ann"),
    ]
    cuts = [
        MonoCut("part", start=1.0, duration=0.75, channel=0, recording=recording, supervisions=said),
        MonoCut("silence", start=0.0, duration=2.0, channel=0, recording=recording),
    ]
    CutSet.from_cuts(cuts).to_file(root / "cuts_test.jsonl.gz")
    return root


def write_own(root: Path) -> Path:
    row = {"speaker": "ann", "language": "en", "duration": 0.2, "sample_rate": RATE, "audio": "audio/a.wav"}
    write_sound(root / "audio" / "a.wav")
    write_manifest(
        root / "manifest.jsonl",
        row | {"id": "a", "text": "one", "split": "train"},
        row | {"id": "b", "text": "two", "split": "dev"},
        row | {"id": "c", "text": "three", "split": "test"},
    )
    return root


WRITERS = {
    "manifest": (write_own, "own", "test"),
    "lhotse": (write_lhotse, "cuts", "test"),
    "librispeech": (write_librispeech, "LibriSpeech", "test-clean"),
    "aishell-1": (write_aishell_1, "data_aishell", "test"),
    "aishell-2": (write_aishell_2, "AISHELL-2", "test"),
    "wenetspeech": (write_wenetspeech, "WenetSpeech", "TEST_NET"),
    "fleurs": (write_fleurs, "de_de", "test"),
    "common-voice": (write_common_voice, "de", "test"),
    "voxpopuli": (write_voxpopuli, "en", "test"),
    "earnings22": (write_earnings22, "earnings22", "test"),
}


def miniature(layout: str, folder: Path) -> tuple[Path, str]:
    writer, name, split = WRITERS[layout]
    return writer(folder / name), split


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_from_its_files_and_its_sound_is_there(layout: str, tmp_path: Path) -> None:
    root, split = miniature(layout, tmp_path)
    recognised = read_suite(root, split=split)
    assert recognised == read_suite(root, layout=layout, split=split)
    assert recognised
    for clip in recognised:
        waveform = read_clip(clip)
        assert waveform.numel() == pytest.approx(duration_s(clip) * RATE, abs=0.06 * RATE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_that_is_not_there_is_refused_by_name(layout: str, tmp_path: Path) -> None:
    root, _ = miniature(layout, tmp_path)
    with pytest.raises(ValueError, match=r"tset.*it has"):
        read_suite(root, split="tset")


def test_our_manifest_is_filtered_by_split_and_reads_paths_beside_itself(tmp_path: Path) -> None:
    root = write_own(tmp_path)
    assert read_suite(root) == [Clip("c", root / "audio/a.wav", "three", "en", duration_s=0.2, speaker="ann")]
    assert [clip.id for clip in read_suite(root / "manifest.jsonl", split="dev+test")] == ["b", "c"]
    assert [clip.id for clip in read_suite(root, split="all")] == ["a", "b", "c"]


def test_a_manifest_without_splits_is_taken_whole(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "some.jsonl", {"id": "a", "audio": "a.wav", "text": "", "language": "zh-CN"})
    assert read_suite(path) == [Clip("a", tmp_path / "a.wav", "", "zh")]


def test_librispeech_is_read_from_the_corpus_its_parent_or_one_split(tmp_path: Path) -> None:
    root = write_librispeech(tmp_path / "LibriSpeech")
    clips = read_suite(root, split="test-other")
    chapter = root / "test-other/367/134686"
    assert clips[0] == Clip("367-134686-0000", chapter / "367-134686-0000.flac", "HE HOPED", "en", speaker="367")
    assert len(clips) == 2
    assert read_suite(tmp_path, split="test-other") == clips
    assert read_suite(root / "test-other") == clips
    assert len(read_suite(root, split="test-clean+test-other")) == 4


def test_aishell_1_loses_the_spaces_and_the_files_without_transcript(tmp_path: Path) -> None:
    root = write_aishell_1(tmp_path / "data_aishell")
    path = root / "wav/test/S0764/BAC009S0764W0121.wav"
    expected = [Clip("BAC009S0764W0121", path, "甚至出现交易几乎停滞的情况", "zh", speaker="S0764")]
    assert read_suite(root) == expected
    assert read_suite(tmp_path) == expected


def test_aishell_2_is_read_from_the_corpus_the_device_or_one_split(tmp_path: Path) -> None:
    root = write_aishell_2(tmp_path / "AISHELL-2")
    path = root / "iOS/test/wav/IT0011/IT0011W0001.wav"
    expected = [Clip("IT0011W0001", path, "换一首歌", "zh", speaker="IT0011")]
    for folder in (tmp_path, root, root / "iOS", root / "iOS" / "test"):
        assert read_suite(folder) == expected


def test_a_wenetspeech_segment_is_only_its_stretch_of_the_recording(tmp_path: Path) -> None:
    root = write_wenetspeech(tmp_path)
    first, second = read_suite(root, split="test_net")
    assert (first.id, first.text, first.start_s, first.duration_s) == ("Y0_S00000", "你好", 0.0, 1.0)
    assert (second.text, second.start_s, second.duration_s, second.is_whole) == ("再见", 1.5, 0.75, False)
    assert read_clip(first).numel() == RATE  # although it begins where the file begins
    assert read_suite(root / "WenetSpeech.json", split="TEST_MEETING")[0].text == "开会"


def test_a_stretch_holds_the_samples_between_its_times(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "ramp.wav", length_s=2.0)
    stretch = read_clip(Clip("a", path, "", "en", start_s=0.5, duration_s=1.0, is_whole=False))
    np.testing.assert_allclose(stretch, np.arange(8_000, 24_000) / 32_000 / 2, atol=1e-4)


def test_fleurs_takes_the_authors_transcript_and_its_length_from_the_table(tmp_path: Path) -> None:
    root = write_fleurs(tmp_path / "de_de")
    assert read_suite(root) == [Clip("977", root / "audio/test/977.wav", "er sagte ja", "de", duration_s=0.2)]
    mandarin = write_fleurs(tmp_path / "cmn_hans_cn")
    assert read_suite(mandarin)[0].language == "zh"


def test_common_voice_keeps_quotation_marks(tmp_path: Path) -> None:
    root = write_common_voice(tmp_path / "de")
    path = root / "clips/common_voice_de_1.mp3"
    assert read_suite(root) == [Clip("common_voice_de_1", path, '"Ja", sagte er.', "de", speaker="abc")]


def test_voxpopuli_reads_ogg_or_wav_and_the_raw_text_where_there_is_no_other(tmp_path: Path) -> None:
    first, second = read_suite(write_voxpopuli(tmp_path / "en"))
    assert (first.text, first.path.suffix, first.language, first.speaker) == (
        "thank you mr president", ".ogg", "en", "7",
    )  # fmt: skip
    assert (second.text, second.path.suffix) == ("It is over.", ".wav")


def test_earnings22_joins_the_tokens_with_their_punctuation(tmp_path: Path) -> None:
    root = write_earnings22(tmp_path / "earnings22")
    expected = [Clip("4468679", root / "media/4468679.mp3", "Good morning, <laugh> everyone.", "en")]
    assert read_suite(root) == expected
    assert read_suite(tmp_path) == expected


def test_a_lhotse_cut_joins_what_is_said_in_order_of_time(tmp_path: Path) -> None:
    root = write_lhotse(tmp_path)
    part, silence = read_suite(root / "cuts_test.jsonl.gz")
    assert (part.text, part.language, part.speaker) == ("hello world", "en", "ann")
    assert (part.start_s, part.duration_s, part.is_whole) == (1.0, 0.75, False)
    assert (silence.text, silence.is_whole) == ("", True)


def test_a_folder_of_no_known_layout_is_told_every_layout_and_its_files(tmp_path: Path) -> None:
    write_text(tmp_path / "readme.txt", "nothing")
    with pytest.raises(ValueError, match="not laid out as a known test set") as raised:
        read_suite(tmp_path)
    for name, layout in LAYOUTS.items():
        assert name in str(raised.value)
        assert all(marker in str(raised.value) for marker in layout.markers)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "line 1, is not JSON"),
        ("[1, 2]", "line 1, is"),
        ('{"id": "a", "audio": "a.wav"}', "'a' has no 'text'"),
        ('{"other": 1}', "no manifest of clips"),
    ],
)
def test_a_broken_manifest_is_refused_with_the_place(line: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_suite(write_text(tmp_path / "rows.jsonl", line + "\n"))


def test_a_gzipped_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        csv.writer(file).writerow(["id", "text"])
    with pytest.raises(ValueError, match="not JSON"):
        read_suite(tmp_path / "rows.jsonl.gz")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_manifest_that_is_no_text_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\xff\xfe broken")
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_suite(tmp_path / name)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    root = write_common_voice(tmp_path / "de")
    write_table(root / "test.tsv", ["client_id", "path"], ["abc", "common_voice_de_1.mp3"])
    with pytest.raises(ValueError, match="no column 'sentence'"):
        read_suite(root)


def test_a_fleurs_table_of_another_shape_is_refused(tmp_path: Path) -> None:
    root = write_fleurs(tmp_path / "de_de")
    write_table(root / "test.tsv", ["path", "sentence"])
    with pytest.raises(ValueError, match="fewer than 6 columns"):
        read_suite(root)


def test_earnings22_without_a_transcript_is_refused(tmp_path: Path) -> None:
    root = write_earnings22(tmp_path / "earnings22")
    write_table(root / "metadata.csv", ["File ID"], ["4468679"], ["1"], delimiter=",")
    with pytest.raises(ValueError, match=r"1\.nlp cannot be read"):
        read_suite(root)


def test_a_missing_folder_and_an_unknown_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no test set at"):
        read_suite(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no layout 'librispech'.*librispeech"):
        read_suite(tmp_path, layout="librispech")


def test_two_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    row = {"id": "a", "audio": "a.wav", "text": "one"}
    with pytest.raises(ValueError, match="'a' twice"):
        read_suite(write_manifest(tmp_path / "rows.jsonl", row, row))
