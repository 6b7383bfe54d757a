"""Strict settings: TOML files read into frozen models that refuse what they do not know."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CONFIGS = Path(__file__).parent / "configs"


class Settings(BaseModel):
    """A table of settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


class EncoderConfig(Settings):
    """A Whisper-layout audio encoder (Radford et al. 2022): two convolutions, then pre-norm blocks."""

    num_mels: int
    """Mel bands of the input."""
    dim: int
    num_layers: int
    num_heads: int
    max_frames: int = 1500
    """Length of the position table, in frames of 20 ms: 30 s."""
    pool: Literal[1, 2] = 1
    """Average-pool factor before the last norm: 1 for Whisper (50 Hz), 2 for Qwen2-Audio and Step-Audio 2 (25 Hz)."""
    tail_frames: int = 0
    """Mel frames at the end of a sound that the convolutions hear and nothing attends to: 2 for Step-Audio 2,
    whose front end pads the sound (report section 8.4)."""
    piece_s: float = 30.0
    """Longest sound that is encoded at once; longer sound is cut into pieces, each with its own marks."""


class AdaptorConfig(Settings):
    """The lightweight bridge from encoder frames to the decoder's width, at 12.5 Hz (report section 2.2)."""

    kind: Literal["linear", "conv", "ctc"]
    """`linear`: stacked frames, one projection (report section 2.2). `conv`: Step-Audio 2's (section 8.3).
    `ctc`: a small recogniser whose guesses arrive as the decoder's own text embeddings (nano)."""
    stride: int
    """Encoder frames per audio embedding."""
    hidden_dim: int = 2048
    """Width inside the `conv` and `ctc` kinds."""
    num_letter_layers: int = 0
    """Transformer blocks of the `ctc` kind at 25 Hz, below its letters."""
    num_layers: int = 0
    """Transformer blocks of the `ctc` kind at 12.5 Hz, above its letters."""
    num_heads: int = 8
    num_ctc_tokens: int = 0
    """Entries of the decoder's text vocabulary that the CTC head knows, its blank not counted."""
    dropout: float = 0.0
    """Share of channels dropped in training inside the `ctc` kind."""
    skip_blank: float = 1.0
    """The `ctc` kind shows the decoder only frames whose blank is less probable than this; 1 shows all."""


class DecoderConfig(Settings):
    """A Llama/Qwen2-layout decoder, dense or mixture of experts."""

    vocab_size: int
    """Rows of the pretrained embedding; `VocabConfig` says what is appended to them."""
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    head_dim: int | None = None
    """`dim / num_heads` if not given."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    tied: bool = True
    """Whether the output head is the embedding table."""
    max_positions: int = 16_384
    num_experts: int = 0
    """Experts per block; 0 is a dense block."""
    num_active_experts: int = 2
    """Experts that one token visits (top-k)."""
    expert_dim: int | None = None
    """Width of one expert, `ffn_dim` if not given."""

    @property
    def width_of_head(self) -> int:
        """Channels of one attention head."""
        return self.head_dim or self.dim // self.num_heads


class VocabConfig(Settings):
    """One id space: text, control tokens, audio codes."""

    num_text: int
    """Ids below this are the text tokenizer's own."""
    layout: Literal["plain", "chatml", "step-audio-2"] = "plain"
    """Where control tokens live (`vocab.py`). `plain`: all appended to the text. `chatml`: as `plain`, but turns are
    bounded by the text model's own tokens. `step-audio-2`: where report section 8.5 puts them."""
    num_codes: int = 0
    """Audio codes in the vocabulary; 0 until the codec exists (the growth after stage 1, report section 3.2)."""
    interleave: tuple[int, int] = (1, 4)
    """Text tokens and audio codes that take turns where text leads sound in one sequence (report section 8.6)."""


class BackboneConfig(Settings):
    """Everything needed to build one backbone."""

    name: str
    encoder: EncoderConfig
    adaptor: AdaptorConfig
    decoder: DecoderConfig
    vocab: VocabConfig
    num_draft_heads: int = Field(default=0, ge=0, le=7)
    """Blocks that guess the tokens after the next (report section 4.3: 5); 0 for a model that has learnt none."""


class VocoderConfig(Settings):
    """Speaking mel to waveform: complex filters over a pulse train and noise (`codec/vocoder.py`)."""

    dim: int = 256
    """Width of the filter predictor."""
    num_blocks: int = 6
    """ConvNeXt blocks of the filter predictor; the first half of them see one frame ahead."""
    pitch_dim: int = 128
    """Width of the pitch predictor."""
    num_pitch_blocks: int = 4
    """ConvNeXt blocks of the pitch predictor, each of which sees one frame ahead."""
    num_pitch_bins: int = 128
    """Classes of F0, spaced evenly in its logarithm from `min_f0_hz` to `max_f0_hz`."""
    min_f0_hz: float = 50.0
    max_f0_hz: float = 600.0


