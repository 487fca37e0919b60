"""Exact attention in one pass over the keys (FlashAttention). Skip this file on a first reading.

    S = scale Q K^T + bias        P = softmax(S)        O = P V

For one head Q is (Tq, Dh), K and V are (Tk, Dh), S and P are (Tq, Tk). `layers.attend` runs this on
a GPU; `torch.nn.attention.flex_attention` is for those who do not want to see how it works.

S of one Llama 3 layer at 4096 tokens takes 1 GB for each row of the batch, but it need never exist:
a program holds one tile of queries, walks over the tiles of keys and keeps three things for each
query (arXiv 1805.02867, 2205.14135):

    m, the largest score so far        l = sum_j exp(s_j - m)        a = sum_j exp(s_j - m) v_j

A new tile may bring a larger maximum m'. Since exp(s - m') = exp(s - m) exp(m - m'), multiplying l
and a by exp(m - m') makes them what they would have been, had m' been known from the start. Nothing
is approximated: after the last tile O = a / l, whatever the tiles and their order.

The backward pass (arXiv 2205.14135, appendix B), with dO given and delta_i = sum_j P_ij dP_ij:

    dV = P^T dO        dP = dO V^T        dbias = dS = P * (dP - delta)
    dQ = scale dS K                       dK = scale dS^T Q

All of these are sums over a row or a column of tiles, so again no (Tq, Tk) matrix is kept: P is
computed again from Q and K. This needs one number for each query from the forward pass,
lse = m + log l: exp(s - lse) is the probability itself, without a second search for the maximum and
the sum. And delta_i = sum_j P_ij (dO_i . v_j) = dO_i . O_i is a sum over Dh instead of Tk.

The GPU computes 2^x, not e^x. So m and lse are kept to the base 2, and scores are multiplied by
c = scale log2(e) only there. A tile of Q K^T starts from bias / scale, so that c fits both.

As in arXiv 2307.08691, a program owns a tile of its output, and no other adds to it: queries for O
and dQ, keys for dK and dV (over all query heads that share them), a tile of S for dbias. So nothing
is atomic, and the same input gives the same bits. The price: P is computed three times, not once.

Letters: a tile has M queries and N keys. D is Dh rounded up to a power of two; columns beyond Dh
are read as zeros. Tiles of q, o, dO and dQ are (M, D), those of k, v, dK and dV (N, D).
"""
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = ("n_queries", "n_keys")       # one compiled kernel serves all values of these
LOG2_E = tl.constexpr(math.log2(math.e))


class Strided(NamedTuple):
    """A tensor as a kernel gets it: its memory, and the stride of each dimension in elements."""
    data: torch.Tensor
    batch: int
    head: int
    row: int
    column: int


# ---- what the kernels share ----

@triton.jit
def plane(x, batch, head):
    """The address of x[batch, head, 0, 0]; in int64, since a batch may span 2^31 elements."""
    return x.data + tl.cast(batch, tl.int64) * x.batch + tl.cast(head, tl.int64) * x.head


