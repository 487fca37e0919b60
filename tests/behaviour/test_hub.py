"""Models by hub id, from a stand-in hub on this machine: what is fetched, pinned, cached, and how it fails."""
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
from helpers import launch, make_chronos, make_llama, run
from safetensors.torch import load_file, save_file
from untrained import small_dataset

from sensorllm_min.fingerprint import fingerprint
from sensorllm_min.text_tokenizer import train_backend
from sensorllm_min.training.checkpoint import read_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP as huggingface_hub asks for: a model's file list, and its files with their hashes."""

    folder, asked = None, []
    newest = COMMIT  # of the main branch

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if "gated" in parts and self.headers.get("Authorization") != "Bearer open sesame":
            return self.refuse(403, "GatedRepo")
        if parts[:2] == ["api", "models"]:
            revision = parts[5] if len(parts) > 5 else "main"
            return self.model("/".join(parts[2:4]), revision, tree="tree" in parts)
        model, path = "/".join(parts[:2]), self.folder / "/".join(parts[:2]) / "/".join(parts[4:])
        if not path.is_file():
            return self.refuse(404, "EntryNotFound" if (self.folder / model).is_dir() else "RepoNotFound")
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
        files = {str(path.relative_to(self.folder / name)): path.stat().st_size
                 for path in sorted((self.folder / name).rglob("*")) if path.is_file()}
        found = [{"type": "file", "path": file, "size": size, "oid": "0"} for file, size in files.items()]
        if not tree:
            found = {"id": name, "modelId": name, "sha": self.newest if revision == "main" else revision, "tags": [],
                     "siblings": [{"rfilename": file} for file in files], "private": False, "downloads": 0}
        body = json.dumps(found).encode()
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
    """A folder of models: made/llama with things beside it that nobody needs, made/gated in shards, chronos, pickled."""
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
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield handler
    server.shutdown()


TRAIN = ("--train-limit", 8, "--epochs", 1, "--batch-size", 4, "--eval-limit", 2, "--test-limit", 1, "--max-new-tokens", 2,
         "--projector", 16)


def test_hub_ids_are_pinned_to_a_commit_fetched_without_pickles_and_found_offline(data, hub, tmp_path, monkeypatch):
    """By two processes at once. A checkpoint stays with its commit when the main branch moves on."""
    command = ("train_align.py", "--data", data, "--llm", "made/llama", "--encoder", "made/chronos", *TRAIN)
    printed = run(*command, "--out", "first", cwd=tmp_path, processes=2)
    assert f"LLM made/llama@{COMMIT}" in printed and "has no chat template" in printed
    fetched = {path.name for path in (tmp_path / "cache/hub").rglob("*/snapshots/*/*")}
    assert "model.safetensors" in fetched and not fetched & {"pytorch_model.bin", "original"}
    assert not any(".bin" in path or "/original" in path for path in hub.asked)
    recipe, _, _ = read_checkpoint(tmp_path / "first/best.safetensors")
    assert recipe.llm == f"made/llama@{COMMIT}" and recipe.encoder == f"made/chronos@{COMMIT}"

    hub.newest = LATER  # the main branches move on
    hub.asked.clear()
    evaluate = ("evaluate.py", "--checkpoint", "first", "--data", data, "--limit", 2, "--max-new-tokens", 2)
    run(*evaluate, cwd=tmp_path)
    assert hub.asked and not any("main" in path or LATER in path for path in hub.asked), hub.asked

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    run(*evaluate, cwd=tmp_path)
    assert hub.asked == []


def test_a_gated_model_in_shards_is_fetched_with_a_token_at_its_revision(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "open sesame")
    code = f"from sensorllm_min.hub import resolve_source; print(resolve_source('made/gated@{COMMIT}'))"
    folder = Path(launch("-c", code, cwd=tmp_path).splitlines()[-1])
    shards = {path.name for path in folder.iterdir()}
    assert folder.name == COMMIT and "model.safetensors.index.json" in shards
    assert len([name for name in shards if name.startswith("model-")]) > 1


@pytest.mark.parametrize("source,words", [
    ("made/nothing", ["cannot be fetched from the hub (RepositoryNotFoundError"]),
    ("made/gated", ["cannot be fetched from the hub (GatedRepoError", "HF_TOKEN"]),
    ("made/llama@v9", ["cannot be fetched from the hub (RevisionNotFoundError"]),
    ("made/pickled", ["neither model.safetensors", "@refs/pr/1"]),
    ("a/b/c", ["not a directory", "hub id"]),
    ("models/llama--3", ["not a directory", "(HFValidationError"]),
])
def test_what_cannot_be_fetched_is_one_line(data, hub, tmp_path, source, words):
    line = run("train_align.py", "--data", data, "--llm", source, cwd=tmp_path, expect=2).splitlines()[-1]
    assert line.startswith("train_align.py: ") and all(word in line for word in words), line


def test_a_model_that_is_not_in_the_cache_needs_the_hub(data, hub, tmp_path, monkeypatch):
    """Offline the hub is not asked; a hub that nobody answers for is one line, too."""
    command = ("train_align.py", "--data", data, "--llm", "made/llama")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "made/llama is not a directory and cannot be fetched" in run(*command, cwd=tmp_path, expect=2)
    assert hub.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")      # the discard port
    assert "made/llama is not a directory and cannot be fetched" in run(*command, cwd=tmp_path, expect=2)


def test_a_checkpoint_on_the_hub_scores_the_same(data, hub, models, tmp_path):
    """A run is put on the hub as the README says, and scored from there; its networks are found by their hub ids."""
    run("train_har.py", "--data", data, "--align", "none", "--llm", "made/llama", "--encoder", "made/chronos",
        *TRAIN[:8], "--test-limit", 4, "--projector", 16, "--out", "run", cwd=tmp_path)
    evaluate = ("evaluate.py", "--data", data, "--limit", 8)
    run(*evaluate, "--checkpoint", "run", cwd=tmp_path)
    (models / "made/shared").mkdir()
    shutil.copy(tmp_path / "run/best.safetensors", models / "made/shared")
    run(*evaluate, "--checkpoint", "made/shared", cwd=tmp_path)
    one, other = (json.loads((tmp_path / out / "evaluation_test.json").read_text()) for out in ("run", "out/shared"))
    assert one | {"command": None} == other | {"command": None}


def test_a_fingerprint_is_of_contents_not_of_files(models, tmp_path):
    """The same for a copy in shards, in a wider dtype, with a tokenizer that was written otherwise and a noted origin;
    another one for any change that the model would feel.
    """
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
        lambda config, tokenizer, tensors: tensors.update({name: tensor.double() for name, tensor in tensors.items()}),
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
