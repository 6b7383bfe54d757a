"""GGUF: the weights and the tokenizer of a Llama or Qwen2 text model as llama.cpp stores them.

Needs the `gguf` package (`pip install "tristep[train]"`), imported where it is used. Differs from llama.cpp
in one thing: a tokenizer is read only if it is byte-level BPE with a pre-tokenizer listed in `SPLITS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from tristep.vocab import TextTokenizer

ARCHITECTURES = ("llama", "qwen2")
CONTROL_TOKEN, USER_TOKEN = 3, 4

SPLITS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How text is cut into words before the merges, per name of `tokenizer.ggml.pre`."""
SPLITS["default"] = SPLITS["smollm"] = SPLITS["gpt-2"]
SINGLE_DIGITS = ("smollm",)
"""Pre-tokenizers that cut every digit off first."""


def open_gguf(path: Path) -> Any:
    """Open a GGUF file of an architecture that we know.

    Raises:
        ValueError: If the `gguf` package is missing, the file is not GGUF, or it holds another architecture.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f'reading {path.name} needs the gguf package: pip install "tristep[train]"') from error
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise ValueError(f"{path.name} is not a readable GGUF file ({error}): fetch it again") from error
    architecture = value(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{path.name} holds a {architecture!r} model, expected one of {known}: convert another one")
    return reader


def value(reader: Any, key: str, default: Any = None) -> Any:
    """Return one metadata field of a GGUF file."""
    found = reader.get_field(key)
    return default if found is None else found.contents()


def gguf_settings(path: Path) -> dict[str, Any]:
    """Return what the file says of its decoder, in the names of `DecoderConfig`."""
    reader = open_gguf(path)
    prefix = value(reader, "general.architecture")
    names = {
        "dim": "embedding_length", "num_layers": "block_count", "ffn_dim": "feed_forward_length",
        "num_heads": "attention.head_count", "num_kv_heads": "attention.head_count_kv",
        "norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    }  # fmt: skip
    found = {ours: value(reader, f"{prefix}.{theirs}") for ours, theirs in names.items()}
    return {name: setting for name, setting in found.items() if setting is not None}


def gguf_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under its GGUF name, in float32, its rows in our order."""
    from gguf.quants import dequantize

    reader = open_gguf(path)
    architecture = value(reader, "general.architecture")
    num_heads = value(reader, f"{architecture}.attention.head_count")
    num_kv_heads = value(reader, f"{architecture}.attention.head_count_kv", num_heads)
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if architecture == "llama" and ".attn_q." in tensor.name:
            weight = half_rotation(weight, num_heads)
        elif architecture == "llama" and ".attn_k." in tensor.name:
            weight = half_rotation(weight, num_kv_heads)
        yield tensor.name, weight


def half_rotation(weight: Tensor, num_heads: int) -> Tensor:
    """Undo llama.cpp's order of query and key rows: neighbouring pairs -> the two halves of each head."""
    paired = weight.view(num_heads, -1, 2, *weight.shape[1:])  # (H, E / 2, 2, ...)
    return paired.transpose(1, 2).reshape(weight.shape)


def read_gguf_tokenizer(path: str | Path) -> TextTokenizer:
    """Build the byte-level BPE tokenizer of a GGUF file; its control tokens are registered as special."""
    path = Path(path)
    reader = open_gguf(path)
    kind, split = value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLITS:
        raise ValueError(
            f"{path.name} has a {kind!r} tokenizer that splits words as {split!r}: expected 'gpt2' with "
            f"one of {', '.join(SPLITS)}; give a folder with a tokenizer.json instead"
        )
    pieces: list[str] = value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={piece: row for row, piece in enumerate(pieces)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC() if split == "qwen2" else None
    tokenizer.pre_tokenizer = word_splitter(split)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = value(reader, "tokenizer.ggml.token_type")
    for number, special in ((CONTROL_TOKEN, True), (USER_TOKEN, False)):
        added = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == number]
        tokenizer.add_tokens([AddedToken(piece, normalized=False, special=special) for piece in added])
    return TextTokenizer(tokenizer)


def word_splitter(name: str) -> pre_tokenizers.PreTokenizer:
    """Build the pre-tokenizer that `tokenizer.ggml.pre` names."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    if name in SINGLE_DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps += [
        pre_tokenizers.Split(Regex(SPLITS[name]), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)
