"""The Triton kernels against the equation, more cases: triples of values, and one more length."""
import itertools

import pytest
from attention_cases import VALUES, assert_equals_the_equation

pytest.importorskip("triton")
from test_triton_attention import CASES    # noqa: E402

LENGTHS = (*VALUES[0], 200)
MORE_CASES = [   # length, head_dim, group, causal, padded, biased, offset
    (1, 16, 8, 0, 0, 1, 0),
    (1, 64, 4, 0, 1, 1, 1),
    (1, 64, 8, 1, 0, 0, 1),
    (1, 64, 8, 1, 0, 1, 1),
    (1, 80, 4, 0, 1, 0, 0),
    (1, 80, 8, 1, 1, 1, 0),
    (1, 128, 4, 1, 1, 1, 1),
    (13, 80, 4, 1, 0, 1, 1),
    (13, 128, 1, 0, 0, 1, 0),
    (64, 16, 1, 1, 0, 1, 0),
    (64, 16, 4, 1, 1, 0, 0),
    (64, 16, 4, 1, 1, 1, 1),
    (64, 128, 8, 0, 1, 0, 0),
    (127, 16, 1, 0, 1, 1, 1),
    (127, 16, 8, 1, 1, 0, 1),
    (127, 64, 1, 1, 0, 1, 0),
    (200, 16, 1, 1, 0, 0, 0),
    (200, 16, 1, 1, 1, 1, 0),
    (200, 16, 8, 0, 1, 0, 1),
    (200, 64, 1, 0, 0, 1, 1),
    (200, 80, 4, 1, 1, 0, 1),
    (200, 128, 1, 0, 1, 0, 0),
    (257, 16, 1, 0, 0, 1, 0),
    (257, 64, 1, 1, 0, 0, 0),
]


@pytest.mark.slow
def test_every_triple_is_among_the_cases_of_both_files():
    """A length meets each pair of the flags; head sizes, groups and flags meet in every triple."""
    values = (LENGTHS, *VALUES[1:])
    for places in itertools.combinations(range(7), 3):
        if 0 in places and (1 in places or 2 in places):
            continue                    # a length with a head size or a group: in pairs alone
        met = {tuple(case[place] for place in places) for case in CASES + MORE_CASES}
        assert met == set(itertools.product(*(values[place] for place in places))), places


@pytest.mark.slow
@pytest.mark.parametrize("length,head_dim,group,causal,padded,biased,offset", MORE_CASES)
def test_output_and_gradients_equal_the_equation(
    length, head_dim, group, causal, padded, biased, offset
):
    assert_equals_the_equation(length, head_dim, group, bool(causal), padded, biased, offset)
