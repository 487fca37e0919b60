"""One optimizer step of both stages: ours beside the same model made of transformers' parts.

    python tests/bench/train.py [--repeats 3]            eight minutes on two cores
    python tests/bench/train.py --shape smollm2 --batch 2

A small LLaMA and T5 of random weights in float32, beside the model as the original
makes it ("theirs") and beside what one would write with transformers for a frozen LLM ("plain").
Losses and gradients are compared, then steps are timed in turns. "matmul" is a step's arithmetic,
as training/step.py counts it, at the rate of a large product. Memory is what a first step adds at
its peak, in a process of its own: VmHWM after the step (a mark that /proc/self/clear_refs resets
before it) less VmRSS before it. By then weights are read and code has run, and tensors are mapped
one by one (MALLOC_MMAP_THRESHOLD_), so that no freed memory is kept.
"""
import argparse
import copy
import json
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
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sensorllm_min.batch import IGNORED, Example, collate                     # noqa: E402
from sensorllm_min.chronos_tokenizer import ChronosTokenizer                  # noqa: E402
from sensorllm_min.config import ChronosConfig, read_llama_config             # noqa: E402
from sensorllm_min.data import wording                                        # noqa: E402
from sensorllm_min.data.examples import PromptFormat, align_prompt, har_prompt        # noqa: E402
from sensorllm_min.data.sensors import DATASETS                               # noqa: E402
from sensorllm_min.data.texts import align_pair                               # noqa: E402
from sensorllm_min.sensorllm import SensorLLM                                 # noqa: E402
from sensorllm_min.text_tokenizer import (                                    # noqa: E402
    BytePairs, TextTokenizer, load_backend, new_tokens, train_backend)
from sensorllm_min.training.processes import Processes                        # noqa: E402
from sensorllm_min.training.step import new_optimizer, train_step             # noqa: E402
from sensorllm_min.weights import load_llama, load_t5_encoder                 # noqa: E402

S = 100                                                           # samples of a channel
DATASET = DATASETS["mhealth"]                                     # 15 channels, windows of 100
CHRONOS = ChronosConfig()
PARTS = {"align": ("projector", "tokens"), "har": ("projector", "head")}      # what learns
LR = 1e-4
SHAPES = {                # vocabulary, width, feed-forward, layers, heads, KV heads of the LLaMA
    "small": (32000, 512, 1408, 8, 8, 4),
    "smollm2": (49152, 576, 1536, 30, 9, 3),
}


# ---- the batch: noisy random walks, and texts about them ----

def make_tokenizer(vocab_size):
    """Llama 2's where it is beside the project, else one that makes about as many tokens."""
    llama2 = ROOT.parent / "shared/tokenizers/llama2-sentencepiece"
    if llama2.exists():
        backend = load_backend(llama2)
    else:
        texts = (*wording.QUESTIONS, *wording.LINE_FORMATS, *wording.COVERS, *wording.CHANGES,
                 *wording.TOTALS, *wording.DIRECTION_OF_WORD)
        backend = BytePairs(train_backend(texts, 500))
    return TextTokenizer(backend, vocab_size, (1, [2]), new_tokens(DATASET.channels))


def make_batch(tokenizer, stage, size):
    """Stage 1: a channel of each window and a question. Stage 2: all 15 channels and statistics."""
    prompts = PromptFormat(tokenizer, CHRONOS.context_length, 8192)
    rng, channel, examples = np.random.default_rng(0), DATASET.channels[0], []
    for i in range(size):
        window = rng.standard_normal((S, 15)).cumsum(0) + rng.standard_normal((S, 15))
        if stage == "align":
            question, answer = align_pair(
                window[:, 0], channel, DATASET.rate, DATASET.answer, random.Random(i))
            prompt = align_prompt(prompts, channel, S, DATASET.rate, question)
            answer, series, label = tokenizer.answer(answer), [window[:, 0]], IGNORED
        else:
            prompt = har_prompt(prompts, window, DATASET)
            answer, series, label = [], list(window.T), i % len(DATASET.classes)
        examples.append(Example(prompt, answer, series, label, {}))
    return collate(examples, tokenizer.pad_id)


