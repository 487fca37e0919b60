"""The decoder against transformers' LlamaForCausalLM, through the production loader: every shape of the family."""
import pytest
import torch
from helpers import make_llama

from sensorllm_min.config import LlamaConfig, read_llama_config
from sensorllm_min.generate import generate
from sensorllm_min.layers import RMSNorm, init_from_scratch
from sensorllm_min.llama import KVCache, Llama, rotary_frequencies
from sensorllm_min.weights import load_llama

LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
FAMILY = {
    "llama-2": dict(num_key_value_heads=4, rms_norm_eps=1e-5),
    "llama-3": dict(rope_theta=500000.0, num_attention_heads=8, num_key_value_heads=2),
    "llama-3.1": dict(rope_theta=500000.0, rope_scaling=LLAMA3_ROPE),
    "llama-3.2": dict(rope_theta=500000.0, rope_scaling=LLAMA3_ROPE | {"factor": 32.0}, tie_word_embeddings=True,
                      head_dim=16),
    "smollm": dict(hidden_size=54, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "wide heads": dict(head_dim=20),                                          # 4 * 20 is not 48
}


@pytest.fixture(params=FAMILY)
def pair(request, tmp_path):
    theirs = make_llama(tmp_path, **FAMILY[request.param])
    return load_llama(tmp_path), theirs


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def random_ids(batch, length, vocab=300):
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def test_logits_equal_transformers(pair):
    ours, theirs = pair
    for length in (1, 13, 200):
        ids = random_ids(2, length)
        close(ours.logits(ours(ours.embed_tokens(ids))), theirs(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("side,padding", [
    ("left", slice(0, 11)), ("right", slice(29, 40)), ("middle", slice(10, 19))])
def test_padding_changes_no_real_token(pair, side, padding):
    """Real tokens get what they get alone, and what transformers gives them."""
    ours, theirs = pair
    ids, mask = random_ids(3, 40), torch.ones(3, 40, dtype=torch.bool)
    mask[1, padding] = False
    out = ours.logits(ours(ours.embed_tokens(ids), mask))
    for row in range(3):
        alone = ids[row:row + 1, mask[row]]
        close(out[row:row + 1, mask[row]], theirs(alone).logits)
    assert not out.isnan().any()
    if side == "right":                                                       # a causal model needs no mask for it
        close(ours.logits(ours(ours.embed_tokens(ids)))[mask], out[mask])


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False])
def test_a_cache_changes_no_hidden_state(pair, padded):
    """The prompt in two chunks, then token by token: the same hidden states as all at once."""
    ours, _ = pair
    ids, mask = random_ids(2, 30), torch.ones(2, 30, dtype=torch.bool)
    mask[1, :7] = not padded
    x = ours.embed_tokens(ids)
    expected = ours(x, mask)
    caches = [KVCache(ours.config, 2, 30, x.dtype, x.device) for _ in ours.layers]
    ends = [9, 20, *range(21, 31)]
    parts = [ours(x[:, start:end], mask[:, :end] if padded else None, caches)
             for start, end in zip([0, *ends[:-1]], ends)]
    close(torch.cat(parts, 1)[mask], expected[mask])
    assert {cache.length for cache in caches} == {30}


def test_weights_from_scratch_keep_the_size_of_what_flows_through():
    """N(0, 1/fan_in), smaller by sqrt(2 n_layers) where a block writes into the residual stream;
    rows of length 1.
    """
    config = LlamaConfig(vocab_size=1000, d_model=256, d_ff=512, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64)
    torch.manual_seed(0)
    llm = Llama(config)
    init_from_scratch(llm)
    for name, parameter in llm.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
            continue
        expected = parameter.shape[1] ** -0.5
        if name.split(".")[-2] in ("o_proj", "down_proj"):
            expected /= 2                                                     # sqrt(2 * 2 layers)
        # the standard deviation of n normal numbers is known to 1 / sqrt(2 n), here 0.4 % or
        # better: five times that
        assert parameter.std().item() == pytest.approx(expected, rel=0.02), name


def training_pass(llm, x, wanted, key_mask=None):
    """Forward and backward as in training -> (output, gradients of the input and of two weights),
    bytes that were kept.
    """
    kept = []
    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        out = llm(x, key_mask, wanted=wanted)
    weights = llm.layers[0].attn.k_proj.weight, llm.layers[-1].mlp.up_proj.weight
    return (out, *torch.autograd.grad(out.square().mean(), (x, *weights))), sum(kept)


def test_gradient_checkpointing_computes_each_block_twice_and_changes_nothing(tmp_path):
    """The same bits of outputs and gradients; between forward and backward little more than a
    block's input is kept.
    """
    make_llama(tmp_path, num_hidden_layers=3)
    x = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(0))
    wanted = torch.ones(2, 20, dtype=torch.bool)
    wanted[:, :5], wanted[1, 13:] = False, False
    key_mask = torch.ones(2, 20, dtype=torch.bool)
    key_mask[1, :4] = False
    found, kept, calls = {}, {}, {}
    for recompute in (False, True):
        llm = load_llama(tmp_path)
        llm.gradient_checkpointing = recompute
        counted = []
        for layer in llm.layers:
            layer.attn.q_proj.register_forward_hook(lambda *_: counted.append(1))
        found[recompute], kept[recompute] = training_pass(llm, x, wanted, key_mask)
        calls[recompute] = len(counted)
    assert calls == {False: 3, True: 6}
    assert kept[True] < kept[False] / 4  # a block keeps 15 tensors of its input's size
    for first, second in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_last_block_computes_wanted_tokens_only_and_gives_them_the_same(tmp_path):
    """The hidden states and gradients of all tokens, picked afterwards, from fewer products."""
    make_llama(tmp_path, num_hidden_layers=2)
    llm = load_llama(tmp_path)
    x = torch.randn(3, 20, 48, generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(3, 20, dtype=torch.bool)
    wanted[0, 3:6], wanted[1, 19], wanted[2, ::4] = True, True, True
    seen = []
    hooks = [layer.mlp.gate_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][..., 0].numel()))
             for layer in llm.layers]
    found, _ = training_pass(llm, x, wanted)
    for hook in hooks:
        hook.remove()
    assert seen == [60, wanted.sum()]

    x = x.requires_grad_()
    expected = llm(x)[wanted]
    weights = llm.layers[0].attn.k_proj.weight, llm.layers[-1].mlp.up_proj.weight
    gradients = torch.autograd.grad(expected.square().mean(), (x, *weights))
    for ours, theirs in zip(found, (expected, *gradients), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_is_computed_in_float32_like_both_references(dtype):
    """Bit for bit. In float16 the square of 300 is infinite; in bfloat16 a mean of 4096 squares
    has two digits.
    """
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.t5.modeling_t5 import T5LayerNorm
    torch.manual_seed(0)
    x, weight = (torch.randn(7, 4096) * 400).to(dtype), torch.randn(4096).to(dtype)
    ours = RMSNorm(4096, 1e-5)
    ours.weight.data = weight
    for reference in (LlamaRMSNorm(4096, eps=1e-5), T5LayerNorm(4096, eps=1e-5)):
        reference.weight.data = weight
        assert torch.equal(ours(x), reference(x)) and ours(x).isfinite().all()


LLAMA_31_ROPE = LLAMA3_ROPE | {"rope_theta": 500_000.0, "original_max_position_embeddings": 8192}
ROPES = {
    "llama-2": {"rope_type": "default", "rope_theta": 10_000.0},
    "llama-3": {"rope_type": "default", "rope_theta": 500_000.0},
    "llama-3.1": LLAMA_31_ROPE,
    "llama-3.2": LLAMA_31_ROPE | {"factor": 32.0}}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rotary_frequencies_equal_transformers(tmp_path, rope):
    """Head size 128, as in the public models; kept, blended and slowed-down frequencies are all
    among them.
    """
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    theirs = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        rope_parameters=rope,
        max_position_embeddings=131_072,
    )
    theirs.save_pretrained(tmp_path)
    ours = rotary_frequencies(read_llama_config(tmp_path))
    plain = rope["rope_theta"] ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    expected = plain.float()
    if rope["rope_type"] == "llama3":
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
        ratio = expected / plain
        slowed = ratio < 1.001 / rope["factor"]
        kept = ratio > 0.999
        assert slowed.sum() > 5 and kept.sum() > 5 and (~slowed & ~kept).sum() > 5
    # float32 powers are known to 1e-6
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


