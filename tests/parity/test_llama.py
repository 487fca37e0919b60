"""The decoder against transformers' LlamaForCausalLM, through the production loader: every shape of the family."""
import pytest
import torch
from helpers import make_llama

from sensorllm_min.generate import generate
from sensorllm_min.llama import KVCache
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
def test_logits_equal(pair):
    ours, theirs = pair
    for length in (1, 13, 200):
        ids = random_ids(2, length)
        close(ours.logits(ours(ours.embed_tokens(ids))), theirs(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair, side):
    """Real tokens get what they get alone, and what transformers gives them."""
    ours, theirs = pair
    ids, mask = random_ids(3, 40), torch.ones(3, 40, dtype=torch.bool)
    pad = slice(0, 11) if side == "left" else slice(29, 40)
    mask[1, pad] = False
    out = ours.logits(ours(ours.embed_tokens(ids), mask))
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    close(out[mask], theirs(ids, attention_mask=mask.long(), position_ids=positions).logits[mask])
    alone = ids[1][mask[1]][None]
    close(out[1][mask[1]][None], ours.logits(ours(ours.embed_tokens(alone))))
    assert not out.isnan().any()
    if side == "right":                                                       # a causal model needs no mask for it
        close(ours.logits(ours(ours.embed_tokens(ids)))[mask], out[mask])


@torch.no_grad()
def test_cache_equals_no_cache(pair):
    """The prompt in two chunks, then token by token, with left padding: the same hidden states as all at once."""
    ours, _ = pair
    ids, mask = random_ids(2, 30), torch.ones(2, 30, dtype=torch.bool)
    mask[1, :7] = False
    x = ours.embed_tokens(ids)
    expected = ours(x, mask)
    cache = KVCache(ours.config, 2, 30, x.dtype, x.device)
    parts = [ours(x[:, start:end], mask[:, :end], cache) for start, end in ((0, 9), (9, 20), *((i, i + 1) for i in range(20, 30)))]
    close(torch.cat(parts, 1)[mask], expected[mask])
    assert cache.length == 30


@torch.no_grad()
def test_greedy_generation_equals_transformers(pair):
    """A batch of prompts of unequal length, left-padded, against transformers on each alone."""
    ours, theirs = pair
    prompts = [random_ids(1, n)[0] for n in (5, 17, 9)]
    ids, mask = torch.zeros(3, 17, dtype=torch.long), torch.zeros(3, 17, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, 17 - len(prompt):], mask[row, 17 - len(prompt):] = prompt, True
    stops = {2, 7, 11}
    texts = generate(ours, ours.embed_tokens(ids), mask, stops, 40)
    for prompt, text in zip(prompts, texts):
        expected = theirs.generate(prompt[None], max_new_tokens=40, do_sample=False, eos_token_id=list(stops),
                                   pad_token_id=0, attention_mask=torch.ones(1, len(prompt)))[0, len(prompt):].tolist()
        assert text == (expected[:-1] if expected[-1] in stops else expected)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    make_llama(tmp_path)
    grads = []
    for recompute in (False, True):
        llm = load_llama(tmp_path)
        llm.gradient_checkpointing = recompute
        x = llm.embed_tokens(random_ids(2, 20)).detach().requires_grad_()
        llm.logits(llm(x)).square().mean().backward()
        grads.append((x.grad, llm.layers[0].attn.k_proj.weight.grad))
    for first, second in zip(*grads):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_bf16_stays_near_transformers(tmp_path):
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
    tokenizer = load_text_tokenizer(folder, ours.config, ())
    prompt = [tokenizer.bos_id] + tokenizer.encode("Once upon a time")
    ids = torch.tensor([prompt])
    (text,) = generate(ours, ours.embed_tokens(ids), torch.ones_like(ids, dtype=torch.bool), tokenizer.stop_ids, 150)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    expected = theirs.generate(ids, max_new_tokens=150, do_sample=False, attention_mask=torch.ones_like(ids))[0, len(prompt):]
    assert text == [token for token in expected.tolist() if token not in tokenizer.stop_ids]
    story = tokenizer.decode(text)
    assert story.startswith(", there was a little girl named") and story.count(".") >= 4, story
