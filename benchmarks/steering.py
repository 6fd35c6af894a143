"""Steered generation beside plain generation: promised is at most 5 % more."""

from __future__ import annotations

import sys

PROMPTS = ("The children in the park were", "Yesterday at work we talked", "She opened the door and saw", "My neighbour told me that he",
           "After the long day I went", "The story begins with a man", "He looked at the sky and", "In the evening they all sat")  # fmt: skip
NEW = 48


def steering(worker, turns, folder: str, tokenizer, repeats: int) -> dict:
    """Every way to generate, turn by turn, for one prompt and for eight of one length."""
    rows = [tokenizer(text).input_ids for text in PROMPTS]
    shortest = min(map(len, rows))
    team = worker(sys.executable, "own_steering", folder)
    out = {}
    try:
        for n in (1, len(rows)):
            print(f"steering, {n} prompts", flush=True)
            work = {"ids": [r[:shortest] for r in rows[:n]], "new": NEW}
            names = {
                "plain generation": "plain",
                "hook by hand": "hook",
                "microtome, no edit": "own",
                "microtome, steered": "steered",
            }
            out[str(n)] = turns({name: (team, job, work, 1.0) for name, job in names.items()}, repeats)
    finally:
        team.close()
    for ways in out.values():
        if all("tokens" in w for w in ways.values()):
            same = ways["microtome, steered"]["tokens"] == ways["hook by hand"]["tokens"]
            ways["microtome, steered"]["same_tokens_as_the_hook"] = same
    return out
