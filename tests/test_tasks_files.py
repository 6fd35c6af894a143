"""Pairs from lists and files: what is read is exactly what was written, and everything else is one clear error."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import TaskError
from microtome.tasks import pairs
from test_tasks_standin import Standin, bpe, words

CLEAN = "When Mary and John went to the store, John gave a book to"
CORRUPT = "When Mary and John went to the store, Mary gave a book to"
GOOD = {"clean": [CLEAN], "corrupt": [CORRUPT], "answer": [" Mary"], "wrong": [" John"]}


def refused(message, model=None, source=None, **changes):
    with pytest.raises(TaskError, match=message) as caught:
        pairs(model or words(), source, **({**GOOD, **changes} if source is None else changes))
    text = str(caught.value)
    assert len(text) < 2000 and text.count("\n") < 12 and caught.value.instead
    return text


def row(**changes):
    return {"clean": CLEAN, "corrupt": CORRUPT, "answer": " Mary", "wrong": " John", **changes}


def test_lists_csv_jsonl_and_yaml_give_the_same_task(tmp_path):
    lists = pairs(
        words(), **GOOD, columns={"template": ["t"], "entity": ["e"], "span:giver": ["store, John"]}
    )
    cells = row(template="t", entity="e") | {"span:giver": "store, John"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(cells) + "\n\n")
    (tmp_path / "pairs.yaml").write_text("- " + json.dumps(cells))
    header = ",".join(cells)
    quoted = ",".join('"' + v + '"' for v in cells.values())
    (tmp_path / "pairs.csv").write_text(f"{header}\n{quoted}\n")
    (tmp_path / "pairs.tsv").write_text("\t".join(cells) + "\r\n" + "\t".join(cells.values()) + "\r\n")
    for name in ("pairs.jsonl", "pairs.yaml", "pairs.csv", "pairs.tsv"):
        made = pairs(words(), tmp_path / name)
        assert made.hash == lists.hash and made.provenance["source"] == "file"
    assert lists.clean.spans_of(0)["giver"] == (7, 10)
    assert lists.answers == (((words().single_token(" Mary"),),),) and lists.metric == "logit_diff"


def test_a_leading_space_is_never_repaired_but_told():
    model = bpe(bos=True)
    text = refused('"xMary" is 3 tokens: "x" "M" "ary"', model, answer=["xMary"])
    assert "with a leading space" not in text  # "xMary" is not a slip of the space
    assert len(model.tokenizer("Jessica", add_special_tokens=False).input_ids) > 1
    text = refused("Jessica", model, answer=["Jessica"])
    assert '" Jessica", with a leading space, is one token' in text and 'metric="logprob_diff"' in text


def test_an_answer_that_the_tokenizer_does_not_know_is_refused():
    """It would be scored as the one token that stands for every such word."""
    refused('does not know " Ermintrude"', words(), answer=[" Ermintrude"])
    made = pairs(words(), **{**GOOD, "wrong": ["<unk>"]})
    assert made.wrong[0][0] == (words().tokenizer.unk_token_id,)


def test_a_prompt_that_ends_with_a_space_is_told():
    text = refused(
        "cannot follow", bpe(), clean=[CLEAN + " "], corrupt=[CORRUPT + " "], answer=["Mary"], wrong=["John"]
    )
    assert "end the prompt without a space" in text and "pair 0: answer" in text
    made = pairs(bpe(), clean=[CLEAN + " "], corrupt=[CORRUPT + " "], answer=[" Mary"], wrong=[" John"])
    assert "ends with a space" in made.provenance["notes"][0]


def test_answers_of_several_tokens_and_sets_need_the_metric_for_them():
    refused("is 2 tokens", answer=[" Mary Anna"])
    refused("2 continuations", answer=[[" Mary", " Anna"]])
    made = pairs(words(), **{**GOOD, "answer": [[" Mary", " Anna Maria"]]}, metric="logprob_diff")
    assert [len(one) for one in made.answers[0]] == [1, 2]
    refused("is the beginning of", answer=[[" Mary", " Mary Anna"]], metric="logprob_diff")
    with pytest.raises(LookupError, match="did you mean 'logprob_diff'"):
        pairs(words(), **GOOD, metric="logprob_dif")
    refused("the answer equals the wrong answer", answer=[" John"])
    refused("the answer equals the wrong answer", answer=[[" John"]])
    refused("the answer is empty", answer=[[]])
    refused("answer is empty", answer=[""])


def test_unequal_and_identical_pairs_are_refused_where_they_stand(tmp_path):
    text = refused(
        "pair 0: the clean prompt has 14 tokens, the corrupt one 15",
        corrupt=[CORRUPT.replace("store", "old store")],
    )
    assert '[" store"]' in text and '[" old"]' in text or "<unk>" in text
    refused("clean and corrupt are the same prompt", corrupt=[CLEAN])
    good, bad = row(), row(corrupt=CLEAN)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, [good, bad])))
    refused("p.jsonl line 2: clean and corrupt are the same", source=tmp_path / "p.jsonl")
    lines = [
        "clean,corrupt,answer,wrong",
        f'"{CLEAN}","{CORRUPT}", Mary, John',
        f'"{CLEAN}\n","{CLEAN}\n", Mary, John',
    ]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    refused("p.csv line 3: clean and corrupt are the same", source=tmp_path / "p.csv")


def test_pairs_may_differ_in_length_from_pair_to_pair():
    made = pairs(
        words(),
        clean=[CLEAN, "then Mary gave John"],
        corrupt=[CORRUPT, "then John gave John"],
        answer=[" Mary", " a"],
        wrong=[" John", " the"],
    )
    assert made.clean.lengths == (14, 4) and not made.aligned
    assert (
        made.groups["template"] == ("pair-0", "pair-1")
        and "none given" in made.provenance["groups"]["template"]
    )


def test_a_pair_given_twice_is_refused():
    two = {name: rows * 2 for name, rows in GOOD.items()}
    refused("pair 1 is the same pair as pair 0", **two)


def test_groups_connect_what_shares_an_entity():
    given = {
        "clean": [f"then {n} gave" for n in ("Mary", "John", "Anna", "Paul")],
        "corrupt": ["then Emma gave"] * 4,
        "answer": [" a"] * 4,
        "wrong": [" the"] * 4,
    }
    entity = [["Mary", "Emma"], ["John"], ["Anna", "John"], ["Paul", "Emma"]]
    made = pairs(words(), **given, columns={"entity": entity})
    a, b, c, d = made.groups["entity"]
    assert a == d != b == c
    kept, held = made.split("entity", seed=0)
    assert {kept.n, held.n} == {2}
    both = pairs(words(), **given, columns={"group": ["x", "x", "y", "y"]})
    assert both.groups["template"] == both.groups["entity"] == ("x", "x", "y", "y")
    with pytest.raises(TaskError, match="every pair needs one"):
        pairs(words(), **given, columns={"entity": ["x", "", "y", "z"]})


def test_spans_are_text_that_occurs_once_or_token_ranges():
    made = pairs(
        bpe(), **GOOD, columns={"span:place": ["store"], "span:first": [[0, 1]], "span:late": ["9:11"]}
    )
    assert "".join(made.clean.strings[0][slice(*made.spans["place"][0])]) == " store"
    assert made.clean.strings[0][0] == "<s>" and made.spans["first"] == ((0, 1),)  # BOS is position 0
    assert made.spans["late"] == ((9, 11),) and made.corrupt.spans == made.clean.spans
    for value, message in [
        ("John", "occurs 2 times"),
        ("park", "occurs 0 times"),
        ("Joh", "occurs 2 times"),
        ("stor", "does not begin and end between tokens"),
        ([3, 99], "the prompt has"),
        ("5:5", "half-open"),
        (3.5, "text or a token range"),
    ]:
        refused(message, bpe(), columns={"span:x": [value]})
    refused("this name is taken", columns={"span:end": ["store"]})
    refused("cannot name a span", columns={"span:a b": ["store"]})
    assert "x" not in pairs(words(), **GOOD, columns={"span:x": [""]}).spans


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n\n", "is empty"),
        ("a.csv", b"clean,corrupt,answer,wrong\n", "a header and no pairs"),
        ("a.csv", b"clean,corrupt,anwser,wrong\na,b,c,d\n", 'no column "anwser"(.|\n)*did you mean "answer"'),
        ("a.csv", b"clean,corrupt,answer\na,b,c\n", 'column "wrong" is missing'),
        ("a.csv", b"clean,corrupt,answer,wrong,colour\na,b,c,d,e\n", 'no column "colour"'),
        ("a.csv", b"clean,clean,corrupt,answer,wrong\na,b,c,d,e\n", "is there twice"),
        ("a.csv", b"clean,corrupt,answer,wrong\na,b,c\n", "line 2 has 3 cells, the header 4"),
        ("a.csv", b'clean,corrupt,answer,wrong\n"a,b,c,d\n', "line 2: unexpected end of data"),
        ("a.csv", b'clean,corrupt,answer,wrong\na,b,"[""x",d\n', "begins like a JSON list"),
        ("a.csv", b"clean,corrupt,answer,wrong\na,b,\xff,d\n", "not UTF-8: byte 0xff at offset 31 .line 2"),
        ("a.csv", "clean,corrupt,answer,wrong\n".encode("utf-16"), "not UTF-8(.|\n)*like UTF-16"),
        ("a.jsonl", b'{"clean": "a"\n', "line 1 is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 is a list"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.jsonl", b"[" * 100_000, "is not JSON"),
        ("a.yaml", b"clean: a\n", "holds a dict"),
        ("a.yaml", b"- [a\n", "is not YAML"),
        ("a.yaml", b"- !!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("a.txt", b"x", "does not say what it is"),
        (
            "a.jsonl",
            b'{"clean": "a", "clean": "b", "corrupt": "c", "answer": "d", "wrong": "e"}',
            'line 1: the column "clean" is there twice',
        ),
        (
            "a.yaml",
            b"- clean: a\n  corrupt: b\n  answer: c\n  wrong: d\n  answer: e\n",
            'line 1: the column "answer" is there twice',
        ),
        ("a.csv", b"clean;corrupt;answer;wrong\na;b;c;d\n", "separates its columns by semicolons"),
        ("a.csv", b"clean\tcorrupt\tanswer\twrong\na\tb\tc\td\n", "separates its columns by tabs"),
        ("a.tsv", b"clean,corrupt,answer,wrong\na,b,c,d\n", "separates its columns by commas"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(message, source=tmp_path / name)


def test_yaml_values_that_are_not_text_are_refused_not_guessed(tmp_path):
    for value, shown in [
        ("no", "False"),
        ("17", "17"),
        ("2001-01-01", "a date"),
        ("[17]", "17"),
        ("~", "None"),
    ]:
        text = f'- clean: "{CLEAN}"\n  corrupt: "{CORRUPT}"\n  wrong: " John"\n  answer: {value}\n'
        (tmp_path / "p.yaml").write_text(text)
        assert shown in refused("item 1: answer is", source=tmp_path / "p.yaml")


def test_a_yaml_that_nests_without_end_is_refused_quickly(tmp_path):
    levels = [f"- &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'x'}]" for i in range(30)]
    text = f"- clean: &all\n{chr(10).join('  ' + line for line in levels)}\n  corrupt: b\n  answer: c\n  wrong: d\n"
    (tmp_path / "bomb.yaml").write_text(text)
    refused("clean is a list of 30", source=tmp_path / "bomb.yaml")


def test_missing_files_and_folders(tmp_path):
    refused("cannot be read", source=tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    refused("cannot be read", source=tmp_path / "folder.csv")
    with pytest.raises(TaskError, match="the model comes first"):
        pairs("pairs.csv", words())


def test_lists_that_do_not_fit_each_other():
    refused("different lengths", wrong=[" John", " John"])
    refused("clean is a str", clean=CLEAN)
    refused('column "wrong" is missing', wrong=None)
    refused("lists are empty", clean=[], corrupt=[], answer=[], wrong=[])
    refused("clean is 3", clean=[3])
    refused("clean is None", clean=[None])
    refused("clean is empty", clean=["  "], corrupt=["x "])
    with pytest.raises(TaskError, match="both the file"):
        pairs(words(), "p.csv", **GOOD)


def test_prompts_over_the_context_are_refused():
    refused("context is 10 tokens", Standin(words().tokenizer, n_ctx=10))
    assert pairs(Standin(words().tokenizer, n_ctx=14), **GOOD).n == 1  # the last answer token is never fed


def test_token_ids_are_fed_as_they_are():
    bare = Standin.__new__(Standin)
    bare.tokenizer, bare.facts = None, words().facts
    made = pairs(bare, clean=[[5, 6, 7]], corrupt=[[5, 8, 7]], answer=[9], wrong=[[10]])
    assert made.clean.ids == ((5, 6, 7),) and (made.answers, made.wrong) == ((((9,),),), (((10,),),))
    with pytest.raises(TaskError, match="without a tokenizer"):
        pairs(bare, **GOOD)
    with pytest.raises(TaskError, match="without a tokenizer"):
        pairs(bare, clean=[[5, 6, 7]], corrupt=[[5, 8, 7]], answer=[" a"], wrong=[10])
    assert pairs(bpe(), clean=[[5, 6]], corrupt=[[5, 7]], answer=[" Mary"], wrong=[3]).clean.ids == ((5, 6),)


def test_special_tokens_in_a_prompt_are_kept_as_the_tokenizer_reads_them():
    made = pairs(
        bpe(),
        **{**GOOD, "clean": [CLEAN.replace("When", "<s>")], "corrupt": [CORRUPT.replace("When", "<s>")]},
    )
    assert made.clean.ids[0][:2] == (bpe().tokenizer.bos_token_id,) * 2


def test_half_a_surrogate_pair_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(row(clean=CLEAN + "\ud800")))
    refused("is not text", source=tmp_path / "p.jsonl")


HOSTILE = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    [
        "</script><img src=x onerror=alert(1)>",
        "=cmd|' /C calc'!A0",
        "\x00",
        "\u202e",
        "'); DROP TABLE",
        "\U0001f600",
    ]
)


@settings(max_examples=40, deadline=None)
@given(HOSTILE, HOSTILE)
def test_any_text_comes_through_a_file_unchanged_or_is_refused(tmp_path_factory, a, b):
    file = tmp_path_factory.mktemp("h") / "p.jsonl"
    file.write_text(
        json.dumps(row(clean=f"then {a} {b} John", corrupt=f"then {a} {b} Mary")), encoding="utf-8"
    )
    try:
        made = pairs(bpe(), file)
    except TaskError as error:
        assert len(str(error)) < 2000
    else:
        assert made.clean.texts == (f"then {a} {b} John",)
        assert (
            bpe().tokenizer.decode(list(made.clean.ids[0][1:]), clean_up_tokenization_spaces=False)
            == made.clean.texts[0]
        )


def test_the_package_of_tasks_starts_without_torch():
    code = "import sys, microtome.tasks; microtome.tasks.names(); assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)
