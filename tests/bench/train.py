"""One optimizer step of both stages: ours beside the same model made of transformers' parts.

    python tests/bench/train.py [--repeats 3]            eight minutes on two cores
    python tests/bench/train.py --shape smollm2 --batch 2

A LLaMA and a T5 of random weights in float32, beside the model as the original makes it ("theirs") and beside what one
would write with transformers for a frozen LLM ("plain"). Losses and gradients are compared, then steps are timed in
turns. Memory is what a first step adds at its peak, in a process of its own: VmHWM after the step (a mark that
/proc/self/clear_refs resets before it) less VmRSS before it. By then weights are read and code has run, and tensors are
mapped one by one (MALLOC_MMAP_THRESHOLD_), so that no freed memory is kept.
"""
# ruff: noqa: E402
import argparse
import copy
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sensorllm_min.batch import IGNORED, Example, collate
from sensorllm_min.chronos_tokenizer import ChronosTokenizer
from sensorllm_min.config import ChronosConfig, read_llama_config
from sensorllm_min.data.examples import PromptFormat, align_prompt, har_prompt
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import align_pair
from sensorllm_min.sensorllm import SensorLLM
from sensorllm_min.text_tokenizer import BytePairs, TextTokenizer, load_backend, new_tokens, train_backend
from sensorllm_min.training.processes import Processes
from sensorllm_min.training.step import new_optimizer, train_step
from sensorllm_min.weights import load_llama, load_t5_encoder

S = 100                                                           # samples of a channel
DATASET, CHRONOS = DATASETS["mhealth"], ChronosConfig()           # 15 channels, windows of 100
PARTS = {"align": ("projector", "tokens"), "har": ("projector", "head")}      # what learns
SETTINGS = SimpleNamespace(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
# vocabulary, width, feed-forward, layers, heads, KV heads of the LLaMA
SHAPES = {"small": (32000, 512, 1408, 8, 8, 4), "smollm2": (49152, 576, 1536, 30, 9, 3)}


# ---- the batch: noisy random walks, and texts about them ----

def make_tokenizer(vocab_size):
    """Llama 2's if it is beside the project, else one that makes more tokens of a text."""
    llama2 = ROOT.parent / "shared/tokenizers/llama2-sentencepiece"
    backend = BytePairs(train_backend(["0.0s to 0.06s: rising", "Mean=0.123, StdDev=4"], 500))
    backend = load_backend(llama2) if llama2.exists() else backend
    return TextTokenizer(backend, vocab_size, (1, [2]), new_tokens(DATASET.channels))


def make_batch(tokenizer, stage, size):
    """Stage 1: a channel of each window and a question. Stage 2: all 15 channels and statistics."""
    prompts = PromptFormat(tokenizer, CHRONOS.context_length, 8192)
    rng, examples = np.random.default_rng(0), []
    for i in range(size):
        window = rng.standard_normal((S, 15)).cumsum(0) + rng.standard_normal((S, 15))
        if stage == "align":
            series, channel = window[:, 0], DATASET.channels[0]
            question, answer = align_pair(series, channel, DATASET.rate, DATASET.answer, random.Random(i))
            prompt = align_prompt(prompts, channel, S, DATASET.rate, question)
            examples.append(Example(prompt, tokenizer.answer(answer), [series], IGNORED, {}))
        else:
            prompt = har_prompt(prompts, window, DATASET)
            examples.append(Example(prompt, [], list(window.T), i % len(DATASET.classes), {}))
    return collate(examples, tokenizer.pad_id)


# ---- the two models ----

def make(folder, shape):
    """Saves a LLaMA and a Chronos T5 of random weights; at a fan-in start attention is not uniform."""
    import transformers as hf
    torch.manual_seed(1)
    vocab_size, width, d_ff, n_layers, n_heads, n_kv_heads = SHAPES[shape]
    llama = hf.LlamaConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=d_ff, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, num_key_value_heads=n_kv_heads, max_position_embeddings=4096, bos_token_id=1,
        eos_token_id=2)
    chronos = {"tokenizer_kwargs": {"low_limit": CHRONOS.low_limit, "high_limit": CHRONOS.high_limit},
               "n_tokens": CHRONOS.n_tokens, "n_special_tokens": CHRONOS.n_special_tokens,
               "pad_token_id": CHRONOS.pad_id, "eos_token_id": CHRONOS.eos_id, "context_length": CHRONOS.context_length}
    t5 = hf.T5Config(vocab_size=4096, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_decoder_layers=1, num_heads=4,
                     feed_forward_proj="relu", chronos_config=chronos)
    for model, name in ((hf.LlamaForCausalLM(llama), "llama"), (hf.T5ForConditionalGeneration(t5), "t5")):
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.normal_(parameter, mean=1.0, std=0.3)
        model.save_pretrained(folder / name)


