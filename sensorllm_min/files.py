"""Files: one error for whatever is wrong with one, and writes that are whole or absent."""
import json
import os
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """Something a person gave is wrong.

    Its text is one line that says what is wrong, where, and how to fix it. The scripts print it and
    exit with code 2.
    """


@contextmanager
def understanding(where):
    """Turns an error in reading the content of a file into an InputError that names the file."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{where}: the key {error} is missing")
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        name = type(error).__name__
        raise InputError(f"{where} does not hold what it should ({name}: {error})")


def read_json(path) -> dict:
    """The object in a JSON file. InputError where the file is missing or holds anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} not found or not readable")
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


@contextmanager
def write_bytes(path):
    """Opens a binary file that takes the name `path` only when all of it is written."""
    unfinished = Path(f"{path}.unfinished")
    with open(unfinished, "wb") as file:
        yield file
    os.replace(unfinished, path)


def write_text(path, text):
    """Writes a text file whole or not at all."""
    with write_bytes(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, content):
    """Writes an object as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def markdown_table(head, rows) -> str:
    """A Markdown table; a "|" inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)
