"""Archives: fetched through cuts, checked, unpacked without leaving the folder. A server on loopback stands in for theirs."""
import hashlib
import io
import re
import socket
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import run

from sensorllm_min.data import download as module
from sensorllm_min.files import InputError
from sensorllm_min.data.download import download, fetch, unpack
from sensorllm_min.data.sensors import DATASETS


def zipped(files, method=zipfile.ZIP_DEFLATED):
    """{name: bytes} -> the bytes of a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Serves `content`. cut: how many bytes a reply sends at most, though it promises all; ranges: whether it can go on."""

    def __init__(self, content):
        self.content, self.cut, self.ranges, self.asked = content, None, True, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(wanted[1]) if wanted and server.ranges else 0
                server.asked.append(start)
                if "missing" in self.path:
                    return self.send_error(404)
                if start and start >= len(server.content):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(server.content) - start))
                self.end_headers()
                self.wfile.write(server.content[start:][:server.cut])

            def log_message(self, *words):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()   # ends at once
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.zip"

    def dataset(self, **changes):
        return replace(DATASETS["mhealth"], **{"url": self.url, "size": len(self.content),
                                               "sha256": hashlib.sha256(self.content).hexdigest()} | changes)


@pytest.fixture
def server():
    server = Server(zipped({"MHEALTHDATASET/mHealth_subject1.log": bytes(range(256)) * 40_000}, zipfile.ZIP_STORED))
    yield server
    server.http.shutdown()


def test_a_download_that_is_cut_resumes_where_it_stopped(server, tmp_path):
    lines, server.cut = [], 4_000_000
    for _ in range(2):
        with pytest.raises(InputError, match="resumes where this one stopped"):
            download("mhealth", server.dataset(), tmp_path / "raw", lines.append)
    server.cut = None
    download("mhealth", server.dataset(), tmp_path / "raw", lines.append)
    assert server.asked[0] == 0 and 3e6 < server.asked[1] <= 4_000_000 < server.asked[2] <= 8_000_000
    unpacked = tmp_path / "raw/MHEALTHDATASET/mHealth_subject1.log"
    assert unpacked.read_bytes() == bytes(range(256)) * 40_000
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == [".downloaded", "MHEALTHDATASET"]   # no archive, no part
    text = "\n".join(lines)
    assert text.index("licence: CC BY 4.0") < text.index("MB/s") and "please cite: Banos" in text and "left" in text
    assert f"of {len(server.content) / 1e6:.0f} MB" in text and "resuming at" in text
    download("mhealth", server.dataset(), tmp_path / "raw", lines.append)     # again: nothing is fetched
    assert len(server.asked) == 3 and "already" in lines[-1]


