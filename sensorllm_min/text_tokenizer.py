"""Text <-> token ids: the tokenizer of an LLM's directory, our special tokens, and the chat format.

Special tokens (<ts>, channel markers) never reach the underlying tokenizer: text is cut at them,
and they get the ids after the LLM's embedding matrix, however many entries the tokenizer itself
has. So nothing depends on how a tokenizer adds tokens, and their embeddings live in a small matrix
of their own.
"""
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import tokenizers

from .chat_template import ANSWER, ChatTemplate
from .files import InputError, brief, read_json, understanding

SENSOR = "<ts>"                         # stands where a sensor embedding goes
PAD = "[PAD]"

# ---- chat formats, for the built-in tokenizer and for models without a template ----

# of Llama 3
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3 = ("<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n")
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
CHATML = ("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
          "<|im_start|>assistant\n")
LLAMA2 = "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"
ZEPHYR = "<|system|>\n{system}{eos}\n<|user|>\n{user}{eos}\n<|assistant|>\n"


class ChatFormat(NamedTuple):
    """How an LLM was taught to tell a question from its answer: a chat template as strings."""
    prompt: str                         # up to the answer; with {system}, {user} and {eos}
    end: str = ""                       # the token after the answer; "": the end of text
    bos: bool = True                    # begin-of-text comes first
    tail: str = ""                      # what the answer's first word is glued to, if that matters
    trail: str = ""                     # between answer and end


CHAT_FORMATS = {
    "llama3.1": ChatFormat(LLAMA3.replace("{system}", DATES + "{system}"), end="<|eot_id|>"),
    "llama3": ChatFormat(LLAMA3, end="<|eot_id|>"),
    "chatml": ChatFormat(CHATML, end="<|im_end|>", bos=False),
    "zephyr": ChatFormat(ZEPHYR, bos=False, tail="\n"),
    "llama2": ChatFormat(LLAMA2, trail=" "),
    "plain": ChatFormat("{system}\n\nResearcher: {user}\n\nAssistant: "),
}


# ---- the tokenizer ----

def new_tokens(channels):
    """A dataset's special tokens in the order of their ids: padding, <ts>, two for each channel."""
    tokens = [PAD, SENSOR]
    for channel in channels:
        tokens += [channel.start, channel.end]
    return tokens