def load(way, folder, tokenizer, stage):
    """The model of one of WAYS, all from the same files; a projector half as wide as the LLM."""
    encoder, _ = load_t5_encoder(folder / "t5", torch.float32)
    llm = load_llama(folder / "llama", torch.float32)
    torch.manual_seed(2)
    n_classes = len(DATASET.classes) if stage == "har" else None
    hidden = (llm.config.d_model // 2,)
    model = SensorLLM(encoder, ChronosTokenizer(CHRONOS), llm, tokenizer, hidden, n_classes)
    model.train_only(PARTS[stage])
    return model if way == "ours" else WAYS[way](folder, model)


class Theirs(nn.Module):
    """The same model made of transformers' parts. forward(batch) -> (mean loss, 1).

    As in the original, the special tokens are rows of the embedding matrix, all of which learns in stage 1 (the
    gradients of words are made, then set to 0); the encoder takes one row of the batch at a time; every position gets
    logits, here without those of the special tokens.
    """

    def __init__(self, folder, start):
        super().__init__()
        from transformers import LlamaForCausalLM, T5EncoderModel
        self.encoder = T5EncoderModel.from_pretrained(folder / "t5", attn_implementation="sdpa")
        self.llm = LlamaForCausalLM.from_pretrained(folder / "llama", attn_implementation="sdpa")
        self.eval().requires_grad_(False)                         # eval: no dropout
        self.chronos = start.chronos
        self.sensor_id, self.vocab_size = start.sensor_id, start.vocab_size
        self.projector, self.head = copy.deepcopy(start.projector), copy.deepcopy(start.head)
        matrix = torch.cat([self.llm.get_input_embeddings().weight, start.special_embeddings.detach()])
        embedding = nn.Embedding.from_pretrained(matrix, freeze=self.head is not None)
        self.llm.set_input_embeddings(embedding)
        is_special = torch.arange(len(matrix))[:, None] >= self.vocab_size
        if self.head is None:
            embedding.weight.register_hook(lambda gradient: gradient.mul_(is_special))

    def encode(self, ids, mask):
        with torch.no_grad():
            features = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.projector(features).flatten(0, 1)             # (series * (S+1), D)

    def embed(self, batch):
        x = self.llm.get_input_embeddings()(batch.ids)            # (B, T, D)
        ids, mask, _, _ = self.chronos.encode(batch.series)       # (B*C, S+1)
        rows, series_of_row = [], zip(ids.chunk(len(x)), mask.chunk(len(x)))
        for row, row_ids, series in zip(x, batch.ids, series_of_row):
            rows.append(row.index_put([row_ids == self.sensor_id], self.encode(*series)))
        return torch.stack(rows)

    def forward(self, batch):
        inputs = dict(inputs_embeds=self.embed(batch), attention_mask=batch.mask, use_cache=False)
        if self.head is None:
            return self.answer_loss(inputs, batch.targets), torch.tensor(1.0)
        logits = self.head(self.llm.model(**inputs).last_hidden_state)        # (B, T, n_classes)
        last = logits[torch.arange(len(logits)), batch.mask.sum(1) - 1]
        return F.cross_entropy(last, batch.labels), torch.tensor(1.0)

    def answer_loss(self, inputs, targets):
        return self.llm(**inputs, labels=targets).loss


class Plain(Theirs):
    """As one would use transformers for a frozen LLM: the words' embeddings get no gradient, only answers get logits,
    and the encoder takes all series at once.
    """

    def __init__(self, folder, start):
        super().__init__(folder, start)
        self.llm.get_input_embeddings().requires_grad_(False)
        self.special_embeddings = nn.Parameter(start.special_embeddings.detach().clone(), self.head is None)

    def embed(self, batch):
        is_special = batch.ids >= self.vocab_size
        special = self.special_embeddings[batch.ids[is_special] - self.vocab_size]
        x = self.llm.get_input_embeddings()(batch.ids).index_put([is_special], special)
        ids, mask, _, _ = self.chronos.encode(batch.series)
        return x.index_put([batch.ids == self.sensor_id], self.encode(ids, mask))

    def answer_loss(self, inputs, targets):
        targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)
        wanted = targets != IGNORED
        hidden = self.llm.model(**inputs).last_hidden_state[wanted]
        return F.cross_entropy(self.llm.lm_head(hidden), targets[wanted])


WAYS = {"ours": SensorLLM, "theirs": Theirs, "plain": Plain}


