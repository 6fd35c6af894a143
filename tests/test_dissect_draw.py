"""How many pairs a dissection explores and tests: what was asked for, in fixed proportion, whatever the task."""

import pytest

from microtome.dissect import HELD_OUT, draw
from microtome.errors import TaskError
from microtome.tasks import names, pairs
from test_tasks_standin import words


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("asked", [1, 2, 4, 12])
def test_every_task_gives_what_was_asked_and_its_held_out_share(name, asked):
    kept, away = draw(words(), name, asked, seed=1)
    assert (kept.n, away.n) == (asked, HELD_OUT * asked)
    assert not set(kept.clean.texts) & set(away.clean.texts)


@pytest.mark.parametrize("asked", [0, -1, 2.5, "4"])
def test_a_number_of_pairs_is_a_whole_one(asked):
    with pytest.raises(TaskError, match=f"pairs is {asked!r}"):
        draw(words(), "ioi", asked)


def test_pairs_of_ones_own_too_few_to_split_are_counted_as_well():
    mine = pairs(
        words(),
        clean=[[1, 10 + i, 2] for i in range(4)],
        corrupt=[[1, 10 + i, 3] for i in range(4)],
        answer=[4] * 4,
        wrong=[5] * 4,
    )
    for asked, n in ((1, 1), (3, 3), (12, 4)):
        kept, away = draw(words(), mine, asked)
        assert (kept.n, away) == (n, None)
