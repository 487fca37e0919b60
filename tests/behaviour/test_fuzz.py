"""Mutated raw files of every kind: one line about the file, or the good result, or a result whose difference was said.

A mutation is one that can be told: of structure or of length, not of a value in its place.
"""
import random
import shutil
import signal

import numpy as np
import pytest
from helpers import digest
from raw_files import write_capture24, write_mhealth, write_own, write_pamap2, write_uci_har, write_usc_had
from test_download import zipped

from sensorllm_min.data.download import unpack
from sensorllm_min.data.prepare import prepare
from sensorllm_min.files import InputError

CASES = 210


def write_archive(folder):
    noise = np.random.default_rng(0).integers(65, 80, 3000).astype(np.uint8).tobytes()
    folder.mkdir()
    (folder / "archive.zip").write_bytes(zipped({"first.txt": noise, "folder/second.txt": noise[::-1]}))


KINDS = {
    "archive": write_archive, "own": write_own,
    "mhealth": lambda folder: write_mhealth(folder, 1, [(1, 150), (2, 120)]),
    "pamap2": lambda folder: write_pamap2(folder, 101, [(1, 220), (2, 210)]),
    "usc-had": lambda folder: write_usc_had(folder, 1, {(1, 1): 250, (2, 1): 250}),
    "uci-har": lambda folder: write_uci_har(folder, "train", [(1, 1, 256), (5, 2, 256)]),
    "capture24": lambda folder: write_capture24(folder, 1, [("7030 sleeping;MET 0.95", 1100)])}


def read(kind, folder, out):
    """What is made of a folder: (digests of the files, what was said or counted)."""
    shutil.rmtree(out, ignore_errors=True)
    if kind == "archive":
        out.mkdir()
        unpack(folder / "archive.zip", out)
        return digest(out), []
    said = []
    lost = prepare(kind, folder, out, say=said.append)["lost_samples"]
    files = {name: value for name, value in digest(out).items() if name != "meta.json"}
    return files, [lost, [line for line in said if not line.startswith("part ")]]


# ---- mutations: (bytes, random) -> bytes ----

def truncate(content, rng):
    return content[:rng.randrange(len(content))]


def be_another_file(content, rng):
    return rng.choice((b"", b"\x00" * 99, b"PK\x03\x04", b"\xff\xfe{", b"<html>", b"[" * 50_000, b"null", b"\x80\x04K\x01."))


def change_table(content, rng):
    """In one line or in all a field more or fewer, an open quote, decimal commas, or a word."""
    separator = next((sign for sign in (b",", b"\t") if sign in content), b" ")
    lines = content.split(b"\n")
    kind = rng.choice(("first", "last", "fewer", "quote", "comma", "word"))
    for i in rng.choice((range(1, len(lines) - 1), [rng.randrange(1, len(lines) - 1)])):
        fields = lines[i].split(separator)
        fields = {"first": [b"7", *fields], "last": [*fields, b"7"], "fewer": fields[1:], "quote": [b'"' + fields[0], *fields[1:]],
                  "comma": [field.replace(b".", b",") for field in fields], "word": [b"x" + fields[0], *fields[1:]]}[kind]
        lines[i] = separator.join(fields)
    return b"\n".join(lines)


@pytest.mark.slow
def test_mutated_inputs_are_read_or_refused_in_one_line(tmp_path):
    good, refused = {}, 0
    for kind, write in KINDS.items():
        write(tmp_path / kind)
        good[kind] = read(kind, tmp_path / kind, tmp_path / "out")
    for number in range(CASES):
        rng, kind = random.Random(number), list(KINDS)[number % len(KINDS)]
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        shutil.copytree(tmp_path / kind, tmp_path / "in")
        path = rng.choice(sorted(path for path in (tmp_path / "in").rglob("*") if path.is_file()))
        is_table = path.suffix in (".csv", ".txt", ".log", ".dat")
        mutation = rng.choice((truncate, be_another_file, *[change_table] * 2 * is_table))
        path.write_bytes(mutation(path.read_bytes(), rng))
        signal.alarm(20)                                          # no case hangs
        try:
            files, said = read(kind, tmp_path / "in", tmp_path / "out")
        except InputError as error:
            assert 10 < len(str(error)) < 700, error
            refused += 1
        else:
            cut = is_table and mutation is truncate               # a text may end anywhere
            assert (files, said) == good[kind] or said != good[kind][1] or cut, (number, path, mutation)
        finally:
            signal.alarm(0)
    assert refused > CASES / 3                                    # the mutations do harm
