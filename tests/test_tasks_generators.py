"""Every built-in task on two kinds of tokenizer: what it promises about pairs, donors, references and splits."""

import dataclasses
from collections import Counter

import pytest

from microtome.errors import MicrotomeError, TaskError
from microtome.metrics import scoring
from microtome.tasks import (
    DONOR_KINDS,
    Donors,
    PairTask,
    Side,
    columns,
    describe,
    groups,
    match,
    names,
    offtask,
    show,
    sva,
    task,
)
from microtome.tasks.generator import Generator
from test_tasks_standin import Standin, bpe, pieces, sentencepiece, words

MODELS = {"words": words, "bpe": bpe, "sentencepiece": sentencepiece}
TASKS = {
    "ioi": 15,
    "sva": 12,
    "capitals": 12,
    "greater_than": 12,
    "gendered_pronoun": 12,
    "induction": 12,
    "colored_objects": 12,
}
VARIANTS = [(name, c) for name in TASKS for c in describe(name)["counterfactuals"]]
TWO_VALUED = ("sva", "gendered_pronoun")

every = pytest.mark.parametrize("name", TASKS)
variants = pytest.mark.parametrize(("name", "counterfactual"), VARIANTS)
models = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def made():
    """Tasks by their arguments, each made once."""
    cache = {}

    def get(model, name, n, seed, **options):
        key = (model, name, n, seed, *options.items())
        if key not in cache:
            cache[key] = task(name, MODELS[model](), n, seed, **options)
        return cache[key]

    return get


@variants
@models
def test_pairs_spread_over_templates_and_are_distinct(made, model, name, counterfactual):
    for seed in (0, 1):
        t = made(model, name, 24, seed, counterfactual=counterfactual)
        assert t.n == 24 and len(set(zip(t.clean.ids, t.corrupt.ids, strict=True))) == 24
        counts = Counter(t.groups["template"])
        assert len(counts) == TASKS[name] and max(counts.values()) - min(counts.values()) <= 1
        assert len(set(t.subset(range(8)).groups["template"])) == min(8, TASKS[name])
        assert t.differs and t.provenance["counterfactual"] == counterfactual
        assert all(t.clean.variables[i].keys() == set(describe(name)["variables"]) for i in range(t.n))


@every
@models
def test_fewer_pairs_are_the_first_of_more(made, model, name):
    small = task(name, MODELS[model](), 5, 1)
    assert small.hash == made(model, name, 24, 1, counterfactual=describe_default(name)).subset(range(5)).hash
    assert small.hash == task(name, MODELS[model](), 5, 1).hash != task(name, MODELS[model](), 5, 2).hash


def describe_default(name):
    return next(iter(describe(name)["counterfactuals"]))


@every
@models
def test_tokens_are_those_that_the_model_is_fed_and_spans_are_their_words(made, model, name):
    t = made(model, name, 24, 0, counterfactual=describe_default(name))
    m = MODELS[model]()
    for side in (t.clean, t.corrupt):
        if name != "induction":
            assert [tuple(r) for r in m.tokens(list(side.texts)).rows()] == list(side.ids)
        assert all(side.spans_of(i)["end"] == (len(side.ids[i]) - 1, len(side.ids[i])) for i in range(t.n))
    word = {"ioi": ("io", "io"), "capitals": ("country", "country"), "greater_than": ("year", "year")}
    word |= {"gendered_pronoun": ("name", "name"), "colored_objects": ("query", "query")}
    if name in word:
        span, key = word[name]
        for i in range(t.n):
            a, b = t.clean.spans_of(i)[span]
            spelt = "".join(t.clean.strings[i][a:b])  # some decoders drop a token's own space
            assert spelt.replace(" ", "") == t.clean.values(i)[key].replace(" ", "")
    if model == "bpe":
        assert all(ids[0] == m.tokenizer.bos_token_id for ids in t.clean.ids)  # and positions count it


