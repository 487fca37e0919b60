"""One optimizer step of both stages: ours beside the same model of transformers' parts, as the original does it.

    python tests/bench/train.py [--repeats 3]            without a GPU eight minutes on two cores

Without a GPU: a small LLaMA and T5 of random weights in float32. First losses and gradients of both are compared, then
steps are timed in turns. Memory is what a first step adds at its peak, in a process for each: VmHWM after the step (a
mark that /proc/self/clear_refs resets before it) less VmRSS before it; by then weights are read and code has run, and
tensors are mapped one by one (MALLOC_MMAP_THRESHOLD_), so that no freed memory is kept.

With a GPU: the shapes of Llama-3-8B and chronos-t5-large with random bfloat16 weights, ours alone.
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

from sensorllm_min.checkpoint import Recipe, save_checkpoint  # noqa: E402
from sensorllm_min.chronos_tokenizer import ChronosTokenizer  # noqa: E402
from sensorllm_min.config import ChronosConfig, LlamaConfig, T5Config  # noqa: E402
from sensorllm_min.data import IGNORED, Example, collate  # noqa: E402
from sensorllm_min.llama import Llama  # noqa: E402
from sensorllm_min.sensorllm import SensorLLM  # noqa: E402
from sensorllm_min.sensors import DATASETS  # noqa: E402
from sensorllm_min.t5_encoder import T5Encoder  # noqa: E402
from sensorllm_min.text_tokenizer import SENSOR, TextTokenizer, load_backend, new_tokens, train_backend  # noqa: E402
from sensorllm_min.training import Processes, new_optimizer, train_step  # noqa: E402
from sensorllm_min.trend_text import (CHANGES, COVERS, DIRECTION_OF_WORD, LINE_FORMATS, QUESTIONS, TOTALS,  # noqa: E402
                                      align_pair, har_text, system_prompt)
from sensorllm_min.weights import Unfilled, load_llama, load_t5_encoder  # noqa: E402

S = 100                                                                       # samples of a channel
DATASET = DATASETS["mhealth"]                                                 # 15 channels, windows of 100
CHRONOS = ChronosConfig()
PARTS = {"align": ("projector", "tokens"), "har": ("projector", "head")}      # what each stage trains after the other


# ---- the batch: noisy random walks, and what this project says about them ----

def tokenizer_of(vocab_size):
    """Llama 2's tokenizer where it lies beside the project; else one that gives about as many tokens."""
    llama2 = ROOT.parent / "shared/tokenizers/llama2-sentencepiece"
    words = (*QUESTIONS, *LINE_FORMATS, *COVERS, *CHANGES, *TOTALS, *DIRECTION_OF_WORD)
    backend = load_backend(llama2) if llama2.exists() else train_backend(words, 500)
    return TextTokenizer(backend, vocab_size, 1, [2], new_tokens(DATASET.channels), "llama2")


def batch_of(tokenizer, stage, size):
    """stage 1: one channel of each window and a question; stage 2: all 15 channels, statistics and the question."""
    rng, examples = np.random.default_rng(0), []
    for i in range(size):
        window = rng.standard_normal((S, 15)).cumsum(0) + rng.standard_normal((S, 15))
        runs = [channel.start + SENSOR * (S + 1) + channel.end for channel in DATASET.channels]
        if stage == "align":
            series, channel = window[:, 0], DATASET.channels[0]
            question, answer = align_pair(series, channel, DATASET.rate, DATASET.answer, random.Random(i))
            prompt = tokenizer.chat(system_prompt(S, DATASET.rate), runs[0] + question)
            examples.append(Example(prompt, tokenizer.answer(answer), [series], IGNORED, {}))
        else:
            prompt = tokenizer.encode("\n".join(runs) + "\n\n" + har_text(window, DATASET, ("smry", "Q")))
            examples.append(Example([tokenizer.bos_id] + prompt, [], list(window.T), i % len(DATASET.classes), {}))
    return collate(examples, tokenizer.pad_id)


# ---- the two models ----