def test_bf16_is_as_near_to_float32_as_transformers(tmp_path):
    """In bf16 both round: ours may be as far from float32 as theirs, with a half more for the order of sums."""
    from transformers import LlamaForCausalLM
    exact = make_llama(tmp_path, rope_theta=500000.0)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = load_llama(tmp_path, torch.bfloat16)
    ids = random_ids(2, 500)
    with torch.no_grad():
        truth = exact(ids).logits
        our_error = (ours.logits(ours(ours.embed_tokens(ids))).float() - truth).abs().mean()
        their_error = (theirs(ids).logits.float() - truth).abs().mean()
    assert our_error < 1.5 * their_error


@pytest.mark.shared("weights")
def test_stories260k_tells_a_story(shared):
    """A trained model through our tokenizer, loader, decoder and generation: token for token as transformers."""
    import transformers
    from sensorllm_min.text_tokenizer import load_text_tokenizer
    folder = shared / "weights" / "stories260K"
    ours = load_llama(folder)
    tokenizer = load_text_tokenizer(folder, ours.config)
    prompt = [tokenizer.bos_id] + tokenizer.encode("Once upon a time")
    ids = torch.tensor([prompt])
    (text,) = generate(ours, ours.embed_tokens(ids), torch.ones_like(ids, dtype=torch.bool), tokenizer.stop_ids, 150)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    expected = theirs.generate(ids, max_new_tokens=150, do_sample=False, attention_mask=torch.ones_like(ids))[0, len(prompt):]
    assert text == [token for token in expected.tolist() if token not in tokenizer.stop_ids]
    story = tokenizer.decode(text)
    assert story.startswith(", there was a little girl named") and story.count(".") >= 4, story