class TextTokenizer:
    """`backend` is a tokenizers.Tokenizer or a Pieces.

    special: ids of begin and end of text, as (bos_id, eos_ids). Token i of `added` (see new_tokens)
    gets the id vocab_size + i. chat_format is a row of CHAT_FORMATS, or a ChatTemplate; None:
    "llama3" where the tokenizer knows its headers, else "plain".
    """

    def __init__(self, backend, vocab_size, special, added, chat_format=None):
        self.backend = backend
        self.is_bpe = isinstance(backend, tokenizers.Tokenizer)   # else sentencepiece
        self.vocab_size = vocab_size                            # rows of the LLM's embedding matrix
        self.bos_id, eos_ids = special
        self.added = list(added)
        new_ids = {token: vocab_size + index for index, token in enumerate(self.added)}
        self.pad_id, self.sensor_id, *markers = new_ids.values()
        self.markers = dict(zip(markers[::2], markers[1::2]))   # {start id: end id} of each channel
        self.n_pieces = backend.get_vocab_size() if self.is_bpe else backend.vocab_size()

        known = all(self.piece_id(header) is not None for header in HEADERS)
        self.template = chat_format if isinstance(chat_format, ChatTemplate) else None
        self.chat_format = chat_format or ("llama3" if known else "plain")
        if self.template:
            self.chat_format = "of its own chat template"
        self.format = CHAT_FORMATS.get(self.chat_format)
        piece = backend.id_to_token if self.is_bpe else backend.id_to_piece
        self.bos, self.eos = piece(self.bos_id), piece(eos_ids[0])
        self.whole = new_ids                                     # pieces of text that are one token
        if not self.is_bpe:
            self.whole |= backend.extra
        for text, index in ((self.bos, self.bos_id), (self.eos, eos_ids[0])):
            if self.encode_plain(text) != [index]:            # sentencepiece sees no </s> in a text
                self.whole[text] = index
        self.cut = re.compile("(" + "|".join(map(re.escape, self.whole)) + ")")
        if self.template:
            self.example_ids = self.encode(self.template.example)
            self.starts_with_bos = self.example_ids[:1] == [self.bos_id]
            self.end_of_turn = self.end_of_template()
        else:
            self.starts_with_bos = self.format.bos
            self.end_of_turn = self.piece_id(self.format.end) if self.format.end else eos_ids[0]
        if self.end_of_turn is None and self.template:
            self.end_of_turn = eos_ids[0]
        elif self.end_of_turn is None:
            raise InputError(f"the chat format {self.chat_format} ends an answer with "
                             f"{self.format.end}, which is no token of this LLM; choose another "
                             "--chat-format")
        self.stop_ids = set(eos_ids) | {self.end_of_turn}

    def piece_id(self, piece):
        """The id of a token of the underlying tokenizer, or None."""
        if self.is_bpe:
            return self.backend.token_to_id(piece)
        index = self.backend.extra.get(piece, self.backend.piece_to_id(piece))
        return None if index == self.backend.unk_id() else index

    def end_of_template(self):
        """The first special token that the template writes after an answer, or None."""
        special = set(self.whole.values())
        if self.is_bpe:
            special |= self.backend.get_added_tokens_decoder().keys()
        end = self.template.answer(ANSWER).rpartition(ANSWER)[2]
        return next((index for index in self.encode(end) if index in special), None)

    def encode_plain(self, text):
        if self.is_bpe:
            ids = self.backend.encode(text, add_special_tokens=False).ids
        else:
            ids = self.backend.encode(text)
        if max(ids, default=0) >= self.vocab_size:
            raise InputError(f"the tokenizer gives the id {max(ids)}, the LLM has "
                             f"{self.vocab_size} embedding rows; are both from the same model?")
        return ids

    def encode(self, text) -> list[int]:
        """Text with special tokens in it -> ids. `chat` adds begin-of-text, once."""
        ids = []
        for part in self.cut.split(text):
            if part in self.whole:
                ids.append(self.whole[part])
            elif part:
                ids += self.encode_plain(part)
        return ids

    def as_text(self, text) -> str:
        """What a person typed, without control tokens: a space breaks each, "<ts>" to "< ts>"."""
        text = text.encode("utf-8", "replace").decode("utf-8")    # a terminal may give half letters
        control = set(self.whole)
        if self.is_bpe:
            added = self.backend.get_added_tokens_decoder().values()
            control |= {token.content for token in added if token.special}
        for token in sorted(control, key=len, reverse=True):
            if len(token) > 1:
                text = text.replace(token, token[0] + " " + token[1:])
        return text

    def decode(self, ids) -> str:
        """Ids -> text. Our special tokens appear as they are written, the underlying ones not."""
        text, run = "", []
        for index in map(int, ids):
            if index >= self.vocab_size:
                text += self.backend.decode(run) + self.added[index - self.vocab_size]
                run = []
            elif index < self.n_pieces:                  # rows that pad the vocabulary mean nothing
                run.append(index)
        return text + self.backend.decode(run)

    def visible(self, ids) -> str:
        """Ids -> text to look at: every special token as it is written, runs of one counted."""
        names = {index: text for text, index in self.whole.items()}
        options = {"skip_special_tokens": False} if self.is_bpe else {}
        text = ""
        for name, run in groupby(map(int, ids), names.get):
            run = list(run)
            if name is None:
                text += self.backend.decode(run, **options)
            else:
                text += name if len(run) == 1 else f"{name}*{len(run)}"
        return text

    def chat(self, system, user) -> list[int]:
        """The ids of a dialogue up to where the assistant's answer begins."""
        if self.template:
            return self.encode(self.template.prompt(system, user))
        prompt = self.format.prompt.format(system=system, user=user, eos=self.eos)
        return self.encode(self.bos + prompt if self.format.bos else prompt)

    def answer(self, text) -> list[int]:
        """The ids of the assistant's answer with the token that ends it: what is supervised."""
        if self.template:
            beyond = self.template.answer(text)
            ids, n = self.encode(self.template.example + beyond), len(self.example_ids)
            ids = ids[n:] if ids[:n] == self.example_ids else self.encode(beyond)
            end = ids.index(self.end_of_turn) if self.end_of_turn in ids else len(ids)
            return ids[:end] + [self.end_of_turn]
        tail = self.encode(self.format.tail)                   # a word after a newline has no space
        ids = self.encode(self.format.tail + text + self.format.trail)
        return ids[len(tail):] + [self.end_of_turn]


# ---- the tokenizer of a directory ----

def read_tokenizer_json(path):
    """A tokenizer.json without the padding and truncation that some carry from their training."""
    backend = tokenizers.Tokenizer.from_file(path)
    backend.no_padding()
    backend.no_truncation()
    return backend


class Pieces(sentencepiece.SentencePieceProcessor):
    """A sentencepiece model, with the tokens that a fine-tune has added behind its own."""
    extra = {}                          # text -> id

    def id_to_piece(self, index):
        added = {number: text for text, number in self.extra.items()}
        return added.get(index) or super().id_to_piece(index)


