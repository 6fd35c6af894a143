"""The activation store: the same numbers as a trace, in the order of the items, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest

import microtome as mt
import tiny
from microtome.errors import ModelError, SiteError, TaskError

SITES = ["L*.resid_post@-1", "L1.neurons", "L2.z@0", "L1H2.z@1:3", "embed", "final_resid@-1", "L0N5.neurons@-1"]  # fmt: skip


def rows():
    return tiny.ragged([5, 9, 3, 7, 7, 12, 4, 9], seed=1)


def alone(model, data, site):
    """The site item by item, one forward each: what the store must hold."""
    values = [model.run([row], capture=[site], logits=None)[site][0].numpy() for row in data]
    return np.stack(values) if mt.store.Store and site.endswith(("@-1", "@0")) else np.concatenate(values)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2", "opt", "falcon", "mixtral"])
def test_every_row_is_what_a_trace_of_the_item_alone_holds(family):
    model = tiny.loaded(family)
    sites = [s for s in SITES if s.partition(".")[2].partition("@")[0] not in model.facts.layers[0].lacks]
    store = mt.store(model, rows(), sites, batch=24)
    for site in store.sites:
        want = alone(model, rows(), site)
        assert store[site].shape == want.shape
        np.testing.assert_allclose(store[site], want, atol=2e-5)


def test_in_memory_and_on_disk_are_the_same_bits(tmp_path):
    model = tiny.loaded("llama")
    memory, disk = mt.store(model, rows(), SITES), mt.store(model, rows(), SITES, tmp_path / "s")
    again = mt.store.Store.open(tmp_path / "s")
    for site in memory.sites:
        assert np.array_equal(memory[site], disk[site]) and np.array_equal(memory[site], again[site])
        assert not memory[site].flags.writeable and not again[site].flags.writeable
    assert isinstance(again["embed"], np.memmap)
    assert [again.items[i] for i in range(len(again))] == rows()


def test_rows_say_which_item_and_position():
    model = tiny.loaded("llama")
    store = mt.store(model, rows(), ["embed", "L0.resid_post@1:3", "L0.resid_post@-1"])
    item, position = store.rows("embed")
    table = model.hf.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(store["embed"], table[[rows()[i][p] for i, p in zip(item, position, strict=True)]])
    assert store.rows("L0.resid_post@1:3")[1].tolist() == [1, 2] * len(rows())
    assert store.rows("L0.resid_post@-1")[1].tolist() == [len(r) - 1 for r in rows()]


def test_an_address_that_is_not_stored_is_refused():
    store = mt.store(tiny.loaded("llama"), rows(), "L1.resid_post@-1")
    with pytest.raises(SiteError, match="not in this store"):
        store["L1.resid_post@0"]


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([], TaskError, "no items"),
        ([[1, 2], []], TaskError, "item 1 has no tokens"),
        ([[1, 2], [3] * 65], TaskError, "item 1 has 65 tokens"),
        ([[1, 97]], ModelError, "97 is not in the vocabulary"),
        (["a text"], ModelError, "no tokenizer"),
        (7, TaskError, "no data"),
    ],
)
def test_bad_data_is_refused(data, error, match):
    with pytest.raises(error, match=match):
        mt.store(tiny.loaded("llama"), data, "L1.resid_post@-1")
