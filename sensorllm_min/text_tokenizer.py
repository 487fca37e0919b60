"""Text <-> token ids: the tokenizer of an LLM's directory, our special tokens, and dialogues.

Special tokens (<ts>, channel markers) never reach the underlying tokenizer: text is cut at them,
and they get the ids after the LLM's embedding matrix. So nothing depends on how a tokenizer adds
tokens, and their embeddings live in a small matrix of their own.
"""
import re
from itertools import groupby
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .chat_template import ANSWER, HEADERS, LLAMA3, PLAIN, ChatTemplate
from .files import InputError, as_input_error, brief, read_json

SENSOR = "<ts>"                         # the placeholder of a sensor embedding
PAD = "[PAD]"


def new_tokens(channels):
    """A dataset's special tokens in the order of their ids."""
    tokens = [PAD, SENSOR]
    for channel in channels:
        tokens += [channel.start, channel.end]
    return tokens


class BytePairs:
    """A tokenizer of the package tokenizers: tokenizer.json, as of Llama 3 and SmolLM."""

    def __init__(self, backend):
        backend.no_padding()                                      # some files ask for both
        backend.no_truncation()
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        self.special = {token.content: index for index, token in added.items() if token.special}
        self.extra = {}
        self.n_pieces = backend.get_vocab_size()
        self.bos_id = self.eos_id = None                          # the file does not name them

    def encode(self, text):
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids, with_special=False):
        return self.backend.decode(ids, skip_special_tokens=not with_special)

    def piece_id(self, piece):
        return self.backend.token_to_id(piece)

    def piece(self, index):
        return self.backend.id_to_token(index)


class Pieces:
    """A sentencepiece model: tokenizer.model, as of Llama 2.
    extra: {text: id} of the tokens that a fine-tune added after the model's own."""

    def __init__(self, backend, extra):
        self.backend = backend
        self.extra = extra
        self.special = extra
        self.n_pieces = backend.vocab_size()
        self.bos_id = backend.bos_id()
        self.eos_id = backend.eos_id()

    def encode(self, text):
        return self.backend.encode(text)

    def decode(self, ids, with_special=False):
        return self.backend.decode(ids)

    def piece_id(self, piece):
        index = self.extra.get(piece, self.backend.piece_to_id(piece))
        return None if index == self.backend.unk_id() else index

    def piece(self, index):
        texts = {number: text for text, number in self.extra.items()}
        return texts.get(index) or self.backend.id_to_piece(index)


class TextTokenizer:
    """Text with special tokens <-> ids, and dialogues as the LLM was taught to read them.

    backend: BytePairs or Pieces; special: the ids (bos_id, eos_ids); added: our special tokens (see
    new_tokens), of which token i gets the id vocab_size + i; template: the Jinja source of a chat
    template, None for LLAMA3 or PLAIN; where: the model's directory, for messages."""

    def __init__(self, backend, vocab_size, special, added, template=None, where="the tokenizer"):
        self.backend = backend
        self.vocab_size = vocab_size                              # rows of the LLM's embeddings
        self.bos_id, eos_ids = special
        self.added = list(added)
        new_ids = {token: vocab_size + index for index, token in enumerate(self.added)}
        self.pad_id, self.sensor_id, *markers = new_ids.values()
        self.markers = dict(zip(markers[::2], markers[1::2]))     # {start id: end id} of channels
        self.bos = backend.piece(self.bos_id)
        self.eos = backend.piece(eos_ids[0])
        self.whole = new_ids | backend.extra                      # texts that are one token
        for text, index in ((self.bos, self.bos_id), (self.eos, eos_ids[0])):
            if backend.encode(text) != [index]:                   # sentencepiece spells out </s>
                self.whole[text] = index
        alternatives = "|".join(map(re.escape, self.whole))
        self.cut = re.compile(f"({alternatives})")
        if template is None:
            has_headers = all(backend.piece_id(header) is not None for header in HEADERS)
            template = LLAMA3 if has_headers else PLAIN
        tokens = {"bos_token": self.bos, "eos_token": self.eos}
        self.template = ChatTemplate(template, tokens, where)
        self.example_ids = self.encode(self.template.example)
        self.starts_with_bos = self.example_ids[:1] == [self.bos_id]
        ending = self.template.answer(ANSWER).rpartition(ANSWER)[2]
        special_ids = {*self.whole.values(), *backend.special.values()}
        ends = [index for index in self.encode(ending) if index in special_ids]
        self.end_of_turn = ends[0] if ends else eos_ids[0]
        self.stop_ids = {*eos_ids, self.end_of_turn}

    def encode(self, text):
        """Text with special tokens in it -> ids. Adds no begin-of-text."""
        ids = []
        for part in self.cut.split(text):
            if part in self.whole:
                ids.append(self.whole[part])
            elif part:
                plain = self.backend.encode(part)
                if max(plain, default=0) >= self.vocab_size:
                    raise InputError(f"the tokenizer gives the id {max(plain)}, the LLM has "
                                     f"{self.vocab_size} embedding rows; are both from one model?")
                ids += plain
        return ids

    def as_text(self, text):
        """What a person typed, without control tokens: a space breaks each, "<ts>" to "< ts>"."""
        text = text.encode("utf-8", "replace").decode("utf-8")    # a terminal may give half letters
        control = {*self.whole, *self.backend.special}
        for token in sorted(control, key=len, reverse=True):
            if len(token) > 1:
                text = text.replace(token, token[0] + " " + token[1:])
        return text

    def decode(self, ids):
        """Ids -> text. Our special tokens are written out, those of the LLM are left out."""
        text = ""
        run = []
        for index in map(int, ids):
            if index >= self.vocab_size:
                text += self.backend.decode(run)
                text += self.added[index - self.vocab_size]
                run = []
            elif index < self.backend.n_pieces:           # rows that pad the vocabulary are no text
                run.append(index)
        return text + self.backend.decode(run)

    def visible(self, ids):
        """Ids -> text to look at: all special tokens are written out, repeated ones are counted."""
        names = {index: text for text, index in self.whole.items()}
        text = ""
        for name, run in groupby(map(int, ids), names.get):
            run = list(run)
            if name is None:
                text += self.backend.decode(run, with_special=True)
            elif len(run) == 1:
                text += name
            else:
                text += f"{name}*{len(run)}"
        return text

    def chat(self, system, user):
        return self.encode(self.template.dialogue(system, user))

    def answer(self, text):
        """The ids of the assistant's answer with the token that ends it: what is supervised."""
        after = self.template.answer(text)
        ids = self.encode(self.template.example + after)
        n = len(self.example_ids)
        if ids[:n] == self.example_ids:
            ids = ids[n:]
        else:                                                     # letters merge with the prompt's
            ids = self.encode(after)
        if self.end_of_turn in ids:
            ids = ids[:ids.index(self.end_of_turn)]
        return ids + [self.end_of_turn]


