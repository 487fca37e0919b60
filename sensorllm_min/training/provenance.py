"""Where a result comes from: the command, the code, the versions, the machine."""
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "tokenizers", "pandas")


def git_commit():
    """The commit of this folder, with "-dirty" if files have changed since; None without git."""
    if not (ROOT / ".git").exists():                              # a copy inside another project
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40",
               "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:                                               # git is not installed
        return None
    return found.stdout.strip() or None


def command_line():
    start = ["python"]
    if "RANK" in os.environ:
        start = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    return shlex.join([*start, Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance(device, n_processes=1):
    """What results files and reports say about their origin, as a JSON object."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = [f"{package} {version(package)}" for package in PACKAGES]
    return {"command": command_line(), "commit": git_commit(),
            "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
            "device": f"{device.type} ({name}), {platform.system()}", "processes": n_processes}
