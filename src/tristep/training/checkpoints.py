"""Checkpoints of a run: whole or not there at all, whenever the process dies.

A checkpoint is written to a folder with another name, flushed to the disk and only then renamed, so a folder
named `step-000100` is complete. It holds the trainable parameters and the persistent buffers, the optimizer's
state, the running averages and the counters. Frozen weights are not in it: the task brings them along.
Under FSDP every process gathers the full tensors and process 0 writes them, so a run may be resumed by
another number of processes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tristep.training import distributed
from tristep.training.step import TrainState

COUNTERS = ("step", "num_skipped", "num_skipped_in_a_row", "num_targets", "seconds")
PARTIAL = ".partial"


def save_checkpoint(state: TrainState, out: Path, keep: int) -> None:
    """Write `out/checkpoints/step-NNNNNN` and `out/trained.safetensors`, and remove the older checkpoints."""
    weights = trained_weights(state)
    averages = _gathered(state.ema)
    optimizer = {
        name: _gathered(state.optimizer.state[p]) for name, p in state.trainables.items() if p in state.optimizer.state
    }
    if distributed.world().rank == 0:
        save_trained({**weights, **averages}, state.step, out / "trained.safetensors")
        folder = out / "checkpoints" / f"step-{state.step:06d}"
        if not folder.exists():
            partial = folder.with_name(folder.name + PARTIAL)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write_tensors(weights, partial / "model.safetensors", state.step)
            _write_tensors(averages, partial / "ema.safetensors", state.step)
            torch.save(optimizer, partial / "optimizer.pt")
            (partial / "state.json").write_text(json.dumps(_description(state, weights), indent=1))
            _publish(partial, folder)
        for old in checkpoints(out)[:-keep]:
            remove_checkpoint(old)
    distributed.barrier()


def restore_checkpoint(state: TrainState, folder: Path) -> None:
    """Set the state to that of a checkpoint, in place.

    Raises:
        ValueError: If the checkpoint's parameters are not the ones that train now.
    """
    description = json.loads((folder / "state.json").read_text())
    _check_names(set(description["trainables"]), set(state.trainables), folder)
    weights = load_file(folder / "model.safetensors")
    targets = {**state.trainables, **_persistent_buffers(state)}
    for name, tensor in weights.items():
        if name in targets:
            _copy(tensor, targets[name].detach())
    averages = load_file(folder / "ema.safetensors")
    for name, average in state.ema.items():
        _copy(averages.get(name, weights[name]), average)
    for name, moments in torch.load(folder / "optimizer.pt", weights_only=True).items():
        parameter = state.trainables[name]
        state.optimizer.state[parameter] = {
            key: distributed.shard_like(value, parameter) if value.dim() else value.to(parameter.device)
            for key, value in moments.items()
        }
    for counter in COUNTERS:
        setattr(state, counter, description[counter])


def checkpoints(out: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    folders = (out / "checkpoints").glob("step-*")
    return sorted((f for f in folders if re.fullmatch(r"step-\d{6,}", f.name)), key=lambda f: int(f.name[5:]))


def remove_partial(out: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for folder in (out / "checkpoints").glob(f"*{PARTIAL}"):
        shutil.rmtree(folder)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; it stops counting as one before its first file goes."""
    partial = folder.with_name(folder.name + PARTIAL)
    os.replace(folder, partial)
    shutil.rmtree(partial)


def trained_weights(state: TrainState) -> dict[str, Tensor]:
    """Gather the trainable parameters and the persistent buffers, by name, on the CPU."""
    return _gathered({**state.trainables, **_persistent_buffers(state)})


def load_trained(model: nn.Module, path: Path) -> None:
    """Copy the weights that a run ended with into a model that is not sharded.

    Raises:
        ValueError: If the model lacks one of them.
    """
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in load_file(path).items():
        if name not in targets:
            raise ValueError(f"{path} holds {name!r}, which the model lacks: build the model by the run's recipe")
        targets[name].detach().copy_(tensor)


def save_trained(weights: dict[str, Tensor], step: int, path: Path) -> None:
    """Write the weights to use after training: the running averages where there are any."""
    partial = path.with_name(path.name + PARTIAL)
    _write_tensors(weights, partial, step)
    _publish(partial, path)


def _description(state: TrainState, weights: dict[str, Tensor]) -> dict[str, Any]:
    counters = {f.name: getattr(state, f.name) for f in fields(state) if f.name in COUNTERS}
    buffers = [name for name in weights if name not in state.trainables]
    return {**counters, "trainables": list(state.trainables), "buffers": buffers}


def _persistent_buffers(state: TrainState) -> dict[str, Tensor]:
    persistent = state.model.state_dict().keys()
    return {name: buffer for name, buffer in state.model.named_buffers() if name in persistent}


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: distributed.full(t.detach()).cpu().contiguous() for name, t in tensors.items()}


def _write_tensors(tensors: dict[str, Tensor], path: Path, step: int) -> None:
    save_file(tensors, path, metadata={"step": str(step)})
    path.chmod(0o644)  # The library makes files that only their owner can read.


def _copy(tensor: Tensor, target: Tensor) -> None:
    distributed.local(target).copy_(distributed.local(distributed.shard_like(tensor, target)))


def _publish(partial: Path, final: Path) -> None:
    """Flush a file, or a folder's files, to the disk and give it its final name in one stroke."""
    for path in [*(partial.iterdir() if partial.is_dir() else []), partial]:
        _flush(path)
    os.replace(partial, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_names(saved: set[str], trained: set[str], folder: Path) -> None:
    if saved != trained:
        name = min(saved ^ trained)
        raise ValueError(
            f"{folder} trains {len(saved)} parameters, this run {len(trained)}; {name!r} is in only one: "
            "resume with the recipe it was made with, or train into another folder"
        )
