"""Other people's checkpoints: Whisper, Llama/Qwen2-family and Step-Audio 2 weights under our names.

A layout is a table of regular expressions from its names to ours; what the tables don't name is either
another part of that model (Whisper's decoder) or an error (a projection that we have no place for). Tensors
are copied one by one, so that a large model is never in memory twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from tristep.backbone.checkpoints import give_memory
from tristep.backbone.gguf_files import gguf_settings, gguf_tensors, read_gguf_tokenizer
from tristep.backbone.model import Backbone, TokenTable
from tristep.config import BackboneConfig, DecoderConfig, load_backbone_config
from tristep.vocab import TextTokenizer, byte_tokenizer

Names = tuple[tuple[str, str], ...]

ENCODER_NAMES: Names = (
    # Hugging Face: model.encoder.layers.0.self_attn.q_proj.weight (Qwen2-Audio says audio_tower).
    (r"conv([12])\.(weight|bias)", r"conv\1.\2"),
    (r"embed_positions\.weight", "positions"),
    (r"layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", r"blocks.\1.\2_proj.\3"),
    (r"layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"blocks.\1.o_proj.\2"),
    (r"layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"layers\.(\d+)\.fc1\.(weight|bias)", r"blocks.\1.up_proj.\2"),
    (r"layers\.(\d+)\.fc2\.(weight|bias)", r"blocks.\1.down_proj.\2"),
    (r"layers\.(\d+)\.final_layer_norm\.(weight|bias)", r"blocks.\1.ffn_norm.\2"),
    # openai-whisper: encoder.blocks.0.attn.query.weight; Step-Audio 2 says after_norm for ln_post.
    (r"positional_embedding(?:\.weight)?", "positions"),
    (r"blocks\.(\d+)\.attn\.([qkv])(?:uery|ey|alue)\.(weight|bias)", r"blocks.\1.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.out\.(weight|bias)", r"blocks.\1.o_proj.\2"),
    (r"blocks\.(\d+)\.attn_ln\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"blocks\.(\d+)\.mlp\.0\.(weight|bias)", r"blocks.\1.up_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.2\.(weight|bias)", r"blocks.\1.down_proj.\2"),
    (r"blocks\.(\d+)\.mlp_ln\.(weight|bias)", r"blocks.\1.ffn_norm.\2"),
    (r"(?:layer_norm|ln_post|after_norm)\.(weight|bias)", r"norm.\1"),
)
"""Names inside the encoder, without their prefix."""
ENCODER_PREFIX = r"(?:model\.)?(?:encoder|audio_tower)\."

DECODER_NAMES: Names = (
    (r"model\.embed_tokens\.weight", "embedding.weight"),
    (r"lm_head\.weight", "head.weight"),
    (r"model\.norm\.weight", "decoder.norm.weight"),
    (r"model\.layers\.(\d+)\.input_layernorm\.weight", r"decoder.blocks.\1.attention_norm.weight"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", r"decoder.blocks.\1.ffn_norm.weight"),
    (
        r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.(weight|bias)",
        r"decoder.blocks.\1.attention.\2_proj.\3",
    ),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight", r"decoder.blocks.\1.ffn.\2_proj.weight"),
    # Mixture of experts: Qwen names, then Mixtral's.
    (r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.gate\.weight", r"decoder.blocks.\1.ffn.router.weight"),
    (
        r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight",
        r"decoder.blocks.\1.ffn.experts.\2.\3_proj.weight",
    ),
    *(
        (
            rf"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.{theirs}\.weight",
            rf"decoder.blocks.\1.ffn.experts.\2.{ours}.weight",
        )
        for theirs, ours in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
    ),
)
GGUF_NAMES: Names = (
    (r"token_embd\.weight", "embedding.weight"),
    (r"output\.weight", "head.weight"),
    (r"output_norm\.weight", "decoder.norm.weight"),
    (r"blk\.(\d+)\.attn_norm\.weight", r"decoder.blocks.\1.attention_norm.weight"),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"decoder.blocks.\1.ffn_norm.weight"),
    (r"blk\.(\d+)\.attn_([qkv])\.(weight|bias)", r"decoder.blocks.\1.attention.\2_proj.\3"),
    (r"blk\.(\d+)\.attn_output\.weight", r"decoder.blocks.\1.attention.o_proj.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", r"decoder.blocks.\1.ffn.\2_proj.weight"),
)
STEP_AUDIO_2_NAMES: Names = (
    *((rf"encoder\.{theirs}", f"audio_encoder.{ours}") for theirs, ours in ENCODER_NAMES),
    (r"adapter\.(conv|linear1|linear2)\.(weight|bias)", r"adaptor.\1.\2"),
    *DECODER_NAMES,
)
STEP_AUDIO_2_MARKS = {
    "<|EOT|>": "turn_end",
    "<|BOT|>": "turn_start",
    "<audio_start>": "audio_start",
    "<audio_end>": "audio_end",
    "<audio_patch>": "audio_slot",
    "<tts_start>": "tts_start",
    "<tts_end>": "tts_end",
    "<tts_pad>": "tts_pad",
}
"""How its tokenizer writes our control tokens (report section 8.5)."""
SPEECH_TOKEN = r"<\|(?:EOT|BOT)\|>|<(?:audio|tts)_\w+>"
IGNORED = r".*rotary_emb\.inv_freq|(?:encoder|adapter|audio_tower|multi_modal_projector)\..*"
"""Tensors of a decoder's checkpoint that its decoder does not need."""


