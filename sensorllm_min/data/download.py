"""The official archive of a dataset: resumable download, checks, and safe unpacking."""
import hashlib
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

from ..files import InputError, brief, understanding

BLOCK = 1 << 20
MAX_RATIO = 100                         # unpacked to packed: numbers reach 10, a zip bomb 1000
MAX_INNER_ZIPS = 4                      # the archives of UCI hold one


def progress(before, done, total, began):
    """How far a download is: "12 of 75 MB, 3.0 MB/s, 21 s left"; total may be unknown.

    before: the bytes that were there when it began.
    """
    rate = (done - before) / max(time.time() - began, 1e-9)       # bytes per second
    if not total:
        return f"{done / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s"
    seconds = (total - done) / max(rate, 1)
    left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s, {left} left"


def receive(dataset, part, say):
    """Downloads the archive to the file part, from where part ends. OSError where it breaks off."""
    before = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "sensorllm-min"}
    if before:
        headers["Range"] = f"bytes={before}-"
    request = urllib.request.Request(dataset.url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        if response.status != 206:                                # the server sends all of it again
            before = 0
        length = response.headers.get("Content-Length")
        total = before + int(length) if length else dataset.size
        done, began, said = before, time.time(), 0
        if before:
            say(f"resuming at {before / 1e6:.0f} MB")
        with open(part, "ab" if before else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                if time.time() - said > 5:
                    said = time.time()
                    say(progress(before, done, total, began))
        say(progress(before, done, total, began))
    if total and done < total:
        raise OSError(f"{done} of {total} bytes came")


def fetch(dataset, path, say):
    """Downloads the archive of a dataset to path; resumes from path.part where a run broke off.

    Raises InputError where the server cannot be reached, or size or sha256 are not the known ones.
    """
    part = Path(f"{path}.part")
    try:
        receive(dataset, part, say)
    except urllib.error.HTTPError as error:
        if error.code != 416:                                     # 416: nothing is left to send
            answer = f"{error.code} {error.reason}"
            raise InputError(f"{dataset.url}: the server answers {answer}; fetch the archive by "
                             f"hand and unpack it into {path.parent}")
    except (OSError, HTTPException) as error:             # also URLError, timeouts, resets
        raise InputError(f"{dataset.url}: {brief(error)}; run the same command again, it resumes "
                         "where this one stopped")
    problem = compare(dataset, part, path.name, say)
    if problem:
        part.unlink()
        raise InputError(f"{dataset.url}: the archive has {problem}; it was removed. Try again; if "
                         "it stays so, the source has changed: fetch and unpack it by hand")
    os.replace(part, path)


def compare(dataset, archive, name, say):
    """What size or sha256 an archive has in place of the known one, or None; says both."""
    size = archive.stat().st_size
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for what, found, known in (("bytes", size, dataset.size), ("sha256", digest, dataset.sha256)):
        if known is not None and found != known:
            return f"{what} {found}, expected {known}"
    unchecked = "" if dataset.sha256 else " (there is no known value to compare it with)"
    say(f"{name}: {size} bytes, sha256 {digest}{unchecked}")
    return None


def check_archive(archive, members, folder):
    """InputError for a zip that would fill the disk, leave the folder, or make links."""
    packed, size = os.path.getsize(archive), sum(member.file_size for member in members)
    free = shutil.disk_usage(folder).free
    if size > MAX_RATIO * packed:
        raise InputError(f"{archive}: {packed} bytes would unpack to {size}; that is no dataset")
    if size > free:
        raise InputError(f"{archive} needs {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB "
                         "are free")
    for member in members:
        what = f"{archive}: '{brief(member.filename)}'"
        path = (folder / member.filename).resolve()
        if path == folder or not path.is_relative_to(folder):
            raise InputError(f"{what} would lie outside {folder}; not unpacked")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{what} is a link; not unpacked")


def unpack(archive, folder, inner_zips=0):
    """Unpacks a zip into folder, and the zips within it. Raises InputError for unsafe archives.

    A file is there whole or not at all; one that is there already with its size is left alone.
    """
    folder = Path(folder).resolve()
    with understanding(archive, "could not be unpacked", "; remove it and try again"):
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            check_archive(archive, members, folder)
            for member in members:
                path = (folder / member.filename).resolve()
                if path.exists() and path.stat().st_size == member.file_size:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_name(path.name + ".unfinished")
                with zipped.open(member) as source, open(unfinished, "wb") as target:
                    shutil.copyfileobj(source, target, BLOCK)     # zipfile stops at file_size
                os.replace(unfinished, path)
                if path.suffix == ".zip":
                    if inner_zips == MAX_INNER_ZIPS:
                        raise InputError(f"{archive}: zips within zips within zips; unpack it by "
                                         "hand")
                    unpack(path, path.parent, inner_zips + 1)
                    path.unlink()


def download(name, dataset, raw, say=print):
    """Fetches and unpacks the archive of a dataset into raw, unless that was done before."""
    if not dataset.url:
        raise InputError(f"--download: {name} has no archive")
    folder = Path(raw)
    done = folder / ".downloaded"                                 # holds what was unpacked here
    if done.exists() and done.read_text() == dataset.url:
        say(f"{folder} already holds the archive")
        return
    say(f"{name}: {dataset.url}\nlicence: {dataset.licence}\nplease cite: {dataset.citation}")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "archive.zip"
    if not archive.exists():
        fetch(dataset, archive, say)
    elif problem := compare(dataset, archive, archive, say):
        raise InputError(f"{archive} has {problem}; remove it to fetch it again")
    say(f"unpacking into {folder}")
    unpack(archive, folder)
    done.write_text(dataset.url)
    archive.unlink()
