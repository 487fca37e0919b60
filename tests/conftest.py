"""The two tiers of the suite, their order, and the fixtures that several files share.

`pytest` runs what protects the project; `pytest --all` adds the tests marked slow.
"""
import os

# One thread a worker: two workers on two cores. Set before torch is imported anywhere. pytest's
# first process, which only hands out the tests, imports this file as well, but not torch.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"          # the reference packages must not look for a network

import pytest                                                                 # noqa: E402

# A worker that has nothing left to do takes the next file, in this order, then the others: the
# longest come first, so that the two workers end together.
LONGEST_FIRST = ("test_fuzz", "test_training", "test_evaluation", "test_learning", "test_sensorllm",
                 "test_interruptions", "test_triton_compiled", "test_triton_attention", "test_hub", "test_scripts",
                 "test_one_line", "test_ablations", "test_triton_networks", "test_datasets",
                 "test_other_systems")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests, too")


def rank(item):
    name = item.path.stem
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


def pytest_collection_modifyitems(config, items):
    from helpers import SHARED
    items.sort(key=rank)
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
    from helpers import SHARED
    return SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo dataset, prepared."""
    from helpers import quiet

    from sensorllm_min.data.prepare import prepare
    out = tmp_path_factory.mktemp("data") / "demo"
    prepare("demo", None, out, say=quiet)
    return out
