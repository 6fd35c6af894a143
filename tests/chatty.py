"""A scripted Chat: what a model might answer, good and bad, without a model."""

from __future__ import annotations

import re

from microtome.llm.chat import Reply


class Scripted:
    """Answers by a function of the question's text, or from a list in order; remembers what it was asked."""

    def __init__(self, answers, name="scripted", model="", finish="stop"):
        self.finish = finish
        self.name, self.answers, self.model, self.asked, self.samplings = name, answers, model or name, [], []

    def ask(self, messages, sampling=None, *, on_text=None):
        self.asked.append(list(messages))
        self.samplings.append(sampling)
        question = messages[-1].content
        text = self.answers(question) if callable(self.answers) else self.answers[len(self.asked) - 1]
        return Reply(text, self.model, self.finish)


def between(question, name):
    """The material that a prompt holds between BEGIN NAME and END NAME."""
    return re.search(rf"^BEGIN {re.escape(name)}$\n(.*?)\n^END {re.escape(name)}$", question, re.M | re.S)[1]
