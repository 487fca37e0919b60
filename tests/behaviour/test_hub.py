"""Models by hub id, from a stand-in hub on this machine: what is fetched, pinned, cached, and every
way it can fail.
"""

import http.server
import json
import shutil
import socket
import threading
from pathlib import Path

import pytest
from helpers import make_chronos, make_llama, run
from safetensors import safe_open
from untrained import small_dataset

from sensorllm_min.files import InputError
from sensorllm_min.text_tokenizer import train_backend
from sensorllm_min.training.fingerprint import fingerprint, fingerprint_of_files, is_same_network
from sensorllm_min.training.hub import hub_id_of, resolve_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP as huggingface_hub asks for: a model's file list, and its files
    with their hashes.
    """

    folder, asked = None, []
    newest = COMMIT  # of the main branch

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if "gated" in parts and self.headers.get("Authorization") != "Bearer open sesame":
            return self.refuse(403, "GatedRepo")
        if parts[:2] == ["api", "models"]:
            return self.model(
                "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", tree="tree" in parts
            )
        model, path = "/".join(parts[:2]), self.folder / "/".join(parts[:2]) / "/".join(parts[4:])
        if not path.is_file():
            return self.refuse(
                404, "EntryNotFound" if (self.folder / model).is_dir() else "RepoNotFound"
            )
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.newest if parts[3] == "main" else parts[3])
        self.send_header("ETag", f'"{path.name}-{path.stat().st_size}"')
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(path.read_bytes())

    do_HEAD = do_GET

    def model(self, name, revision, tree):
        if not (self.folder / name).is_dir():
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT, LATER):
            return self.refuse(404, "RevisionNotFound")
        files = [
            (str(path.relative_to(self.folder / name)), path.stat().st_size)
            for path in sorted((self.folder / name).rglob("*"))
            if path.is_file()
        ]
        body = json.dumps(
            [{"type": "file", "path": file, "size": size, "oid": "0"} for file, size in files]
            if tree
            else {
                "id": name,
                "modelId": name,
                "sha": self.newest if revision == "main" else revision,
                "siblings": [{"rfilename": file} for file, _ in files],
                "tags": [],
                "private": False,
                "downloads": 0,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code, reason):
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of models: made/llama with things beside it that nobody needs, made/gated in shards,
    chronos, pickled.
    """
    folder = tmp_path_factory.mktemp("models")
    backend = train_backend(["rising and falling 0.1s"], 300)
    model = make_llama(folder / "made/llama", backend, max_position_embeddings=20_000)
    shutil.copytree(folder / "made/llama", folder / "made/gated")
    (folder / "made/gated/model.safetensors").unlink()
    model.save_pretrained(folder / "made/gated", max_shard_size="50KB")
    (folder / "made/llama/pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "made/llama/original").mkdir()
    (folder / "made/llama/original/model.safetensors").write_bytes(b"another copy")
    make_chronos(folder / "made/chronos")
    make_llama(folder / "made/pickled")
    (folder / "made/pickled/model.safetensors").rename(folder / "made/pickled/pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def data(demo, tmp_path_factory):
    return small_dataset(demo, tmp_path_factory.mktemp("data") / "demo")


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """The stand-in hub, and an environment in which huggingface_hub of a new process goes there."""
    handler = type("Handler", (Hub,), {"folder": models, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, value in {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield handler
    server.shutdown()


TRAIN = (
    "--train-limit", 8, "--epochs", 1, "--batch-size", 4, "--eval-limit", 2, "--test-limit", 1,
    "--max-new-tokens", 2, "--projector", 16,
)


def test_hub_ids_are_pinned_to_a_commit_fetched_without_pickles_and_found_offline(
    data, hub, tmp_path, monkeypatch
):
    command = (
        "train_align.py", "--data", data, "--llm", "made/llama", "--encoder", "made/chronos",
        *TRAIN,
    )
    printed = run(*command, "--out", "first", cwd=tmp_path)
    assert f"LLM made/llama@{COMMIT}" in printed and "chat format llama3" in printed
    fetched = {path.name for path in (tmp_path / "cache/hub").rglob("*/snapshots/*/*")}
    assert "model.safetensors" in fetched
    assert "pytorch_model.bin" not in fetched
    assert "original" not in fetched
    assert not any(".bin" in path or "/original" in path for path in hub.asked)
    with safe_open(tmp_path / "first/best.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["sensorllm_min"])["recipe"]
    assert recipe["llm"] == f"made/llama@{COMMIT}" and recipe["encoder"] == f"made/chronos@{COMMIT}"

    hub.newest = LATER  # the main branches move on
    hub.asked.clear()
    evaluate = (
        "evaluate.py", "--checkpoint", "first", "--data", data, "--limit", 2, "--max-new-tokens", 2,
    )
    run(*evaluate, cwd=tmp_path)
    assert hub.asked and not any("main" in path or LATER in path for path in hub.asked), hub.asked

    hub.newest = COMMIT
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    run(*command, "--out", "second", cwd=tmp_path)
    run(*evaluate, cwd=tmp_path)
    assert hub.asked == []


def test_two_processes_may_fetch_at_once(data, hub, tmp_path):
    run(
        "train_align.py", "--data", data, "--llm", "made/llama", "--encoder", "made/chronos",
        *TRAIN, "--out", "out", cwd=tmp_path, processes=2,
    )
    whole = [
        path
        for path in hub.asked
        if path.endswith("llama/resolve/" + COMMIT + "/model.safetensors")
    ]
    assert (tmp_path / "out/best.safetensors").exists() and whole


def test_a_gated_model_in_shards_is_fetched_with_a_token_at_its_revision(
    data, hub, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "open sesame")
    run(
        "train_align.py", "--data", data, "--llm", f"made/gated@{COMMIT}", "--encoder",
        "made/chronos", *TRAIN, "--out", "out", cwd=tmp_path,
    )
    shards = {
        path.name
        for path in (tmp_path / "cache/hub/models--made--gated/snapshots" / COMMIT).iterdir()
    }
    assert len([name for name in shards if name.startswith("model-")]) > 1
    assert "model.safetensors.index.json" in shards


@pytest.mark.parametrize(
    "source,words",
    [
        ("made/nothing", ["no model on the hub"]),
        ("made/gated", ["gated", "HF_TOKEN"]),
        ("made/llama@v9", ["no revision v9"]),
        ("made/pickled", ["neither model.safetensors", "@refs/pr/1"]),
        ("a/b/c", ["not a directory", "hub id"]),
        ("./nowhere", ["not a directory"]),
    ],
)
def test_what_cannot_be_fetched_is_one_line(data, hub, tmp_path, source, words):
    line = run(
        "train_align.py", "--data", data, "--llm", source, cwd=tmp_path, expect=2
    ).splitlines()[-1]
    assert line.startswith("train_align.py: ") and all(word in line for word in words), line


def test_offline_a_model_never_fetched_is_one_line_and_the_hub_is_not_asked(
    data, hub, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = run(
        "train_align.py", "--data", data, "--llm", "made/llama", cwd=tmp_path, expect=2
    ).splitlines()[-1]
    assert "not in the cache" in line and hub.asked == []


def test_a_hub_that_cannot_be_reached_is_one_line(data, hub, tmp_path, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # held here, and nobody listens
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        line = run(
            "train_align.py", "--data", data, "--llm", "made/llama", cwd=tmp_path, expect=2
        ).splitlines()[-1]
    assert "made/llama" in line and ("cannot be reached" in line or "could not be fetched" in line)


def test_a_directory_needs_no_hub(models, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert resolve_source(models / "made/llama") == models / "made/llama"
    assert resolve_source(None) is None
    with pytest.raises(InputError, match="not a directory"):
        resolve_source(Path("/no/where"))


def test_an_exported_checkpoint_scores_the_same_from_the_hub_and_names_no_path(
    data, hub, models, tmp_path, monkeypatch
):
    """A run on networks of this machine is exported, put on the hub and scored from there: the same
    scores, no path. With the hub id of a copy, whoever loads it need not say where the LLM is.
    """
    run(
        "train_har.py", "--data", data, "--align", "none", "--llm", models / "made/llama",
        "--encoder", "made/chronos", "--train-limit", 16, "--epochs", 1, "--eval-limit", 4,
        "--test-limit", 4, "--projector", 16, "--out", "run", cwd=tmp_path,
    )
    evaluate = ("evaluate.py", "--data", data, "--limit", 8)
    run(*evaluate, "--checkpoint", "run", cwd=tmp_path)
    shared_folder = models / "made/shared"
    run("evaluate.py", "--checkpoint", "run", "--export", shared_folder, cwd=tmp_path)
    assert sorted(path.name for path in shared_folder.iterdir()) == [
        "README.md",
        "best.safetensors",
    ]
    card = (shared_folder / "README.md").read_text()
    assert card.startswith("---\n") and "base_model:\n- made/chronos\n---" in card
    for words in (
        "recognises activities",
        "Walking, Running",
        "| test subjects, never trained on | 9, 10 |",
        "macro_f1",
        "sensorllm_min.load(",
        'llm="DIR"',
        "| LLM | llama |",
        f"| encoder | made/chronos@{COMMIT} |",
    ):
        assert words in card, words
    raw = (shared_folder / "best.safetensors").read_bytes()
    for path in (tmp_path, models, data.parent):
        assert str(path) not in card and str(path).encode() not in raw

    scores = json.loads((tmp_path / "run/evaluation_test.json").read_text())
    line = run(*evaluate, "--checkpoint", shared_folder, cwd=tmp_path, expect=2).splitlines()[-1]
    assert "llama is not there any more; say with --llm" in line
    run(*evaluate, "--checkpoint", "made/shared", "--llm", models / "made/llama", cwd=tmp_path)
    assert json.loads((tmp_path / "out/shared/evaluation_test.json").read_text()) == scores
    said = run(
        "evaluate.py", "--checkpoint", "run", "--export", models / "made/named", "--source",
        f"made/gated@{COMMIT}", cwd=tmp_path,
    )
    assert f"is shared as made/gated@{COMMIT}" in said  # the same tensors, in shards
    monkeypatch.setenv("HF_TOKEN", "open sesame")
    run(*evaluate, "--checkpoint", "made/named", cwd=tmp_path)
    assert json.loads((tmp_path / "out/named/evaluation_test.json").read_text()) == scores
    for source, words in ((["one"], "NAME/MODEL"), (["a/b", "c/d"], "has 1 network")):
        line = run(
            "evaluate.py", "--checkpoint", "run", "--export", "new", "--source", *source,
            cwd=tmp_path, expect=2,
        ).splitlines()[-1]
        assert words in line and not (tmp_path / "new").exists()
    line = run(
        "evaluate.py", "--checkpoint", "run", "--export", shared_folder, cwd=tmp_path, expect=2
    ).splitlines()[-1]
    assert "not empty" in line


def test_a_directory_says_where_on_the_hub_it_came_from(tmp_path):
    cached = tmp_path / f"models--made--llama-3.2/snapshots/{COMMIT}"
    cached.mkdir(parents=True)
    assert hub_id_of(cached) == f"made/llama-3.2@{COMMIT}"
    for noted, found in (("made/llama", "made/llama"), ("/home/me/llama", None), (None, None)):
        (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": noted}))
        assert hub_id_of(tmp_path) == found


def test_a_fingerprint_is_of_contents_not_of_files(models, tmp_path):
    """The same for a copy in shards, in a wider dtype, with a tokenizer that was written otherwise
    and a noted origin; another one for any change that the model would feel.
    """
    from safetensors.torch import load_file, save_file
    copy = tmp_path / "copy"

    def changed(change):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(models / "made/llama", copy)
        config, tokenizer = (json.loads((copy / name).read_text()) for name in ("config.json", "tokenizer.json"))
        tensors = load_file(copy / "model.safetensors")
        change(config, tokenizer, tensors)
        (copy / "config.json").write_text(json.dumps(config))
        (copy / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
        save_file(tensors, copy / "model.safetensors")
        return fingerprint(copy)

    def one_number(config, tokenizer, tensors):
        tensors["model.norm.weight"][-1] += 1e-3

    def digits(config, tokenizer, tensors):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["0"], vocabulary["1"] = vocabulary["1"], vocabulary["0"]

    known = fingerprint(models / "made/llama")
    same = [
        lambda config, tokenizer, tensors: config.update(_name_or_path="made/llama", use_cache=False),
        lambda config, tokenizer, tensors: tokenizer.update(padding=None, truncation=None),
        lambda config, tokenizer, tensors: tensors.update(
            {name: tensor.double() for name, tensor in tensors.items()}),
        lambda config, tokenizer, tensors: tensors.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": tensors["model.norm.weight"] / 2}),
        lambda config, tokenizer, tensors: config.update(rms_norm_eps=config["rms_norm_eps"] * (1 + 1e-7)),
    ]
    others = [
        one_number,
        digits,
        lambda config, tokenizer, tensors: config.update(rms_norm_eps=1e-3),
        lambda config, tokenizer, tensors: tensors.pop("model.norm.weight"),
    ]
    assert fingerprint(models / "made/gated") == known
    assert [changed(change) for change in same] == [known] * 5
    assert known not in [changed(change) for change in others]
    assert is_same_network(models / "made/llama", fingerprint_of_files(models / "made/llama"))  # as before
    assert not is_same_network(models / "made/llama", fingerprint_of_files(copy))


def test_an_older_checkpoint_loads_and_a_newer_one_says_so(data, tmp_path):
    """Format 1 began without chat_format and with other names; a format that does not exist yet is
    refused in one line.
    """
    from safetensors.torch import load_file, save_file

    def as_it_began(metadata, tensors):
        recipe = metadata["recipe"]
        del recipe["chat_format"]
        recipe["control"], recipe["row"] = recipe.pop("ablation"), recipe.pop("own_dataset")
        tensors["new_rows"] = tensors.pop("special_embeddings")

    def to_come(metadata, tensors):
        metadata["format"] = 99

    run("train_align.py", "--data", data, *TRAIN, "--out", "run", cwd=tmp_path)
    path = tmp_path / "run/best.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["sensorllm_min"])
    tensors = load_file(path)
    for change, code in ((as_it_began, 0), (to_come, 2)):
        change(metadata, tensors)
        save_file(tensors, path, {"sensorllm_min": json.dumps(metadata)})
        printed = run(
            "evaluate.py", "--checkpoint", "run", "--data", data, "--limit", 2, "--max-new-tokens",
            2, cwd=tmp_path, expect=code,
        )
    assert "format 99" in printed.splitlines()[-1]
