"""Chat templates: programs in Jinja, run in a sandbox the way transformers runs them.

A template writes a dialogue as the text that its model was trained on: the names of the roles,
whether begin-of-text comes first, what ends a turn. Models without a template get one of the two
below. Templates that write a date always get the same one.
"""
import json
from datetime import date

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .files import InputError, as_input_error, brief

HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# The dialogue of Llama 3, for tokenizers that have HEADERS (such as the built-in one).
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
# For all other tokenizers without a template.
PLAIN = (
    "{{ bos_token }}{{ messages[0].content }}\n\nResearcher: {{ messages[1].content }}\n\n"
    "Assistant: {% if messages[2] %}{{ messages[2].content }}{{ eos_token }}{% endif %}")

DAY = date(2024, 7, 26)                 # the date that Llama 3.1's template falls back on
ADVICE = "; repair its chat_template.jinja (or the entry in tokenizer_config.json)"
SYSTEM, USER, ANSWER = "Be brief.", "What is it?", "It rises."    # shows what a template does


class Generation(Extension):
    """{% generation %}, which marks the answer and writes nothing itself."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


class ChatTemplate:
    """A chat template in the Jinja environment of transformers.

    tokens: {"bos_token": text, ...}, which it may write; where: the model's directory, for
    messages. If the template refuses or drops the system text, it comes before the question."""

    def __init__(self, source, tokens, where):
        self.tokens = tokens
        self.where = where
        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        jinja.filters["tojson"] = tojson
        jinja.globals["raise_exception"] = raise_exception
        jinja.globals["strftime_now"] = DAY.strftime
        with as_input_error(where, "has a chat template that cannot be run", ADVICE):
            self.template = jinja.from_string(source)
        self.has_system = True
        try:
            self.has_system = SYSTEM in self.dialogue(SYSTEM, USER)
        except InputError:
            self.has_system = False
        self.example = self.dialogue(SYSTEM, USER)                # up to the answer
        if USER not in self.example or SYSTEM not in self.example:
            raise InputError(f"{where} has a chat template that drops the question "
                             f"({brief(repr(self.example))}){ADVICE}")

    def dialogue(self, system, user, answer=None):
        """A dialogue; without an answer it ends where the answer would begin."""
        turns = [("system", system), ("user", user)]
        if not self.has_system:
            turns = [("user", f"{system}\n\n{user}")]
        if answer is not None:
            turns.append(("assistant", answer))
        messages = [{"role": role, "content": text} for role, text in turns]
        with as_input_error(self.where, "has a chat template that fails", ADVICE):
            return self.template.render(
                messages=messages, tools=None, documents=None,
                add_generation_prompt=answer is None, **self.tokens)

    def answer(self, text):
        """What the template writes after the prompt: the answer and everything that follows it."""
        whole = self.dialogue(SYSTEM, USER, text)
        if whole.startswith(self.example):
            return whole[len(self.example):]
        start = whole.rfind(text)                                 # if the prompt opens a thought
        if start < 0:
            raise InputError(f"{self.where} has a chat template that changes the answer "
                             f"{brief(repr(text))}{ADVICE}")
        return whole[start:]
