"""What a fuzz case is: a folder that a person hands in, a mutation of one of its files, and what is made of it.

A mutation is one that can be told: of structure, type or length, not of a value in its place. So what is read from the
folder must be the good input's result, one line about the file, or a result whose difference was said or counted.
"""
import hashlib
import json
import os
import random
import resource
import shutil
import traceback
from collections import Counter
from pathlib import Path

import torch

from helpers import digest
from sensorllm_min.config import read_llama_config
from sensorllm_min.data.download import unpack
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.own import read_log
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.files import InputError
from sensorllm_min.text_tokenizer import load_text_tokenizer, read_chat_template
from sensorllm_min.training.checkpoint import load_checkpoint
from sensorllm_min.weights import load_llama


# ---- what is made of a folder: (result, what was said) ----

def read_raw(name):
    def read(folder):
        said, out = [], folder.with_name("out")
        meta = prepare(name, folder, out, say=said.append)
        said = [line for line in said if not line.startswith("part ")]
        said += [f"{what} {count}" for what, count in meta["lost_samples"].items()]
        return {name: value for name, value in digest(out).items() if name != "meta.json"}, said
    return read


def read_prepared(folder):
    data, found = PreparedData(folder), []
    for kind in ("har", "align"):
        for split in data.dataset.splits:
            records = data.records(kind, split)
            for i in range(0, len(records), 3):
                found.append((records[i], hashlib.sha256(data.window(records[i])).hexdigest()))
    return found, []


@torch.no_grad()
def read_model(folder):
    config, channels = read_llama_config(folder), DATASETS["demo"].channels
    tokenizer = load_text_tokenizer(folder, config, channels, template=read_chat_template(folder))
    model = load_llama(folder)
    ids = tokenizer.chat("Be brief.", "What is it?") + tokenizer.answer("It rises.")
    hidden = model(model.embed_tokens(torch.tensor([ids]).clamp(max=config.vocab_size - 1)))
    return [ids, sorted(tokenizer.stop_ids), hidden.sum().item()], []


def read_checkpoint(folder):
    loaded = load_checkpoint(folder / "best.safetensors")
    tensors = {name: hashlib.sha256(tensor.detach().numpy()).hexdigest() for name, tensor in loaded.model.named_parameters()}
    return [repr(loaded.recipe), tensors, loaded.tokenizer.chat("Be brief.", "What?")], []


def read_archive(folder):
    folder.with_name("out").mkdir()
    unpack(folder / "archive.zip", folder.with_name("out"))
    return digest(folder.with_name("out")), []


def read_question(folder):
    return read_log(folder / "my.csv", DATASETS["demo"], Counter()).samples.tolist(), []


READERS = {
    "prepared": read_prepared, "model": read_model, "checkpoint": read_checkpoint, "archive": read_archive,
    "question": read_question,
    **{name: read_raw(name) for name in ("own", "mhealth", "pamap2", "usc-had", "uci-har", "capture24")}}


# ---- mutations: (bytes, random) -> bytes, and whether another result may pass ----

ODD = (None, True, -1, 0, 1.5, 10**9, "x", "", [], [1], {}, {"a": 1}, "../../x", "\n#", 1e308, "9" * 500)


def truncate(content, rng):
    return content[:rng.randrange(len(content))] if content else b"x"


def insert_noise(content, rng):
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.choice((1, 3, 40))) + content[place:]


def be_another_file(content, rng):
    return rng.choice((b"", b"\x00" * 99, b"PK\x03\x04", b"\xff\xfe{", b"<html>", b"[" * 50_000, b"null", b"{}", b"[]", b"\x80\x04K\x01."))


def json_values(content, path=()):
    """The path of each value in JSON."""
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in children:
        yield (*path, key)
        yield from json_values(value, (*path, key))


def change_json(content, rng):
    """A value becomes one of another type, or a key is gone."""
    whole = json.loads(content)
    path = rng.choice([path for path in json_values(whole)])
    holder = whole
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and rng.random() < 0.3:
        del holder[path[-1]]
    else:
        old = holder[path[-1]]
        numbers = type(old) in (int, float)
        holder[path[-1]] = rng.choice([value for value in ODD if type(value) not in ((int, float) if numbers else (type(old),))])
    return json.dumps(whole).encode()


def change_json_line(content, rng):
    lines = content.split(b"\n")
    i = rng.randrange(len(lines) - 1)
    again = lines[0] if b'"seed"' in lines[0] else b"7"            # settings twice; nothing tells a prepared window twice
    lines[i] = rng.choice((b"", b"{}", lines[i] + lines[i], lines[i][:-3], again, change_json(lines[i], rng)))
    return b"\n".join(lines)


def change_table(content, rng):
    """A field more or fewer in one line or all, an open quote, decimal commas, a word."""
    separator = next((sign for sign in (b",", b"\t") if sign in content), b" ")
    lines = content.split(b"\n")
    at = rng.choice((range(1, len(lines) - 1), [rng.randrange(1, len(lines) - 1)]))
    kind = rng.choice(("first", "last", "fewer", "quote", "comma", "word"))
    for i in at:
        fields = lines[i].split(separator)
        fields = {"first": [b"7", *fields], "last": [*fields, b"7"], "fewer": fields[1:], "quote": [b'"' + fields[0], *fields[1:]],
                  "comma": [field.replace(b".", b",") for field in fields], "word": [b"x" + fields[0], *fields[1:]]}[kind]
        lines[i] = separator.join(fields)
    return b"\n".join(lines)


def change_header(content, rng):
    """The header of an .npy or .safetensors file names another type, shape or offset, of the same length."""
    pairs = [(b"<f4", b"<i4"), (b"<f8", b"<c8"), (b"<f8", b"<M8"), (b"F32", b"I32"), (b"F32", b"U32"), (b"'shape': (", b"'shape': [")]
    pairs += [(b'"dtype"', b'"dtipe"'), (b"data_offsets", b"data_offsett"), (b"[", b"]")]
    found = [(old, new) for old, new in pairs if old in content[:4096]]
    return content.replace(*rng.choice(found), 1) if found else truncate(content, rng)


STRUCTURE = (truncate, be_another_file)
MUTATIONS = {
    ".json": (*STRUCTURE, change_json, change_json, change_json), ".jsonl": (*STRUCTURE, insert_noise, change_json_line, change_json_line),
    ".csv": (*STRUCTURE, change_table, change_table), ".txt": (*STRUCTURE, change_table), ".log": (*STRUCTURE, change_table),
    ".dat": (*STRUCTURE, change_table), ".npy": (*STRUCTURE, change_header), ".safetensors": (*STRUCTURE, change_header, insert_noise),
    ".zip": (*STRUCTURE, insert_noise), ".mat": STRUCTURE, ".gz": (*STRUCTURE, insert_noise), ".model": STRUCTURE}


def mutate(folder, rng):
    """Changes one file of a folder -> what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    by_kind = {}
    for path in files:
        by_kind.setdefault(path.suffix, []).append(path)
    path = rng.choice(by_kind[rng.choice(sorted(by_kind))])
    if rng.random() < 0.05:
        path.unlink()
        return f"{path.relative_to(folder)}: removed", True
    mutation = rng.choice(MUTATIONS[path.suffix])
    path.write_bytes(mutation(path.read_bytes(), rng))
    of_text = path.suffix in (".csv", ".txt", ".log", ".dat")                 # whose end may be anywhere
    may_differ = mutation is change_json or of_text and mutation is truncate
    return f"{path.relative_to(folder)}: {mutation.__name__}", may_differ


def run_case(kind, good, work, seed, answer):
    """In a process of its own: writes {what, result or line or traceback, peak} to the file `answer`."""
    limit = 6 << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = Path(work) / "in"
    shutil.copytree(good, folder)
    os.chdir(work)
    what, may_differ = mutate(folder, random.Random(seed)) if seed is not None else ("nothing", False)
    found = {"what": what, "may_differ": may_differ}
    try:
        result, said = READERS[kind](folder)
        found |= {"result": hashlib.sha256(json.dumps(result).encode()).hexdigest(), "said": said}
    except InputError as error:
        found["line"] = str(error)
    except BaseException:
        found["traceback"] = traceback.format_exc()
    found["grown"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    Path(answer).write_text(json.dumps(found))


