"""Files: one error for whatever is wrong with a file, and writes that are whole or absent."""
import json
import os
from contextlib import contextmanager
from pathlib import Path


def brief(value):
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


class InputError(Exception):
    """A user error: one line that says what is wrong, where, and how to fix it."""

    def __str__(self):
        return " ".join(super().__str__().split())                # a file's name may hold a newline


@contextmanager
def as_input_error(where, problem="does not hold what it should", advice=""):
    """Turns any error in reading a user's file into an InputError that names it, with advice."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:                                    # libraries raise many kinds
        reason = f"{type(error).__name__}: {brief(error)}"
        if isinstance(error, KeyError):
            reason = f"the key {brief(error)} is missing"
        elif isinstance(error, FileNotFoundError):
            reason = "there is no such file"
        raise InputError(f"{where} {problem} ({reason}){advice}")


def read_json(path):
    """The object in a JSON file. InputError if the file is missing or holds anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} not found or not readable")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({brief(error)})")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def as_tuples(value):
    """A value of JSON with tuples for its lists: [[0.0, 1.0]] -> ((0.0, 1.0),)."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@contextmanager
def write_bytes(path):
    """Opens a binary file that takes the name `path` only once all of it is written and synced."""
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
    with write_bytes(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, content):
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(folder):
    """Makes a folder and keeps other processes out of it; InputError if one is in it already."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:                                           # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"another run writes into {folder} now; wait for it, or choose another "
                         "--out")
    except OSError:                                               # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)