@variants
@models
def test_donors_are_aligned_and_keep_or_change_what_they_say(made, model, name, counterfactual):
    t = made(model, name, 24, 0, counterfactual=counterfactual).subset(range(12))
    for kind in DONOR_KINDS:
        if kind == "wrong_value" and name in TWO_VALUED:
            with pytest.raises(TaskError, match="two values"):
                t.donors(kind, 3)
            continue
        donors = t.donors(kind, 3)  # checked by PairTask.donors; here what it does not check
        assert donors.lengths == t.clean.lengths and donors.spans == t.clean.spans
        for i in range(t.n):
            assert donors.texts[i] not in (t.clean.texts[i], t.corrupt.texts[i])
        if kind == "wrong_value":
            assert all(set(donors.answers[i]) not in (set(t.answers[i]), set(t.wrong[i])) for i in range(t.n))
        else:
            twin = t.clean if kind == "same_value" else t.corrupt
            assert donors.variables == twin.variables and donors.answers == ()
            assert all(donors.surface[i] != twin.surface[i] for i in range(t.n))
        part = t.subset([7, 2]).donors(kind, 3)
        assert part == donors.take([7, 2])  # a pair's donor does not depend on its company
        if (name, kind) != ("colored_objects", "wrong_value"):  # there the third object is the only choice
            assert t.donors(kind, 4) != donors
    swapped = t.swap().donors("same_value", 3)
    assert swapped.variables == t.corrupt.variables


@pytest.mark.parametrize("kind", ["same_value", "irrelevant"])
def test_a_donor_with_a_wrong_variable_is_caught(made, kind):
    t = made("words", "ioi", 24, 0, counterfactual="swapped_subject").subset([0])
    good = t.donors(kind, 0)
    twin = t.clean if kind == "same_value" else t.corrupt

    def spoilt(**changes):
        class Spoilt:
            def donors(self, task, kind, seed):
                return dataclasses.replace(good, **changes)

        return dataclasses.replace(t, source=Spoilt())

    other = t.corrupt if kind == "same_value" else t.clean
    cases = {
        "has io =": spoilt(variables=other.variables),
        "prompt itself": spoilt(ids=twin.ids),
        "tokens, its pair": spoilt(ids=(good.ids[0] + (1,),)),
        "spans at": spoilt(spans={**good.spans, "io": ((0, 1),)}),
        "of kind 'wrong_value' for": spoilt(kind="wrong_value"),
    }
    for message, task_ in cases.items():
        with pytest.raises(TaskError, match=message):
            task_.donors(kind, 0)


def test_a_wrong_value_donor_with_the_pairs_own_answer_is_caught(made):
    t = made("words", "ioi", 24, 0, counterfactual="swapped_subject").subset([0])
    good = t.donors("wrong_value", 0)
    for answers in (t.answers, t.wrong, ()):

        class Spoilt:
            def donors(self, task, kind, seed, answers=answers):
                return dataclasses.replace(good, answers=answers)

        with pytest.raises(TaskError, match="answer"):
            dataclasses.replace(t, source=Spoilt()).donors("wrong_value", 0)


@variants
def test_a_wrong_value_donor_changes_what_the_pair_differs_in_and_nothing_else(made, name, counterfactual):
    """Another value than clean's in each of those variables: with clean's order, IOI's would still say which name."""
    if name in TWO_VALUED:
        return
    t = made("words", name, 24, 0, counterfactual=counterfactual)
    donors = t.donors("wrong_value", 0)
    for i in range(t.n):
        have, clean = donors.variables[i], t.clean.variables[i]
        changed = {key for key in clean if have[key] != clean[key]}
        assert changed == set(t.differs)
    kept = dataclasses.replace(donors, variables=tuple({**v, next(iter(t.differs)): c[next(iter(t.differs))]} for v, c in zip(donors.variables, t.clean.variables, strict=True)))  # fmt: skip

    class Spoilt:
        def donors(self, task, kind, seed):
            return kept

    with pytest.raises(TaskError, match="has the (clean prompt's|answer of its own)"):
        dataclasses.replace(t, source=Spoilt()).donors("wrong_value", 0)


