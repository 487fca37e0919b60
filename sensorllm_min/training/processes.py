"""One process, or the several that torchrun starts, and what each of them computes on."""
import hashlib
import os
import sys
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..files import InputError, brief


@dataclass(frozen=True)
class Processes:
    """This process (`rank`) among the `world` processes of a run, all of which call each method."""
    rank: int
    world: int
    device: torch.device
    bf16: bool = False                  # compute in bfloat16

    @cached_property
    def first(self):
        """True for the one process that prints and writes."""
        return self.rank == 0

    def wait(self):
        if self.world > 1:
            dist.barrier()

    def sum(self, *values):
        values = [float(value) for value in values]
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def distribute(self, model):
        """The model, which all processes have built alike, wrapped in DDP if there are several."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, init_sync=False, broadcast_buffers=False)

    def check_same(self, *values):
        """Raises an InputError unless the values, as text, are the same in all processes."""
        digest = int(
            hashlib.sha256(repr(values).encode()).hexdigest()[:10], 16)
        if self.sum(digest) != [digest * self.world]:             # exact in float64
            raise InputError("the processes have different data, networks or options; give all of "
                             "them the same")

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def choose_device(name=None):
    """cpu, cuda, cuda:N or mps; None: an NVIDIA GPU if there is one, else the CPU."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    devices = [*(["cuda"] if gpus else []), "cpu", *gpus, *mps]
    if name is not None and name not in devices:
        raise InputError(f"there is no device {brief(name)} here; give one of {', '.join(devices)}")
    return torch.device(name or devices[0])


def start_processes(bf16=False, device=None):
    """Joins the processes that torchrun started, if it did; on GPUs each process uses one."""
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(device)
    if device.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if local_rank >= n_gpus:
            raise InputError(f"--nproc_per_node is more than the number of GPUs here, {n_gpus}")
        device = torch.device("cuda", device.index or local_rank)
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(rank, world, device, bf16)


def peak_memory(device):
    """The most bytes this process has held on its GPU, or in memory; on Windows 0: unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit
