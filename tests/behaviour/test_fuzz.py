"""500 mutated inputs of every kind that a person hands in: no traceback, no hang, no memory, no other result unsaid."""
import json
import os
import random
import shutil

import numpy as np
import pytest
import transformers
from fuzzing import READERS, run_case
from helpers import FORKS, make_llama
from raw_files import (write_capture24, write_mhealth, write_pamap2, write_small_own, write_uci_har, write_usc_had)
from test_handed_in import PLAIN, own_table, table_text
from test_one_line import zipped
from tokenizers import Tokenizer
from untrained import save_untrained, small_dataset

from sensorllm_min.text_tokenizer import train_backend

CASES = 500
FIRST = int(os.environ.get("FUZZ_FIRST", 0))    # other cases, by hand
CHATML = ("{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}<|eot_id|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}")


def make_model(folder):
    backend = train_backend(["It rises, it falls. 0.0s to 0.1s: rising"] * 9, 290)
    make_llama(folder, num_hidden_layers=1)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()),
                                                     bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "generation_config.json").unlink()


def make_own(folder):
    write_small_own(folder, n_recordings=1)
    for person in ("anna", "ben"):
        path = folder / person / "waving" / "0.npy"
        path.with_suffix(".csv").write_text(table_text(own_table(person).tolist(), "ramp,who,bend"))
        path.unlink()


def make_archive(folder):
    folder.mkdir()
    noise = np.random.default_rng(0).integers(65, 80, 3000).astype(np.uint8).tobytes()
    (folder / "archive.zip").write_bytes(zipped({"first.txt": noise, "folder/second.txt": noise[::-1]}))


def make_question(folder):
    folder.mkdir()
    (folder / "my.csv").write_text(table_text(PLAIN))


@pytest.fixture(scope="module")
def goods(demo, tmp_path_factory):
    """A good input of each kind."""
    root = tmp_path_factory.mktemp("goods")
    small_dataset(demo, root / "prepared")
    (root / "prepared" / "samples").unlink()
    shutil.copytree(demo / "samples", root / "prepared" / "samples")
    (root / "checkpoint").mkdir()
    save_untrained(root / "checkpoint", root / "prepared", "har")
    (root / "checkpoint" / "tokenizer.json").unlink()
    make_model(root / "model")
    make_own(root / "own")
    make_archive(root / "archive")
    make_question(root / "question")
    write_mhealth(root / "mhealth", 1, [(1, 150), (2, 120)])
    write_pamap2(root / "pamap2", 101, [(1, 220), (2, 210)])
    write_usc_had(root / "usc-had", 1, {(1, 1): 250, (2, 1): 250})
    write_uci_har(root / "uci-har", "train", [(1, 1, 256), (5, 2, 256)])
    for path in (root / "uci-har").rglob("body_acc_*"):
        path.unlink()                                                         # in the archive, but not read
    write_capture24(root / "capture24", 1, [("7030 sleeping;MET 0.95", 1100)])
    return root


def case(kind, goods, work, seed, seconds=20):
    """What becomes of a case, in a forked process."""
    work.mkdir()
    answer = work / "answer.json"
    process = FORKS.Process(target=run_case, args=(kind, str(goods / kind), str(work), seed, str(answer)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        return {"what": "?", "hang": seconds}
    found = json.loads(answer.read_text()) if answer.exists() else {"what": "?", "died": process.exitcode}
    shutil.rmtree(work)
    return found


def verdict(found, good):
    """What is wrong with the outcome of a case, or None."""
    if "line" in found:
        line = found["line"]
        return None if "\n" not in line and 10 < len(line) < 700 else f"a line of {len(line)}: {line}"
    if "result" not in found:
        return str({key: value for key, value in found.items() if key != "what"})
    if found["grown"] > 2 << 20:
        return f"{found['grown'] >> 10} MB"
    same = found["result"] == good["result"]
    said = found["said"] != good["said"] or found["may_differ"]
    return None if same or said else "another result, without a word"


@pytest.mark.slow
def test_mutated_inputs_are_read_or_refused_in_one_line(goods, tmp_path):
    good = {kind: case(kind, goods, tmp_path / f"good_{kind}", None) for kind in READERS}
    assert all("result" in found for found in good.values()), "\n".join(f"{kind}: {found}" for kind, found in good.items())
    wrong, refused = [], 0
    for number in range(FIRST, FIRST + CASES):
        kind = list(READERS)[number % len(READERS)]
        found = case(kind, goods, tmp_path / str(number), random.Random(number).randrange(1 << 30))
        refused += "line" in found
        problem = verdict(found, good[kind])
        if problem:
            wrong.append(f"{number} {kind}, {found['what']}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert refused > CASES / 2                                             # the mutations do harm
