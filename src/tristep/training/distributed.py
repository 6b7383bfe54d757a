"""Several processes train one model: each holds a shard of the weights and reads its own part of the data.

`torchrun` starts the processes; `start` joins them, `shard` spreads the model by FSDP2. Alone, every
function here does nothing, so that the loop is written once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True)
class World:
    """This process's place among all processes."""

    rank: int = 0
    """Number of this process, from 0; process 0 writes the files."""

    size: int = 1
    """Number of processes."""


def start() -> World:
    """Join the processes that `torchrun` started: NCCL where there is a GPU for each, else gloo."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return world()


def device() -> torch.device:
    """Return where this process trains: on its GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> World:
    """Return this process's place; alone it is process 0 of 1."""
    if not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def shard(model: nn.Module, blocks: Iterable[nn.Module], methods: Iterable[str] = ()) -> nn.Module:
    """Spread the weights of a model over all processes, in place.

    Each block is gathered when it runs and let go afterwards; what is outside of the blocks belongs to
    the root. Process 0's weights are sent to all first, so they agree whatever each one started from.
    Shard before collecting the parameters for the optimizer: sharding replaces them.

    Args:
        model: The model, on the device it will train on.
        blocks: The modules to gather one at a time, such as the decoder's layers.
        methods: Names of the root's methods other than `forward` that the losses call.
    """
    if world().size == 1:
        return model
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    for method in methods:
        register_fsdp_forward_method(model, method)
    return model


def forget_gathered(model: nn.Module) -> None:
    """Let go of gathered weights, so that the next pass gathers the shards as they are by then.

    A forward pass without a backward pass leaves the root's weights gathered.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place."""
    if world().size > 1:
        dist.all_reduce(values)
    return values


def anywhere(flag: bool, device: torch.device) -> bool:
    """Tell whether a flag is raised in any process; all of them get the same answer."""
    if world().size == 1:
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=device)).item())


def agreed(value: float, device: torch.device) -> float:
    """Return the mean of a number over all processes, so that all go on with the same one."""
    if world().size == 1:
        return value
    return float(sum_over_processes(torch.tensor(value, device=device))) / world().size


@contextmanager
def leader_first() -> Iterator[None]:
    """Let process 0 go through the block before the others, who then find what it has left on disk."""
    leads = world().rank == 0
    if not leads:
        barrier()
    yield
    if leads:
        barrier()


def barrier() -> None:
    """Wait until every process is here."""
    if world().size > 1:
        dist.barrier()


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor: a view, so writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Gather a tensor from its shards; every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Spread a full tensor the way the reference is spread, on its device."""
    tensor = tensor.to(reference.device)
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements)
