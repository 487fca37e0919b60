"""Our tokenizer front against transformers': ids, special tokens, chat formats, what is supervised, broken directories.

The tokenizers are of the three kinds that LLaMA models have, trained here on the texts that the models see, in a
blink; one more test holds the true ones, where they lie beside the project, to the same checks.
"""
import io
import json
import re
from typing import NamedTuple

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sensorllm_min.data import texts as trend_text
from sensorllm_min.config import LlamaConfig
from sensorllm_min.files import InputError
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.text_tokenizer import (
    SENSOR, built_tokenizer, load_text_tokenizer, new_tokens, read_chat_template, train_backend)

CHANNELS = DATASETS["usc-had"].channels
ADDED = new_tokens(CHANNELS)
TEXTS = ["Once upon a time", "0.0s to 0.06s: rising\n0.06s to 1.2s: steady\n\nOverall, it rises.", " leading space",
         "x-axis accelerometer: Mean=-0.01234567, StdDev=1.5\n", "naïve café, 東京, emoji 🙂 and\ttabs  two spaces", ""]


# ---- tokenizers of the three kinds ----

class Kind(NamedTuple):
    """A directory in Hugging Face layout, and what a config.json says of its model."""
    folder: object
    sentencepiece: bool
    vocab_size: int
    bos: int
    eos: int

    def config(self, **changes):
        settings = dict(vocab_size=self.vocab_size, bos_id=self.bos, eos_ids=(self.eos,)) | changes
        return LlamaConfig(d_model=8, d_ff=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, **settings)

    def theirs(self):
        import transformers
        if self.sentencepiece:
            return transformers.LlamaTokenizer.from_pretrained(self.folder)
        return transformers.PreTrainedTokenizerFast.from_pretrained(self.folder)

    def ours(self, template=None):
        return load_text_tokenizer(self.folder, self.config(), ADDED, template)


def corpus():
    """The sentences that the models learn, with times in them."""
    pools = (trend_text.SENTENCES, trend_text.QUESTIONS, trend_text.COVERS, trend_text.CHANGES, trend_text.TOTALS)
    sentences = [re.sub(r"[{}]", "", sentence) for pool in pools for sentence in pool]
    return sentences + [f"{i / 100}s to {i / 50}s: rising" for i in range(200)]


SPLIT_OF_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def make_llama3(folder):
    """Byte-level BPE; special tokens behind the others; begin-of-text is put in front unless one asks for none."""
    import transformers
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT_OF_LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    first = backend.get_vocab_size()
    backend.add_special_tokens(specials)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=specials[0], eos_token=specials[1]).save_pretrained(folder)
    return Kind(folder, False, first + len(specials), first, first + 1)


def make_smollm(folder):
    """Byte-level BPE; special tokens before the others; each digit alone; one token for begin and end of text."""
    import transformers
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=specials[0], eos_token=specials[0]).save_pretrained(folder)
    return Kind(folder, False, 500, 0, 0)


