"""A Chat that answers what a test wrote down, in order, and remembers what it was asked."""

from __future__ import annotations

import json

from microtome.llm.chat import Reply


class Scripted:
    """answers: texts, or values that are sent as JSON."""

    def __init__(self, *answers, name="scripted", finish="stop"):
        self.name, self._finish = name, finish
        self._answers = [a if isinstance(a, str) else json.dumps(a) for a in answers]
        self.asked = []

    def ask(self, messages, sampling=None, *, on_text=None):
        self.asked.append(tuple(messages))
        text = self._answers[len(self.asked) - 1]
        if on_text:
            on_text(text)
        return Reply(text, self.name, self._finish)
