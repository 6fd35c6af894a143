"""Train what ships with the zoo: weights, curves of trainings that fail, and how often either happens.

python tools/zoo.py                    all of it (minutes; modular_addition_113 takes most)
python tools/zoo.py max_of_k           one model
python tools/zoo.py --rates            how many of 20 seeds reach their accuracy, for what is cheap
"""

import argparse
import json
import sys
from pathlib import Path

from microtome.errors import TrainingError
from microtome.zoo.catalog import subjects
from microtome.zoo.expectations import RATES
from microtome.zoo.trained import reproduce, run

FAILING = (("symbolic_ioi", {"n_heads": 1, "seed": 1}), ("induction_heads", {"n_layers": 1}))
SEEDS = 20


def rates() -> dict:
    """Reached and tried, of symbolic IOI with two heads and with one."""
    subject = {s.name: s for s in subjects()}["symbolic_ioi"]
    found = {}
    for heads in (2, 1):
        reached = []
        for seed in range(SEEDS):
            recipe = subject.recipe(seed=seed, n_heads=heads)
            try:
                run(subject, recipe)
            except TrainingError:
                continue
            reached.append(seed)
        found[recipe.name] = {"seeds": SEEDS, "reached": reached}
        print(recipe.name, found[recipe.name], flush=True)
    return found


def main() -> int:
    """Train and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rates", action="store_true")
    given = parser.parse_args()
    if given.rates:
        Path(RATES).write_text(json.dumps(rates(), indent=1) + "\n", encoding="utf-8")
        return 0
    every = {s.name: s for s in subjects()}
    jobs = [(name, {}) for name in every] + list(FAILING)
    for name, options in jobs:
        if not given.names or name in given.names:
            print(reproduce(every[name], **options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
