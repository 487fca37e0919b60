"""What every script does around its main: options from a dataclass, mistakes in one line."""
import argparse
import math
import os
import signal
import sys
import time
from dataclasses import field, fields
from pathlib import Path

import torch.distributed as dist

from .files import InputError

LOST_PEER = ("onnect", "gloo", "NCCL", "timed out", "eset")       # in the words of gloo and nccl


class Stopped(Exception):
    """The run was asked to end (SIGTERM) and has saved what it needs to resume."""


def run_script(main):
    """Calls main; what a person did wrong ends in one line and exit code 2, without a traceback.

    Of several processes the first one prints it. Another waits a little, until torchrun ends it,
    and prints only if it is still running then: the mistake is on its side alone.
    """
    sys.stdout.reconfigure(errors="backslashreplace")             # a console may lack a letter
    code, message = 0, None
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        main()
    except (InputError, OSError) as error:                   # the text of an OSError names the file
        code, message = 2, error
    except RuntimeError as error:
        if not dist.is_initialized() or not any(word in str(error) for word in LOST_PEER):
            raise
        reason = str(error).splitlines()[0][:200]
        code = 1
        message = f"another process died or cannot be reached; this one stops, too ({reason})"
    except Stopped as stopped:
        code, message = 128 + signal.SIGTERM, stopped if first else None
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    if message is not None:
        if not first:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        line = " ".join(str(message).split())                     # the name of a file may break it
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr, flush=True)
    if dist.is_initialized():
        # Everything is written. A failed process must not wait for the collectives of the others,
        # and a DDP wrapper that outlives its process group sometimes aborts when Python takes it
        # down.
        os._exit(code)
    sys.exit(code)


# ---- options: the fields of a frozen dataclass ----

def option(default, help, **settings):
    """A field of a settings dataclass with the help text and further arguments of argparse.

    A default of False makes a flag; any default but None is named in the help.
    """
    if default is False:
        settings["action"] = "store_true"
    elif default is not None:
        help = f"{help} (default {default})"
    return field(default=default, metadata={"help": help, **settings})


def read_settings(settings_class, description):
    """The command line as an object of the dataclass: an option --some-name for each `option`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for one in fields(settings_class):
        if one.metadata:
            name = "--" + one.name.replace("_", "-")
            parser.add_argument(name, default=one.default, **one.metadata)
    return settings_class(**vars(parser.parse_args()))


# ---- types of options: a ValueError becomes one line and exit code 2 ----

def count(text):
    """A whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def amount(text):
    """A finite number of at least 0."""
    if not (math.isfinite(float(text)) and float(text) >= 0):
        raise ValueError
    return float(text)


def seed(text):
    """A whole number of at least 0."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def some_of(option, noun, known, sign=",", words={}):
    """A type, for an option that takes some of `known`, joined by a sign: text -> a tuple of them.

    words: what may be given instead, and its value, such as {"all": (...)}. InputError for another
    text; in it `noun` says what they are, such as "parts".
    """
    def parse(text):
        if text in words:
            return words[text]
        names = tuple(text.split(sign))
        if not set(names) <= set(known):
            choices = ", ".join([*known, f"joined by '{sign}'"])
            others = "".join(f", or {word}" for word in words)
            raise InputError(f"{option} {text}: the {noun} are {choices}{others}")
        return names

    return parse
