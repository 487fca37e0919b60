"""The official archive of a dataset: fetched, checked against its sha256, and unpacked."""
import zipfile
from pathlib import Path

from torch.hub import download_url_to_file

from ..files import InputError, as_input_error


def unpack(archive, folder):
    """Unpacks a zip into folder, and the zips in it (UCI ships some), which are then removed."""
    with (as_input_error(archive, "could not be unpacked", "; remove it and try again"),
          zipfile.ZipFile(archive) as zipped):
        paths = [Path(zipped.extract(name, folder)) for name in zipped.namelist()]
    for path in paths:                                            # extract keeps them in the folder
        if path.suffix == ".zip":
            unpack(path, path.parent)
            path.unlink()


def download(name, dataset, raw, say=print):
    """Fetches the archive of a dataset, checks its sha256, and unpacks it, unless that was done."""
    if not dataset.url:
        raise InputError(f"--download: {name} has no archive")
    folder = Path(raw)
    archive = folder / "archive.zip"
    done = folder / ".downloaded"                                 # holds the address of the archive
    if done.exists() and done.read_text() == dataset.url:
        say(f"{folder} already holds the archive")
        return
    say(f"{name}: {dataset.url}\nlicence: {dataset.licence}\nplease cite: {dataset.citation}")
    folder.mkdir(parents=True, exist_ok=True)
    if not archive.exists():                                      # it gets its name when complete
        with as_input_error(dataset.url, "could not be fetched",
                           f"; try again, or unpack it by hand into {folder}"):
            download_url_to_file(dataset.url, str(archive), hash_prefix=dataset.sha256)
    say(f"unpacking into {folder}")
    unpack(archive, folder)
    archive.unlink()
    done.write_text(dataset.url)
