"""One process, or the several that torchrun starts, and what each of them computes on."""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..files import InputError, brief


@dataclass(frozen=True)
class Processes:
    rank: int
    world: int
    device: torch.device
    bf16: bool = False                  # whether to compute in bfloat16

    @property
    def first(self):
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def wait(self):
        """Returns when every process has come here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, *values) -> list[float]:
        """Adds each value up over all processes. Every process takes part."""
        values = [float(value) for value in values]
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def spread(self, parameters):
        """Gives all processes the first one's parameters. Every process takes part."""
        if self.world > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def check_same(self, content, option):
        """InputError unless all processes hold the same bytes. Every process takes part."""
        if self.world == 1:
            return
        digest = int(hashlib.sha256(content).hexdigest()[:12], 16)    # exact in float64
        bounds = torch.tensor([digest, -digest], dtype=torch.float64, device=self.device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if bounds.sum() != 0:
            raise InputError(f"the processes have different {option}; give all of them the same")

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def choose_device(name=None) -> torch.device:
    """cpu, cuda, cuda:N or mps; None: an NVIDIA GPU where there is one, else the CPU.

    InputError for another name, and where there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    n_devices = {"cpu": 1, "cuda": torch.cuda.device_count(),
                 "mps": int(torch.backends.mps.is_available())}
    if kind not in n_devices or number and not number.isdecimal():
        raise InputError(f"device {brief(name)}: give cpu, cuda, cuda:N or mps")
    if int(number or 0) >= n_devices[kind]:
        raise InputError(f"device {brief(name)}: there is none here; leave the option out, or give "
                         "cpu")
    return torch.device(name)


def start_processes(bf16=False, device=None) -> Processes:
    """Joins the processes that torchrun started: nccl on GPUs, gloo on CPUs. Else there is one.

    device: as for `choose_device`; of several processes on GPUs each takes its own.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(device)
    if world > 1 and device.type == "mps" or world > 1 and device.index is not None:
        raise InputError(f"--device {device}: several processes need a GPU each; give cuda or cpu")
    if device.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if local_rank >= n_gpus:
            raise InputError("--nproc_per_node asks for more processes than the "
                             f"{n_gpus} GPUs here")
        device = torch.device("cuda", device.index or local_rank)
        torch.cuda.set_device(device)
    if world > 1:
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:               # a port in use, or none
            place = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
            raise InputError(f"the processes cannot meet at {place} ({brief(error)}); choose "
                             "another --master_port of torchrun, or --standalone")
    processes = Processes(rank, world, device, bf16)
    warn_of_slow_bfloat16(processes)
    return processes


def computes_bfloat16():
    """Whether this CPU multiplies bfloat16 itself (AMX, AVX512-bf16, Arm's), as far as known."""
    path = Path("/proc/cpuinfo")                                  # Linux alone tells
    return not path.exists() or "bf16" in path.read_text()


def warn_of_slow_bfloat16(processes):
    """Says, before hours are paid, that float32 would take less time on this CPU."""
    on_cpu = processes.device.type == "cpu"
    if processes.bf16 and on_cpu and processes.first and not computes_bfloat16():
        print("this CPU has no instructions for bfloat16: --dtype bfloat16 and int8 save memory "
              "here, but take up to three times as long as float32", flush=True)


def distributed(model, processes):
    """The model as DDP wraps it; on one process the model itself.

    All processes start alike (same seed, same files), so nothing is sent at the start. Frozen
    weights stay views of their files, which the processes of one machine share.
    """
    return DistributedDataParallel(model, init_sync=False) if processes.world > 1 else model


def share(indices, n_parts):
    """Deals indices out into n_parts as evenly as possible; a part may be empty."""
    return [indices[part::n_parts] for part in range(n_parts)]
