"""Our tokenizer front against transformers' on real tokenizers; special tokens, chat format, broken directories."""
import json

import pytest

from sensorllm_min.config import InputError, LlamaConfig
from sensorllm_min.data import IGNORED, AlignExamples, Limits, PreparedData, collate
from sensorllm_min.sensors import DATASETS
from sensorllm_min.text_tokenizer import SENSOR, built_tokenizer, declared_format, load_text_tokenizer, train_backend

CHANNELS = DATASETS["usc-had"].channels
TEXTS = ["Once upon a time", "0.0s to 0.06s: rising\n0.06s to 1.2s: steady\n\nOverall, it rises.", " leading space",
         "x-axis accelerometer: Mean=-0.01234567, StdDev=1.5\n", "naïve café, 東京, emoji 🙂 and\ttabs  two spaces", ""]
REAL = {"llama3-tiktoken": (128256, 128000, 128001), "smollm-bpe": (49153, 0, 0), "llama2-sentencepiece": (32000, 1, 2)}


def load_real(shared, name):
    vocab_size, bos, eos = REAL[name]
    config = LlamaConfig(vocab_size, 8, 8, 1, 1, 1, 8, bos_id=bos, eos_ids=(eos,))
    return load_text_tokenizer(shared / "tokenizers" / name, config, CHANNELS)


@pytest.mark.shared("tokenizers")
@pytest.mark.parametrize("name", REAL)
def test_ids_equal_transformers(shared, name):
    import transformers
    folder = shared / "tokenizers" / name
    if name == "llama2-sentencepiece":
        theirs = transformers.LlamaTokenizer.from_pretrained(folder)
    else:
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = load_real(shared, name)
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        # with two spaces in a row, or one in front, transformers' rewrite of a sentencepiece model departs from the
        # sentencepiece library, with which Llama 2 was trained and which we call
        if not (name == "llama2-sentencepiece" and "  " in " " + text):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.bos_id == REAL[name][1] and REAL[name][2] in ours.stop_ids


@pytest.mark.shared("tokenizers")
@pytest.mark.parametrize("name", REAL)
def test_new_tokens_stand_behind_the_embedding_matrix(shared, name):
    ours = load_real(shared, name)
    text = CHANNELS[0].start + SENSOR * 3 + CHANNELS[0].end + "What is it?"
    ids = ours.encode(text)
    V = REAL[name][0]
    assert ids[:5] == [V + 2, V + 1, V + 1, V + 1, V + 3] and max(ids[5:]) < V
    assert ours.decode(ids) == text
    assert len(ours.added) == 2 + 2 * len(CHANNELS) == len(set(ours.added))


@pytest.mark.shared("tokenizers")
def test_llama3_chat_format(shared):
    """One begin-of-text, the headers and turns of Llama 3, as transformers tokenizes the same string."""
    import transformers
    ours = load_real(shared, "llama3-tiktoken")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(shared / "tokenizers" / "llama3-tiktoken")
    text = ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe true.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhat rises?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nIt rises.<|eot_id|>")
    ids = ours.chat("Be true.", "What rises?") + ours.answer("It rises.")
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ids.count(ours.bos_id) == 1 and ours.chat_format == "llama3" and ids[-1] in ours.stop_ids


@pytest.mark.shared("tokenizers")
def test_plain_chat_format(shared):
    ours = load_real(shared, "llama2-sentencepiece")
    ids = ours.chat("Be true.", "What rises?")
    assert ours.chat_format == "plain" and ids[0] == 1 and ids.count(1) == 1
    assert ours.decode(ids[1:]) == "Be true.\n\nResearcher: What rises?\n\nAssistant: "
    assert ours.answer("Yes.")[-1] == 2


