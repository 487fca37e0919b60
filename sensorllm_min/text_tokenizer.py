"""Text <-> token ids: the tokenizer of an LLM's directory, our special tokens on top, and the chat format.

Special tokens (<ts>, channel markers) never reach the underlying tokenizer: text is cut at them, and they get the
ids behind the LLM's embedding matrix, however many entries the tokenizer itself has. So nothing depends on how a
tokenizer adds tokens, and the new rows can live in a small matrix of their own.
"""
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import tokenizers

from .config import InputError, read_json

SENSOR = "<ts>"                                                               # stands where a sensor embedding goes
PAD = "[PAD]"
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")  # Llama 3's chat format
LLAMA3 = ("<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
          "{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


class ChatFormat(NamedTuple):
    """How an LLM was taught to tell a question from its answer: the models' own `chat_template`, as plain strings."""
    marker: str             # stands in the chat_template of such a model
    prompt: str             # up to where the answer begins; with {system}, {user} and {eos}
    end: str = ""           # the token after the answer, or none: the end of text
    bos: bool = True        # begin-of-text comes first
    tail: str = ""          # what the answer's first word is glued to, where the tokenizer minds
    trail: str = ""         # between answer and end


CHAT_FORMATS = {            # the first whose marker is found
    "llama3.1": ChatFormat("Cutting Knowledge Date", LLAMA3.replace(
        "{system}", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{system}"), "<|eot_id|>"),
    "llama3": ChatFormat("<|start_header_id|>", LLAMA3, "<|eot_id|>"),
    "chatml": ChatFormat("<|im_start|>", "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
                         "<|im_start|>assistant\n", "<|im_end|>", bos=False),
    "zephyr": ChatFormat("<|assistant|>", "<|system|>\n{system}{eos}\n<|user|>\n{user}{eos}\n<|assistant|>\n", bos=False,
                         tail="\n"),
    "llama2": ChatFormat("[INST]", "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]", trail=" "),
    "plain": ChatFormat("", "{system}\n\nResearcher: {user}\n\nAssistant: ")}


def new_tokens(channels):
    """The special tokens of a dataset, in the order of their ids: padding, placeholder, each channel's two markers."""
    return [PAD, SENSOR] + [marker for channel in channels for marker in (channel.start, channel.end)]


class TextTokenizer:
    """`backend` is a tokenizers.Tokenizer or a SentencePieceProcessor; new token i gets the id vocab_size + i.

    bos and eos are ids. chat_format is a row of CHAT_FORMATS; None: "llama3" where the tokenizer knows its headers,
    else "plain".
    """

    def __init__(self, backend, vocab_size, bos_id, eos_ids, added, chat_format=None):
        self.backend = backend
        self.vocab_size = vocab_size                                          # rows of the LLM's embedding matrix
        self.bos_id, self.added = bos_id, list(added)
        self.new_ids = {token: vocab_size + index for index, token in enumerate(self.added)}
        self.n_pieces = backend.get_vocab_size() if isinstance(backend, tokenizers.Tokenizer) else backend.vocab_size()
        self.pad_id, self.sensor_id = self.new_ids[PAD], self.new_ids[SENSOR]
        known = all(self.piece_id(header) is not None for header in HEADERS)
        self.chat_format = chat_format or ("llama3" if known else "plain")
        self.format = CHAT_FORMATS[self.chat_format]
        piece = backend.id_to_token if isinstance(backend, tokenizers.Tokenizer) else backend.id_to_piece
        self.bos, self.eos = piece(bos_id), piece(eos_ids[0])
        self.whole = dict(self.new_ids)                                       # pieces of text that are one token
        for text, index in ((self.bos, bos_id), (self.eos, eos_ids[0])):
            if self.encode_plain(text) != [index]:                            # sentencepiece does not see </s> in a text
                self.whole[text] = index
        self.cut = re.compile("(" + "|".join(map(re.escape, self.whole)) + ")")
        self.end_of_turn = self.piece_id(self.format.end) if self.format.end else eos_ids[0]
        if self.end_of_turn is None:
            raise InputError(f"the chat format {self.chat_format} ends an answer with {self.format.end}, "
                             "which is no token of this LLM; choose another --chat-format")
        self.stop_ids = set(eos_ids) | {self.end_of_turn}

    def piece_id(self, piece):
        """The id of a token of the underlying tokenizer, or None."""
        if isinstance(self.backend, tokenizers.Tokenizer):
            return self.backend.token_to_id(piece)
        index = self.backend.piece_to_id(piece)
        return None if index == self.backend.unk_id() else index

    def encode_plain(self, text):
        if isinstance(self.backend, tokenizers.Tokenizer):
            ids = self.backend.encode(text, add_special_tokens=False).ids
        else:
            ids = self.backend.encode(text)
        if max(ids, default=0) >= self.vocab_size:
            raise InputError(f"the tokenizer gives the id {max(ids)}, the LLM has {self.vocab_size} embedding rows; "
                             "are both from the same model?")
        return ids

    def encode(self, text):
        """Text with special tokens in it -> ids. Begin-of-text is not added: the formats below do it, once."""
        ids = []
        for part in self.cut.split(text):
            if part in self.whole:
                ids.append(self.whole[part])
            elif part:
                ids += self.encode_plain(part)
        return ids

    def decode(self, ids):
        """Ids -> text. New tokens come out as they are written; the underlying special tokens are left out."""
        text, run = "", []
        for index in [*map(int, ids), None]:
            if index is not None and index < self.vocab_size:
                if index < self.n_pieces:                                     # rows that pad the vocabulary mean nothing
                    run.append(index)
                continue
            text += self.backend.decode(run)
            text += "" if index is None else self.added[index - self.vocab_size]
            run = []
        return text

    def visible(self, ids):
        """Ids -> text with every special token as it is written, runs of one counted: to look at."""
        names = {index: text for text, index in self.whole.items()}
        options = {"skip_special_tokens": False} if isinstance(self.backend, tokenizers.Tokenizer) else {}
        text = ""
        for name, run in groupby(map(int, ids), names.get):
            run = list(run)
            text += self.backend.decode(run, **options) if name is None else name + (f"*{len(run)}" if len(run) > 1 else "")
        return text

    def chat(self, system, user):
        """The ids of a dialogue up to where the assistant's answer begins: two turns, as the LLM was taught."""
        return self.encode(self.bos * self.format.bos + self.format.prompt.format(system=system, user=user, eos=self.eos))

    def answer(self, text):
        """The ids of the assistant's answer with the token that ends it: what is supervised."""
        tail = self.encode(self.format.tail)                                  # a word after a newline has no space
        return self.encode(self.format.tail + text + self.format.trail)[len(tail):] + [self.end_of_turn]


def read_tokenizer_json(path):
    """A tokenizer.json without the padding and the truncation that some carry from their training."""
    backend = tokenizers.Tokenizer.from_file(path)
    backend.no_padding()
    backend.no_truncation()
    return backend


def load_backend(directory):
    directory = Path(directory)
    for name, load in (("tokenizer.json", read_tokenizer_json),
                       ("tokenizer.model", lambda path: sentencepiece.SentencePieceProcessor(model_file=path))):
        if (directory / name).exists():
            try:
                return load(str(directory / name))
            except Exception as error:                                        # both libraries raise bare Exceptions
                raise InputError(f"{directory / name} is not a tokenizer that can be read ({error})")
    raise InputError(f"{directory} holds neither tokenizer.json nor tokenizer.model")


def tokenizer_config(directory):
    path = Path(directory) / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def declared_token(directory, key):
    """The text of bos_token or eos_token in tokenizer_config.json, or None."""
    token = tokenizer_config(directory).get(key)
    return token["content"] if isinstance(token, dict) else token


def declared_format(directory):
    """The row of CHAT_FORMATS that a directory's chat template is in, or None where it has no template."""
    path = Path(directory) / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else tokenizer_config(directory).get("chat_template")
    if isinstance(template, list):                                            # several, by name
        template = next((row["template"] for row in template if row["name"] == "default"), None)
    return template and next(name for name, row in CHAT_FORMATS.items() if row.marker in template)


def load_text_tokenizer(directory, llama_config, channels, chat_format=None):
    """The tokenizer of an LLM directory with the special tokens of a dataset's channels.

    Begin and end of text are what tokenizer_config.json names, else what config.json names. InputError without them.
    chat_format: a row of CHAT_FORMATS, as `declared_format` tells.
    """
    backend = load_backend(directory)
    special = {}
    for key, fallback in (("bos_token", llama_config.bos_id), ("eos_token", next(iter(llama_config.eos_ids), None))):
        token = declared_token(directory, key)
        if isinstance(backend, tokenizers.Tokenizer):
            special[key] = backend.token_to_id(token) if token else fallback
        else:
            special[key] = backend.bos_id() if key == "bos_token" else backend.eos_id()
        if special[key] is None or special[key] < 0:
            raise InputError(f"{directory}: the tokenizer has no {key}"
                             + (f" '{token}'" if token else "") + "; one begins every prompt, one ends every answer")
    eos_ids = dict.fromkeys([special["eos_token"], *llama_config.eos_ids])
    return TextTokenizer(backend, llama_config.vocab_size, special["bos_token"], list(eos_ids), new_tokens(channels),
                         chat_format)


# What one piece of text may be at most, before byte pairs are merged within it: a time, a word, a digit, a sign.
PIECES = r" ?\d+\.\d+(?=s| s)s?|[ \n]?\p{L}+|\d| ?[^\s\p{L}\d]+|\s+"


def train_backend(texts, vocab_size):
    """A byte-level BPE tokenizer with Llama 3's headers, learned from `texts`: for a model trained from scratch."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(HEADERS), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts, trainer)
    return backend


def built_tokenizer(backend, channels, vocab_size):
    """TextTokenizer around a backend of `train_backend`."""
    eot = backend.token_to_id("<|eot_id|>")
    return TextTokenizer(backend, vocab_size, backend.token_to_id("<|begin_of_text|>"), [eot], new_tokens(channels))