def test_ioi_has_fifteen_templates_in_both_orders(made):
    t = task("ioi", words(), 30, 0)
    assert len({(v["template"], v["order"]) for v in t.clean.variables}) == 30


def test_a_wrong_value_donor_is_set_against_the_answer_of_the_base(made):
    for name in ("ioi", "capitals", "colored_objects", "induction"):
        t = made("words", name, 24, 0, counterfactual=describe_default(name)).subset(range(4))
        assert t.donors("wrong_value", 0).wrong == t.wrong
        assert t.swap().donors("wrong_value", 0).wrong == t.answers
    t = made("words", "greater_than", 24, 0, counterfactual="year_01").subset(range(4))
    donors = t.donors("wrong_value", 0)
    for i in range(4):  # nested sets: only its own rest is disjoint from the donor's answer
        assert not set(donors.answers[i]) & set(donors.wrong[i])
        assert len(donors.answers[i]) + len(donors.wrong[i]) == 100


def test_a_tampered_pair_gets_no_donors(made):
    t = made("words", "ioi", 24, 0, counterfactual="swapped_subject").subset([0])
    values = dict(t.clean.variables[0]) | {"io": "Anna", "subject": "Paul"}
    clean = dataclasses.replace(t.clean, variables=(values,))
    with pytest.raises(TaskError, match="not what its variables say"):
        dataclasses.replace(t, clean=clean).donors("same_value", 0)


@every
@models
def test_reference_prompts_fit_every_prompt_and_are_not_among_them(made, model, name):
    t = made(model, name, 24, 0, counterfactual=describe_default(name)).subset(range(8))
    size = 4 * len(groups(t, roles=False))
    reference = t.reference(size, 5)
    assert len(set(reference.ids)) == size and not set(reference.ids) & {*t.clean.ids, *t.corrupt.ids}
    assert min(len(rows) for rows in match(t, reference)) >= 4
    assert t.reference(size, 5) == reference != t.reference(size, 6)


def test_the_ioi_reference_mixes_the_orders(made):
    t = made("words", "ioi", 24, 0, counterfactual="swapped_subject").subset([0])
    orders = Counter(v["order"] for v in t.reference(40, 0).variables)
    assert min(orders["ABBA"], orders["BABA"]) >= 8  # else mean ablation would keep where the subject stands


@every
@models
def test_splits_share_neither_cluster_nor_what_it_stands_for(made, model, name):
    t = made(model, name, 24, 0, counterfactual=describe_default(name))
    kept, held = t.split("template", seed=0)
    assert not {v["template"] for v in kept.clean.variables} & {v["template"] for v in held.clean.variables}
    kept, held = t.split("entity", seed=0)
    assert not entities(name, kept) & entities(name, held)


def entities(name, t):
    def of(values):
        if name == "ioi":
            return {*values["io"].split("|"), values["subject"]}
        if name == "induction":
            return set(values["tokens"].split()) | {values["answer"]}
        keys = {"sva": ("noun", "distractor"), "capitals": ("country",), "gendered_pronoun": ("name",)}
        if name == "colored_objects":
            return set(values["objects"].split())
        return {values[key] for key in keys.get(name, ("year",))}

    sides = [t.clean] if name == "greater_than" else [t.clean, t.corrupt]  # its corrupt year is always 01
    return {e for side in sides for i in range(t.n) for e in of(side.values(i))}


