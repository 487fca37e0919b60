"""Exact attention in one pass over the keys (FlashAttention). Skip this file on a first reading.

    S = scale Q K^T + bias        P = softmax(S)        O = P V

For one head Q is (Tq, Dh), K and V are (Tk, Dh), S and P are (Tq, Tk).

S of one Llama 3 layer at 4096 tokens takes 1 GB for each row of the batch, but it need never exist:
a program holds one tile of queries, walks over the tiles of keys and keeps three things for each
query (arXiv 1805.02867, 2205.14135):

    m, the largest score so far        l = sum_j exp(s_j - m)        a = sum_j exp(s_j - m) v_j

A new tile may bring a larger maximum m'. Since exp(s - m') = exp(s - m) exp(m - m'), multiplying l
and a by exp(m - m') makes them what they would have been, had m' been known from the start. Nothing
is approximated: after the last tile O = a / l, whatever the tiles and their order.

The backward pass (arXiv 2205.14135, appendix B), with dO given and delta_i = sum_j P_ij dP_ij:

    dV = P^T dO        dP = dO V^T        dS = P * (dP - delta)
    dQ = scale dS K                       dK = scale dS^T Q

All of these are sums over a row or a column of tiles, so again no (Tq, Tk) matrix is kept: P is
computed again from Q and K. This needs one number for each query from the forward pass,
lse = m + log l: exp(s - lse) is the probability itself, without a second search for the maximum and
the sum. And delta_i = sum_j P_ij (dO_i . v_j) = dO_i . O_i is a sum over Dh instead of Tk. The
gradient of the bias would be dS itself, as large as S: with a bias there is only a forward pass.

The GPU computes 2^x, not e^x. So m and lse are kept to the base 2, and scores are multiplied by
c = scale log2(e) only there. A tile of Q K^T starts from bias / scale, so that c fits both.

As in arXiv 2307.08691, each program owns a tile of its output, and no other program adds to it:
queries for O and dQ, keys for dK and dV (over all query heads that share them). So nothing is
atomic, and the same input gives the same bits. The price: the backward pass computes P twice.

Letters: a tile has M queries and N keys. D is Dh rounded up to a power of two; columns beyond Dh
are read as zeros. Tiles of q, o, dO and dQ are (M, D), those of k, v, dK and dV (N, D).
"""
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

MAX_HEAD_DIM = 128
LENGTHS = ("n_queries", "n_keys")       # one compiled kernel serves all values of these
LOG2_E = tl.constexpr(math.log2(math.e))
HIDDEN = tl.constexpr(float("-inf"))    # the score of a key that a query may not see


class Strided(NamedTuple):
    """A tensor as a kernel gets it: its memory, and the stride of each dimension in elements."""
    data: torch.Tensor
    batch: int
    head: int
    row: int
    column: int


# ---- what the kernels share ----

@triton.jit
def find_tile(n_rows, n_heads, R: tl.constexpr):
    """Returns the tile of R rows, the head and the batch row that this program works on."""
    n_tiles = tl.cdiv(n_rows, R)
    program = tl.program_id(0)          # tiles of one head run together: what they share is cached
    head = program // n_tiles           # of all heads of the batch
    return program % n_tiles, head % n_heads, head // n_heads


@triton.jit
def locate(x, batch, head, rows, columns):
    """The addresses of x[batch, head, rows, columns]. A batch may span 2^31 elements: int64."""
    batch = tl.cast(batch, tl.int64)
    head = tl.cast(head, tl.int64)
    start = x.data + batch * x.batch + head * x.head
    return start + rows * x.row + columns * x.column


