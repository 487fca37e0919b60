"""The chat template of a model: a program in Jinja, run in a sandbox as transformers runs it.

It says how a dialogue becomes text better than any table of formats does: names of the roles,
begin-of-text or none, what ends a turn. Templates that write a date get always the same one.
"""
import json
from datetime import date

from .files import InputError, brief, understanding

DAY = date(2024, 7, 26)                 # the one that Llama 3.1's template falls back on
SYSTEM, USER, ANSWER = "Be brief.", "What is it?", "It rises."    # a dialogue to look at


def environment():
    """The Jinja environment of transformers' chat templates."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}, which marks the answer and writes nothing itself."""
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, **options):
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    jinja.filters["tojson"] = tojson
    jinja.globals |= {"raise_exception": raise_exception, "strftime_now": DAY.strftime}
    return jinja


class ChatTemplate:
    """tokens: {"bos_token": text, ...}, which a template may write; where: its model's directory.

    A model without a system role, whose template refuses or drops that text, gets it in front of
    the question. InputError where a template cannot be run or drops the question.
    """

    def __init__(self, source, tokens, where):
        self.tokens, self.where = tokens, where
        with understanding(where, "has a chat template that cannot be run", "; give --chat-format"):
            self.template = environment().from_string(source)
        self.has_system = True
        try:
            self.has_system = SYSTEM in self.prompt(SYSTEM, USER)
        except InputError:
            self.has_system = False
        self.example = self.prompt(SYSTEM, USER)                  # up to the answer
        if USER not in self.example or SYSTEM not in self.example:
            raise InputError(f"{where} has a chat template that drops the question "
                             f"({brief(repr(self.example))}); give --chat-format")

    def render(self, system, user, *answer):
        turns = [("system", system), ("user", user)]
        if not self.has_system:
            turns = [("user", f"{system}\n\n{user}")]
        turns += [("assistant", text) for text in answer]
        messages = [{"role": role, "content": text} for role, text in turns]
        with understanding(self.where, "has a chat template that fails", "; give --chat-format"):
            return self.template.render(messages=messages, tools=None, documents=None,
                                        add_generation_prompt=not answer, **self.tokens)

    def prompt(self, system, user) -> str:
        """A dialogue up to where the assistant's answer begins."""
        return self.render(system, user)

    def answer(self, text) -> str:
        """What the template writes beyond the prompt: the answer with all that follows it."""
        whole = self.render(SYSTEM, USER, text)
        if whole.startswith(self.example):
            return whole[len(self.example):]
        start = whole.rfind(text)                                 # the prompt opens a thought, say
        if start < 0:
            raise InputError(f"{self.where} has a chat template that changes the answer "
                             f"{brief(repr(text))}; give --chat-format")
        return whole[start:]
