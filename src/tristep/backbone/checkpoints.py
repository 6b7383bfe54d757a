"""Our checkpoints: a folder with the config, the tokenizer, and weights in safetensors shards of under 45 MB.

`index.json` says where each tensor lies and how it is packed, the SHA-256 of every shard, and which
projections have low-rank updates. One checkpoint can serve several modes: the weights that they share are stored
once, and `modes` lists, for each, its own low-rank updates, the rows that its vocabulary gained, and its draft heads,
if it has any. Everything is checked on loading; a folder is complete or it is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from tristep.backbone.audio_encoder import AudioEncoder
from tristep.backbone.low_rank import LowRankLinear
from tristep.backbone.model import Backbone
from tristep.backbone.packing import PARTS, Rules, pack, packing_of, unpack
from tristep.config import BackboneConfig, parse
from tristep.vocab import TextTokenizer

FORMAT = 1
MAX_SHARD_BYTES = 44_000_000
LFS_POINTER = b"version https://git-lfs"
CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "index.json"
DRAFT_HEADS = "draft_heads."


def save_backbone(
    backbone: Backbone,
    tokenizer: TextTokenizer,
    folder: str | Path,
    packing: Rules = "bf16",
    modes: Mapping[str, Backbone] | None = None,
) -> None:
    """Write a checkpoint folder; one that exists is replaced once the new one is complete.

    Args:
        backbone: What is stored, and what the modes share.
        tokenizer: Its text tokenizer.
        folder: Where to.
        packing: How tensors are rounded.
        modes: Models that differ from `backbone` in what `is_own` names only, by the mode they serve.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    index = {
        "format": FORMAT,
        "low_rank": low_rank_settings(backbone),
        "tensors": save_shards(stored_tensors(backbone), partial, packing),
        "modes": {mode: save_mode(theirs, partial, mode, packing) for mode, theirs in (modes or {}).items()},
        "shards": {shard.name: sha256(shard) for shard in sorted(partial.glob("*.safetensors"))},
    }
    write_text(partial / CONFIG, backbone.config.model_dump_json(indent=1))
    write_text(partial / TOKENIZER, tokenizer.tokenizer.to_str())
    write_text(partial / INDEX, json.dumps(index, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_backbone(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    mode: str | None = None,
) -> tuple[Backbone, TextTokenizer]:
    """Load a checkpoint folder, or the one of that name among the weights that ship.

    Args:
        folder: A path, or a name such as `nano` (see `find_weights`).
        device: Where the weights go.
        dtype: What they are unpacked to, float32 if not given.
        mode: Load what serves this mode, where the checkpoint tells modes apart.

    Raises:
        ValueError: If there is no such checkpoint, or a part of it is missing, damaged or a Git LFS pointer.
    """
    folder = find_weights(folder)
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise ValueError(f"{folder} is of format {index.get('format')!r}, expected {FORMAT}: update tristep")
    check_shards(folder, index["shards"])
    config = parse(read_json(folder / CONFIG), BackboneConfig, str(folder / CONFIG))
    own = own_entries(index["modes"], mode, folder)
    with torch.device("meta"):
        backbone = Backbone(config_of_mode(config, own) if own else config)
        restore_low_rank(backbone, own["low_rank"] if own else index["low_rank"])
    shared = {name: entry for name, entry in index["tensors"].items() if not (own and is_own(name))}
    tensors = read_shards(stored_tensors(backbone), shared | own.get("tensors", {}), folder)
    take_tensors(backbone, tensors, device, dtype or torch.float32)
    check_file(folder / TOKENIZER)
    return backbone, TextTokenizer(Tokenizer.from_file(str(folder / TOKENIZER)))


def give_memory(module: nn.Module, device: str | torch.device, dtype: torch.dtype) -> None:
    """Give tensors that have none memory, to be filled; torch's `to_empty` imports sympy, for a third of a second."""
    empty = {
        name: torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device=device)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(empty, assign=True)


def served_modes(folder: str | Path) -> tuple[str, ...]:
    """Return the modes that a checkpoint tells apart; none where one set of weights serves whatever it serves."""
    return tuple(sorted(read_json(find_weights(folder) / INDEX)["modes"]))


def load_encoder(folder: str | Path) -> AudioEncoder:
    """Load the frozen audio encoder alone from a checkpoint folder, or from the one of that name.

    Raises:
        ValueError: As `load_backbone`.
    """
    folder = find_weights(folder)
    index = read_json(folder / INDEX)
    check_shards(folder, index["shards"])
    config = parse(read_json(folder / CONFIG), BackboneConfig, str(folder / CONFIG))
    encoder, prefix = AudioEncoder(config.encoder), "audio_encoder."
    targets = {prefix + name: tensor for name, tensor in encoder.state_dict().items()}
    tensors = read_shards(targets, {n: e for n, e in index["tensors"].items() if n.startswith(prefix)}, folder)
    encoder.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return encoder.eval().requires_grad_(False)


def find_weights(name: str | Path) -> Path:
    """Return the folder of a checkpoint given by path, or by name.

    A name is looked for in `$TRISTEP_WEIGHTS`, in the checkout's `weights/`, and in the installed package.
    """
    homes = [Path(__file__).parents[3] / "weights", Path(__file__).parents[1] / "weights"]
    if os.environ.get("TRISTEP_WEIGHTS"):
        homes.insert(0, Path(os.environ["TRISTEP_WEIGHTS"]))
    candidates = [Path(name), *(home / name for home in homes)]
    found = next((path for path in candidates if (path / INDEX).exists()), None)
    if found is None:
        raise ValueError(
            f"there are no weights {str(name)!r}: give a folder with an {INDEX}, or a name in "
            f"{', '.join(str(home) for home in homes)} (set TRISTEP_WEIGHTS to look elsewhere)"
        )
    return found


def stored_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Return what a checkpoint holds, each tensor once: a tied head is its embedding.

    A projection has the same name with and without a low-rank update.
    """
    tied = backbone.head is backbone.embedding
    kept = {name: tensor for name, tensor in backbone.state_dict().items() if not (tied and name.startswith("head."))}
    return {stored_name(name): tensor for name, tensor in kept.items()}


def stored_name(name: str) -> str:
    """Return the name by which a tensor of a backbone is stored."""
    return name.replace(".base.", ".")


def take_tensors(
    backbone: Backbone, tensors: Mapping[str, Tensor], device: str | torch.device, dtype: torch.dtype
) -> None:
    """Put stored tensors in the place of a backbone's own, which have no memory; they are not copied."""
    ready = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }
    own = backbone.state_dict()
    tied = {name: name.replace("head.", "embedding.", 1) for name in own if stored_name(name) not in ready}
    backbone.load_state_dict({name: ready[stored_name(tied.get(name, name))] for name in own}, assign=True)


def is_own(name: str) -> bool:
    """Say whether a tensor is a mode's own: low-rank updates, rows that its vocabulary gained, draft heads."""
    return name.endswith((".up", ".down", ".grown")) or name.startswith(DRAFT_HEADS)


def config_of_mode(config: BackboneConfig, own: dict[str, Any]) -> BackboneConfig:
    """Build the config of a mode from what all modes share and the mode's entry in the index."""
    vocab = config.vocab.model_copy(update={"num_codes": own["num_codes"]})
    return config.model_copy(update={"vocab": vocab, "num_draft_heads": own.get("num_draft_heads", 0)})


def own_entries(modes: dict[str, Any], mode: str | None, folder: Path) -> dict[str, Any]:
    """Find a mode's own entries in the index; nothing where the checkpoint does not tell modes apart."""
    if mode is None or not modes:
        return {}
    if mode not in modes:
        raise ValueError(
            f"{folder} serves {', '.join(sorted(modes))}, not {mode}: give weights that were trained for it"
        )
    own: dict[str, Any] = modes[mode]
    return own


def save_mode(backbone: Backbone, folder: Path, mode: str, packing: Rules) -> dict[str, Any]:
    """Write the shards of what is a mode's own; return its entry in the index."""
    own = {name: tensor for name, tensor in stored_tensors(backbone).items() if is_own(name)}
    heads = {name: own.pop(name) for name in list(own) if name.startswith(DRAFT_HEADS)}
    entries = save_part(own, folder, mode, packing)
    return {
        "num_codes": backbone.vocab.config.num_codes,
        "num_draft_heads": backbone.config.num_draft_heads,
        "low_rank": low_rank_settings(backbone),
        "tensors": entries | (save_part(heads, folder, "draft_heads", packing) if heads else {}),
    }


def low_rank_settings(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Return rank and scale of every projection that has a low-rank update, by its name."""
    return {
        name: {"rank": module.down.shape[0], "scale": module.scale}
        for name, module in backbone.named_modules()
        if isinstance(module, LowRankLinear)
    }


def restore_low_rank(backbone: Backbone, settings: dict[str, dict[str, float]]) -> None:
    """Wrap the projections that `low_rank_settings` names."""
    for name, setting in settings.items():
        parent, _, attribute = name.rpartition(".")
        base = backbone.get_submodule(name)
        assert isinstance(base, nn.Linear)
        wrapped = LowRankLinear(base, int(setting["rank"]), setting["scale"])
        setattr(backbone.get_submodule(parent), attribute, wrapped)


def part_of(name: str) -> str:
    """Say which part of the model a tensor belongs to; parts learn at different times, so each has its own shards."""
    if name.endswith((".up", ".down")):
        return "low_rank"
    first = name.split(".")[0]
    return "embedding" if first == "head" else first


def save_shards(tensors: dict[str, Tensor], folder: Path, packing: Rules) -> dict[str, dict[str, Any]]:
    """Write tensors to `PART-0.safetensors`, `PART-1.safetensors`, ...; return where each lies, how it is packed."""
    entries: dict[str, dict[str, Any]] = {}
    for part in dict.fromkeys(map(part_of, tensors)):
        own = {name: tensor for name, tensor in tensors.items() if part_of(name) == part}
        entries |= save_part(own, folder, part, packing)
    return entries


def save_part(
    tensors: dict[str, Tensor], folder: Path, part: str, packing: Rules, max_bytes: int | None = None
) -> dict[str, dict[str, Any]]:
    """Write the shards of one part, of `MAX_SHARD_BYTES` at most if not given."""
    max_bytes = max_bytes or MAX_SHARD_BYTES
    entries: dict[str, dict[str, Any]] = {}
    shard: dict[str, Tensor] = {}
    number = size = 0
    for name, tensor in tensors.items():
        kind = packing_of(name, tensor, packing)
        entries[name] = {"packing": kind, "shape": list(tensor.shape), "shards": []}
        for piece, rows in enumerate(pieces(tensor, max_bytes)):
            packed = pack(rows, kind)
            num_bytes = sum(value.nbytes for value in packed.values())
            if size and size + num_bytes > max_bytes:
                save_file(shard, folder / f"{part}-{number}.safetensors")
                shard, number, size = {}, number + 1, 0
            shard |= {f"{name}/{piece}/{field}": value.clone().cpu() for field, value in packed.items()}
            size += num_bytes
            entries[name]["shards"].append(f"{part}-{number}.safetensors")
    save_file(shard, folder / f"{part}-{number}.safetensors")
    return entries


def pieces(tensor: Tensor, max_bytes: int) -> tuple[Tensor, ...]:
    """Cut a tensor by rows so that each piece fits in a shard even as float32."""
    if tensor.ndim < 1 or not tensor.numel():
        return (tensor,)
    row_bytes = 4 * math.prod(tensor.shape[1:])
    return torch.split(tensor, max(max_bytes // row_bytes, 1))


def read_shards(
    expected: Mapping[str, Tensor], entries: Mapping[str, dict[str, Any]], folder: Path
) -> dict[str, Tensor]:
    """Unpack every stored tensor, after checking that these are the `expected` ones, by their names and shapes."""
    unmatched = sorted(set(expected) ^ set(entries))
    if unmatched:
        where = "lacks" if unmatched[0] in expected else "has an unknown"
        raise ValueError(f"{folder / INDEX} {where} tensor {unmatched[0]!r}: its {CONFIG} is of another checkpoint")
    names = {shard for entry in entries.values() for shard in entry["shards"]}
    files = {name: safe_open(folder / name, "pt") for name in names}
    tensors = {}
    for name, entry in entries.items():
        if list(expected[name].shape) != entry["shape"]:
            raise ValueError(
                f"{name} is stored with shape {entry['shape']}, {CONFIG} says {list(expected[name].shape)}"
            )
        pieces = [read_piece(files[shard], name, number, entry) for number, shard in enumerate(entry["shards"])]
        is_file = entry["packing"] in ("fp32", "exact")  # not unpacked: still the file's own memory
        tensors[name] = (torch.cat(pieces) if len(pieces) > 1 or is_file else pieces[0]).view(entry["shape"])
    return tensors


def read_piece(file: Any, name: str, piece: int, entry: dict[str, Any]) -> Tensor:
    """Unpack one piece of a tensor."""
    read = {part: file.get_tensor(f"{name}/{piece}/{part}") for part in PARTS[entry["packing"]]}
    return unpack(read, entry["packing"])


def check_shards(folder: Path, shards: dict[str, str]) -> None:
    """Check that every shard is there and is what was saved; several are read at once."""
    for name in shards:
        check_file(folder / name)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(sha256, [folder / name for name in shards]))
    for (name, expected), checksum in zip(shards.items(), found, strict=True):
        if checksum != expected:
            raise ValueError(f"{folder / name} is damaged (its SHA-256 is not the one in {INDEX}): fetch it again")


def check_file(path: Path) -> None:
    """Check that a file is there, and is not a Git LFS pointer."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: fetch the whole checkpoint")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull'")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint."""
    check_file(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no JSON object: fetch it again")
    return table


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file of a checkpoint."""
    path.write_text(text + "\n", encoding="utf-8")