# ---- the two models ----

def make(folder, shape):
    """A LLaMA and a Chronos T5 of random weights; at a fan-in start attention is not uniform."""
    import transformers as hf
    torch.manual_seed(1)
    vocab_size, width, d_ff, n_layers, n_heads, n_kv_heads = SHAPES[shape]
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=d_ff,
        num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2))
    t5 = hf.T5ForConditionalGeneration(hf.T5Config(
        vocab_size=4096, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_decoder_layers=1,
        num_heads=4, feed_forward_proj="relu"))
    for model, name in ((llama, "llama"), (t5, "t5")):
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.normal_(parameter, mean=1.0, std=0.3)
        model.save_pretrained(folder / name)
    path = folder / "t5/config.json"
    config = json.loads(path.read_text())
    config["chronos_config"] = {
        "tokenizer_kwargs": {"low_limit": CHRONOS.low_limit, "high_limit": CHRONOS.high_limit},
        "n_tokens": CHRONOS.n_tokens, "n_special_tokens": CHRONOS.n_special_tokens,
        "pad_token_id": CHRONOS.pad_id, "eos_token_id": CHRONOS.eos_id,
        "context_length": CHRONOS.context_length}
    path.write_text(json.dumps(config))


def our_model(encoder, llm, tokenizer, stage):
    """The projector's hidden layer is half as wide as the LLM, as in the paper."""
    torch.manual_seed(2)
    n_classes = len(DATASET.classes) if stage == "har" else None
    hidden = (llm.config.d_model // 2,)
    model = SensorLLM(encoder, ChronosTokenizer(CHRONOS), llm, tokenizer, hidden, n_classes)
    model.train_only(PARTS[stage])
    return model


def load(way, folder, tokenizer, stage):
    """The model of one of WAYS, all from the same files."""
    encoder, _ = load_t5_encoder(folder / "t5", torch.float32)
    model = our_model(encoder, load_llama(folder / "llama", torch.float32), tokenizer, stage)
    return model if way == "ours" else WAYS[way](folder, model)


class Theirs(nn.Module):
    """The same model made of transformers' parts. forward(batch) -> mean loss.

    As in the original, the special tokens are rows of the embedding matrix, all of which learns in
    stage 1; the encoder takes one row of the batch at a time; every position gets logits. It saves
    one thing that the original computes: logits for the special tokens.
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
        words = self.llm.get_input_embeddings().weight
        matrix = torch.cat([words, start.special_embeddings.detach()])
        embedding = nn.Embedding.from_pretrained(matrix, freeze=self.head is not None)
        self.llm.set_input_embeddings(embedding)

    def embed(self, batch):
        x = self.llm.get_input_embeddings()(batch.ids)            # (B, T, D)
        ids, mask, _, _ = self.chronos.encode(batch.series)       # (B*C, S+1)
        rows, series_of_row = [], zip(ids.chunk(len(x)), mask.chunk(len(x)))
        for row, row_ids, (series_ids, series_mask) in zip(x, batch.ids, series_of_row):
            with torch.no_grad():
                encoded = self.encoder(input_ids=series_ids, attention_mask=series_mask)
            sensors = self.projector(encoded.last_hidden_state).flatten(0, 1)     # (C*(S+1), D)
            rows.append(row.index_put([row_ids == self.sensor_id], sensors))
        return torch.stack(rows)

    def forward(self, batch):
        inputs = dict(inputs_embeds=self.embed(batch), attention_mask=batch.mask, use_cache=False)
        if self.head is None:
            return self.llm(**inputs, labels=batch.targets).loss
        logits = self.head(self.llm.model(**inputs).last_hidden_state)        # (B, T, n_classes)
        last = batch.mask.sum(1) - 1
        return F.cross_entropy(logits[torch.arange(len(logits)), last], batch.labels)

    def backward(self, batch):
        """-> loss. The words' embeddings do not move: their gradients are made, then set to 0."""
        loss = self(batch)
        loss.backward()
        if self.head is None:
            self.llm.get_input_embeddings().weight.grad[:self.vocab_size] = 0
        return loss.item()


class Plain(Theirs):
    """Transformers' parts as one would use them for a frozen LLM.

    The words' embeddings get no gradient, answers alone get logits, and the encoder takes all
    series at once. Padding, and the weights' share of the backward pass, are transformers' own.
    """

    def __init__(self, folder, start):
        super().__init__(folder, start)
        self.llm.get_input_embeddings().requires_grad_(False)
        self.special = nn.Parameter(
            start.special_embeddings.detach().clone(), requires_grad=self.head is None)

    def embed(self, batch):
        is_special = batch.ids >= self.vocab_size
        special = self.special[batch.ids[is_special] - self.vocab_size]
        x = self.llm.get_input_embeddings()(batch.ids).index_put([is_special], special)
        ids, mask, _, _ = self.chronos.encode(batch.series)
        with torch.no_grad():
            encoded = self.encoder(input_ids=ids, attention_mask=mask)
        sensors = self.projector(encoded.last_hidden_state).flatten(0, 1)
        return x.index_put([batch.ids == self.sensor_id], sensors)

    def forward(self, batch):
        if self.head is not None:
            return super().forward(batch)
        hidden = self.llm.model(inputs_embeds=self.embed(batch), attention_mask=batch.mask,
                                use_cache=False).last_hidden_state
        targets = F.pad(batch.targets[:, 1:], (0, 1), value=IGNORED)
        wanted = targets != IGNORED
        return F.cross_entropy(self.llm.lm_head(hidden[wanted]), targets[wanted])

    def backward(self, batch):
        loss = self(batch)
        loss.backward()
        return loss.item()


WAYS = {"ours": SensorLLM, "theirs": Theirs, "plain": Plain}


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimizer(model):
    return new_optimizer(model, SimpleNamespace(lr=LR, betas=(0.9, 0.999), weight_decay=0.0))


def one_step(model, batch, optimizer):
    """One optimizer step of either model; for ours the step that both training scripts take."""
    if isinstance(model, SensorLLM):
        device = batch.ids.device
        processes = Processes(0, 1, device)
        return train_step(model, optimizer, [batch], LR, processes)
    model.backward(batch)
    nn.utils.clip_grad_norm_(trained(model), 1.0).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def gradients(model, batch):
    """(mean loss, gradients by name) of either model; of embeddings only the special tokens'."""
    if isinstance(model, SensorLLM):
        loss, weight = model(batch)
        (loss / weight).backward()
        loss, special = loss.item() / weight.item(), model.special_embeddings.grad
    elif isinstance(model, Plain):
        loss, special = model.backward(batch), model.special.grad
    else:
        loss, special = model.backward(batch), model.llm.get_input_embeddings().weight.grad
        special = None if special is None else special[model.vocab_size:]
    named = model.projector.named_parameters()
    found = {f"projector {name}": parameter.grad for name, parameter in named}
    if model.head is None:
        found["special tokens"] = special
    else:
        found["head"] = model.head.weight.grad
    model.zero_grad(set_to_none=True)
    return loss, found


# ---- what is measured ----

def compare(ours, theirs, batch):
    """AssertionError unless losses and gradients agree to 1e-4 of their size.

    float32 sums of up to 10^7 terms in another order differ by some 1e-7 to 1e-5. A wrong mask,
    shift or norm makes a difference of 1e-2 and more.
    """
    (our_loss, our_grads), (loss, grads) = gradients(ours, batch), gradients(theirs, batch)
    errors = {}
    for name in grads:
        errors[name] = ((our_grads[name] - grads[name]).norm() / grads[name].norm()).item()
    agree = abs(our_loss - loss) < 1e-4 * loss and max(errors.values()) < 1e-4
    assert agree, (our_loss, loss, errors)
    shown = ", ".join(f"{error:.0e} ({name})" for name, error in errors.items())
    print(f"  losses {our_loss:.6f} and {loss:.6f}; gradients' relative errors {shown}", flush=True)


def resident(field):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(field + ":")[1].split()[0])


