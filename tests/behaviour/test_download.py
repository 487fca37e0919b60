"""Archives: fetched, checked, and unpacked without leaving the folder. A server on loopback stands in for theirs."""
import hashlib
import io
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import run

from sensorllm_min.data.download import download, unpack
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.files import InputError


def zipped(files):
    """{name: bytes} -> the bytes of a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


CONTENT = zipped({"readme.pdf": b"read me", "inner.zip": zipped({"MHEALTHDATASET/mHealth_subject1.log": b"1 2 3\n"})})


@pytest.fixture
def served():
    """(MHealth's DatasetInfo with an archive on loopback, how often it was asked for)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if "missing" in self.path:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/archive.zip"
    yield replace(DATASETS["mhealth"], url=url, sha256=hashlib.sha256(CONTENT).hexdigest()), asked
    server.shutdown()


def test_an_archive_is_fetched_once_checked_and_unpacked_with_the_zip_in_it(served, tmp_path):
    (dataset, asked), said, raw = served, [], tmp_path / "raw"
    download("mhealth", dataset, raw, said.append)
    assert (raw / "MHEALTHDATASET/mHealth_subject1.log").read_bytes() == b"1 2 3\n"
    assert sorted(path.name for path in raw.iterdir()) == [".downloaded", "MHEALTHDATASET", "readme.pdf"]
    assert "licence: CC BY 4.0" in said[0] and "please cite: Banos" in said[0]
    download("mhealth", dataset, raw, said.append)
    assert len(asked) == 1 and "already" in said[-1]


@pytest.mark.parametrize("change,words", [
    (lambda d: replace(d, sha256="0" * 64), 'invalid hash value .expected "0000'),
    (lambda d: replace(d, url=d.url.replace("archive", "missing")), "404.*unpack it by hand"),
    (lambda d: replace(d, url="http://127.0.0.1:1/archive.zip"), "could not be fetched.*refused"),
    (lambda d: DATASETS["demo"], "has no archive")])
def test_what_cannot_be_fetched_is_refused_and_leaves_nothing(served, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        download("mhealth", change(served[0]), tmp_path, lambda line: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "../archive.zip"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path, name):
    """A zip that is named like a file outside does not remove that file."""
    inner = zipped({name: zipped({"a.txt": b"a"})})
    (tmp_path / "archive.zip").write_bytes(zipped({"inner.zip": inner}))
    unpack(tmp_path / "archive.zip", tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.zip", "folder"] and not Path("/tmp/outside.txt").exists()


@pytest.mark.parametrize("content", [zipped({"a": b"12345" * 1000})[:-30], b"<html>not here</html>"], ids=["cut", "a page"])
def test_a_broken_archive_is_refused(tmp_path, content):
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(InputError, match="could not be unpacked"):
        unpack(tmp_path / "archive.zip", tmp_path / "folder")


def test_download_of_a_dataset_without_an_archive_is_refused_by_the_script(tmp_path):
    out = run("data_prep.py", "--download", cwd=tmp_path, expect=2)
    assert out == "data_prep.py: --download: demo has no archive\n"