def make(folder):
    """A LLaMA and a Chronos T5 of random weights, in Hugging Face layout; a fan-in start, so that attention chooses."""
    import transformers as hf
    torch.manual_seed(1)
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2))
    t5 = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=4096, d_model=256, d_kv=64, d_ff=1024, num_layers=4,
                                                   num_decoder_layers=1, num_heads=4, feed_forward_proj="relu"))
    for model, name in ((llama, "llama"), (t5, "t5")):
        for parameter in model.parameters():
            matrix = parameter.dim() == 2
            nn.init.normal_(parameter, float(not matrix), parameter.shape[1] ** -0.5 if matrix else 0.3)
        model.save_pretrained(folder / name)
    path = folder / "t5/config.json"
    chronos = {"tokenizer_kwargs": {"low_limit": CHRONOS.low_limit, "high_limit": CHRONOS.high_limit},
               "n_tokens": CHRONOS.n_tokens, "n_special_tokens": CHRONOS.n_special_tokens,
               "pad_token_id": CHRONOS.pad_id, "eos_token_id": CHRONOS.eos_id, "context_length": CHRONOS.context_length}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chronos_config": chronos}))


def our_model(encoder, llm, tokenizer, stage, hidden):
    torch.manual_seed(2)
    n_classes = len(DATASET.classes) if stage == "har" else None
    model = SensorLLM(encoder, ChronosTokenizer(CHRONOS), llm, tokenizer, (hidden,), n_classes)
    model.train_only(PARTS[stage])
    return model


def load(way, folder, tokenizer, stage):
    """The model of one way, both from the same files. The projector is half as wide as the LLM, as in the paper."""
    encoder, llm = load_t5_encoder(folder / "t5", torch.float32)[0], load_llama(folder / "llama", torch.float32)
    model = our_model(encoder, llm, tokenizer, stage, llm.config.d_model // 2)
    return model if way == "ours" else Theirs(folder, model)


class Theirs(nn.Module):
    """The same model from transformers' parts. forward(batch) -> mean loss.

    As in the original: the new tokens are rows of the whole embedding matrix, all of which learns in stage 1; the
    encoder takes one batch row at a time; every position gets logits. Kinder than it: no logits for the new tokens.
    """

    def __init__(self, folder, start):
        super().__init__()
        from transformers import LlamaForCausalLM, T5EncoderModel
        self.encoder = T5EncoderModel.from_pretrained(folder / "t5", attn_implementation="sdpa")
        self.llm = LlamaForCausalLM.from_pretrained(folder / "llama", attn_implementation="sdpa")
        self.eval().requires_grad_(False)                                     # eval: no dropout
        self.chronos, self.sensor_id, self.vocab_size = start.chronos, start.sensor_id, start.vocab_size
        self.projector, self.head = copy.deepcopy(start.projector), copy.deepcopy(start.head)
        rows = torch.cat([self.llm.get_input_embeddings().weight, start.new_rows.detach()])
        self.llm.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=self.head is not None))

    def embed(self, batch):
        x = self.llm.get_input_embeddings()(batch.ids)                        # (B, T, D)
        ids, mask, _, _ = self.chronos.encode(batch.series)                   # (B*C, S+1)
        rows = []
        for row, row_ids, series_ids, series_mask in zip(x, batch.ids, ids.chunk(len(x)), mask.chunk(len(x))):
            with torch.no_grad():
                features = self.encoder(input_ids=series_ids, attention_mask=series_mask).last_hidden_state
            rows.append(row.index_put([row_ids == self.sensor_id], self.projector(features).flatten(0, 1)))
        return torch.stack(rows)

    def forward(self, batch):
        inputs = dict(inputs_embeds=self.embed(batch), attention_mask=batch.mask, use_cache=False)
        if self.head is None:
            return self.llm(**inputs, labels=batch.targets).loss
        logits = self.head(self.llm.model(**inputs).last_hidden_state)        # (B, T, n_classes)
        return F.cross_entropy(logits[torch.arange(len(logits)), batch.mask.sum(1) - 1], batch.labels)

    def backward(self, batch):
        """-> loss. The original rows of the embedding stay as they are: their gradients are made, then emptied."""
        loss = self(batch)
        loss.backward()
        if self.head is None:
            self.llm.get_input_embeddings().weight.grad[:self.vocab_size] = 0
        return loss.item()


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def optimizer_of(model):
    return new_optimizer(model, SimpleNamespace(lr=1e-4, weight_decay=0.0))


