"""SensorLLM (arXiv 2410.10624) from scratch: sensor channels -> Chronos T5 -> projector -> LLaMA.

    import sensorllm_min
    model = sensorllm_min.load("out/har")       # a run's folder, a checkpoint file, or a hub id
    model.classify(samples)                     # samples (T, C)

The other names here are parts of it, each of use alone. To read the code, start with sensorllm.py;
README.md beside this file says what comes next.
"""
import sys

if sys.version_info < (3, 11):
    sys.stderr.write("sensorllm-min needs Python 3.11 or newer, this is "
                     f"{sys.version_info[0]}.{sys.version_info[1]}\n")
    sys.exit(2)

from .chronos_tokenizer import ChronosTokenizer    # noqa: E402
from .files import InputError    # noqa: E402
from .generate import generate    # noqa: E402
from .text_tokenizer import load_text_tokenizer    # noqa: E402
from .weights import load_llama, load_t5_encoder    # noqa: E402

__all__ = ["load", "load_llama", "load_t5_encoder", "load_text_tokenizer", "ChronosTokenizer",
           "generate", "InputError"]


def load(source, llm=None, encoder=None, device=None, dtype="float32"):
    """A trained model -> evaluation.interface.Model, with classify, describe, ask and features.

    source: what train_align.py or train_har.py left in their --out, a checkpoint file, or a hub id.
    llm, encoder: where the frozen networks are now, if they were moved. device: cpu, cuda, cuda:N
    or mps (default: an NVIDIA GPU where there is one). dtype: float32, bfloat16 or int8. Raises an
    InputError, in one line, where a file is missing, broken, or of other weights."""
    from .evaluation.interface import load_model
    return load_model(source, llm, encoder, device, dtype)