def test_a_server_without_ranges_sends_all_of_it_and_nothing_old_stays(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(b"old" * 1000)
    server.ranges = False
    fetch(server.dataset(), tmp_path / "archive.zip", print)
    assert (tmp_path / "archive.zip").read_bytes() == server.content


def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(server.content)
    fetch(server.dataset(), tmp_path / "archive.zip", print)
    assert (tmp_path / "archive.zip").read_bytes() == server.content


@pytest.mark.parametrize("changes,words", [(dict(sha256="0" * 64), "sha256 .* expected 0000"), (dict(size=17), "bytes .*expected 17")], ids=str)
def test_an_archive_of_another_size_or_sha256_is_refused_and_removed(server, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        download("mhealth", server.dataset(**changes), tmp_path / "raw", lambda line: None)
    assert not list((tmp_path / "raw").iterdir())                             # nothing unpacked, nothing left


def test_servers_that_refuse_are_named(server, tmp_path):
    with pytest.raises(InputError, match="404"):
        fetch(server.dataset(url=server.url.replace("archive", "missing")), tmp_path / "a.zip", print)
    with socket.socket() as deaf:                                             # bound, but nobody listens: refused
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/archive.zip"
        with pytest.raises(InputError, match="run the same command again"):
            fetch(server.dataset(url=url), tmp_path / "a.zip", print)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="demo has no archive"):
        download("demo", DATASETS["demo"], tmp_path)


def test_a_zip_within_a_zip_is_unpacked_and_removed(tmp_path):
    """As UCI ships two of them."""
    inner = zipped({"PAMAP2_Dataset/Protocol/subject101.dat": b"1 2 3\n"})
    (tmp_path / "archive.zip").write_bytes(zipped({"readme.pdf": b"read me", "PAMAP2_Dataset.zip": inner}))
    for _ in range(2):                                                        # the second time over what is there
        unpack(tmp_path / "archive.zip", tmp_path)
        assert (tmp_path / "PAMAP2_Dataset/Protocol/subject101.dat").read_bytes() == b"1 2 3\n"
        assert not (tmp_path / "PAMAP2_Dataset.zip").exists() and (tmp_path / "readme.pdf").exists()


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info, target


@pytest.mark.parametrize("content,words", [
    (zipped({"../outside.txt": b"x"}), "would lie outside"),
    (zipped({"/tmp/outside.txt": b"x"}), "would lie outside"),
    (zipped({"a/../../outside.txt": b"x"}), "would lie outside"),
    (zipped({"../folder2/outside.txt": b"x"}), "would lie outside"),          # its name begins like the folder's
    (zipped({"inner.zip": zipped({"../../outside.txt": b"x"})}), "would lie outside"),
    (zipped(dict([link("link", b"/etc/passwd")])), "is a link"),
    (zipped({"zeros": bytes(50_000_000)}), "that is no dataset"),
    (zipped({"inner.zip": zipped({"zeros": bytes(50_000_000)})}), "that is no dataset"),
    (zipped({"a": b"12345" * 1000})[:-30], "could not be unpacked"),
    (b"<html>not here</html>", "could not be unpacked"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_archives_that_leave_the_folder_link_or_burst_are_refused(tmp_path, content, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(InputError, match=words):
        unpack(tmp_path / "archive.zip", folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive.zip", "folder"]
    assert not (folder / "link").exists() and not (folder / "zeros").exists()


def test_a_broken_member_gets_no_good_name(tmp_path):
    """What was unpacked before stays; a file whose checksum is wrong is not there, nor is half of it."""
    content = bytearray(zipped({"first": b"1 2 3", "second": b"a" * 5000}, zipfile.ZIP_STORED))
    content[content.index(b"aaaa") + 4000] ^= 1
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(InputError, match="could not be unpacked"):
        unpack(tmp_path / "archive.zip", tmp_path)
    assert (tmp_path / "first").read_bytes() == b"1 2 3" and not (tmp_path / "second").exists()


def test_unpacking_again_replaces_files_of_another_size_alone(tmp_path):
    (tmp_path / "archive.zip").write_bytes(zipped({"cut": b"1 2 3 4", "whole": b"5 6 7"}))
    (tmp_path / "cut").write_bytes(b"1 2")
    (tmp_path / "whole").write_bytes(b"5 6 7")
    before = (tmp_path / "whole").stat()
    unpack(tmp_path / "archive.zip", tmp_path)
    assert (tmp_path / "cut").read_bytes() == b"1 2 3 4"
    after = (tmp_path / "whole").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_archive_that_lies_there_is_unpacked_without_fetching(server, tmp_path):
    """As an interruption between download and unpacking leaves it."""
    (tmp_path / "archive.zip").write_bytes(server.content)
    download("mhealth", server.dataset(), tmp_path, lambda line: None)
    assert server.asked == [] and (tmp_path / "MHEALTHDATASET").is_dir() and not (tmp_path / "archive.zip").exists()


def test_a_folder_that_holds_another_archive_is_downloaded_into(server, tmp_path):
    (tmp_path / ".downloaded").write_text("https://example.org/another.zip")
    download("mhealth", server.dataset(), tmp_path, lambda line: None)
    assert server.asked == [0] and (tmp_path / ".downloaded").read_text() == server.url


def test_zips_within_zips_without_end_are_refused(tmp_path):
    content = zipped({"x": b"x"})
    for _ in range(6):
        content = zipped({"inner.zip": content}, zipfile.ZIP_STORED)
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(InputError, match="zips within zips"):
        unpack(tmp_path / "archive.zip", tmp_path)


def test_a_disk_that_is_too_small_is_told_before_unpacking(tmp_path, monkeypatch):
    (tmp_path / "archive.zip").write_bytes(zipped({"a": b"12345" * 1000}))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("", (), {"free": 1000}))
    with pytest.raises(InputError, match="GB are free"):
        unpack(tmp_path / "archive.zip", tmp_path)


def test_every_public_dataset_has_an_https_archive_a_licence_and_a_citation():
    for name, dataset in DATASETS.items():
        if name != "demo":
            assert dataset.url.startswith("https://") and dataset.licence and dataset.citation
            assert dataset.sha256 is None or re.fullmatch("[0-9a-f]{64}", dataset.sha256)


def test_download_of_a_dataset_without_an_archive_is_refused_by_the_script(tmp_path):
    out = run("data_prep.py", "--download", cwd=tmp_path, expect=2)
    assert out == "data_prep.py: --download: demo has no archive\n"