def test_ioi_answers_and_the_prefix_that_swapping_the_subject_shares(made):
    for model in MODELS:
        t = made(model, "ioi", 24, 0, counterfactual="swapped_subject")
        m = MODELS[model]()
        after = t.source.encoder.continuation
        for i in range(t.n):
            v, w = t.clean.variables[i], t.corrupt.variables[i]
            assert t.answers[i] == (after("x", " " + v["io"]),) and len(t.answers[i][0]) == 1
            assert t.wrong[i] == (after("x", " " + v["subject"]),)
            assert m.tokenizer.decode(list(t.answers[i][0])).strip() == v["io"]
            assert (w["io"], w["subject"]) == (v["subject"], v["io"]) and w["order"] != v["order"]
            s2 = t.clean.spans_of(i)["s2"][0]
            assert [
                p for p, (a, b) in enumerate(zip(t.clean.ids[i], t.corrupt.ids[i], strict=True)) if a != b
            ] == [s2]
        orders = Counter(v["order"] for v in t.clean.variables)
        assert abs(orders["ABBA"] - orders["BABA"]) <= 8


def test_three_names_are_three_others_in_the_same_places(made):
    t = made("words", "ioi", 24, 0, counterfactual="three_names")
    assert t.provenance["flips"] is False
    for i in range(t.n):
        v, w = t.clean.variables[i], t.corrupt.variables[i]
        three = [*w["io"].split("|"), w["subject"]]
        assert len({*three, v["io"], v["subject"]}) == 5
        spans = t.clean.spans_of(i)
        differ = {p for p, (a, b) in enumerate(zip(t.clean.ids[i], t.corrupt.ids[i], strict=True)) if a != b}
        assert differ == {spans[s][0] for s in ("io", "s1", "s2")}


def test_greater_than_covers_all_endings_whatever_the_digits_tokens(made):
    for model, width in (("words", 1), ("bpe", 2)):
        t = made(model, "greater_than", 24, 0, counterfactual="year_01")
        assert t.metric == "logprob_diff"
        for i in range(t.n):
            year = int(t.clean.variables[i]["year"])
            decode = MODELS[model]().tokenizer.decode
            later, others = (["".join(decode(list(one)).split()) for one in side] for side in (t.answers[i], t.wrong[i]))  # fmt: skip
            for ending in (f"{y:02d}" for y in range(100)):
                inside = [sum(ending.startswith(text) for text in side) for side in (later, others)]
                assert inside == ([1, 0] if int(ending) > year else [0, 1]), (ending, year)
            assert max(len(one) for one in t.answers[i] + t.wrong[i]) <= width
            assert (
                len(scoring(t.answers, t.wrong).tails) == t.n
            )  # one row for each prompt, whatever the digits' tokens
            assert t.corrupt.variables[i]["year"] == "01"


def test_sva_agrees_and_balances_the_distractor(made):
    t = made("words", "sva", 24, 0, counterfactual="other_number")
    plural = {" are", " were", " have"}
    decode = words().tokenizer.decode
    for i in range(t.n):
        assert (decode(list(t.answers[i][0])) in plural) == (t.clean.variables[i]["number"] == "plural")
    cells = Counter((v["number"], v["distractor_number"]) for v in t.clean.variables)
    assert len(cells) == 4 and max(cells.values()) == min(cells.values())
    assert sva._plural("child") == "children" and sva._plural("woman") == "women"


def test_pronouns_follow_the_name_and_either_gender_is_clean(made):
    t = made("words", "gendered_pronoun", 24, 0, counterfactual="other_gender")
    genders = Counter(v["gender"] for v in t.clean.variables)
    assert genders["female"] == genders["male"] == 12
    she = words().single_token(" she")
    assert all(
        (t.answers[i] == ((she,),)) == (t.clean.variables[i]["gender"] == "female") for i in range(t.n)
    )


def test_capitals_of_several_tokens_are_scored_whole():
    single, every_ = task("capitals", bpe(), 12, 0), task("capitals", bpe(), 12, 0, answers="any")
    assert (single.metric, every_.metric) == ("logit_diff", "logprob_diff")
    assert every_.provenance["n_countries"] >= single.provenance["n_countries"]
    with pytest.raises(TaskError, match="which capitals"):
        task("capitals", bpe(), 4, 0, answers="all")