@triton.jit
def load_tile(x, batch, head, rows, n_rows, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """x[batch, head, rows, :] for rows (R,) -> (R, D); the last row is repeated beyond n_rows."""
    rows = tl.minimum(rows, n_rows - 1)             # this takes fewer registers than a mask
    columns = tl.arange(0, D)[None, :]
    at = locate(x, batch, head, rows[:, None], columns)           # (R, D)
    return tl.load(at, mask=columns < HEAD_DIM, other=0.0)


@triton.jit
def store_tile(x, batch, head, rows, n_rows, tile, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    rows = rows[:, None]
    columns = tl.arange(0, D)[None, :]
    at = locate(x, batch, head, rows, columns)                    # (R, D)
    tl.store(at, tile, mask=(rows < n_rows) & (columns < HEAD_DIM))


@triton.jit
def load_row(x, batch, head, rows, n_rows, beyond):
    """x[batch, head, rows, 0], in the shape of rows, with `beyond` after the last row."""
    at = locate(x, batch, head, rows, 0)
    return tl.load(at, mask=rows < n_rows, other=beyond)


@triton.jit
def find_seen(key_mask, batch, keys, n_keys):
    """bool, in the shape of keys: True for keys that exist and are not masked."""
    if key_mask is None:
        return keys < n_keys
    else:
        return load_row(key_mask, batch, 0, keys, n_keys, 0) != 0


@triton.jit
def hide(s, positions, keys, key_mask, batch, n_keys, CAUSAL: tl.constexpr):
    """Hides scores s (M, N) by the queries' positions (M, 1) and keys (1, N), or all transposed."""
    s += tl.where(find_seen(key_mask, batch, keys, n_keys), 0.0, HIDDEN)
    if CAUSAL:
        s = tl.where(keys <= positions, s, HIDDEN)
    return s


@triton.jit
def find_keys(
        position, key_mask, batch, n_keys, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The keys that M queries from `position` on visit, without padding -> (first, edge, end).
    All queries see all keys from first to edge; from edge to end some are hidden."""
    first = 0
    end = n_keys
    whole = n_keys                      # all queries see all keys from first up to here
    if key_mask is not None:
        first = n_keys
        end = 0
        n_seen = 0
        for start in range(0, n_keys, 1024):
            keys = start + tl.arange(0, 1024)
            seen = find_seen(key_mask, batch, keys, n_keys)
            first = tl.minimum(first, tl.min(tl.where(seen, keys, n_keys)))
            end = tl.maximum(end, tl.max(tl.where(seen, keys + 1, 0)))
            n_seen += tl.sum(seen.to(tl.int32))
        first = first // 16 * 16        # so that a bias can be loaded 16 bytes at a time
        without_holes = first + n_seen == end
        whole = tl.where(without_holes, end, first)               # with holes every key is checked
    if CAUSAL:
        end = tl.minimum(end, position + M)
        whole = tl.minimum(whole, position + 1)
    n_whole = tl.maximum(whole - first, 0) // N
    return first, first + n_whole * N, end


# ---- forward (arXiv 2307.08691, algorithm 1); with p_j = 2^(c s_j - m') ----
# m' = max(m, c max_j s_j)    l' = 2^(m - m') l + sum_j p_j    a' = 2^(m - m') a + sum_j p_j v_j

@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
        q, k, v, bias, key_mask, out, lse, scale, n_heads, n_queries, n_keys,
        GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
        M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """Writes out and lse. One program computes M queries of one head."""
    tile, head, batch = find_tile(n_queries, n_heads, M)
    query_start = (tl.cdiv(n_queries, M) - 1 - tile) * M    # if causal, the last has the most keys
    queries = query_start + tl.arange(0, M)
    offset = n_keys - n_queries                             # the queries are the last tokens
    positions = queries + offset
    kv_head = head // GROUP
    c = scale * LOG2_E
    q_tile = load_tile(q, batch, head, queries, n_queries, HEAD_DIM, D)

    a = tl.zeros((M, D), tl.float32)
    m = tl.full((M,), -1e30, tl.float32)            # finite, so that -inf - m is never NaN
    l = tl.zeros((M,), tl.float32)
    visited = find_keys(query_start + offset, key_mask, batch, n_keys, CAUSAL, M, N)
    for EDGE in tl.static_range(2):                 # two loops: most tiles need no checks
        for key_start in range(visited[EDGE], visited[EDGE + 1], N):
            keys = key_start + tl.arange(0, N)
            k_tile = load_tile(k, batch, kv_head, keys, n_keys, HEAD_DIM, D)
            s = tl.zeros((M, N), tl.float32)
            if bias is not None:
                rows = tl.minimum(queries, n_queries - 1)
                at = locate(bias, batch, head, rows[:, None], keys[None, :])
                if EDGE:
                    bias_tile = tl.load(at, mask=keys[None, :] < n_keys, other=0.0)
                else:
                    bias_tile = tl.load(at)
                s = bias_tile.to(tl.float32) * (1 / scale)        # (M, N)
            s = tl.dot(q_tile, tl.trans(k_tile), s, input_precision="ieee")       # (M, N)
            if EDGE:
                s = hide(s, positions[:, None], keys[None, :], key_mask, batch, n_keys, CAUSAL)
            m_new = tl.maximum(m, c * tl.max(s, 1))               # (M,)
            p = tl.exp2(c * s - m_new[:, None])                   # (M, N)
            rescale = tl.exp2(m - m_new)                          # (M,), for the sums so far
            l = l * rescale + tl.sum(p, 1)
            v_tile = load_tile(v, batch, kv_head, keys, n_keys, HEAD_DIM, D)
            a *= rescale[:, None]
            a = tl.dot(p.to(v_tile.dtype), v_tile, a, input_precision="ieee")     # (M, D)
            m = m_new

    l = tl.where(l > 0, l, float("inf"))            # without a key: zeros, lse = inf, and so p = 0
    store_tile(out, batch, head, queries, n_queries, a / l[:, None], HEAD_DIM, D)
    lse_at = locate(lse, batch, head, queries, 0)
    tl.store(lse_at, m + tl.log2(l), mask=queries < n_queries)


# ---- backward, queries (arXiv 2307.08691, algorithm 2, with the loops exchanged) ----
# dQ = scale sum_j dS_j k_j    dS_j = P_j (dO . v_j - delta)    delta = dO . O

@triton.jit(do_not_specialize=LENGTHS)
def query_gradient_kernel(
        q, k, v, key_mask, out, lse, d_out, delta, dq, scale, n_heads, n_queries, n_keys,
        GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
        M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """Writes dq, and delta for the kernel below. One program computes M queries of one head."""
    tile, head, batch = find_tile(n_queries, n_heads, M)
    query_start = (tl.cdiv(n_queries, M) - 1 - tile) * M
    queries = query_start + tl.arange(0, M)
    offset = n_keys - n_queries
    positions = queries + offset
    kv_head = head // GROUP
    c = scale * LOG2_E
    q_tile = load_tile(q, batch, head, queries, n_queries, HEAD_DIM, D)
    do_tile = load_tile(d_out, batch, head, queries, n_queries, HEAD_DIM, D)
    o_tile = load_tile(out, batch, head, queries, n_queries, HEAD_DIM, D)
    lse_row = load_row(lse, batch, head, queries, n_queries, float("inf"))        # (M,)
    delta_row = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1)         # (M,)
    delta_at = locate(delta, batch, head, queries, 0)
    tl.store(delta_at, delta_row, mask=queries < n_queries)

    dq_tile = tl.zeros((M, D), tl.float32)
    visited = find_keys(query_start + offset, key_mask, batch, n_keys, CAUSAL, M, N)
    for EDGE in tl.static_range(2):
        for key_start in range(visited[EDGE], visited[EDGE + 1], N):
            keys = key_start + tl.arange(0, N)
            k_tile = load_tile(k, batch, kv_head, keys, n_keys, HEAD_DIM, D)
            v_tile = load_tile(v, batch, kv_head, keys, n_keys, HEAD_DIM, D)
            s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")          # (M, N)
            if EDGE:
                s = hide(s, positions[:, None], keys[None, :], key_mask, batch, n_keys, CAUSAL)
            p = tl.exp2(c * s - lse_row[:, None])                 # (M, N), the probabilities
            dp = tl.dot(do_tile, tl.trans(v_tile), input_precision="ieee")        # (M, N)
            ds = p * (dp - delta_row[:, None])
            dq_tile = tl.dot(ds.to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")
    store_tile(dq, batch, head, queries, n_queries, dq_tile * scale, HEAD_DIM, D)


# ---- backward, keys (arXiv 2307.08691, algorithm 2) ----
# dV = P^T dO    dK = scale dS^T Q    summed over the heads that share the key
# Tiles of scores are transposed, (N, M), so that P^T and dS^T are computed as they are needed.

@triton.jit(do_not_specialize=LENGTHS)
def key_gradients_kernel(
        q, k, v, key_mask, lse, d_out, delta, dk, dv, scale, n_heads, n_queries, n_keys,
        GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
        M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """Writes dk and dv. One program computes N keys of one key head, for all its query heads."""
    tile, kv_head, batch = find_tile(n_keys, n_heads // GROUP, N)
    keys = tile * N + tl.arange(0, N)       # if causal, the first keys are seen by the most queries
    offset = n_keys - n_queries
    c = scale * LOG2_E
    k_tile = load_tile(k, batch, kv_head, keys, n_keys, HEAD_DIM, D)
    v_tile = load_tile(v, batch, kv_head, keys, n_keys, HEAD_DIM, D)

    first = 0
    if CAUSAL:                          # earlier queries see none of these keys
        first = tl.maximum(tile * N - offset, 0) // M
    steps = tl.cdiv(n_queries, M) - first
    n_seen = tl.sum(find_seen(key_mask, batch, keys, n_keys).to(tl.int32))
    if n_seen == 0:                     # all padding: no query to visit
        steps = 0
    dk_tile = tl.zeros((N, D), tl.float32)
    dv_tile = tl.zeros((N, D), tl.float32)
    for step in range(GROUP * steps):                   # the queries of one head, then of the next
        head = kv_head * GROUP + step // steps
        queries = (first + step % steps) * M + tl.arange(0, M)
        positions = queries + offset
        q_tile = load_tile(q, batch, head, queries, n_queries, HEAD_DIM, D)
        do_tile = load_tile(d_out, batch, head, queries, n_queries, HEAD_DIM, D)
        # beyond the last query lse reads as +inf, so that p is 0
        lse_row = load_row(lse, batch, head, queries, n_queries, float("inf"))    # (M,)
        delta_row = load_row(delta, batch, head, queries, n_queries, 0.0)         # (M,)
        s = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee")              # (N, M)
        s = hide(s, positions[None, :], keys[:, None], key_mask, batch, n_keys, CAUSAL)
        p = tl.exp2(c * s - lse_row[None, :])                     # (N, M)
        dv_tile = tl.dot(p.to(do_tile.dtype), do_tile, dv_tile, input_precision="ieee")
        dp = tl.dot(v_tile, tl.trans(do_tile), input_precision="ieee")            # (N, M)
        ds = p * (dp - delta_row[None, :])
        dk_tile = tl.dot(ds.to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")
    store_tile(dk, batch, kv_head, keys, n_keys, dk_tile * scale, HEAD_DIM, D)
    store_tile(dv, batch, kv_head, keys, n_keys, dv_tile, HEAD_DIM, D)


# ---- launching ----

def choose_tiles(kernel, q, biased):
    """(M, N, warps) that spill no register and fit the 99 KB of shared memory of consumer GPUs."""
    if q.dtype == torch.float32 and q.device.type != "cpu":
        return 16, 16, 4                # no exact matrix instruction exists: multiply-adds only
    # 128 rows of its own, 16 for each warp; fewer to visit if a wide head meets further tiles
    is_plain = kernel is forward_kernel and not biased
    visited = 64 if is_plain or q.shape[3] <= 64 else 32
    if kernel is key_gradients_kernel:
        return visited, 128, 8
    if kernel is forward_kernel and q.shape[2] <= 32:
        return 32, visited, 4           # decoding
    return 128, visited, 8


def launch(kernel, tensors, scale, causal, biased=False):
    """Runs a kernel on its tensors, which begin with q and k."""
    arguments = []
    for x in tensors:
        if x is not None:                       # size 1: all indices read the one entry
            strides = [0 if size == 1 else stride for size, stride in zip(x.shape, x.stride())]
            x = Strided(x, *strides)
        arguments.append(x)
    q, k = tensors[:2]
    batch, n_heads, n_queries, head_dim = q.shape
    n_kv_heads, n_keys = k.shape[1:3]
    M, N, warps = choose_tiles(kernel, q, biased)
    if kernel is key_gradients_kernel:
        n_programs = batch * n_kv_heads * triton.cdiv(n_keys, N)
    else:
        n_programs = batch * n_heads * triton.cdiv(n_queries, M)
    with torch.cuda.device_of(q):
        kernel[(n_programs,)](
            *arguments, scale, n_heads, n_queries, n_keys,
            GROUP=n_heads // n_kv_heads,
            CAUSAL=causal,
            HEAD_DIM=head_dim,
            M=M,
            N=N,
            D=max(16, triton.next_power_of_2(head_dim)),
            num_warps=warps,
            num_stages=2,
            enable_fp_fusion=True)


class FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, key_mask, scale, causal):
        out = torch.empty_like(q)                                 # in q's memory layout
        lse = q.new_empty((*q.shape[:3], 1), dtype=torch.float32)
        tensors = q, k, v, bias, key_mask, out, lse
        launch(forward_kernel, tensors, scale, causal, biased=bias is not None)
        ctx.save_for_backward(q, k, v, key_mask, out, lse)
        ctx.options = scale, causal
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        q, k, v, key_mask, out, lse = ctx.saved_tensors
        dq, dk, dv = map(torch.empty_like, (q, k, v))
        delta = torch.empty_like(lse)
        launch(query_gradient_kernel, (q, k, v, key_mask, out, lse, d_out, delta, dq), *ctx.options)
        launch(key_gradients_kernel, (q, k, v, key_mask, lse, d_out, delta, dk, dv), *ctx.options)
        return dq, dk, dv, None, None, None, None


def fused_attention(q, k, v, *, scale, causal=False, key_mask=None, bias=None):
    """`layers.attend` for heads up to 128 wide. Raises a ValueError for what it does not take."""
    known_dtype = q.dtype in (torch.float32, torch.float16, torch.bfloat16)
    one_dtype = known_dtype and q.dtype == k.dtype == v.dtype
    if not one_dtype or q.shape[3] > MAX_HEAD_DIM or scale <= 0:
        raise ValueError(f"fused attention takes heads up to {MAX_HEAD_DIM} wide of one dtype, "
                         f"float32, float16 or bfloat16, and a scale > 0; not {q.shape[3]}, "
                         f"{q.dtype}, {k.dtype}, {v.dtype}, {scale}")
    given = [x for x in (q, k, v, bias) if x is not None]
    if max(x.shape[2] * x.stride(2) for x in given) >= 2 ** 31:
        raise ValueError("one head of a tensor spans 2^31 elements, too many for 32-bit offsets")
    if bias is not None and torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise ValueError("the kernels compute no gradients for attention with a bias")
    if key_mask is not None:
        key_mask = key_mask[:, None, :, None]                     # (B, 1, Tk, 1)
    return FusedAttention.apply(q, k, v, bias, key_mask, scale, causal)