def one_step(model, batch, optimizer):
    """One optimizer step of either model; ours is the one that both training scripts take."""
    if isinstance(model, SensorLLM):
        device = batch.ids.device
        args = SimpleNamespace(bf16=device.type == "cuda", out="")
        return train_step(model, [batch], 1.0, optimizer, 1e-4, Processes(0, 1, device), args, 0)
    model.backward(batch)
    nn.utils.clip_grad_norm_(trained(model), 1.0).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def gradients(model, batch):
    """(mean loss, gradients by name) of either model; of their embedding matrix, the rows of the new tokens."""
    if isinstance(model, SensorLLM):
        loss, weight = model(batch)
        (loss / weight).backward()
        loss, new_rows = loss.item() / weight.item(), model.new_rows.grad
    else:
        loss, new_rows = model.backward(batch), model.llm.get_input_embeddings().weight.grad
        new_rows = None if new_rows is None else new_rows[model.vocab_size:]
    found = {f"projector {name}": parameter.grad for name, parameter in model.projector.named_parameters()}
    found |= {"new rows": new_rows} if model.head is None else {"head": model.head.weight.grad}
    model.zero_grad(set_to_none=True)
    return loss, found


# ---- what is measured ----

def compare(ours, theirs, batch):
    """AssertionError unless losses and gradients agree to 1e-4 of their size: float32 sums of up to 10^7 terms in
    another order differ by some 1e-7 to 1e-5; a wrong mask, shift or norm makes a difference of 1e-2 and more."""
    (our_loss, our_grads), (loss, grads) = gradients(ours, batch), gradients(theirs, batch)
    errors = {name: ((our_grads[name] - grads[name]).norm() / grads[name].norm()).item() for name in grads}
    assert abs(our_loss - loss) < 1e-4 * loss and max(errors.values()) < 1e-4, (our_loss, loss, errors)
    print(f"  losses {our_loss:.6f} and {loss:.6f}; gradients differ by a share of "
          + ", ".join(f"{error:.0e} ({name})" for name, error in errors.items()), flush=True)


def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])


def memory(way, stage, folder, size):
    """In a process of its own: prints the bytes that a first step, with its new optimizer state, adds at its peak."""
    tokenizer = tokenizer_of(32000)
    model = load(way, Path(folder), tokenizer, stage)
    gradients(model, batch_of(tokenizer, stage, 1))
    batch, optimizer = batch_of(tokenizer, stage, int(size)), optimizer_of(model)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    one_step(model, batch, optimizer)
    print(resident("VmHWM") - before)


def checkpoint_bytes(model, tokenizer, stage, folder):
    """What save_checkpoint writes of ours; all tensors of theirs, as the original saves them."""
    if isinstance(model, Theirs):
        return sum(tensor.nbytes for tensor in model.state_dict().values())
    recipe = Recipe(dataset="mhealth", added_tokens=tuple(tokenizer.added), scaling="StanNormalizeUniformBins",
                    projector=(model.projector[0].out_features,), llm="llama", llm_fingerprint="",
                    llm_config=model.llm.config, encoder="t5", encoder_fingerprint="", chronos=CHRONOS,
                    encoder_config=model.encoder.config, tokenizer_json=None,
                    classes=DATASET.classes if stage == "har" else ())
    save_checkpoint(folder / "best.safetensors", model, recipe, {})
    return (folder / "best.safetensors").stat().st_size