def test_colored_objects_ask_for_each_place_equally_and_end_in_its_color(made):
    for counterfactual in ("other_query", "other_color"):
        t = made("words", "colored_objects", 24, 0, counterfactual=counterfactual)
        asked = Counter(v["objects"].split().index(v["query"]) for v in t.clean.variables)
        assert set(asked.values()) == {8}
        for i in range(t.n):
            a, _ = t.clean.spans_of(i)["color"]
            assert t.clean.ids[i][a] == t.answers[i][0][0]
            assert t.wrong[i][0][0] in t.corrupt.ids[i] and t.wrong != t.answers


def test_induction_needs_ids_only_and_one_place_tells_the_answer():
    bare = Standin.__new__(Standin)
    bare.tokenizer = None
    bare.facts = words().facts
    for counterfactual in ("other_answer", "no_repeat"):
        t = task("induction", bare, 16, 0, counterfactual=counterfactual)
        for i in range(t.n):
            ids, spans = t.clean.ids[i], t.clean.spans_of(i)
            match_, source = spans["match"][0], spans["source"][0]
            assert ids[match_] == ids[-1] and ids[source] == t.answers[i][0][0] and source == match_ + 1
            assert ids.count(t.answers[i][0][0]) == 1 and ids.count(ids[-1]) == 2
            corrupt = t.corrupt.ids[i]
            if counterfactual == "other_answer":
                assert [p for p in range(len(ids)) if ids[p] != corrupt[p]] == [source]
                assert corrupt[source] == t.wrong[i][0][0]
            else:
                assert len(set(corrupt)) == len(corrupt) and t.wrong[i][0][0] not in corrupt
    assert t.donors("irrelevant", 0).ids != t.corrupt.ids
    bare.facts.d_vocab, before = 20, bare.facts.d_vocab
    try:
        with pytest.raises(TaskError, match="20 ids besides special ones"):
            task("induction", bare, 4, 0)
    finally:
        bare.facts.d_vocab = before


def test_induction_draws_no_special_token():
    t = task("induction", bpe(), 64, 0)
    assert all(bpe().tokenizer.bos_token_id not in ids[1:] for ids in (*t.clean.ids, *t.corrupt.ids))


@pytest.mark.parametrize("name", [n for n in TASKS if n != "induction"])
def test_a_tokenizer_that_splits_every_word_is_refused_with_the_reason(name):
    with pytest.raises(TaskError) as caught:
        task(name, pieces(), 4, 0)
    assert caught.value.why and caught.value.instead


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "8"])
def test_numbers_of_pairs_that_are_none(n):
    with pytest.raises(TaskError, match="n is"):
        task("ioi", words(), n, 0)


def test_more_pairs_than_there_are_is_refused():
    class Two(Generator):
        name, summary, source, variables = "two", "", "", ("a",)
        counterfactuals = {"other": frozenset({"a"})}

        def draw(self, i, seed, random):
            from microtome.tasks.generator import Draw

            a = ("Mary", "John")[int(random.integers(2))]
            other = {"Mary": "John", "John": "Mary"}[a]
            return Draw({"a": a}, {"a": other}, (" " + a,), (" " + other,), "t", a)

        def render(self, values):
            from microtome.tasks.encode import render

            return render("then {a}", values)

        def roles(self, clean):
            return {"a": "a"}

    assert Two(words()).task(2, 0).n == 2
    with pytest.raises(TaskError, match="found no pair 2"):
        Two(words()).task(3, 0)


def test_a_prompt_over_the_context_is_refused():
    short = Standin(words().tokenizer, n_ctx=10)
    with pytest.raises(TaskError, match="context is 10 tokens"):
        task("ioi", short, 4, 0)


