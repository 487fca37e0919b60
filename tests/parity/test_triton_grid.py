"""The Triton kernels against the equation, more cases: every length with every head size and
group.
"""
import itertools

import pytest
from attention_cases import VALUES, assert_equals_the_equation

pytest.importorskip("triton")

# The 16 combinations of the four flags come in turn, each four times or more.
GRID = [(*shape, *((i + 7) % 16 >> bit & 1 == 1 for bit in range(4)))
        for i, shape in enumerate(itertools.product(*VALUES[:3]))]


@pytest.mark.slow
@pytest.mark.parametrize("length,head_dim,group,causal,padded,biased,offset", GRID)
def test_output_and_gradients_equal_the_equation(
    length, head_dim, group, causal, padded, biased, offset
):
    assert_equals_the_equation(length, head_dim, group, causal, padded, biased, offset)
