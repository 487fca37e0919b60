"""What every script does around its main: options from a dataclass, mistakes in one line."""
import argparse
import os
import signal
import sys
import time
import warnings
from dataclasses import field, fields
from pathlib import Path

import torch.distributed as dist

from .files import InputError


class Stopped(Exception):
    """The run was asked to end (SIGTERM) and has saved what it needs to resume."""


def run_script(main):
    """Runs main; user errors print one line and exit with code 2, without a traceback.

    Of several processes the first prints it. Another one that torchrun has not ended after a few
    seconds prints it too, since the error is its own."""
    sys.stdout.reconfigure(errors="backslashreplace")             # a console may lack a letter
    warnings.formatwarning = lambda message, *where: f"{message}\n"
    first = int(os.environ.get("RANK", 0)) == 0
    code, message = 0, None
    try:
        main()
    except (InputError, OSError) as error:                   # the text of an OSError names the file
        code = 2
        message = error
    except Stopped as stopped:
        code = 128 + signal.SIGTERM
        message = stopped if first else None
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    if message is not None:
        if not first:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        line = " ".join(str(message).split())                     # a file's name may hold a newline
        print(
            f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr, flush=True)
    if dist.is_initialized():
        os._exit(code)                   # without waiting for the collectives of other processes
    sys.exit(code)


def option(default, help, **settings):
    """A field of a settings dataclass, with arguments of argparse; a default of False is a flag."""
    if default is False:
        settings["action"] = "store_true"
    elif default is not None:
        help = f"{help} (default {default})"
    return field(default=default, metadata={"help": help, **settings})


def read_settings(settings_class, description):
    """Reads the command line -> an object of the dataclass, with --some-name for each `option`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for one in fields(settings_class):
        if one.metadata:
            name = "--" + one.name.replace("_", "-")
            parser.add_argument(name, default=one.default, **one.metadata)
    return settings_class(**vars(parser.parse_args()))


def number_type(name, kind, least, most=sys.float_info.max):
    """A type for an option; argparse makes one line of its ValueError: "invalid NAME value"."""
    def parse(text):
        if not least <= kind(text) <= most:
            raise ValueError
        return kind(text)

    parse.__name__ = name
    return parse


count = number_type("count", int, 1)
seed = number_type("seed", int, 0)
amount = number_type("amount", float, 0)
positive = number_type("positive", float, sys.float_info.min)
probability = number_type("probability", float, sys.float_info.min, 1)


def some_of(option, noun, known, sign=",", words={}):
    """A type for an option: some of `known`, joined by a sign -> a tuple of them.
    words: {text: value} that may be given instead."""
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