# Each format as its models declare it, in words of our own: what apply_chat_template makes of it is the reference.
TURNS = "{% for m in messages %}"
TEMPLATES = {
    "llama3": "{{ bos_token }}" + TURNS + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
              "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "llama3.1": "{{ bos_token }}" + TURNS + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if m.role == 'system' %}"
                "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{% endif %}{{ m.content }}<|eot_id|>"
                "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "chatml": TURNS + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "zephyr": TURNS + "{% if m.role == 'user' %}<|user|>\n{% elif m.role == 'system' %}<|system|>\n{% else %}<|assistant|>\n"
              "{% endif %}{{ m.content + eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "llama2": TURNS + "{% if m.role == 'system' %}{{ bos_token }}[INST] <<SYS>>\n{{ m.content }}\n<</SYS>>\n\n"
              "{% elif m.role == 'user' %}{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
              "{% endfor %}"}
BASES = {"llama3": "llama3-tiktoken", "llama3.1": "llama3-tiktoken", "chatml": "smollm-bpe", "zephyr": "llama2-sentencepiece",
         "llama2": "llama2-sentencepiece"}


@pytest.mark.shared("tokenizers")
@pytest.mark.parametrize("spelling", ["in tokenizer_config.json", "in chat_template.jinja"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_formats_equal_transformers(shared, tmp_path, name, spelling):
    """Prompt and answer of each format, on a real tokenizer that declares it; the answer's ids are what is supervised."""
    import transformers
    folder = shared / "tokenizers" / BASES[name]
    if name in ("zephyr", "llama2"):
        theirs = transformers.LlamaTokenizer.from_pretrained(folder)
    else:
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    theirs.chat_template = TEMPLATES[name]
    theirs.save_pretrained(tmp_path, save_jinja_files=spelling == "in chat_template.jinja")
    assert (tmp_path / "chat_template.jinja").exists() == (spelling == "in chat_template.jinja")
    vocab_size, bos, eos = REAL[BASES[name]]
    config = LlamaConfig(vocab_size, 8, 8, 1, 1, 1, 8, bos_id=bos, eos_ids=(eos,))
    assert declared_format(tmp_path) == name
    ours = load_text_tokenizer(tmp_path, config, CHANNELS, declared_format(tmp_path))
    system, user, answer = "Be true. 3.5 Hz", "What rises?\nAnd when?", "0.0s to 0.4s: rising\n\nIt rises."
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    prompt = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    whole = theirs.apply_chat_template(turns + [{"role": "assistant", "content": answer}], return_dict=False)
    assert ours.chat(system, user) == prompt
    supervised = ours.answer(answer)
    assert prompt + supervised == whole[:len(prompt) + len(supervised)]
    assert len(whole) - len(prompt) - len(supervised) <= 2                    # a newline after the end, at most
    assert supervised[-1] in ours.stop_ids and ours.decode(supervised).strip() == answer


@pytest.mark.shared("tokenizers")
@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_what_is_supervised_in_each_format(shared, demo, name):
    """A whole training example, sensors included: the targets are the answer and its end, and nothing else."""
    folder = BASES.get(name, "llama2-sentencepiece")
    vocab_size, bos, eos = REAL[folder]
    data = PreparedData(demo)
    config = LlamaConfig(vocab_size, 8, 8, 1, 1, 1, 8, bos_id=bos, eos_ids=(eos,))
    ours = load_text_tokenizer(shared / "tokenizers" / folder, config, data.dataset.channels, name)
    examples = AlignExamples(data, "test", ours, Limits(512, 4096))
    batch = collate([examples[0], examples[50]], ours.pad_id)
    for targets, ids, example in zip(batch.targets, batch.ids, (examples[0], examples[50])):
        supervised = targets[targets != IGNORED].tolist()
        assert supervised[-1] == ours.end_of_turn and ours.decode(supervised[:-1]).strip() == example.row["answer"]
        assert ids.tolist().count(ours.sensor_id) == example.row["length"] + 1
        before = ours.decode(ids[:len(example.prompt)].tolist())
        assert example.row["question"] in before and example.row["answer"] not in before


@pytest.mark.shared("tokenizers")
def test_a_chat_format_that_the_tokenizer_cannot_end(shared):
    with pytest.raises(InputError, match="<|im_end|>.*no token.*--chat-format"):
        config = LlamaConfig(128256, 8, 8, 1, 1, 1, 8, bos_id=128000, eos_ids=(128001,))
        load_text_tokenizer(shared / "tokenizers/llama3-tiktoken", config, CHANNELS, "chatml")


def test_a_template_of_no_known_format_is_plain(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "USER: {{ messages }}"}))
    assert declared_format(tmp_path) == "plain"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [
        {"name": "tool_use", "template": "[INST]"}, {"name": "default", "template": "<|im_start|>"}]}))
    assert declared_format(tmp_path) == "chatml"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert declared_format(tmp_path) is None


