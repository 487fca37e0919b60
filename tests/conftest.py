"""The two tiers of the suite, and the fixtures that several files share.

`pytest` runs what protects the project; `pytest --all` adds the tests marked slow.
"""
import os

# One thread a worker: two workers on two cores. Set before torch is imported anywhere.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"          # the reference packages must not look for a network

import pytest                                                                 # noqa: E402
import torch                                                                  # noqa: E402
from helpers import DEVICE, SHARED, quiet                                     # noqa: E402

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"    # without a GPU the kernels run in Triton's interpreter
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
    for item in items:
        for mark in item.iter_markers("shared"):
            if not (SHARED / mark.args[0]).exists():
                item.add_marker(pytest.mark.skip(reason=f"needs the real files of ../shared/{mark.args[0]}"))


@pytest.fixture(scope="session")
def shared():
    return SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo dataset, prepared."""
    from sensorllm_min.data.prepare import prepare
    out = tmp_path_factory.mktemp("data") / "demo"
    prepare("demo", None, out, say=quiet)
    return out
