"""The activation store: the same numbers as a trace, in the order of the items, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import microtome as mt
import tiny
from microtome.activations import Store, layout
from microtome.errors import ModelError, ResourceError, SiteError, TaskError
from microtome.facade import Model
from microtome.tasks.labelled import LabelledText

SITES = ["L*.resid_post@-1", "L1.neurons", "L2.z@0", "L1H2.z@1:3", "embed", "final_resid@-1", "L0N5.neurons@-1"]  # fmt: skip


def rows():
    return tiny.ragged([5, 9, 3, 7, 7, 12, 4, 9], seed=1)


def alone(model, data, site):
    """The site item by item, one forward each: what the store must hold."""
    values = [model.run([row], capture=[site], logits=None)[site][0].numpy() for row in data]
    return np.stack(values) if site.endswith(("@-1", "@0")) else np.concatenate(values)


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
    again = Store.open(tmp_path / "s")
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


# ---------------------------------------------------------------------------- order, batches, one pass


def test_the_batch_size_changes_no_order():
    model = tiny.loaded("llama")
    small, large = (mt.store(model, rows(), SITES, batch=b) for b in (8, 4096))
    for site in SITES[1:]:
        np.testing.assert_allclose(small[site], large[site], atol=2e-5)
        assert all(np.array_equal(a, b) for a, b in zip(small.rows(site), large.rows(site), strict=True))


def test_the_same_call_gives_the_same_bits_and_windows_do_not_change_the_order(monkeypatch):
    model = tiny.loaded("llama")
    one, other = mt.store(model, rows(), SITES), mt.store(model, rows(), SITES)
    monkeypatch.setattr(layout, "WINDOW_TOKENS", 10)
    many = mt.store(model, rows(), SITES)
    assert len(many.manifest["windows"]) > 3 > len(one.manifest["windows"])
    for site in one.sites:
        assert np.array_equal(one[site], other[site])
        np.testing.assert_allclose(many[site], one[site], atol=2e-5)


def test_one_pass_that_stops_after_the_last_layer_needed():
    model = tiny.loaded("llama")
    calls = [0, 0, 0]
    handles = [layer.register_forward_hook(lambda *a, i=i: calls.__setitem__(i, calls[i] + 1)) for i, layer in enumerate(model.hf.model.layers)]  # fmt: skip
    mt.store(model, tiny.prompts(4, 6), ["L1.resid_post@-1", "L0.z", "L1.neurons"], batch=12)
    for handle in handles:
        handle.remove()
    assert calls == [3, 3, 0]  # one small forward for the shapes, two batches


def test_a_family_whose_numbers_pads_would_change_is_run_without(monkeypatch):
    model = tiny.loaded("llama")
    monkeypatch.setitem(model.binding.limits, "right padding", "it leaks")
    store = mt.store(model, rows(), "L1.resid_post@-1")
    np.testing.assert_allclose(store["L1.resid_post@-1"], alone(model, rows(), "L1.resid_post@-1"), atol=2e-5)


# ---------------------------------------------------------------------------- data of every kind


def worded():
    """A model with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from microtome.model.load import load_module

    words = ["<unk>", "the", "cat", "sat", "on", "mat", "dog", "ran", "away", "."]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return Model(load_module(tiny.model("llama"), tokenizer=PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")))  # fmt: skip


TEXTS = ("the cat sat on the mat .", "the dog ran away .", "the cat ran .")


def labelled(spans=True):
    where = {"subject": tuple((t.index(w), t.index(w) + 3) for t, w in zip(TEXTS, ("cat", "dog", "cat"), strict=True))}  # fmt: skip
    return LabelledText("animals", TEXTS, (0, 1, 0), ("cat", "dog"), spans=where if spans else {})


def test_labelled_text_texts_and_ids_are_the_same_data():
    model = worded()
    ids = [model.tokenizer(t).input_ids for t in TEXTS]
    stores = [mt.store(model, data, "L1.resid_post@-1") for data in (labelled(), list(TEXTS), ids, model.tokens(list(TEXTS)))]  # fmt: skip
    assert len({s.manifest["data"] for s in stores}) == 1
    assert all(np.array_equal(s["L1.resid_post@-1"], stores[0]["L1.resid_post@-1"]) for s in stores)
    assert stores[0].manifest["about"]["hash"] == labelled().hash


def test_spans_in_characters_are_tokens_of_their_own_text():
    model = worded()
    store = mt.store(model, labelled(), ["embed@subject", "L1.z@subject[-1]"])
    assert [store.items[i][p] for i, p in zip(*store.rows("embed@subject"), strict=True)] == [2, 6, 2]
    again = model.run(list(TEXTS), capture="L1.z", logits=None)["L1.z"][:, 1]
    np.testing.assert_allclose(store["L1.z@subject[-1]"], again, atol=2e-5)
    with pytest.raises(SiteError, match="item 0"):
        mt.store(model, labelled(spans=False), "embed@subject")
    crooked = LabelledText("x", TEXTS, (0, 1, 0), spans={"half": ((5, 7), (4, 7), (4, 7))})
    with pytest.raises(TaskError, match="item 0"):
        mt.store(model, crooked, "embed@half")


class Block:
    def __init__(self, ids, document):
        self.ids, self.document = ids, document


class Corpus:
    """What stands in for a corpus: blocks of token ids that know their document."""

    name, hash = "toy", "c0ffee" * 5

    def blocks(self, model, context=16, tokens=20_000, seed=0):
        for d, row in enumerate(rows()):
            yield Block(row[:context], f"doc {d // 2}")


def test_a_corpus_is_captured_by_its_blocks_and_says_which_document():
    store = mt.store(tiny.loaded("llama"), Corpus(), "L1.resid_post")
    assert store.documents[:3] == ("doc 0", "doc 0", "doc 1") and store.manifest["about"]["name"] == "toy"
    assert [store.items[i] for i in range(len(store))] == rows()


def test_a_side_of_a_task_has_its_spans():
    from microtome.tasks.pairs import Side

    side = Side(("", ""), ((3, 4, 5), (6, 7, 8, 9)), {"x": ((0, 1), (2, 4))})
    store = mt.store(tiny.loaded("llama"), side, "embed@x")
    assert [a.tolist() for a in store.rows("embed@x")] == [[0, 1, 1], [0, 2, 3]]


def test_long_text_is_refused_or_cut_and_where_is_said(tmp_path):
    model = tiny.loaded("llama")
    data = [tiny.prompts(1, 70)[0], [3, 4, 5]]
    with pytest.raises(TaskError, match="item 0 has 70 tokens"):
        mt.store(model, data, "L0.resid_post@-1")
    store = mt.store(model, data, "L0.resid_post@-1", tmp_path / "s", long="cut")
    assert store.manifest["cut"] == ((0, 70, 64),) and store.rows("L0.resid_post@-1")[1].tolist() == [63, 2]
    assert Store.open(tmp_path / "s").manifest["cut"] == ((0, 70, 64),)


# ---------------------------------------------------------------------------- dtypes, chunks, where it is kept


def test_bfloat16_is_stored_as_it_is_and_widened_when_read(tmp_path):
    model = tiny.loaded("llama", dtype=torch.bfloat16)
    store = mt.store(model, rows(), ["L1.resid_post", "L1.resid_post@-1"], tmp_path / "s")
    again = Store.open(tmp_path / "s")
    assert again.manifest["columns"][0]["dtype"] == "BF16"
    assert again.raw("L1.resid_post").dtype == np.uint16 and again["L1.resid_post"].dtype == np.float32
    want = torch.cat([model.run([r], capture="L1.resid_post", logits=None)["L1.resid_post"][0] for r in rows()]).float()  # fmt: skip
    np.testing.assert_allclose(again["L1.resid_post"], want.numpy(), atol=0.15)
    assert np.array_equal(np.concatenate(list(store.chunks("L1.resid_post", 7))), store["L1.resid_post"])


def test_chunks_are_the_rows_in_order():
    store = mt.store(tiny.loaded("llama"), rows(), "L1.resid_post")
    parts = list(store.chunks("L1.resid_post", 10))
    assert {len(p) for p in parts[:-1]} == {10} and np.array_equal(
        np.concatenate(parts), store["L1.resid_post"]
    )


def test_what_is_large_for_memory_goes_to_a_folder_that_goes_with_the_store(monkeypatch):
    monkeypatch.setattr("microtome.activations.capturing.IN_MEMORY", 0.0)
    store = mt.store(tiny.loaded("llama"), rows(), "L1.resid_post")
    folder = store.folder
    assert folder is not None and folder.exists() and store["L1.resid_post"].shape[1] == 24
    del store
    assert not folder.exists()


# ---------------------------------------------------------------------------- refusals


def test_a_store_of_something_else_is_refused_and_says_what_differs(tmp_path):
    model, other = worded(), tiny.loaded("llama-mha")
    mt.store(model, list(TEXTS), "L1.resid_post@-1", tmp_path / "s")
    assert mt.store(model, list(TEXTS), "L1.resid_post@-1", tmp_path / "s").sites == ("L1.resid_post@-1",)
    for changed, match in (
        ((model, list(TEXTS[:2]), "L1.resid_post@-1"), "other data"),
        ((model, list(TEXTS), "L0.resid_post@-1"), "other sites"),
        ((other, [model.tokenizer(t).input_ids for t in TEXTS], "L1.resid_post@-1"), "another model"),
    ):
        with pytest.raises(ResourceError, match=match):
            mt.store(*changed, tmp_path / "s")
    store = Store.open(tmp_path / "s")
    store.check(model, list(TEXTS))
    with pytest.raises(ResourceError, match="another model"):
        store.check(other)
    with pytest.raises(ResourceError, match="other data"):
        store.check(model, labelled(spans=False).texts[::-1])
    model.tokenizer.add_tokens(["new"])
    with pytest.raises(ResourceError, match="another tokenizer"):
        store.check(model)


def test_a_changed_byte_is_found(tmp_path):
    model = tiny.loaded("llama")
    mt.store(model, rows(), ["L0.resid_post", "L1.resid_post"], tmp_path / "s")
    path = tmp_path / "s" / "shard-0000.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    store = Store.open(tmp_path / "s")
    assert len(store["L0.resid_post"])
    with pytest.raises(ResourceError, match=r"L1.resid_post, items .* does not hold what was written"):
        store["L1.resid_post"]
    for name, match in (("manifest.json", "cannot be read|digest"), ("items.safetensors", "cannot be read|tokens"), ("shard-0000.safetensors", "bytes")):  # fmt: skip
        kept = (tmp_path / "s" / name).read_bytes()
        (tmp_path / "s" / name).write_bytes(kept[:-9])
        with pytest.raises(ResourceError, match=match):
            Store.open(tmp_path / "s")
        (tmp_path / "s" / name).write_bytes(kept)


def test_a_folder_with_something_else_and_none_at_all_are_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("x")
    with pytest.raises(ResourceError, match="not empty: thesis.tex"):
        mt.store(tiny.loaded("llama"), rows(), "L0.resid_post", tmp_path / "s")
    with pytest.raises(ResourceError, match="no store"):
        Store.open(tmp_path / "s")
    with pytest.raises(ResourceError, match="no such folder"):
        Store.open(tmp_path / "none")


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("microtome.model.paths.free_bytes", lambda path: 1000)
    with pytest.raises(ResourceError, match="GB"):
        mt.store(tiny.loaded("llama"), rows(), "L0.resid_post", tmp_path / "s")
    assert [p.name for p in (tmp_path / "s").iterdir()] == [".lock"]


def test_activations_that_are_not_finite_are_named(tmp_path):
    hf = tiny.build("llama")
    with torch.no_grad():
        hf.model.embed_tokens.weight[5] = torch.nan
    model = mt.load(hf)
    with pytest.raises(ModelError, match=r"embed@1:, item 1, position 2: .*not finite"):
        mt.store(model, [[3, 4, 6], [3, 4, 5, 6]], ["embed@1:", "L1.resid_post@-1"], tmp_path / "s")
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_scores_and_patterns_are_refused():
    with pytest.raises(SiteError, match="every pair of positions"):
        mt.store(tiny.loaded("llama"), rows(), "L0.pattern")


def test_two_processes_one_folder(tmp_path):
    """The second waits for the first and takes its store."""
    import subprocess
    import sys
    from pathlib import Path

    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tiny, microtome as mt; mt.store(tiny.loaded('llama'), tiny.ragged([5, 9, 3], seed=1), 'L1.resid_post', {str(tmp_path / 's')!r})"  # fmt: skip
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    assert len(Store.open(tmp_path / "s")) == 3