def measure(stage, size, folder, repeats):
    tokenizer = tokenizer_of(32000)
    models = {way: load(way, folder, tokenizer, stage) for way in ("ours", "theirs")}
    batch = batch_of(tokenizer, stage, size)
    print(f"train_{stage}.py: {tuple(batch.ids.shape)} tokens, {int(batch.mask.sum())} of them real, "
          f"{int((batch.targets != IGNORED).sum())} answer; {len(batch.series)} series of {S} samples")
    compare(*models.values(), batch)
    optimizers = {way: optimizer_of(model) for way, model in models.items()}
    seconds = {way: [] for way in models}
    for _ in range(repeats + 1):                                              # in turns: both meet the same noise
        for way, model in models.items():
            start = time.perf_counter()
            one_step(model, batch, optimizers[way])
            seconds[way].append(time.perf_counter() - start)
    print(f"  {'':24}{'ours':>10}{'theirs':>10}{'theirs / ours':>16}")

    def row(name, number):
        ours, theirs = (number(way) for way in models)
        print(f"  {name:24}{ours:10.2f}{theirs:10.2f}{theirs / ours:16.2f}", flush=True)
    row("step, s (median)", lambda way: statistics.median(seconds[way][1:]))  # the first one warms up
    row("a step's memory, MB", lambda way: int(subprocess.run(
        [sys.executable, __file__, "--memory", way, stage, str(folder), str(size)], stdout=subprocess.PIPE, text=True,
        check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}).stdout) / 1e6)
    row("trained parameters, M", lambda way: sum(parameter.numel() for parameter in trained(models[way])) / 1e6)
    row("optimizer state, MB", lambda way: sum(moment.nbytes for parameter in trained(models[way])
                                               for moment in optimizers[way].state[parameter].values()) / 1e6)
    row("checkpoint, MB", lambda way: checkpoint_bytes(models[way], tokenizer, stage, folder) / 1e6)


# ---- on a GPU ----

def filled(module):
    """A module of the meta device, on the GPU: random bfloat16 matrices with a fan-in start, norms of 1."""
    module = module.to(torch.bfloat16).to_empty(device="cuda")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5) if parameter.dim() == 2 else nn.init.ones_(parameter)
    return module


def timed(run, repeats):
    """Median seconds of run() on the GPU, after two calls that warm up."""
    seconds = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def measure_on_gpu(repeats):
    with torch.device("meta"), Unfilled():
        llm = Llama(LlamaConfig(vocab_size=128256, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8,
                                head_dim=128, rope_theta=500000.0, max_positions=8192))
        encoder = T5Encoder(T5Config(vocab_size=4096, d_model=1024, d_ff=4096, n_layers=24, n_heads=16, head_dim=64))
    llm, encoder, tokenizer = filled(llm), filled(encoder), tokenizer_of(128256)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * 8192 ** 3 / timed(lambda: a @ b, 20)                           # FLOP/s
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: matmul {rate / 1e12:.0f} TFLOP/s in bfloat16")
    in_blocks = sum(parameter.numel() for parameter in llm.layers.parameters() if parameter.dim() == 2)
    for stage, size in (("align", 4), ("har", 2)):
        model = our_model(encoder, llm, tokenizer, stage, 2048).to("cuda")
        batch, optimizer = batch_of(tokenizer, stage, size).to("cuda"), optimizer_of(model)
        n_tokens, n_answer = batch.mask.sum().item(), (batch.targets != IGNORED).sum().item()
        # 2 N forward and 2 N for the gradient of what flows through; frozen matrices get none; the LM head meets
        # answers only. Padding, attention, the encoder and what checkpointing computes again count as nothing.
        flop = 4 * (in_blocks * n_tokens + llm.lm_head.weight.numel() * n_answer)
        for llm.gradient_checkpointing in (False, True):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            way = f"train_{stage}.py, {tuple(batch.ids.shape)} tokens, checkpointing {llm.gradient_checkpointing}: "
            try:
                seconds = timed(lambda: one_step(model, batch, optimizer), repeats)
            except torch.cuda.OutOfMemoryError:
                print(way + "out of memory", flush=True)
                optimizer.zero_grad(set_to_none=True)
                continue
            peak = torch.cuda.max_memory_allocated()
            print(f"{way}{seconds:.3f} s a step, {n_tokens / seconds:.0f} tokens/s, {flop / seconds / rate:.1%} of "
                  f"the matmul rate, peak {peak / 1e9:.1f} GB, {(peak - before) / 1e9:.1f} of it a step's", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return memory(*args.memory)
    if torch.cuda.is_available():
        return measure_on_gpu(args.repeats)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; medians of {args.repeats}, in turns")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for stage, size in (("align", 8), ("har", 4)):
            measure(stage, size, Path(folder), args.repeats)


if __name__ == "__main__":
    main()
