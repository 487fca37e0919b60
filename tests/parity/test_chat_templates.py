"""Chat templates of the kinds that are in use, in words of our own: the ids of transformers' apply_chat_template.

Each is written after the form that models of its kind declare: with begin-of-text or without, roles under other names,
what ends a turn, text that is stripped, a date, a macro, a template that knows no system role.
"""
import json

import pytest
import sentencepiece
import tokenizers
import transformers
from test_text_tokenizer import ADDED, Kind, kinds  # noqa: F401

from sensorllm_min.batch import IGNORED, collate
from sensorllm_min.config import LlamaConfig
from sensorllm_min.data.examples import AlignExamples, PromptFormat, har_prompt
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.files import InputError
from sensorllm_min.text_tokenizer import load_text_tokenizer, new_tokens

SYSTEM, USER, ANSWER = "Be true. 3.5 Hz", "What rises?\nAnd when?", "0.0s to 0.4s: rising\n\nIt rises."
MARKERS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end_of_turn|>", "<|start_of_role|>",
           "<|end_of_role|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
LOOP = "{% for m in messages %}"
GENERATE = "{% if add_generation_prompt %}"


def turns(begin, end, generate, first=""):
    return first + LOOP + begin + "{{ m.content }}" + end + "{% endfor %}" + GENERATE + generate + "{% endif %}"


def by_role(system, user, assistant, generate, first=""):
    return (first + LOOP + "{% if m.role == 'system' %}" + system + "{% elif m.role == 'user' %}" + user
            + "{% else %}" + assistant + "{% endif %}{% endfor %}" + GENERATE + generate + "{% endif %}")


