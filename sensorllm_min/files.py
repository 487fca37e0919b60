"""Files: one error for whatever is wrong with one, and writes that are whole or absent."""
import json
import os
from contextlib import contextmanager
from pathlib import Path


def brief(value) -> str:
    """A value as a message shows it: in one line, of at most 80 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


class InputError(Exception):
    """Something a person gave is wrong.

    Its text is one line that says what is wrong, where, and how to fix it. The scripts print it and
    exit with code 2.
    """

    def __str__(self):
        return " ".join(super().__str__().split())                # names of files may hold anything


@contextmanager
def understanding(where, problem="does not hold what it should", advice=""):
    """Turns whatever goes wrong in reading a person's file into an InputError that names it.

    Libraries raise errors of many kinds for a broken file, and what fails behind them is most often
    of another kind than expected: so all of them are meant. advice: how to fix it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {brief(error)}"
        if isinstance(error, KeyError):
            reason = f"the key {brief(error)} is missing"
        elif isinstance(error, FileNotFoundError):
            reason = "there is no such file"
        raise InputError(f"{where} {problem} ({reason}){advice}")


def read_json(path) -> dict:
    """The object in a JSON file. InputError where the file is missing or holds anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} not found or not readable")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({brief(error)})")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


@contextmanager
def write_bytes(path):
    """Opens a binary file that takes the name `path` only when all of it is written, and synced."""
    unfinished = Path(f"{path}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text file whole or not at all."""
    with write_bytes(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, content):
    """Writes an object as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(folder):
    """Keeps other processes out of a folder, which is made if it is missing.

    InputError where another one is in it. The lock ends with the process, however that ends. A
    system without such locks (Windows) has none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = folder.exists() and os.path.samestat(os.fstat(handle), os.stat(folder))
    except BlockingIOError:
        same = False
    except OSError:                                               # a file system without locks
        same = True
    try:
        if not same:
            raise InputError(f"another run writes into {folder} now; wait for it, or choose "
                             "another --out")
        yield
    finally:
        os.close(handle)