def start_backbone(
    config: BackboneConfig, encoder: Path | str | None, decoder: Path | str | None, seed: int
) -> tuple[Backbone, TextTokenizer]:
    """Build a backbone from a pretrained encoder and a pretrained text model; the rest starts at random.

    Args:
        config: Shapes, which both checkpoints have to fit.
        encoder: Whisper-layout weights: a file, a folder, or a Hugging Face id; random if None.
        decoder: Llama- or Qwen2-layout weights: a `.gguf` file, a `.safetensors` file or a folder that has
            its `tokenizer.json` beside it, or a Hugging Face id; random, with one token per byte, if None.
        seed: Of everything random.

    Raises:
        ValueError: If a checkpoint is not there, is of another layout, or does not fit `config`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(config)
        tokenizer = byte_tokenizer()
        if encoder is not None:
            load_encoder(backbone.audio_encoder, local_checkpoint(encoder))
        if decoder is not None:
            path = local_checkpoint(decoder)
            load_decoder(backbone, path)
            tokenizer = read_tokenizer(path)
            for table in backbone.tables:
                start_grown_rows(table)
    return backbone, tokenizer


def load_step_audio_2(
    source: Path | str,
    config: BackboneConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Backbone, TextTokenizer]:
    """Load a whole Step-Audio 2 checkpoint: encoder, adaptor, decoder, output head and tokenizer.

    Args:
        source: Its folder (sharded safetensors, `config.json`, tokenizer files), or a Hugging Face id such as
            `stepfun-ai/Step-Audio-2-mini`.
        config: Shapes, Step-Audio-2-mini's if not given.
        device: Where the weights go.
        dtype: What they are kept in; bfloat16 as published.
    """
    folder = local_checkpoint(source)
    config = config or load_backbone_config("step-audio-2-mini")
    check_settings(config.decoder, folder)
    with torch.device("meta"):
        backbone = Backbone(config)
    give_memory(backbone, device, dtype)
    fill(backbone.state_dict(), renamed(tensors_of(folder), STEP_AUDIO_2_NAMES, folder), folder)
    tokenizer = read_tokenizer(folder)
    check_controls(backbone, tokenizer, folder)
    return backbone, tokenizer


def check_controls(backbone: Backbone, tokenizer: TextTokenizer, path: Path) -> None:
    """Refuse a tokenizer whose marks are not where the vocabulary has them."""
    for written, name in STEP_AUDIO_2_MARKS.items():
        found, expected = tokenizer.tokenizer.token_to_id(written), backbone.vocab.control(name)
        if found != expected:
            raise ValueError(f"{path.name} has {written} at {found}, expected {expected}: fetch its added_tokens.json")


def start_grown_rows(table: TokenTable) -> None:
    """Start the rows that the vocabulary gained around the mean of the pretrained ones."""
    num_grown = len(table.grown)
    table.grown = nn.Parameter(table.grown[:0].data)
    table.grow(num_grown)


def load_encoder(audio_encoder: nn.Module, path: Path) -> None:
    """Fill an audio encoder in Whisper layout (Hugging Face, openai-whisper or Step-Audio 2 names)."""
    found = ((re.sub(f"^{ENCODER_PREFIX}", "", name), tensor) for name, tensor in tensors_of(path, ENCODER_PREFIX))
    fill(dict(audio_encoder.named_parameters()), renamed(found, ENCODER_NAMES, path), path)


def load_decoder(backbone: Backbone, path: Path) -> None:
    """Fill the decoder and the token tables in Llama or Qwen2 layout (GGUF or Hugging Face names)."""
    check_settings(backbone.config.decoder, path)
    if path.suffix == ".gguf":
        found = renamed(gguf_tensors(path), GGUF_NAMES, path)
    else:
        found = renamed(tensors_of(path), DECODER_NAMES, path)
    fill(decoder_parameters(backbone), without_tied_head(found, backbone), path)


def decoder_parameters(backbone: Backbone) -> dict[str, Tensor]:
    """Return the parameters that a text model's checkpoint has to fill."""
    named = dict(backbone.named_parameters())
    return {
        name: parameter
        for name, parameter in named.items()
        if name.startswith("decoder.") or name in ("embedding.weight", "head.weight")
    }