BOS = "{{ bos_token }}"
HEADER = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
CHATML = turns("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
TEMPLATES = {
    # name: (template, the token that ends an answer)
    "headers": (turns(HEADER, "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", BOS), "<|eot_id|>"),
    "headers with a date": (
        "{% set day = strftime_now('%d %b %Y') if strftime_now is defined else '' %}" + turns(
            HEADER + "{% if m.role == 'system' %}Today Date: {{ date_string | default(day) }}\n\n{% endif %}",
            "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", BOS), "<|eot_id|>"),
    "headers, content stripped": (turns(HEADER, "{{ '' | trim }}<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n",
                                        BOS).replace("m.content", "m['content'] | trim"), "<|eot_id|>"),
    "chatml": (CHATML, "<|im_end|>"),
    "chatml with bos": (BOS + CHATML, "<|im_end|>"),
    "chatml in a macro": (
        "{%- macro turn(m) -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endmacro -%}\n" + LOOP
        + "{{ turn(m) }}\n{% endfor %}\n" + GENERATE + "<|im_start|>assistant\n{% endif %}", "<|im_end|>"),
    "chatml that marks the generation": (
        LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + GENERATE
        + "<|im_start|>assistant\n{% endif %}", "<|im_end|>"),
    "zephyr": (turns("<|{{ m.role }}|>\n", "{{ eos_token }}\n", "<|assistant|>\n"), None),
    "falcon 3, the end only if it is not the last": (by_role(
        "<|system|>\n{{ m.content }}\n", "<|user|>\n{{ m.content }}\n",
        "<|assistant|>\n{{ m.content }}{% if not loop.last %}{{ eos_token }}\n{% else %}{{ eos_token }}{% endif %}",
        "<|assistant|>\n"), None),
    "r1 distilled": (by_role(
        "{{ m.content }}", "<｜User｜>{{ m.content }}",
        "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>", "<｜Assistant｜>", BOS),
        "<｜end▁of▁sentence｜>"),
    "vicuna": (by_role("{{ m.content }} ", "USER: {{ m.content }} ", "ASSISTANT: {{ m.content }}{{ eos_token }}",
                       "ASSISTANT:", BOS), None),
    "inst and sys": (by_role("{{ bos_token }}[INST] <<SYS>>\n{{ m.content }}\n<</SYS>>\n\n", "{{ m.content }} [/INST]",
                             " {{ m.content }} {{ eos_token }}", ""), None),
    "the system text before the first question": (
        "{% set ns = namespace(system='') %}" + LOOP + "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
        "{% elif m.role == 'user' %}### Instruction:\n{{ ns.system }}{{ m.content }}\n\n{% else %}### Response:\n"
        "{{ m.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}" + GENERATE + "### Response:\n{% endif %}", None),
    "json of the content": (by_role(
        "{{ m.content | tojson }}\n", "{{ m.content | tojson(indent=1) }}\n", "{{ m.content }}{{ eos_token }}", ""), None),
    "no end at all": (turns("{{ m.role }}: ", "\n", "assistant: "), None),
}


@pytest.fixture(scope="module")
def with_markers(kinds, tmp_path_factory):                                    # noqa: F811
    """The tokenizers of Llama 3's and SmolLM's kind, with the marker tokens that templates write."""
    made = {}
    for name in ("llama3", "smollm"):
        kind, folder = kinds[name], tmp_path_factory.mktemp(name)
        backend = tokenizers.Tokenizer.from_file(str(kind.folder / "tokenizer.json"))
        backend.add_special_tokens([*MARKERS, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
        bos, eos = (backend.id_to_token(index) for index in (kind.bos, kind.eos))
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos).save_pretrained(folder)
        made[name] = Kind(folder, False, backend.get_vocab_size(), kind.bos, kind.eos)
    folder = tmp_path_factory.mktemp("llama2")
    kinds["llama2"].theirs().save_pretrained(folder)              # as tokenizer.json
    return made | {"llama2": kinds["llama2"]._replace(folder=folder)}


SENTENCEPIECE = ("zephyr", "vicuna", "inst and sys")               # templates of models of Llama 2's kind


@pytest.mark.parametrize("name,kind", [
    *((name, "llama3") for name in TEMPLATES), ("chatml", "smollm"), ("headers", "smollm"),
    *((name, "llama2") for name in SENTENCEPIECE)])
def test_ids_equal_apply_chat_template(with_markers, name, kind):
    """The prompt; the answer up to the token that ends it, which is added where the template has none."""
    kind, (template, end) = with_markers[kind], TEMPLATES[name]
    ours, theirs = load_text_tokenizer(kind.folder, kind.config(), ADDED, template=template), kind.theirs()

    def ids(*answer, **options):
        messages = [{"role": role, "content": text} for role, text in
                    zip(("system", "user", "assistant"), (SYSTEM, USER, *answer))]
        return theirs.apply_chat_template(messages, chat_template=template, return_dict=False, date_string="26 Jul 2024", **options)

    prompt, whole = ids(add_generation_prompt=True), ids(ANSWER)
    assert ours.chat(SYSTEM, USER) == prompt
    answer = ours.answer(ANSWER)
    n_shared = len(prompt) + len(answer)
    if name == "no end at all":
        assert prompt + answer == [*whole, kind.eos]
    else:
        assert prompt + answer == whole[:n_shared] and theirs.decode(whole[n_shared:]).strip() == ""
    assert answer[-1] == ours.end_of_turn == (theirs.convert_tokens_to_ids(end) if end else kind.eos)
    assert answer.count(ours.end_of_turn) == 1 and ours.stop_ids == {kind.eos, ours.end_of_turn}
    assert ours.starts_with_bos == (prompt[0] == kind.bos)


@pytest.mark.parametrize("kind,name", [("llama3", "headers"), ("smollm", "chatml"), ("llama2", "inst and sys"), ("llama2", None)])
def test_the_answer_and_its_end_alone_are_supervised(with_markers, demo, kind, name):
    """A whole training example, sensors included; None is the plain format."""
    data, kind = PreparedData(demo), with_markers[kind]
    template, end = TEMPLATES[name] if name else (None, None)
    ours = load_text_tokenizer(kind.folder, kind.config(), new_tokens(data.dataset.channels), template)
    examples = AlignExamples(data, "test", PromptFormat(ours, 512, 4096), limit=60)
    chosen = [examples[0], examples[50]]
    batch = collate(chosen, ours.pad_id)
    for targets, ids, mask, example in zip(batch.targets, batch.ids, batch.mask, chosen):
        supervised = targets[targets != IGNORED].tolist()
        assert supervised == example.answer and (targets != IGNORED).nonzero()[0] == len(example.prompt)
        assert supervised[-1] == ours.end_of_turn == (ours.backend.piece_id(end) if end else kind.eos)
        assert ours.decode(supervised[:-1]).strip() == example.record["answer"]
        assert ids.tolist().count(ours.sensor_id) == example.record["length"] + 1
        before = ours.decode(ids[:len(example.prompt)].tolist())
        assert example.record["question"] in before and example.record["answer"] not in before
        assert (ids[~mask] == ours.pad_id).all()


def test_a_prompt_that_opens_a_thought_keeps_it_and_the_answer_follows(with_markers):
    kind = with_markers["llama3"]
    template = by_role("{{ m.content }}", "<｜User｜>{{ m.content }}", "<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>",
                       "<｜Assistant｜><think>\n", BOS)
    ours = load_text_tokenizer(kind.folder, kind.config(), ADDED, template=template)
    assert ours.backend.decode(ours.chat(SYSTEM, USER), with_special=True).endswith("<｜Assistant｜><think>\n")
    assert ours.answer(ANSWER) == ours.encode(ANSWER + "<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("system", ["{{ raise_exception('no system role') }}", ""], ids=["refused", "dropped"])
def test_without_a_system_role_its_text_comes_before_the_question(with_markers, system):
    kind = with_markers["llama3"]
    template = by_role(system, "<|user|>{{ m.content }}", "<|assistant|>{{ m.content }}{{ eos_token }}", "<|assistant|>", BOS)
    ours = load_text_tokenizer(kind.folder, kind.config(), ADDED, template=template)
    assert ours.decode(ours.chat(SYSTEM, USER)) == f"{SYSTEM}\n\n{USER}"
    assert ours.chat(SYSTEM, USER) == kind.theirs().apply_chat_template(
        [{"role": "user", "content": f"{SYSTEM}\n\n{USER}"}], chat_template=template, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("template", [
    "{% for", "{{ messages[7].content }}", "{{ 1 / 0 }}", "nothing of the messages", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ messages.clear() }}"])
def test_templates_that_cannot_be_run_are_one_line(with_markers, template):
    kind = with_markers["llama3"]
    with pytest.raises(InputError, match="chat template.*chat_template.jinja") as error:
        load_text_tokenizer(kind.folder, kind.config(), ADDED, template=template)
    assert str(kind.folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name,begins", [("chatml", False), ("chatml with bos", True), ("vicuna", True)])
def test_a_class_prompt_begins_with_bos_where_the_dialogue_does(with_markers, demo, name, begins):
    kind, data = with_markers["smollm"], PreparedData(demo)
    ours = load_text_tokenizer(kind.folder, kind.config(), new_tokens(data.dataset.channels), TEMPLATES[name][0])
    window = data.window(data.records("har", "test")[0])
    ids = har_prompt(PromptFormat(ours, 512, 4096), window, data.dataset)
    assert (ids[0] == kind.bos) == begins and ids.count(kind.bos) == begins


# ---- a sentencepiece model with added tokens beside it ----

def test_added_tokens_beside_a_sentencepiece_model_are_read(kinds, tmp_path):             # noqa: F811
    """An id of the model's own is passed over; the declared end of text is the added one."""
    (tmp_path / "tokenizer.model").write_bytes((kinds["llama2"].folder / "tokenizer.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 600, "<|im_start|>": 601, "<s>": 1}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|im_end|>"}))
    config = LlamaConfig(602, 8, 8, 1, 1, 1, 8, bos_id=1, eos_ids=(2,))
    ours = load_text_tokenizer(tmp_path, config, ADDED, template=CHATML)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    prompt = ours.chat("Be true.", "What rises?")
    assert prompt == [601, *reference.encode("system\nBe true."), 600, *reference.encode("\n"), 601,
                      *reference.encode("user\nWhat rises?"), 600, *reference.encode("\n"), 601, *reference.encode("assistant\n")]
    assert ours.answer("It rises.")[-1] == 600 == ours.end_of_turn and ours.stop_ids == {600, 2}
    assert ours.decode(ours.answer("It rises.")) == "It rises."
    assert ours.visible(prompt).startswith("<|im_start|>system") and ours.eos == "<|im_end|>"
    with pytest.raises(InputError, match="beyond the 600 embedding rows"):
        load_text_tokenizer(tmp_path, LlamaConfig(600, 8, 8, 1, 1, 1, 8), ADDED)
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": "600"}')
    with pytest.raises(InputError, match="added_tokens.json"):
        load_text_tokenizer(tmp_path, config, ADDED)


@pytest.mark.shared("cases/chat-format-detection")
def test_the_shared_templates_give_the_expected_prompts(shared, with_markers):
    folders = sorted(path for path in (shared / "cases" / "chat-format-detection").iterdir() if path.is_dir())
    assert len(folders) == 5
    kind = with_markers["llama3"]
    for folder in folders:
        template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        ours = load_text_tokenizer(kind.folder, kind.config(), ADDED, template=template)
        expected = (folder / "expected.txt").read_text().replace("{bos}", ours.bos)
        assert ours.template.dialogue("SYSTEM TEXT.", "USER TEXT?") == expected
