"""A fixture that two files on the Triton kernels share."""
import pytest
from helpers import DEVICE


@pytest.fixture
def interpreter_knows_bfloat16(monkeypatch):
    """Triton's interpreter keeps bfloat16 as its 16 bits, and its dot multiplies those bits as
    integers.
    """
    if DEVICE == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl
    real = InterpreterBuilder.create_dot

    def value(x):
        if x.dtype.scalar is not tl.bfloat16:
            return x
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)
    monkeypatch.setattr(InterpreterBuilder, "create_dot",
                        lambda self, a, b, *rest: real(self, value(a), value(b), *rest))