def read_tokenizer_model(path):
    """A tokenizer.model with the added_tokens.json beside it."""
    backend, added = Pieces(model_file=path), Path(path).with_name("added_tokens.json")
    if added.exists():
        tokens = read_json(added)
        wrong = [text for text, index in tokens.items() if type(index) is not int or index < 0]
        if wrong or "" in tokens:
            raise InputError(f"{added}: '{brief(wrong[0] if wrong else '')}' has no id")
        n_pieces = backend.vocab_size()                           # some files name the model's own
        backend.extra = {text: index for text, index in tokens.items() if index >= n_pieces}
    return backend


def load_backend(directory):
    readers = {"tokenizer.json": read_tokenizer_json, "tokenizer.model": read_tokenizer_model}
    for name, read in readers.items():
        path = Path(directory) / name
        if path.exists():
            with understanding(path, "is not a tokenizer that can be read"):
                return read(str(path))
    raise InputError(f"{directory} holds neither tokenizer.json nor tokenizer.model")


def tokenizer_config(directory):
    path = Path(directory) / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def read_chat_template(directory):
    """The source of a directory's chat template, or None where it has none."""
    path = Path(directory) / "chat_template.jinja"
    if path.exists():
        with understanding(path):
            return path.read_text(encoding="utf-8")
    path = path.with_name("tokenizer_config.json")
    template = tokenizer_config(directory).get("chat_template")
    with understanding(path):
        if isinstance(template, list):                            # several, by name
            named = {one["name"]: one["template"] for one in template}
            template = named.get("default")
        if not isinstance(template, str | None):
            raise TypeError(f"chat_template is {template!r}")
    return template or None


def declared_tokens(directory) -> dict:
    """{"bos_token": text, ...}: the special tokens that tokenizer_config.json names."""
    tokens = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        with understanding(Path(directory) / "tokenizer_config.json"):
            token = tokenizer_config(directory).get(key)
            token = token["content"] if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise TypeError(f"{key} is {token!r}")
        if token:
            tokens[key] = token
    return tokens


def special_id(backend, directory, key, fallback):
    """The id of bos_token or eos_token, as tokenizer_config.json names it, else config.json.

    InputError where there is none.
    """
    token = declared_tokens(directory).get(key)
    if isinstance(backend, tokenizers.Tokenizer):
        index = backend.token_to_id(token) if token else fallback
    else:
        index = backend.bos_id() if key == "bos_token" else backend.eos_id()
        if token in backend.extra:
            index = backend.extra[token]
    if index is None or index < 0:
        named = f" '{brief(token)}'" if token else ""
        raise InputError(f"{directory}: the tokenizer has no {key}{named}; one begins every "
                         "prompt, one ends every answer")
    return index


def load_text_tokenizer(
        directory, llama_config, channels, chat_format=None, template=None) -> TextTokenizer:
    """The tokenizer of an LLM directory with the special tokens of a dataset's channels.

    template: the source of a chat template, as `read_chat_template` finds it; chat_format: a row of
    CHAT_FORMATS, which comes first.
    """
    backend = load_backend(directory)
    first_eos = next(iter(llama_config.eos_ids), None)
    bos_id = special_id(backend, directory, "bos_token", llama_config.bos_id)
    eos_id = special_id(backend, directory, "eos_token", first_eos)
    eos_ids = list(dict.fromkeys([eos_id, *llama_config.eos_ids]))
    added = new_tokens(channels)
    vocab_size = llama_config.vocab_size
    if max(bos_id, *eos_ids, *getattr(backend, "extra", {}).values()) >= vocab_size:
        raise InputError(f"{directory}: a special token has an id beyond the {vocab_size} "
                         "embedding rows of the LLM; are both from the same model?")
    if template and chat_format is None:
        tokenizer = TextTokenizer(backend, vocab_size, (bos_id, eos_ids), added, "plain")
        tokens = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
        chat_format = ChatTemplate(template, tokens | declared_tokens(directory), directory)
    return TextTokenizer(backend, vocab_size, (bos_id, eos_ids), added, chat_format)


# ---- a tokenizer for a model trained from scratch ----

# What one piece of text may be at most before byte pairs are merged: a time, a word, a digit, a
# sign.
PIECES = r" ?\d+\.\d+(?=s| s)s?|[ \n]?\p{L}+|\d| ?[^\s\p{L}\d]+|\s+"


def train_backend(texts, vocab_size):
    """A byte-level BPE tokenizer with Llama 3's headers, trained on `texts`."""
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


def built_tokenizer(backend, channels, vocab_size) -> TextTokenizer:
    """TextTokenizer around a backend of `train_backend`."""
    special = backend.token_to_id("<|begin_of_text|>"), [backend.token_to_id("<|eot_id|>")]
    return TextTokenizer(backend, vocab_size, special, new_tokens(channels))