def test_tokenizer_learned_from_text():
    texts = ["0.0s to 0.35s: rising\n0.35s to 0.5s: steady"] * 20
    first, second = (train_backend(texts, 400) for _ in range(2))
    assert first.to_str() == second.to_str()
    tokenizer = built_tokenizer(first, CHANNELS, 400)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("0.35s to 0.5s: steady")) == 5                # a time is one token


@pytest.mark.parametrize("declared,eos,words", [
    ({"bos_token": "<nope>", "eos_token": "<|eot_id|>"}, (2,), ["bos_token", "<nope>"]),
    ({"bos_token": "<|begin_of_text|>"}, (), ["eos_token"]),
])
def test_a_tokenizer_without_the_needed_tokens(tmp_path, declared, eos, words):
    train_backend(["a b c"], 300).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    with pytest.raises(InputError) as error:
        load_text_tokenizer(tmp_path, LlamaConfig(300, 8, 8, 1, 1, 1, 8, eos_ids=eos), CHANNELS)
    assert all(word in str(error.value) for word in words)


@pytest.mark.shared("tokenizers")
@pytest.mark.parametrize("name", REAL)
def test_rows_that_pad_the_vocabulary_decode_to_nothing(shared, name):
    ours = load_real(shared, name)
    ours.vocab_size += 64
    assert ours.decode([500, ours.vocab_size - 1]) == ours.decode([500])


def test_broken_directories(tmp_path):
    config = LlamaConfig(300, 8, 8, 1, 1, 1, 8, bos_id=1, eos_ids=(2,))
    with pytest.raises(InputError, match="neither tokenizer.json nor tokenizer.model"):
        load_text_tokenizer(tmp_path, config, CHANNELS)
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(InputError, match=name):
            load_text_tokenizer(tmp_path, config, CHANNELS)


def test_a_tokenizer_larger_than_the_llm(tmp_path):
    tokenizer = built_tokenizer(train_backend(["rising and falling " * 9], 300), CHANNELS, 262)
    with pytest.raises(InputError, match="262 embedding rows"):
        tokenizer.encode("rising and falling")


@pytest.mark.shared("tokenizers")
@pytest.mark.parametrize("name", REAL)
def test_prompts_made_visible(shared, name):
    """Every special token as it is written, begin-of-text and end among them; runs of one are counted."""
    ours = load_real(shared, name)
    prompt = ours.chat("Be brief.", CHANNELS[0].start + SENSOR * 12 + CHANNELS[0].end + "What is it?")
    text = ours.visible(prompt + ours.answer("0.0s to 0.1s: rising\nAll."))
    assert "<x_acc_start><ts>*12<x_acc_end>" in text and "0.0s to 0.1s: rising\nAll." in text and "Be brief." in text
    assert text.startswith(ours.bos) == ours.format.bos and text.endswith(ours.visible([ours.end_of_turn])) and ours.eos
    plain = ours.decode(prompt)
    assert [word for word in plain.split() if word in text] and len(text) > len(plain) - 11 * len(SENSOR)