def load_backend(directory):
    """The BytePairs or Pieces of a directory. Raises an InputError if it has neither."""
    path = Path(directory, "tokenizer.json")
    if path.exists():
        with as_input_error(path, "is not a tokenizer that can be read"):
            return BytePairs(tokenizers.Tokenizer.from_file(str(path)))
    path = Path(directory, "tokenizer.model")
    if not path.exists():
        raise InputError(f"{directory} holds neither tokenizer.json nor tokenizer.model")
    with as_input_error(path, "is not a tokenizer that can be read"):
        backend = sentencepiece.SentencePieceProcessor(model_file=str(path))
    path = Path(directory, "added_tokens.json")
    added = read_json(path) if path.exists() else {}
    n_pieces = backend.vocab_size()                               # some repeat the model's own
    with as_input_error(path):
        extra = {text: index for text, index in added.items() if index >= n_pieces}
    return Pieces(backend, extra)


def tokenizer_config(directory):
    path = Path(directory, "tokenizer_config.json")
    return read_json(path) if path.exists() else {}


def read_chat_template(directory):
    """The source of a directory's chat template; None without one."""
    path = Path(directory, "chat_template.jinja")
    if path.exists():
        with as_input_error(path):
            return path.read_text(encoding="utf-8")
    template = tokenizer_config(directory).get("chat_template")
    with as_input_error(path.with_name("tokenizer_config.json")):
        if isinstance(template, list):                            # several, by name
            template = {one["name"]: one["template"] for one in template}.get("default")
        if not isinstance(template, str | None):
            raise TypeError(f"chat_template is {template!r}")
    return template or None


def declared_token(directory, key):
    """The text of bos_token or eos_token in tokenizer_config.json; None if it names none."""
    with as_input_error(Path(directory, "tokenizer_config.json")):
        token = tokenizer_config(directory).get(key)
        if isinstance(token, dict):
            token = token["content"]
        if not isinstance(token, str | None):
            raise TypeError(f"{key} is {token!r}")
    return token


def special_id(backend, directory, key, own, fallback):
    """The id of bos_token or eos_token: as declared, or the tokenizer's own, or config.json's."""
    token = declared_token(directory, key)
    if token:
        index = backend.piece_id(token)
    else:
        index = fallback if own is None else own
    if index is None or index < 0:
        raise InputError(f"{directory}: the tokenizer has no {key} ({brief(token)}); one begins "
                         "every prompt, one ends every answer")
    return index


def load_text_tokenizer(
        directory, llama_config, added=(PAD, SENSOR), template=None):
    """The tokenizer of an LLM directory; added, template: see TextTokenizer."""
    backend = load_backend(directory)
    first_eos = next(iter(llama_config.eos_ids), None)
    bos_id = special_id(backend, directory, "bos_token", backend.bos_id, llama_config.bos_id)
    eos_id = special_id(backend, directory, "eos_token", backend.eos_id, first_eos)
    eos_ids = [eos_id, *llama_config.eos_ids]
    vocab_size = llama_config.vocab_size
    if max(bos_id, *eos_ids, *backend.extra.values()) >= vocab_size:
        raise InputError(f"{directory}: a special token has an id beyond the {vocab_size} "
                         "embedding rows of the LLM; are both from the same model?")
    return TextTokenizer(backend, vocab_size, (bos_id, eos_ids), added, template, directory)


# The largest pieces of text before byte pairs are merged: a time, a word, a digit, a sign.
PIECES = r" ?\d+\.\d+(?=s| s)s?|[ \n]?\p{L}+|\d| ?[^\s\p{L}\d]+|\s+"


def train_backend(texts, vocab_size):
    """A byte-level BPE tokenizer with Llama 3's headers, trained on `texts`."""
    split = pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(HEADERS),
        initial_alphabet=as_bytes.alphabet(),
        show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def built_tokenizer(backend, added, vocab_size):
    """The TextTokenizer around a backend of `train_backend`."""
    bos_id = backend.token_to_id("<|begin_of_text|>")
    eos_id = backend.token_to_id("<|eot_id|>")
    return TextTokenizer(BytePairs(backend), vocab_size, (bos_id, [eos_id]), added)