def test_a_tokenizer_that_ends_prompts_with_a_special_token_is_refused():
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    raw = type(bpe().tokenizer.backend_tokenizer).from_str(bpe().tokenizer.backend_tokenizer.to_str())
    raw.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    model = Standin(PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>"))
    with pytest.raises(TaskError, match="own last token"):
        task("ioi", model, 4, 0)


def test_names_are_looked_up_and_the_nearest_is_suggested():
    assert set(TASKS) <= set(names())
    with pytest.raises(MicrotomeError, match="greater_than"):
        task("greater_then", words())
    with pytest.raises(TaskError, match='did you mean "counterfactual"'):
        task("ioi", words(), 4, 0, counterfactuals="three_names")
    with pytest.raises(TaskError, match="use one of swapped_subject, three_names"):
        task("ioi", words(), 4, 0, counterfactual="abc")
    assert describe("ioi")["counterfactuals"]["three_names"] == ["io", "order", "subject"]


def test_a_task_of_another_package_is_a_generator_or_a_function(monkeypatch):
    from microtome.results import registry

    def toy(model, n, seed, shout=False):
        """Two words.

        More.
        """
        pairs = (
            Side(("a",) * n, tuple((i, 0) for i in range(n))),
            Side(("b",) * n, tuple((i, 1) for i in range(n))),
        )
        return PairTask("toy", *pairs, (((5,),),) * n, (((6,),),) * n)

    monkeypatch.setitem(registry._objects["tasks"], "toy", toy)
    monkeypatch.setitem(registry._objects["tasks"], "broken", lambda model, n, seed: None)
    assert task("toy", words(), 3, shout=True).n == 3
    assert describe("toy") == {"name": "toy", "options": ["shout"], "summary": "Two words."}
    with pytest.raises(TaskError, match="returned a NoneType"):
        task("broken", words())


@models
def test_offtask_sentences_are_plain_distinct_and_seeded(model):
    side = offtask(MODELS[model](), 40, 0)
    assert len(set(side.texts)) == 40 and all(t[0].isupper() and t.endswith(".") for t in side.texts)
    assert not any(c in "".join(side.texts) for c in "`*_|<>=\n\\")
    assert offtask(MODELS[model](), 40, 0) == side != offtask(MODELS[model](), 40, 1)
    with pytest.raises(TaskError, match="were asked for and there are"):
        offtask(MODELS[model](), 10_000, 0)


@every
def test_show_and_columns_of_every_task(made, name):
    t = made("bpe", name, 24, 0, counterfactual=describe_default(name))
    rows = show(t, bpe(), k=2)
    assert len(rows) == 2 and rows[0]["n_answers"] == len(t.answers[0])
    assert len(rows[0]["clean"]["tokens"]) == len(t.clean.ids[0])
    cut = columns(t)
    assert sum(b - a for row in cut.values() for at in row if at for a, b in [at]) == sum(t.clean.lengths)


def test_donors_are_sides_that_a_model_can_run(made):
    donors = made("bpe", "ioi", 24, 0, counterfactual="swapped_subject").donors("wrong_value", 0)
    assert isinstance(donors, Donors) and isinstance(donors, Side)
    assert bpe().tokens(donors).spans[0]["s2"] == donors.spans_of(0)["s2"]


def test_a_task_outlives_a_pickle_and_holds_no_model(made):
    import pickle

    t = made("bpe", "ioi", 24, 0, counterfactual="swapped_subject").subset(range(3))
    again = pickle.loads(pickle.dumps(t))
    assert again.hash == t.hash and again.donors("same_value", 1) == t.donors("same_value", 1)
    assert not any(
        isinstance(v, Standin) for v in (*vars(t.source).values(), *vars(t.source.encoder).values())
    )


def test_no_module_hides_a_public_name():
    import importlib
    import pkgutil
    import types

    import microtome.tasks as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"microtome.tasks.{module.name}")
    assert not [name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)]