class TokenizerConfig(Settings):
    """Speech tokenizer: frozen encoder frames and log-mel to codes (`codec/tokenizer.py`)."""

    stride: int
    """Encoder frames (20 ms) per code, even: 4 for 12.5 codes a second, 2 for 25."""
    levels: tuple[int, ...]
    """Levels of each dimension of the lattice; their product is the codebook's size."""
    encoder_dim: int = 512
    """Width of the frozen encoder's frames."""
    num_mels: int = 80
    """Bands of both mels, the listening one beside the frames and the speaking one that is read back."""
    dim: int = 256
    kernel_size: int = 5
    num_frame_layers: int = 2
    """Blocks at 50 Hz, before the frames of a code are joined."""
    num_code_layers: int = 2
    """Blocks at the rate of the codes, on either side of the lattice."""
    num_phone_dims: int = 5
    """The lattice's first dimensions, which say the phones; the rest says the prosody."""
    num_reader_layers: int = 2
    """Blocks at 50 Hz on the far side of the lattice, which only training needs."""
    dropout: float = 0.0
    hop_s: float = 4.0
    """Seconds whose codes are computed at once."""
    context_s: float = 4.0
    """Seconds that are heard again before them."""
    lookahead_s: float = 1.0
    """Seconds that are heard after them."""


class FlowConfig(Settings):
    """Flow decoder: codes and a voice to the speaking mel (`codec/flow.py`)."""

    dim: int = 256
    lookahead: int = 3
    """Codes that must be known beyond those that are decoded."""
    num_code_layers: int = 3
    """Blocks at the rate of the codes."""
    num_frame_layers: int = 2
    """Blocks at 50 Hz that turn codes into the flow's condition."""
    num_layers: int = 8
    """Blocks of the estimator, at 50 Hz."""
    kernel_size: int = 5
    dilations: tuple[int, ...] = (1, 2, 4)
    """Gaps between the frames that one convolution hears, taken in turn."""
    attend_every: int = 3
    """Estimator blocks from one look at the reference to the next."""
    num_heads: int = 4
    num_mels: int = 80
    voice_dim: int = 192
    num_prosody_bins: int = 7
    """Steps of pitch and of energy against the voice's own (`prosody_bins`)."""
    mel_mean: float = -8.0
    mel_std: float = 3.6
    num_steps: int = 10
    """Euler steps (report section 8.7)."""
    temperature: float = 1.0
    """Of the noise that the steps begin with: less of it is nearer to the mean, and plainer."""
    guidance: float = 0.7
    """How far the flow goes beyond its condition, away from no condition (report section 8.7)."""


class CodecConfig(Settings):
    """Everything needed to build one codec."""

    name: str
    silence: int | None = None
    """The code that most often says silence; without it nobody pauses by a cue."""
    tokenizer: TokenizerConfig
    flow: FlowConfig
    vocoder: VocoderConfig = VocoderConfig()


def load_codec_config(name_or_path: str | Path) -> CodecConfig:
    """Read a codec's TOML file, or one that ships with the package by its name."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    if not path.exists():
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("codec-*.toml")))
        raise ValueError(f"no codec config {str(name_or_path)!r}: give a .toml file or one of {shipped}")
    return load_toml(path, CodecConfig)


def load_backbone_config(name_or_path: str | Path) -> BackboneConfig:
    """Read a backbone's TOML file, or one that ships with the package by its name."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    if not path.exists():
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml") if not p.stem.startswith("codec-")))
        raise ValueError(f"no backbone config {str(name_or_path)!r}: give a .toml file or one of {shipped}")
    return load_toml(path, BackboneConfig)


def load_toml(path: Path, model: type[SettingsT]) -> SettingsT:
    """Read `path` into `model`.

    Raises:
        ValueError: In one sentence that names the file, the key, and the nearest key that exists.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {str(path)!r}: give the path of a recipe or config (.toml)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from error
    return parse(table, model, path.name)


def parse(table: dict[str, Any], model: type[SettingsT], source: str) -> SettingsT:
    """Check a table of settings against `model`, or raise one sentence about the first thing wrong."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise ValueError(explain(error, model, source)) from None


def explain(error: ValidationError, model: type[Settings], source: str) -> str:
    """Say what the first problem of a validation error is, and what to do about it."""
    first = error.errors()[0]
    *sections, key = (str(part) for part in first["loc"] or ("settings",))
    where = source + (f" [{'.'.join(sections)}]" if sections else "")
    if first["type"] == "extra_forbidden":
        known = known_keys(model, sections)
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known))}"
        return f"{where} has no setting {key!r}: {hint}"
    if first["type"] == "missing":
        return f"{where} needs a setting {key!r}: add it"
    return f"{where} has {key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def known_keys(model: type[Settings], sections: list[str]) -> list[str]:
    """List the settings of the table that `sections` leads to."""
    for section in sections:
        field = model.model_fields.get(section)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, Settings):
            model = inner
    return list(model.model_fields)