@triton.jit
def load_tile(x, batch, head, start, n_rows, R: tl.constexpr, CHECK_ROWS: tl.constexpr,
              HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """x[batch, head, start:start + R, :] -> (R, D); zeros beyond its columns and (checked) rows."""
    rows, columns = start + tl.arange(0, R)[:, None], tl.arange(0, D)[None, :]
    at = plane(x, batch, head) + rows * x.row + columns * x.column            # (R, D)
    if CHECK_ROWS and D != HEAD_DIM:
        return tl.load(at, mask=(rows < n_rows) & (columns < HEAD_DIM), other=0.0)
    elif CHECK_ROWS:
        return tl.load(at, mask=rows < n_rows, other=0.0)
    elif D != HEAD_DIM:
        return tl.load(at, mask=columns < HEAD_DIM, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def store_tile(x, batch, head, start, n_rows, tile, R: tl.constexpr, HEAD_DIM: tl.constexpr,
               D: tl.constexpr):
    rows, columns = start + tl.arange(0, R)[:, None], tl.arange(0, D)[None, :]
    at = plane(x, batch, head) + rows * x.row + columns * x.column
    tl.store(at, tile, mask=(rows < n_rows) & (columns < HEAD_DIM))


@triton.jit
def load_row(x, batch, head, start, n_rows, beyond, R: tl.constexpr):
    """x[batch, head, start:start + R, 0] -> (R,), with `beyond` after the last row."""
    rows = start + tl.arange(0, R)
    return tl.load(plane(x, batch, head) + rows * x.row, mask=rows < n_rows, other=beyond)


@triton.jit
def store_row(x, batch, head, start, n_rows, row, R: tl.constexpr):
    rows = start + tl.arange(0, R)
    tl.store(plane(x, batch, head) + rows * x.row, row, mask=rows < n_rows)


@triton.jit
def load_bias(bias, batch, head, query, key, n_queries, n_keys, scale, CHECK_KEYS: tl.constexpr):
    """bias / scale, or 0, in float32, to add Q K^T to. query, key: positions, one transposed."""
    if bias is None:
        return tl.zeros((query.shape[0] * key.shape[0], query.shape[1] * key.shape[1]), tl.float32)
    else:
        row = tl.minimum(query, n_queries - 1)
        at = plane(bias, batch, head) + row * bias.row + key * bias.column
        if CHECK_KEYS:
            return tl.load(at, mask=key < n_keys, other=0.0).to(tl.float32) * (1 / scale)
        else:
            return tl.load(at).to(tl.float32) * (1 / scale)


@triton.jit
def hide(s, key_mask, batch, query_start, key_start, n_queries, n_keys, CAUSAL: tl.constexpr,
         M: tl.constexpr, N: tl.constexpr):
    """Scores s (M, N), with -inf where a query may not see a key."""
    keys = key_start + tl.arange(0, N)
    seen = keys < n_keys                                          # (N,)
    if key_mask is not None:
        seen = load_row(key_mask, batch, 0, key_start, n_keys, 0, N) != 0
    s += tl.where(seen, 0.0, float("-inf"))[None, :]
    if CAUSAL:
        queries = query_start + (n_keys - n_queries) + tl.arange(0, M)    # they are the last tokens
        s = tl.where(keys[None, :] <= queries[:, None], s, float("-inf"))
    return s


@triton.jit
def keys_for(query_start, key_mask, batch, n_queries, n_keys, CAUSAL: tl.constexpr,
             M: tl.constexpr, N: tl.constexpr):
    """Which keys a tile of queries visits -> (first, edge, end); padding at either end is left out.

    All queries see all keys from first to edge; from edge to end some are hidden.
    """
    first = 0
    end = n_keys
    whole = n_keys
    if key_mask is not None:
        first = n_keys
        end = 0
        n_seen = 0
        for start in range(0, n_keys, 1024):
            keys = start + tl.arange(0, 1024)
            seen = load_row(key_mask, batch, 0, start, n_keys, 0, 1024) != 0
            first = tl.minimum(first, tl.min(tl.where(seen, keys, n_keys)))
            end = tl.maximum(end, tl.max(tl.where(seen, keys + 1, 0)))
            n_seen += tl.sum(seen.to(tl.int32))
        whole = tl.where(first + n_seen == end, end, first)       # with holes every key is checked
    if CAUSAL:
        own = query_start + (n_keys - n_queries)                  # the first query's own position
        end = tl.minimum(end, own + M)
        whole = tl.minimum(whole, own + 1)
    return first, first + tl.maximum(whole - first, 0) // N * N, end


# ---- forward (arXiv 2307.08691, algorithm 1); with p_j = 2^(c s_j - m') ----
# m' = max(m, c max_j s_j)    l' = 2^(m - m') l + sum_j p_j    a' = 2^(m - m') a + sum_j p_j v_j

@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(q, k, v, bias, key_mask, out, lse, scale, n_heads, n_queries, n_keys,
                   GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
                   M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """out, and lse if given: log2 of the softmax's denominator. A program: M queries of a head."""
    n_tiles = tl.cdiv(n_queries, M)
    program = tl.program_id(0)              # tiles of one head run together: its keys stay in cache
    query_start = (n_tiles - 1 - program % n_tiles) * M     # if causal, the last has the most keys
    head = program // n_tiles % n_heads
    batch = program // n_tiles // n_heads
    c = scale * LOG2_E
    queries = query_start + tl.arange(0, M)
    q_tile = load_tile(q, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)

    a = tl.zeros((M, D), tl.float32)
    m = tl.full((M,), float("-inf"), tl.float32)
    l = tl.zeros((M,), tl.float32)
    first, edge, end = keys_for(query_start, key_mask, batch, n_queries, n_keys, CAUSAL, M, N)
    for EDGE in tl.static_range(2):                 # two loops: most tiles need no checks
        for key_start in range(edge if EDGE else first, end if EDGE else edge, N):
            k_tile = load_tile(k, batch, head // GROUP, key_start, n_keys, N, EDGE, HEAD_DIM, D)
            keys = key_start + tl.arange(0, N)
            s = load_bias(bias, batch, head, queries[:, None], keys[None, :], n_queries, n_keys,
                          scale, EDGE)
            s = tl.dot(q_tile, tl.trans(k_tile), s, input_precision="ieee")   # (M, N) float32
            if EDGE:
                s = hide(s, key_mask, batch, query_start, key_start, n_queries, n_keys,
                         CAUSAL, M, N)
            m_new = tl.maximum(m, c * tl.max(s, 1))               # (M,)
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)   # no key seen yet: no inf - inf
            p = tl.exp2(c * s - m_safe[:, None])                  # (M, N)
            rescale = tl.exp2(m - m_safe)                         # (M,), for the sums so far
            l = l * rescale + tl.sum(p, 1)
            v_tile = load_tile(v, batch, head // GROUP, key_start, n_keys, N, EDGE, HEAD_DIM, D)
            a *= rescale[:, None]
            a = tl.dot(p.to(v_tile.dtype), v_tile, a, input_precision="ieee")     # (M, D)
            m = m_new

    denominator = tl.where(l > 0, l, 1.0)                 # a query that has seen no key gets zeros,
    store_tile(out, batch, head, query_start, n_queries, a / denominator[:, None], M, HEAD_DIM, D)
    if lse is not None:                              # and lse = +inf: 2^(c s - lse) is 0, not NaN
        log_sum = tl.where(l > 0, m + tl.log2(denominator), float("inf"))
        store_row(lse, batch, head, query_start, n_queries, log_sum, M)


# ---- backward, queries (arXiv 2307.08691, algorithm 2, with the loops exchanged) ----
# dQ = scale sum_j dS_j k_j    dS_j = P_j (dO . v_j - delta)    delta = dO . O

@triton.jit(do_not_specialize=LENGTHS)
def query_gradient_kernel(q, k, v, bias, key_mask, out, lse, d_out, delta, dq,
                          scale, n_heads, n_queries, n_keys,
                          GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
                          M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """dq, and delta for the kernels below. One program computes M queries of one head."""
    n_tiles = tl.cdiv(n_queries, M)
    program = tl.program_id(0)
    query_start = (n_tiles - 1 - program % n_tiles) * M
    head = program // n_tiles % n_heads
    batch = program // n_tiles // n_heads
    c = scale * LOG2_E
    queries = query_start + tl.arange(0, M)
    q_tile = load_tile(q, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
    do_tile = load_tile(d_out, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
    o_tile = load_tile(out, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
    lse_row = load_row(lse, batch, head, query_start, n_queries, float("inf"), M)         # (M,)
    delta_row = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1)                 # (M,)
    store_row(delta, batch, head, query_start, n_queries, delta_row, M)

    dq_tile = tl.zeros((M, D), tl.float32)
    first, edge, end = keys_for(query_start, key_mask, batch, n_queries, n_keys, CAUSAL, M, N)
    for EDGE in tl.static_range(2):
        for key_start in range(edge if EDGE else first, end if EDGE else edge, N):
            k_tile = load_tile(k, batch, head // GROUP, key_start, n_keys, N, EDGE, HEAD_DIM, D)
            v_tile = load_tile(v, batch, head // GROUP, key_start, n_keys, N, EDGE, HEAD_DIM, D)
            keys = key_start + tl.arange(0, N)
            s = load_bias(bias, batch, head, queries[:, None], keys[None, :], n_queries, n_keys,
                          scale, EDGE)
            s = tl.dot(q_tile, tl.trans(k_tile), s, input_precision="ieee")   # (M, N) float32
            if EDGE:
                s = hide(s, key_mask, batch, query_start, key_start, n_queries, n_keys,
                         CAUSAL, M, N)
            p = tl.exp2(c * s - lse_row[:, None])                 # (M, N), the probabilities
            dp = tl.dot(do_tile, tl.trans(v_tile), input_precision="ieee")        # (M, N)
            ds = p * (dp - delta_row[:, None])
            dq_tile = tl.dot(ds.to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")
    store_tile(dq, batch, head, query_start, n_queries, dq_tile * scale, M, HEAD_DIM, D)


# ---- backward, keys (arXiv 2307.08691, algorithm 2) ----
# dV = P^T dO    dK = scale dS^T Q    summed over the heads that share the key
# Tiles of scores are transposed, (N, M), so that P^T and dS^T are computed as they are needed.

@triton.jit(do_not_specialize=LENGTHS)
def key_gradients_kernel(q, k, v, bias, key_mask, lse, d_out, delta, dk, dv,
                         scale, n_kv_heads, n_queries, n_keys,
                         GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
                         M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """dk and dv. One program computes N keys of one key head, for all query heads of its group."""
    n_tiles = tl.cdiv(n_keys, N)
    program = tl.program_id(0)
    key_start = program % n_tiles * N       # if causal, the first keys are seen by the most queries
    kv_head = program // n_tiles % n_kv_heads
    batch = program // n_tiles // n_kv_heads
    c = scale * LOG2_E
    keys = key_start + tl.arange(0, N)
    k_tile = load_tile(k, batch, kv_head, key_start, n_keys, N, True, HEAD_DIM, D)
    v_tile = load_tile(v, batch, kv_head, key_start, n_keys, N, True, HEAD_DIM, D)

    first = 0
    if CAUSAL:                                              # earlier queries see none of these keys
        first = tl.maximum(key_start - (n_keys - n_queries), 0) // M
    steps = tl.maximum(tl.cdiv(n_queries, M) - first, 0)
    if key_mask is not None:
        seen = load_row(key_mask, batch, 0, key_start, n_keys, 0, N) != 0         # (N,)
        steps = tl.where(tl.max(seen.to(tl.int32)) > 0, steps, 0)    # all padding: nothing to visit
    dk_tile = tl.zeros((N, D), tl.float32)
    dv_tile = tl.zeros((N, D), tl.float32)
    for step in range(GROUP * steps):                   # the queries of one head, then of the next
        head = kv_head * GROUP + step // steps
        query_start = (first + step % steps) * M
        q_tile = load_tile(q, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
        do_tile = load_tile(d_out, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
        # beyond the last query lse reads as +inf, so that p is 0
        lse_row = load_row(lse, batch, head, query_start, n_queries, float("inf"), M)     # (M,)
        delta_row = load_row(delta, batch, head, query_start, n_queries, 0.0, M)          # (M,)
        queries = query_start + tl.arange(0, M)
        s = load_bias(bias, batch, head, queries[None, :], keys[:, None], n_queries, n_keys,
                      scale, True)
        s = tl.dot(k_tile, tl.trans(q_tile), s, input_precision="ieee")           # (N, M) float32
        if CAUSAL:
            s = tl.where(keys[:, None] <= queries[None, :] + (n_keys - n_queries), s, float("-inf"))
        p = tl.exp2(c * s - lse_row[None, :])                     # (N, M)
        dv_tile = tl.dot(p.to(do_tile.dtype), do_tile, dv_tile, input_precision="ieee")
        dp = tl.dot(v_tile, tl.trans(do_tile), input_precision="ieee")            # (N, M)
        ds = p * (dp - delta_row[None, :])
        dk_tile = tl.dot(ds.to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")
    if key_mask is not None:              # a key's gradients are a row of their own: hidden at once
        dk_tile = tl.where(seen[:, None], dk_tile, 0.0)
        dv_tile = tl.where(seen[:, None], dv_tile, 0.0)
    store_tile(dk, batch, kv_head, key_start, n_keys, dk_tile * scale, N, HEAD_DIM, D)
    store_tile(dv, batch, kv_head, key_start, n_keys, dv_tile, N, HEAD_DIM, D)


# ---- backward, bias:  dbias = dS, summed over the rows of the batch that share it ----

@triton.jit(do_not_specialize=LENGTHS)
def bias_gradient_kernel(q, k, v, bias, key_mask, lse, d_out, delta, d_bias,
                         scale, n_heads, n_queries, n_keys, n_shared,
                         GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
                         M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """d_bias. One program computes M queries and N keys of one head, over n_shared batch rows."""
    n_columns = tl.cdiv(n_keys, N)
    n_tiles = tl.cdiv(n_queries, M) * n_columns
    program = tl.program_id(0)
    query_start = program % n_tiles // n_columns * M
    key_start = program % n_columns * N
    head = program // n_tiles % n_heads
    bias_row = program // n_tiles // n_heads
    c = scale * LOG2_E
    query, key = query_start + tl.arange(0, M)[:, None], key_start + tl.arange(0, N)[None, :]
    sum_ds = tl.zeros((M, N), tl.float32)
    for shared in range(n_shared):
        batch = bias_row * n_shared + shared
        q_tile = load_tile(q, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
        k_tile = load_tile(k, batch, head // GROUP, key_start, n_keys, N, True, HEAD_DIM, D)
        s = load_bias(bias, batch, head, query, key, n_queries, n_keys, scale, True)      # (M, N)
        s = tl.dot(q_tile, tl.trans(k_tile), s, input_precision="ieee")           # (M, N) float32
        s = hide(s, key_mask, batch, query_start, key_start, n_queries, n_keys, CAUSAL, M, N)
        lse_row = load_row(lse, batch, head, query_start, n_queries, float("inf"), M)     # (M,)
        p = tl.exp2(c * s - lse_row[:, None])                     # (M, N)
        do_tile = load_tile(d_out, batch, head, query_start, n_queries, M, True, HEAD_DIM, D)
        v_tile = load_tile(v, batch, head // GROUP, key_start, n_keys, N, True, HEAD_DIM, D)
        dp = tl.dot(do_tile, tl.trans(v_tile), input_precision="ieee")            # (M, N)
        delta_row = load_row(delta, batch, head, query_start, n_queries, 0.0, M)          # (M,)
        sum_ds += p * (dp - delta_row[:, None])
    at = plane(d_bias, bias_row, head) + query * d_bias.row + key * d_bias.column
    tl.store(at, sum_ds, mask=(query < n_queries) & (key < n_keys))


# ---- launching ----

class Tiles(NamedTuple):
    queries: int                        # M
    keys: int                           # N
    warps: int                          # on Hopper 4 of them share matrix instructions on 64 rows
    stages: int                         # tiles on their way from memory while one is worked on


KERNELS = (forward_kernel, query_gradient_kernel, key_gradients_kernel, bias_gradient_kernel)
# For each head size, up to the one given: the tiles of the forward kernel for at most 16 queries,
# then those of the four KERNELS. They are the largest of a few sensible ones whose sums stay in
# registers (tests/parity/test_triton_compiled.py: none is spilled). A thread has 255 of them. The
# sums of a tile, in float32, take M * D / threads, scores M * N / threads, dk and dv twice that.
# Hopper's matrix instructions read both operands from shared memory, Ampere's from registers: its
# tiles are smaller, and fit into the 99 KB of shared memory of consumer GPUs, too. float32 has no
# exact matrix instruction, only multiply-adds: 16 x 16. For a tile of bias see `tiles_for`.
TILES = {
    "hopper": {
        64: ((16, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 3), (64, 128, 8, 3), (64, 32, 4, 2)),
        128: ((16, 32, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2), (32, 128, 8, 2), (64, 32, 8, 1)),
        256: ((16, 64, 4, 2), (64, 32, 8, 2), (64, 16, 4, 2), (16, 32, 8, 2), (16, 16, 4, 1))},
    "ampere": {
        64: ((16, 64, 4, 3), (128, 64, 8, 3), (128, 32, 8, 3), (64, 128, 8, 3), (64, 32, 4, 2)),
        128: ((16, 32, 4, 3), (128, 32, 8, 3), (128, 32, 8, 3), (16, 128, 8, 3), (64, 32, 8, 1)),
        256: ((16, 64, 4, 2), (64, 16, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2), (16, 16, 4, 1))},
    "float32": {
        64: ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 1), (16, 16, 8, 2)),
        128: ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 1), (16, 16, 8, 2)),
        256: ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 4, 2), (16, 16, 8, 1), (16, 16, 8, 2))}}


def tiles_for(kernel, generation, head_dim, n_queries, biased) -> Tiles:
    """The tiles of a kernel. A tile of bias takes as many registers as a head twice as wide."""
    width = max(64, triton.next_power_of_2(head_dim))
    if biased and generation != "float32" and kernel is not bias_gradient_kernel:
        width = min(2 * width, MAX_HEAD_DIM)
    few_queries = kernel is forward_kernel and n_queries <= 16    # decoding: one group of heads
    column = 0 if few_queries else 1 + KERNELS.index(kernel)
    return Tiles(*TILES[generation][width][column])


def generation_of(q):
    """The rows of TILES that serve q, by its dtype and GPU; for the interpreter Hopper's."""
    if q.is_cuda and q.dtype == torch.float32:
        return "float32"
    hopper = not q.is_cuda or torch.cuda.get_device_capability(q.device)[0] in (9, 10)
    return "hopper" if hopper else "ampere"


def plan(kernel, q, k, bias, causal):
    """-> the Tiles of a kernel for these tensors, and all that it is compiled for."""
    n_heads, n_queries, head_dim = q.shape[1:]
    tiles = tiles_for(kernel, generation_of(q), head_dim, n_queries, bias is not None)
    return tiles, dict(
        GROUP=n_heads // k.shape[1], CAUSAL=causal, HEAD_DIM=head_dim,
        M=tiles.queries, N=tiles.keys, D=max(16, triton.next_power_of_2(head_dim)),
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True)


def strided(x):
    """x as a kernel gets it. A dimension of size 1 has stride 0: all indices read one entry."""
    if x is None:
        return None
    return Strided(x, *(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride())))


def run_forward(q, k, v, bias, key_mask, scale, causal, keep_lse):
    """-> out (B, H, Tq, Dh) in q's memory layout; lse (B, H, Tq, 1) or None."""
    batch, n_heads, n_queries, _ = q.shape
    out = torch.empty_like(q)
    lse = q.new_empty((batch, n_heads, n_queries, 1), dtype=torch.float32) if keep_lse else None
    tiles, options = plan(forward_kernel, q, k, bias, causal)
    with torch.cuda.device_of(q):
        forward_kernel[(batch * n_heads * triton.cdiv(n_queries, tiles.queries),)](
            *map(strided, (q, k, v, bias, key_mask, out, lse)),
            scale, n_heads, n_queries, k.shape[2], **options)
    return out, lse


def run_backward(q, k, v, bias, key_mask, out, lse, d_out, scale, causal, needed):
    """-> dq, dk, dv, dbias. needed: four bools, for which of them; the first is computed anyway."""
    batch, n_heads, n_queries, _ = q.shape
    n_kv_heads, n_keys = k.shape[1:3]
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    dk = dv = d_bias = None
    with torch.cuda.device_of(q):
        tiles, options = plan(query_gradient_kernel, q, k, bias, causal)
        query_gradient_kernel[(batch * n_heads * triton.cdiv(n_queries, tiles.queries),)](
            *map(strided, (q, k, v, bias, key_mask, out, lse, d_out, delta, dq)),
            scale, n_heads, n_queries, n_keys, **options)
        if needed[1] or needed[2]:
            dk, dv = torch.empty_like(k), torch.empty_like(v)
            tiles, options = plan(key_gradients_kernel, q, k, bias, causal)
            key_gradients_kernel[(batch * n_kv_heads * triton.cdiv(n_keys, tiles.keys),)](
                *map(strided, (q, k, v, bias, key_mask, lse, d_out, delta, dk, dv)),
                scale, n_kv_heads, n_queries, n_keys, **options)
        if needed[3]:
            d_bias = torch.empty_like(bias)
            tiles, options = plan(bias_gradient_kernel, q, k, bias, causal)
            n_tiles = triton.cdiv(n_queries, tiles.queries) * triton.cdiv(n_keys, tiles.keys)
            bias_gradient_kernel[(bias.shape[0] * n_heads * n_tiles,)](
                *map(strided, (q, k, v, bias, key_mask, lse, d_out, delta, d_bias)),
                scale, n_heads, n_queries, n_keys, batch // bias.shape[0], **options)
    return dq, dk, dv, d_bias


class FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, key_mask, scale, causal):
        out, lse = run_forward(q, k, v, bias, key_mask, scale, causal, keep_lse=True)
        ctx.save_for_backward(q, k, v, bias, key_mask, out, lse)
        ctx.scale, ctx.causal = scale, causal
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        grads = run_backward(*ctx.saved_tensors, d_out, ctx.scale, ctx.causal, ctx.needs_input_grad)
        return *grads, None, None, None


def fused_attention(q, k, v, *, scale, causal=False, key_mask=None, bias=None):
    """`layers.attend` in one pass, with the same shapes, any strides, and heads up to 256 wide.

    q, k and v are all float32, float16 or bfloat16. ValueError for what the kernels do not take.
    Where no input needs a gradient, nothing is kept for a backward pass.
    """
    if not q.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError("the Triton kernels run on a GPU, or with TRITON_INTERPRET=1 (slowly) on "
                         "the CPU")
    given = [x for x in (q, k, v, bias) if x is not None]
    if max(x.shape[2] * x.stride(2) for x in given) >= 2 ** 31:
        raise ValueError("one head of a tensor spans 2^31 elements or more: the kernels count them "
                         "in 32 bits")
    one_dtype = q.dtype in DTYPES and q.dtype == k.dtype == v.dtype
    if not one_dtype or q.shape[3] > MAX_HEAD_DIM or scale <= 0:
        raise ValueError(f"fused attention takes heads up to {MAX_HEAD_DIM} wide of one dtype, "
                         f"float32, float16 or bfloat16, and a scale > 0; not {q.shape[3]}, "
                         f"{q.dtype}, {k.dtype}, {v.dtype}, {scale}")
    n_kv_heads = k.shape[1]
    if key_mask is not None:
        key_mask = key_mask[:, None, :, None]                     # (B, 1, Tk, 1)
    one_query = q.shape[2] == 1
    if one_query:                                     # heads that share keys are the rows of a tile
        causal = False
        q = q.squeeze(2).unflatten(1, (n_kv_heads, -1))           # (B, Hkv, H / Hkv, Dh)
        if bias is not None:
            bias = bias.squeeze(2).unflatten(1, (n_kv_heads, -1))
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        out = FusedAttention.apply(q, k, v, bias, key_mask, scale, causal)
    else:
        out, _ = run_forward(q, k, v, bias, key_mask, scale, causal, keep_lse=False)
    return out.flatten(1, 2).unsqueeze(2) if one_query else out