def one_step(model, batch, optimizer):
    train_step(model, optimizer, [batch], SETTINGS.lr, Processes(0, 1, torch.device("cpu")))


def gradients(model, batch):
    """(mean loss, gradients by name) of either model; of embeddings only the special tokens'."""
    loss, weight = model(batch)
    (loss / weight).backward()
    found = {f"projector {name}": parameter.grad for name, parameter in model.projector.named_parameters()}
    if model.head is not None:
        found["head"] = model.head.weight.grad
    elif type(model) is Theirs:
        found["special tokens"] = model.llm.get_input_embeddings().weight.grad[model.vocab_size:]
    else:
        found["special tokens"] = model.special_embeddings.grad
    model.zero_grad()
    return loss.item() / weight.item(), found


# ---- what is measured ----

def compare(ours, theirs, batch):
    """Losses and gradients must agree to 1e-4: float32 sums of up to 10^7 terms in another order
    differ by 1e-7 to 1e-5, a wrong mask, shift or norm makes a difference of 1e-2 and more.
    """
    (our_loss, our_grads), (loss, grads) = gradients(ours, batch), gradients(theirs, batch)
    error = max(((our_grads[name] - grads[name]).norm() / grads[name].norm()).item() for name in grads)
    print(f"losses {our_loss:.6f} and {loss:.6f}, gradients differ by at most {error:.0e} of their norms", flush=True)
    assert abs(our_loss - loss) < 1e-4 * loss and error < 1e-4


def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])


def memory(way, stage, folder, size):
    """In a process of its own: prints the bytes that a first step adds, with optimizer state."""
    tokenizer = make_tokenizer(read_llama_config(Path(folder) / "llama").vocab_size)
    model = load(way, Path(folder), tokenizer, stage)
    gradients(model, make_batch(tokenizer, stage, 1))
    batch, optimizer = make_batch(tokenizer, stage, int(size)), new_optimizer(model, SETTINGS)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    one_step(model, batch, optimizer)
    print(resident("VmHWM") - before)


def step_memory(*arguments):
    """`memory` of these arguments, in a process of its own -> bytes."""
    done = subprocess.run([sys.executable, __file__, "--memory", *map(str, arguments)], stdout=subprocess.PIPE, text=True,
                          check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
    return int(done.stdout)


def columns_of(way, model, optimizer, seconds, arguments):
    """The figures of one way; a checkpoint of ours holds no frozen network, theirs everything."""
    saved = [tensor for name, tensor in model.state_dict().items()
             if way != "ours" or model.part_of(name) in ("projector", "tokens", "head")]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = [moment for state in optimizer.state.values() for moment in state.values()]
    return {
        "step, s (median)": statistics.median(seconds[1:]),       # the first step warms up
        "a step's memory, MB": step_memory(way, *arguments) / 1e6,
        "trained parameters, M": sum(parameter.numel() for parameter in trained) / 1e6,
        "optimizer state, MB": sum(moment.nbytes for moment in state) / 1e6,
        "checkpoint, MB": sum(tensor.nbytes for tensor in saved) / 1e6}


def measure(stage, size, folder, repeats):
    tokenizer = make_tokenizer(read_llama_config(folder / "llama").vocab_size)
    models = {way: load(way, folder, tokenizer, stage) for way in WAYS}
    batch = make_batch(tokenizer, stage, size)
    print(f"train_{stage}.py: {tuple(batch.ids.shape)} tokens, {int(batch.mask.sum())} of them real, "
          f"{int((batch.targets != IGNORED).sum())} in answers; {len(batch.series)} series of {S} samples")
    for way in ("theirs", "plain"):
        compare(models["ours"], models[way], batch)
    optimizers = {way: new_optimizer(model, SETTINGS) for way, model in models.items()}
    seconds = {way: [] for way in models}
    for _ in range(repeats + 1):                                  # in turns: the noise is the same
        for way, model in models.items():
            start = time.perf_counter()
            one_step(model, batch, optimizers[way])
            seconds[way].append(time.perf_counter() - start)
    table = pandas.DataFrame({way: columns_of(way, models[way], optimizers[way], seconds[way], (stage, folder, size))
                              for way in models})
    table = table.assign(**{f"{way} / ours": table[way] / table["ours"] for way in ("theirs", "plain")})
    print(table.to_string(float_format="{:.2f}".format), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the LLaMA")
    parser.add_argument("--batch", type=int, default=8, help="windows of stage 1; stage 2 takes half as many")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return memory(*args.memory)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; medians of {args.repeats}, in turns")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.shape)
        for stage, size in (("align", args.batch), ("har", max(1, args.batch // 2))):
            measure(stage, size, Path(folder), args.repeats)


if __name__ == "__main__":
    main()
