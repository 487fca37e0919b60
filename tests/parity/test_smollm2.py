"""A trained public LLM, SmolLM2-135M-Instruct, against transformers: logits, words, chat, int8.

Random weights cannot show that the words come out right. The directory is made by tests/smollm2.py.
"""
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT

from sensorllm_min.config import read_llama_config
from sensorllm_min.int8 import quantize
from sensorllm_min.generate import generate
from sensorllm_min.text_tokenizer import load_text_tokenizer, read_chat_template
from sensorllm_min.weights import load_llama

FOLDER = ROOT / "data/smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER.exists(),
        reason="needs data/smollm2; run: pip install gguf && python tests/smollm2.py data/smollm2")]

SYSTEM = "You are a helpful assistant."
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 12 + 30?",
    "A sensor rises from 0.0s to 1.25s and falls from 1.25s to 2.0s. How long does it fall?",
    "Translate 'good morning' into Spanish.",
    "Which of these is a fruit: a chair, an apple, a river?",
    "Explain in two sentences what an accelerometer measures, and name a device that has one.")


def real_text():
    """2,500 characters of English prose and some Markdown, none of it in the training data."""
    return (ROOT / "sensorllm_min/training/README.md").read_text(encoding="utf-8")[:2500]


@pytest.fixture(scope="module")
def tokenizer():
    config = read_llama_config(FOLDER)
    return load_text_tokenizer(FOLDER, config, template=read_chat_template(FOLDER))


@pytest.fixture(scope="module")
def ours():
    return load_llama(FOLDER, torch.float32).requires_grad_(False)


@pytest.fixture(scope="module")
def theirs():
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).requires_grad_(False)


def test_logits_equal_transformers(ours, theirs, tokenizer):
    ids = torch.tensor([tokenizer.encode(real_text())])
    expected = theirs(ids).logits
    found = ours.logits(ours(ours.embed_tokens(ids)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_greedy_tokens_of_eight_prompts_in_one_batch_equal_transformers(ours, theirs, tokenizer):
    chats = [tokenizer.chat(SYSTEM, question) for question in QUESTIONS]
    longest = max(map(len, chats))
    ids, mask = torch.zeros(8, longest, dtype=torch.long), torch.zeros(8, longest, dtype=torch.bool)
    for row, chat in enumerate(chats):
        ids[row, longest - len(chat):] = torch.tensor(chat)
        mask[row, longest - len(chat):] = True
    answers = generate(ours, ours.embed_tokens(ids), mask, tokenizer.stop_ids, 60)
    for chat, answer in zip(chats, answers):
        expected = theirs.generate(
            torch.tensor([chat]), max_new_tokens=60, do_sample=False, pad_token_id=0)[0, len(chat):].tolist()
        assert answer == [index for index in expected if index not in tokenizer.stop_ids]
    assert "Paris" in tokenizer.decode(answers[0])


def test_chat_ids_equal_transformers(tokenizer):
    from transformers import AutoTokenizer
    reference = AutoTokenizer.from_pretrained(FOLDER)
    for question in QUESTIONS:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        prompt = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert tokenizer.chat(SYSTEM, question) == prompt
        turns.append({"role": "assistant", "content": "It falls for 0.75s."})
        whole = reference.apply_chat_template(turns, return_dict=False)
        answer = tokenizer.answer("It falls for 0.75s.")
        assert whole[:len(prompt) + len(answer)] == prompt + answer
    assert len(tokenizer.encode("0.75")) == 4                     # each digit is a token


def test_int8_costs_little_on_a_real_text(ours, tokenizer):
    ids = torch.tensor([tokenizer.encode(real_text())])
    losses = []
    for llm in (ours, quantize(load_llama(FOLDER, torch.float32)).requires_grad_(False)):
        logits = llm.logits(llm(llm.embed_tokens(ids[:, :-1])))
        losses.append(F.cross_entropy(logits[0], ids[0, 1:]).item())
    print(f"loss a token: float32 {losses[0]:.4f}, int8 {losses[1]:.4f}")
    assert losses[0] < 5                                          # of ln(49152) = 10.8
    assert abs(losses[1] - losses[0]) < 0.01                      # measured 0.005