def without_tied_head(found: Iterator[tuple[str, Tensor]], backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Drop the output head where it is the embedding."""
    tied = backbone.head is backbone.embedding
    return ((name, tensor) for name, tensor in found if not (tied and name == "head.weight"))


def renamed(found: Iterable[tuple[str, Tensor]], names: Names, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Give tensors our names; one that no rule of `names` and `IGNORED` knows is an error."""
    rules = [(re.compile(theirs), ours) for theirs, ours in names]
    for name, tensor in found:
        match = next((match.expand(ours) for theirs, ours in rules if (match := theirs.fullmatch(name))), None)
        if match is not None:
            yield match, tensor
        elif not re.fullmatch(IGNORED, name):
            raise ValueError(
                f"{path.name} has a tensor {name!r} that this backbone has no place for: use another model"
            )


def fill(parameters: Mapping[str, Tensor], found: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Copy tensors into the parameters of the same name, all of which have to be found."""
    missing = {name for name, parameter in parameters.items() if parameter.numel()}
    with torch.no_grad():
        for name, tensor in found:
            if name not in parameters:
                raise ValueError(f"{path.name} has {name}, the config does not: compare num_layers, qkv_bias and tied")
            target = parameters[name]
            if target.shape != tensor.shape:
                raise ValueError(
                    f"{path.name} has {name} of shape {tuple(tensor.shape)}, the config expects "
                    f"{tuple(target.shape)}: use the config of this checkpoint"
                )
            target.copy_(tensor)
            missing.discard(name)
    if missing:
        raise ValueError(f"{path.name} lacks {len(missing)} tensors, first {min(missing)}: is it the right checkpoint?")


def tensors_of(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint whose names begin with `prefix`, in the dtype stored."""
    for file in weight_files(path):
        if file.suffix != ".safetensors":
            stored = torch.load(file, map_location="cpu", weights_only=True)
            stored = stored.get("model_state_dict", stored)
            yield from ((name, tensor) for name, tensor in stored.items() if re.match(prefix, name))
            continue
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    if re.match(prefix, name):
                        yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file.name} is not a readable safetensors file ({error}): fetch it again") from error


def weight_files(path: Path) -> list[Path]:
    """List the files that hold a checkpoint's tensors: the file itself, or what a folder's index names."""
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.exists():
        files = [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        names = ("model.safetensors", "model.pt", "pytorch_model.bin")
        files = [path / name for name in names if (path / name).exists()][:1]
    absent = [file.name for file in files if not file.exists()]
    if absent or not files:
        raise ValueError(f"{path} has no {absent[0] if absent else 'model.safetensors'}: fetch the whole checkpoint")
    return files


def local_checkpoint(source: Path | str) -> Path:
    """Return a checkpoint's path, fetching it first if it is the id of a Hugging Face repository."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.suffix:
        raise ValueError(f"there is no checkpoint {str(source)!r}: give a file, a folder or a Hugging Face id")
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json", "merges.txt"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"could not fetch {str(source)!r} ({type(error).__name__}): check the name and the network, "
            "or give the path of a checkpoint on this machine (fetching needs the huggingface_hub package)"
        ) from error


def check_settings(config: DecoderConfig, path: Path) -> None:
    """Refuse a checkpoint whose own settings contradict `config`: shapes don't show a wrong rotary base."""
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".gguf":
        stated = gguf_settings(path)
    elif (folder / "config.json").exists():
        stated = hugging_face_settings(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    else:
        return
    for name, theirs in stated.items():
        ours = getattr(config, name)
        if not math.isclose(ours, theirs, rel_tol=1e-5):
            raise ValueError(
                f"{path.name} says {name} = {theirs}, the config says {ours}: use this checkpoint's config"
            )


def hugging_face_settings(table: dict[str, Any]) -> dict[str, Any]:
    """Read a Hugging Face `config.json` into the names of `DecoderConfig`, as far as it states them."""
    table = table.get("text_config", table)
    rope = table.get("rope_parameters") or table.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(
            f"config.json asks for {rope} rotary positions, this decoder has plain ones: use another model"
        )
    names = {
        "dim": "hidden_size", "num_layers": "num_hidden_layers", "ffn_dim": "intermediate_size",
        "num_heads": "num_attention_heads", "norm_eps": "rms_norm_eps",
    }  # fmt: skip
    found = {ours: table.get(theirs) for ours, theirs in names.items()}
    found["num_kv_heads"] = table.get("num_key_value_heads", table.get("num_attention_groups"))
    found["rope_theta"] = table.get("rope_theta", rope.get("rope_theta"))
    return {name: setting for name, setting in found.items() if setting is not None}


def read_tokenizer(path: Path) -> TextTokenizer:
    """Read the tokenizer that belongs to a text model's checkpoint."""
    if path.suffix == ".gguf":
        return read_gguf_tokenizer(path)
    folder = path if path.is_dir() else path.parent
    if not (folder / "tokenizer.json").exists():
        raise ValueError(f"{folder} has no tokenizer.json: put the one of this model beside its weights")
    table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # Speech marks and codes must never come out of a user's text: special, even if the file says otherwise.
    for token in table["added_tokens"]:
        token["special"] |= re.fullmatch(SPEECH_TOKEN, token["content"]) is not None
    tokenizer = Tokenizer.from_str(json.dumps(table))
    if (folder / "added_tokens.json").exists():
        add_listed_tokens(tokenizer, json.loads((folder / "added_tokens.json").read_text(encoding="utf-8")))
    return TextTokenizer(tokenizer)


def add_listed_tokens(tokenizer: Tokenizer, listed: dict[str, int]) -> None:
    """Register the tokens of an `added_tokens.json` under the ids that it gives them."""
    absent = sorted((token for token in listed if tokenizer.token_to_id(token) is None), key=listed.__getitem__)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in absent])
    moved = [token for token, row in listed.items() if tokenizer.token_to_id(token) != row]
    if moved:
        raise ValueError(
            f"added_tokens.json wants {moved[0]!r} at {listed[moved[0]]}, tokenizer.json has it at "
            f"{tokenizer.token_to_id(moved[0])}: fetch both from the same checkpoint"
        )
