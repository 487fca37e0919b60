"""The official archive of a dataset: fetched so that an interruption costs nothing, checked, and unpacked safely."""
import hashlib
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from .config import InputError

BLOCK = 1 << 20
MAX_RATIO = 100                     # an honest archive of numbers shrinks to a tenth; a bomb to a thousandth
MAX_INNER_ZIPS = 4                  # the archives of UCI hold one


def clock_time(seconds):
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def say_progress(say, done, total, began, before):
    """A line: done, rate, time left. before: bytes that lay there already."""
    rate = (done - before) / max(time.time() - began, 1e-9)
    left = f", {clock_time((total - done) / max(rate, 1))} left" if total else ""
    say(f"{done / 1e6:.0f}{f' of {total / 1e6:.0f}' if total else ''} MB, {rate / 1e6:.1f} MB/s{left}")


def fetch(dataset, path, say):
    """Downloads the archive of a dataset to path. What an interrupted run left in path.part is gone on with.

    InputError where the server cannot be reached or the size or the sha256 is not the known one.
    """
    part = Path(f"{path}.part")
    before = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "sensorllm-min", **({"Range": f"bytes={before}-"} if before else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(dataset.url, headers=headers), timeout=60) as response:
            if response.status != 206:                                        # the server sends all of it again
                before = 0
            length = response.headers.get("Content-Length")
            total = before + int(length) if length else dataset.size
            done, began, said = before, time.time(), 0
            if before:
                say(f"going on at {before / 1e6:.0f} MB")
            with open(part, "ab" if before else "wb") as file:
                while block := response.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    if time.time() - said > 5:
                        said = time.time()
                        say_progress(say, done, total, began, before)
            say_progress(say, done, total, began, before)
            if total and done < total:
                raise OSError(f"{done} of {total} bytes came")
    except urllib.error.HTTPError as error:
        if error.code != 416:                                                 # 416: nothing is left to send
            raise InputError(f"{dataset.url}: the server answers {error.code} {error.reason}; fetch the archive by hand and "
                             f"unpack it into {path.parent}")
    except OSError as error:                                                  # URLError, timeouts and resets are OSErrors
        raise InputError(f"{dataset.url}: {error}; run the same command again, it goes on where this one stopped")
    size, digest = part.stat().st_size, sha256(part)
    for what, found, known in (("bytes", size, dataset.size), ("sha256", digest, dataset.sha256)):
        if known is not None and found != known:
            part.unlink()
            raise InputError(f"{dataset.url}: the archive has {what} {found}, expected {known}; it was removed. Try again; if "
                             "it stays so, the source has changed: fetch and unpack it by hand")
    say(f"{path.name}: {size} bytes, sha256 {digest}" + ("" if dataset.sha256 else " (none is known to hold it against)"))
    os.replace(part, path)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive, folder, inner_zips=0):
    """Unpacks a zip into folder, and the zips within it. InputError for what leaves the folder, links, or bombs.

    Each file is written beside its place and moved there when whole; one that is there with its size is left.
    """
    folder = Path(folder).resolve()
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            packed, size = os.path.getsize(archive), sum(member.file_size for member in members)
            if size > MAX_RATIO * packed:
                raise InputError(f"{archive}: {packed} bytes would unpack to {size}; that is no dataset")
            if size > (free := shutil.disk_usage(folder).free):
                raise InputError(f"{archive} needs {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free")
            for member in members:
                path = (folder / member.filename).resolve()
                if not path.is_relative_to(folder):
                    raise InputError(f"{archive}: '{member.filename}' would lie outside {folder}; not unpacked")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise InputError(f"{archive}: '{member.filename}' is a link; not unpacked")
                if path.exists() and path.stat().st_size == member.file_size:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_name(path.name + ".unfinished")
                with zipped.open(member) as source, open(unfinished, "wb") as target:
                    shutil.copyfileobj(source, target, BLOCK)                 # no more than file_size: zipfile stops there
                os.replace(unfinished, path)
                if path.suffix == ".zip":
                    if inner_zips == MAX_INNER_ZIPS:
                        raise InputError(f"{archive}: zips within zips within zips; unpack it by hand")
                    unpack(path, path.parent, inner_zips + 1)
                    path.unlink()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive} could not be unpacked ({type(error).__name__}: {error}); remove it and try again")


def download(name, dataset, raw, say=print):
    """Fetches and unpacks the archive of a dataset into raw; does nothing where that was done before."""
    if not dataset.url:
        raise InputError(f"--download: {name} has no archive")
    folder = Path(raw)
    done = folder / ".downloaded"                                             # holds what was unpacked here
    if done.exists() and done.read_text() == dataset.url:
        say(f"{folder} holds the archive already")
        return
    say(f"{name}: {dataset.url}\nlicence: {dataset.licence}\nplease cite: {dataset.citation}")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "archive.zip"
    if not archive.exists():
        fetch(dataset, archive, say)
    say(f"unpacking into {folder}")
    unpack(archive, folder)
    done.write_text(dataset.url)
    archive.unlink()