def memory(way, stage, folder, size):
    """In a process of its own: prints the bytes that a first step adds, with optimizer state."""
    tokenizer = make_tokenizer(read_llama_config(Path(folder) / "llama").vocab_size)
    model = load(way, Path(folder), tokenizer, stage)
    gradients(model, make_batch(tokenizer, stage, 1))
    batch, optimizer = make_batch(tokenizer, stage, int(size)), make_optimizer(model)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    one_step(model, batch, optimizer)
    print(resident("VmHWM") - before)


def step_memory(*arguments):
    """`memory` of these arguments, in a process of its own -> bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", *map(str, arguments)], stdout=subprocess.PIPE,
        text=True, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
    return int(done.stdout)


def optimizer_bytes(optimizer):
    states = optimizer.state.values()
    return sum(sum(moment.nbytes for moment in state.values()) for state in states)


def measure(stage, size, folder, repeats):
    tokenizer = make_tokenizer(read_llama_config(folder / "llama").vocab_size)
    models = {way: load(way, folder, tokenizer, stage) for way in WAYS}
    batch = make_batch(tokenizer, stage, size)
    n_answer = int((batch.targets != IGNORED).sum())
    print(f"train_{stage}.py: {tuple(batch.ids.shape)} tokens, {int(batch.mask.sum())} of them "
          f"real, {n_answer} in answers; {len(batch.series)} series of {S} samples")
    for way in ("theirs", "plain"):
        compare(models["ours"], models[way], batch)
    optimizers = {way: make_optimizer(model) for way, model in models.items()}
    seconds = {way: [] for way in models}
    for _ in range(repeats + 1):                                  # in turns: the noise is the same
        for way, model in models.items():
            start = time.perf_counter()
            one_step(model, batch, optimizers[way])
            seconds[way].append(time.perf_counter() - start)
    columns = {}
    for way, model in models.items():
        columns[way] = {
            "step, s (median)": statistics.median(seconds[way][1:]),      # the first step warms up
            "a step's memory, MB": step_memory(way, stage, folder, size) / 1e6,
            "trained parameters, M": sum(p.numel() for p in trained(model)) / 1e6,
            "optimizer state, MB": optimizer_bytes(optimizers[way]) / 1e6}
    flop, rate = step_flop(models["ours"].llm, batch), matmul_rate()
    ours = columns["ours"]["step, s (median)"]
    print(f"  matmul: {flop / 1e12:.2f} TFLOP a step at {rate / 1e9:.0f} GFLOP/s are "
          f"{flop / rate / ours:.0%} of our step")
    print(f"  {'':24}{'ours':>10}{'theirs':>10}{'plain':>10}{'theirs / ours':>16}"
          f"{'plain / ours':>16}")
    for name, ours in columns["ours"].items():
        theirs, plain = columns["theirs"][name], columns["plain"][name]
        print(f"  {name:24}{ours:10.2f}{theirs:10.2f}{plain:10.2f}{theirs / ours:16.2f}"
              f"{plain / ours:16.2f}", flush=True)


def step_flop(llm, batch):
    """Operations of a step's matrix products, as training/step.py counts them.

    2 N forward and 2 N for the gradient of the activations.
    Padding, attention, the encoder and what checkpointing computes again count as nothing.
    """
    n_tokens, n_answer = batch.mask.sum().item(), (batch.targets != IGNORED).sum().item()
    matrices = [parameter for parameter in llm.layers.parameters() if parameter.dim() == 2]
    n_weights = sum(matrix.numel() for matrix in matrices)
    return 4 * (n_weights * n_tokens + llm.head_weight.numel() * n_answer)


def matmul_rate():
    """FLOP/s of a float32 product of 2048 x 2048 matrices on this machine."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048 ** 3 / statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the LLaMA")
    parser.add_argument("--batch", type=int, default=8,
                        help="windows of stage 1; stage 2 takes half as many")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return memory(*args.memory)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; "
          f"medians of {args.repeats}, in turns")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.shape)
        for stage, size in (("align", args.batch), ("har", max(1, args.batch // 2))):
            measure(stage, size, Path(folder), args.repeats)


if __name__ == "__main__":
    main()