def make_llama2(folder):
    """A sentencepiece model as Llama 2's: BPE with byte fallback, digits apart, a space put in front, no rewriting."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return Kind(folder, True, 600, 1, 2)


MAKERS = {"llama3": make_llama3, "smollm": make_smollm, "llama2": make_llama2}


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture
def kind(kinds, request):
    return kinds[request.param]


each_kind = pytest.mark.parametrize("kind", MAKERS, indirect=True)


# ---- ids ----

def check_ids(kind):
    ours, theirs = kind.ours(), kind.theirs()
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        # with two spaces in a row, or one in front, transformers' rewrite of a sentencepiece model departs from the
        # sentencepiece library, with which Llama 2 was trained and which we call
        if not (kind.sentencepiece and "  " in " " + text):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert (ours.bos_id, ours.bos, ours.eos) == (theirs.bos_token_id, theirs.bos_token, theirs.eos_token)
    assert theirs.eos_token_id in ours.stop_ids and theirs.eos_token_id == kind.eos


def check_new_tokens(kind):
    """An embedding matrix may have rows that pad it: new tokens come after those, too."""
    V = kind.vocab_size + 7
    ours = load_text_tokenizer(kind.folder, kind.config(vocab_size=V), ADDED)
    text = CHANNELS[0].start + SENSOR * 3 + CHANNELS[0].end + "What is it?"
    ids = ours.encode(text)
    assert ids[:5] == [V + 2, V + 1, V + 1, V + 1, V + 3] and max(ids[5:]) < kind.vocab_size
    assert ours.decode(ids) == text
    assert ours.pad_id == V and len(ours.added) == 2 + 2 * len(CHANNELS) == len(set(ours.added))
    assert ours.decode([ids[-1], V - 1]) == ours.decode([ids[-1]])            # a padding row means nothing


@each_kind
def test_ids_equal_transformers(kind):
    check_ids(kind)


@each_kind
def test_new_tokens_stand_behind_the_embedding_matrix(kind):
    check_new_tokens(kind)


def test_padding_and_truncation_of_a_tokenizer_json_are_not_applied(kinds, tmp_path):
    """Some files carry them from their training: a text would be cut without a word."""
    backend = tokenizers.Tokenizer.from_file(str(kinds["smollm"].folder / "tokenizer.json"))
    backend.enable_truncation(5)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = kinds["smollm"].config()
    assert load_text_tokenizer(tmp_path, config, ADDED).encode(TEXTS[1]) == kinds["smollm"].ours().encode(TEXTS[1])


@each_kind
def test_every_end_of_text_of_config_json_stops_an_answer(kind):
    """Llama 3 names three; generation has to stop at each."""
    further = (kind.eos, 41, 57)
    ours = load_text_tokenizer(kind.folder, kind.config(eos_ids=further), ADDED)
    assert ours.stop_ids == {*further, ours.end_of_turn}
    assert ours.eos == kind.theirs().eos_token                                # what ends a turn is still the first


def test_a_sentencepiece_model_knows_its_own_begin_and_end(kinds):
    config = kinds["llama2"].config(bos_id=None, eos_ids=())
    ours = load_text_tokenizer(kinds["llama2"].folder, config, ADDED)
    assert (ours.bos_id, ours.bos, ours.eos, ours.stop_ids) == (1, "<s>", "</s>", {2})


def test_ids_of_config_json_serve_where_the_tokenizer_declares_none(kinds, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((kinds["llama3"].folder / "tokenizer.json").read_bytes())
    ours = load_text_tokenizer(tmp_path, kinds["llama3"].config(), ADDED)
    assert (ours.bos, ours.eos) == ("<|begin_of_text|>", "<|end_of_text|>")
    with pytest.raises(InputError, match="the tokenizer has no bos_token"):
        load_text_tokenizer(tmp_path, kinds["llama3"].config(bos_id=None), ADDED)


# ---- chat formats ----

@pytest.mark.parametrize("in_jinja_file", [True, False])
def test_a_chat_template_is_read_from_either_file(kinds, tmp_path, in_jinja_file):
    theirs = kinds["smollm"].theirs()
    theirs.chat_template = "{{ messages[0].content }}\n"
    theirs.save_pretrained(tmp_path, save_jinja_files=in_jinja_file)
    assert (tmp_path / "chat_template.jinja").exists() == in_jinja_file
    assert read_chat_template(tmp_path) == theirs.chat_template


def test_llama3_headers_are_used_where_the_tokenizer_knows_them(kinds):
    """Without a template: one begin-of-text, the headers and turns of Llama 3, as transformers reads the same string."""
    ours, theirs = kinds["llama3"].ours(), kinds["llama3"].theirs()
    text = ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe true.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhat rises?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nIt rises.<|eot_id|>")
    assert ours.chat("Be true.", "What rises?") + ours.answer("It rises.") == theirs.encode(text, add_special_tokens=False)


def test_a_sentencepiece_model_without_tokenizer_json_gives_the_dialogue_of_llama2(kinds):
    """As Llama 2 was trained: begin-of-text, the sentencepiece ids of the whole dialogue, end of text after a space."""
    ours = kinds["llama2"].ours(
        "{% for m in messages %}{% if m.role == 'system' %}{{ bos_token }}[INST] <<SYS>>\n{{ m.content }}\n<</SYS>>\n\n"
        "{% elif m.role == 'user' %}{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(kinds["llama2"].folder / "tokenizer.model"))
    prompt = "[INST] <<SYS>>\nBe true.\n<</SYS>>\n\nWhat rises? [/INST]"
    ids = ours.chat("Be true.", "What rises?")
    assert ids == [1] + reference.encode(prompt)
    assert ids + ours.answer("It rises.") == [1] + reference.encode(f"{prompt} It rises. ") + [2]


def test_the_plain_format_begins_and_ends_a_text(kinds):
    ours = kinds["llama2"].ours()
    ids = ours.chat("Be true.", "What rises?")
    assert ids[0] == 1 and ids.count(1) == 1
    assert ours.decode(ids[1:]) == "Be true.\n\nResearcher: What rises?\n\nAssistant: "
    assert ours.answer("Yes.")[-1] == 2 and ours.decode(ours.answer("Yes.")) == "Yes."


def test_the_default_of_several_templates_is_read(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [
        {"name": "tool_use", "template": "[INST]"}, {"name": "default", "template": "<|im_start|>"}]}))
    assert read_chat_template(tmp_path) == "<|im_start|>"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_chat_template(tmp_path) is None


def test_a_tokenizer_trained_from_texts_is_the_same_each_time():
    texts = ["0.0s to 0.35s: rising\n0.35s to 0.5s: steady"] * 20
    first, second = (train_backend(texts, 400) for _ in range(2))
    assert first.to_str() == second.to_str()
    tokenizer = built_tokenizer(first, ADDED, 400)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("0.35s to 0.5s: steady")) == 5                # a time is one token


@pytest.mark.parametrize("declared,eos,words", [
    ({"bos_token": "<nope>", "eos_token": "<|eot_id|>"}, (2,), ["bos_token", "<nope>"]),
    ({"bos_token": "<|begin_of_text|>"}, (), ["eos_token"]),
])
def test_a_tokenizer_without_begin_or_end_of_text_is_refused(tmp_path, declared, eos, words):
    train_backend(["a b c"], 300).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    with pytest.raises(InputError) as error:
        load_text_tokenizer(tmp_path, LlamaConfig(300, 8, 8, 1, 1, 1, 8, eos_ids=eos), ADDED)
    assert all(word in str(error.value) for word in words)


def test_directories_without_a_readable_tokenizer_are_refused(tmp_path):
    config = LlamaConfig(300, 8, 8, 1, 1, 1, 8, bos_id=1, eos_ids=(2,))
    with pytest.raises(InputError, match="neither tokenizer.json nor tokenizer.model"):
        load_text_tokenizer(tmp_path, config, ADDED)
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(InputError, match=name):
            load_text_tokenizer(tmp_path, config, ADDED)


def test_a_tokenizer_larger_than_the_llm_is_refused(tmp_path):
    with pytest.raises(InputError, match="262 embedding rows"):
        built_tokenizer(train_backend(["rising and falling " * 9], 300), ADDED, 262).encode("rising and falling")


@each_kind
def test_visible_prompts_show_every_special_token(kind):
    """As it is written, begin-of-text and end among them; runs of one are counted."""
    check_visible(kind)


def check_visible(kind):
    ours = kind.ours()
    prompt = ours.chat("Be brief.", CHANNELS[0].start + SENSOR * 12 + CHANNELS[0].end + "What is it?")
    text = ours.visible(prompt + ours.answer("0.0s to 0.1s: rising\nAll."))
    assert "<x_acc_start><ts>*12<x_acc_end>" in text and "Be brief." in text
    assert "0.0s to 0.1s: rising\nAll." in text
    assert text.startswith(ours.bos) == ours.starts_with_bos and ours.eos
    assert text.endswith(ours.visible([ours.end_of_turn]))
    plain = ours.decode(prompt)
    assert [word for word in plain.split() if word in text] and len(text) > len(plain) - 11 * len(SENSOR)


@each_kind
def test_control_tokens_that_a_person_types_are_text(kind):
    ours, theirs = kind.ours(), kind.theirs()
    control = {*ours.whole.values(), *theirs.all_special_ids}
    typed = " and ".join([*ours.whole, *theirs.all_special_tokens])
    assert set(ours.encode(typed)) & control and not set(ours.encode(ours.as_text(typed))) & control


# ---- the true ones ----

REAL = {"llama3": ("llama3-tiktoken", 128256, 128000, 128001), "smollm": ("smollm-bpe", 49153, 0, 0),
        "llama2": ("llama2-sentencepiece", 32000, 1, 2)}


@pytest.mark.slow
@pytest.mark.shared("tokenizers")
def test_real_tokenizers_pass_the_same_checks(shared):
    """Those of Llama 3, SmolLM and Llama 2: ids, new tokens, visible prompts."""
    for name, (folder, vocab_size, bos, eos) in REAL.items():
        kind = Kind(shared / "tokenizers" / folder, name == "llama2", vocab_size, bos, eos)
        check_ids(kind)
        check_new_tokens(kind)
        check_visible(kind)
