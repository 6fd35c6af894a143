"""Generation with edits equals one teacher-forced forward over its result with its resolved edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from microtome.errors import EditError, MicrotomeError, ModelError
from microtome.model.tokens import Tokens, pack
from microtome.trace.edits import Ablate, BaseEdit, Edit, Keep, Patch, Remove, Steer
from microtome.trace.generate import Generation, generate
from microtome.trace.run import run

FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "gptj", "bloom", "deepseek_v3", "gpt_oss"]
MORE = ["mistral", "falcon-new", "falcon-alibi", "gpt_neo", "opt", "olmo2", "cohere2", "smollm3", "phi3", "granite", "qwen3_moe", "gemma3", "opt-after",
        "qwen3_next", "jamba", "falcon_h1", "minimax", "nemotron", "codegen", "mpt"]  # fmt: skip
ROWS = tiny.ragged([6, 3, 4])
NEW = 4


def _check(binding: Any, made: Generation, prompts: list[list[int]], new: int = NEW) -> None:
    """Each prompt's logits against one forward over its own sequence, and all sequences in one ragged batch."""
    assert [list(s[: len(p)]) for s, p in zip(made.sequences, prompts, strict=True)] == prompts
    together = run(binding, pack(made.sequences), edits=made.edits)
    for i, prompt in enumerate(prompts):
        sequence, edits = made.sequences[i], made.edits[i]
        assert len(made.new[i]) == new and sequence == (*prompt, *made.new[i])
        alone = run(binding, pack([sequence]), edits=[edits]).logits[0]
        scored = slice(len(prompt) - 1, len(prompt) - 1 + new)
        for whole in (alone, together.logits[i]):
            torch.testing.assert_close(made.logits[i], whole[scored], rtol=1e-4, atol=2e-5)
            assert whole[scored].argmax(-1).tolist() == list(made.new[i])


def _generate(
    name: str, edits: Any = (), when: Any = None, rows: Any = None, attention: str | None = None, **kw: Any
) -> Generation:
    tokens = rows if isinstance(rows, Tokens) else pack(rows or ROWS)
    return generate(
        tiny.bound(name, attention), tokens, edits=edits, when=when, max_new_tokens=NEW, stop=False, **kw
    )


def _edits(binding: Any) -> list[BaseEdit]:
    """One of many kinds at many points, without positions."""
    d = torch.randn(binding.facts.d_model, generator=torch.Generator().manual_seed(0))
    lacks = binding.facts.layers[1].lacks
    edits: list[BaseEdit] = [
        Steer("L1.resid_post", d, 0.3),
        Remove("L0.resid_post", d),
        Edit("L2.ln2_out", lambda x: 0.5 * x),
    ]
    for point, edit in (("mlp_out", Edit("L2.mlp_out", lambda x: 0.5 * x)), ("z", Ablate("L1H1.z")), ("v", Edit("L1.v", lambda x: 1.5 * x)), ("k", Edit("L1.k", lambda x: 0.5 * x + 0.1)), ("pattern", Edit("L1H2.pattern", lambda p: 0.5 * p)),
                        ("scores", Edit("L2.scores", lambda s: s * 0.7)), ("ln2_scale", Edit("L1.ln2_scale", lambda x: 1.2 * x)), ("neurons", Ablate("L1N3:9.neurons")),
                        ("head_out", Edit("L1H3.head_out", lambda x: x + 0.1)), ("q_pre", Edit("L1.q_pre", lambda x: 1.1 * x)), ("resid_mid", Keep("L1.resid_mid", torch.eye(binding.facts.d_model)[3:]))):  # fmt: skip
        if point not in lacks and all(point not in layer.lacks for layer in binding.facts.layers[1:3]):
            edits.append(edit)
    return edits


@pytest.mark.parametrize("when", ["prompt", "generated", "both"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_edit_with_and_without_cache(name: str, when: str) -> None:
    binding = tiny.bound(name)
    edits = _edits(binding)
    made = _generate(name, edits, when)
    _check(binding, made, ROWS)
    if when == "both":
        uncached = _generate(name, edits, when, cache=False)
        assert made.new == uncached.new
        torch.testing.assert_close(made.logits, uncached.logits, rtol=1e-4, atol=2e-5)
    plain = _generate(name)
    assert not torch.allclose(plain.logits[:, -1], made.logits[:, -1], atol=1e-3)
    first = torch.allclose(plain.logits[:, 0], made.logits[:, 0], atol=1e-5)
    assert first == (when == "generated")
    assert all(r.places for r in made.receipts) and len(made.receipts) == len(edits)


_LATER = {
    "mistral",
    "falcon-alibi",
    "gpt_neo",
    "cohere2",
    "granite",
    "qwen3_moe",
    "opt-after",
    "jamba",
    "nemotron",
    "codegen",
    "phi3",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in _LATER)) for n in MORE])
def test_other_families_on_both(name: str) -> None:
    binding = tiny.bound(name)
    rows = ROWS if "left padding" not in binding.limits else tiny.prompts(3, 5)
    edits = _edits(binding)
    if binding.facts.layers[1].kind != "attention":  # jamba and its kin: attend in odd layers only
        edits = edits[:3]
    made = _generate(name, edits, "both", rows)
    _check(binding, made, rows)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "deepseek_v3", "bloom"])
def test_keys_and_values_are_edited_before_the_cache_keeps_them(name: str, cache: bool) -> None:
    """An edit of a key on the prompt is felt by every later query."""
    for edits in (
        [Ablate("L1KV1.k@1"), Ablate("L0KV0.v@-1")],
        [Edit("L1.v@0:2", lambda x: -x)],
        [Edit("L0.k@-2", lambda x: x + 1)],
    ):
        made = _generate(name, edits, "prompt", cache=cache)
        _check(tiny.bound(name), made, ROWS)
        plain = _generate(name, cache=cache)
        assert not torch.allclose(plain.logits[:, -1], made.logits[:, -1], atol=1e-4)


@pytest.mark.parametrize("when", ["prompt", "both"])
def test_a_position_is_resolved_on_the_prompt_and_stays(when: str) -> None:
    d = torch.randn(24, generator=torch.Generator().manual_seed(0))
    made = _generate("llama", [Steer("L1.resid_post@-1", d, 1.0)], when)
    assert [str(e[0].site) for e in made.edits] == [
        "L1.resid_post@5:6",
        "L1.resid_post@2:3",
        "L1.resid_post@3:4",
    ]
    _check(tiny.bound("llama"), made, ROWS)
    assert made.receipts[0].places == 3


def test_spans_belong_to_the_prompt() -> None:
    spans = ({"s": (1, 3)}, {"s": (0, 1)}, {"s": (2, 4)})
    made = _generate(
        "llama",
        [Ablate("L1.mlp_out@s"), Ablate("L1H1.pattern@-1<-s[0]"), Edit("L0.scores@s<-0", lambda x: x - 2)],
        "prompt",
        pack(ROWS, spans=spans),
    )
    assert [str(e.site) for e in made.edits[0]] == [
        "L1.mlp_out@1:3",
        "L1H1.pattern@5:6<-1",
        "L0.scores@1:3<-0",
    ]
    _check(tiny.bound("llama"), made, ROWS)


@pytest.mark.parametrize(
    ("site", "padding"),
    [
        ("L1.z@-1", "right"),
        ("L1H2.z@-1", "left"),
        ("L1.v@-2:", "right"),
        ("L1.pattern@-1", "left"),
        ("L1H1.pattern@-1", "right"),
        ("L1.k@0", "left"),
        ("L1.resid_post@-1", "left"),
        ("L1H1.pattern@-1<-0", "left"),
        ("L1.pattern@1:3<-0:2", "right"),
    ],
)
def test_a_patch_on_the_prompt_is_read_at_its_own_place(site: str, padding: str) -> None:
    """Sources as traces and as tensors; from other prompts of the same lengths, padded on another side."""
    binding = tiny.bound("llama", "eager")
    donors = run(
        binding,
        pack(tiny.ragged([6, 3, 4], seed=1), padding=padding),
        capture=[site.split("@")[0].replace("H2", "").replace("H1", "")],
    )  # type: ignore[arg-type]
    made = _generate("llama", [Patch(site, donors)], "prompt", attention="eager")
    _check(binding, made, ROWS)
    ran = run(binding, pack(ROWS), edits=[Patch(site, donors)])
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(made.logits[i, 0], ran.logits[i, len(row) - 1], rtol=1e-4, atol=1e-5)
    uncached = _generate("llama", [Patch(site, donors)], "prompt", attention="eager", cache=False)
    torch.testing.assert_close(made.logits, uncached.logits, rtol=1e-4, atol=1e-5)


def test_a_patch_from_longer_prompts_reads_their_own_last_token() -> None:
    """Seen wrong: the position of the edited prompt's end used in the source."""
    binding = tiny.bound("llama")
    donors = run(binding, pack(tiny.ragged([9, 5, 8], seed=1)), capture=["L1.z"])
    made = _generate("llama", [Patch("L1.z@-1", donors)], "prompt")
    ran = run(binding, pack(ROWS), edits=[Patch("L1.z@-1", donors)])
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(made.logits[i, 0], ran.logits[i, len(row) - 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(EditError, match="do not align"):  # as in a run: whole prompts must be of one length
        _generate("llama", [Patch("L1.z", donors)], "prompt")


def test_mean_and_resample_take_the_references_own_last_token() -> None:
    reference = tiny.ragged([8, 9, 5, 7], seed=2)
    for edit in (
        Ablate("L1.mlp_out@-1", "mean", over=reference),
        Ablate("L1.mlp_out@-1", "resample", over=reference, seed=1),
    ):
        made = _generate("llama", [edit], "prompt")
        _check(tiny.bound("llama"), made, ROWS)
        ran = run(tiny.bound("llama"), pack(ROWS), edits=[edit])
        for i, row in enumerate(ROWS):
            torch.testing.assert_close(made.logits[i, 0], ran.logits[i, len(row) - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "site", ["L1.z@-1", "L1.z@1:3", "L1H2.z@-1", "L1.pattern@-1", "L1H1.pattern@-1", "L1.v"]
)
def test_a_tensor_per_prompt(site: str) -> None:
    binding, rows = tiny.bound("llama", "eager"), tiny.prompts(3, 5)
    donors = run(binding, pack(tiny.prompts(3, 5, seed=1)), capture=[site.split("@")[0]])
    one, other = (
        _generate("llama", [Patch(site, s)], "prompt", rows, "eager") for s in (donors[site], donors)
    )
    assert torch.equal(one.logits, other.logits)
    _check(binding, one, rows)
    lists = [[Patch(site, donors[site][i : i + 1])] for i in range(3)]
    assert torch.equal(_generate("llama", lists, "prompt", rows, "eager").logits, one.logits)


def test_edits_per_row() -> None:
    d = torch.randn(24, generator=torch.Generator().manual_seed(0))
    lists: list[list[BaseEdit]] = [
        [Steer("L1.resid_post", d, 1.0)],
        [],
        [Ablate("L1H1.z"), Ablate("L0.mlp_out@-1")],
    ]
    made = _generate("llama", lists, "both")
    _check(tiny.bound("llama"), made, ROWS)
    plain = _generate("llama")
    assert torch.equal(made.logits[1], plain.logits[1]) and made.edits[1] == ()
    assert made.new[1] == plain.new[1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma2", "gpt_oss", "deepseek_v3"])
def test_a_prompt_alone_batched_padded_or_permuted_continues_the_same(name: str) -> None:
    edits = _edits(tiny.bound(name))
    together = _generate(name, edits, "both")
    for padding, order in (("left", (0, 1, 2)), ("right", (2, 0, 1))):
        other = _generate(name, edits, "both", pack([ROWS[i] for i in order], padding=padding))  # type: ignore[arg-type]
        for place, i in enumerate(order):
            assert other.new[place] == together.new[i]
            torch.testing.assert_close(other.logits[place], together.logits[i], rtol=1e-4, atol=2e-5)
    for i, row in enumerate(ROWS):
        alone = _generate(name, edits, "both", [row])
        assert alone.new[0] == together.new[i]
        torch.testing.assert_close(alone.logits[0], together.logits[i], rtol=1e-4, atol=2e-5)


def test_greedy_generation_equals_the_models_own() -> None:
    for name in ("llama", "gpt2", "gemma2", "mistral"):
        hf = tiny.model(name)
        prompt = torch.tensor([ROWS[0]])
        own = hf.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert own[0].tolist() == list(_generate(name, rows=[ROWS[0]]).sequences[0])


def test_sampling_needs_and_obeys_a_seed() -> None:
    draws = [_generate("llama", temperature=2.0, seed=s).new for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert _generate("llama", temperature=1e-4, seed=0).new == _generate("llama").new
    with pytest.raises(ModelError, match="seed"):
        _generate("llama", temperature=1.0)


def test_a_row_ends_at_the_models_end_of_sequence_and_the_others_go_on() -> None:
    hf = tiny.build("llama")
    from microtome.model.binding import bind

    binding = bind(hf)
    free = generate(binding, pack(ROWS), max_new_tokens=NEW, stop=False)
    end = free.new[0][1]
    hf.generation_config.eos_token_id = [end]
    made = generate(binding, pack(ROWS), max_new_tokens=NEW)
    for i in range(3):
        whole = free.new[i]
        assert made.new[i] == (whole[: whole.index(end)] if end in whole else whole)
    assert len(made.new[0]) <= 1
    edits = [Ablate("L1H1.z")]
    edited = generate(binding, pack(ROWS), edits=edits, when="both", max_new_tokens=NEW)
    for i, row in enumerate(ROWS):
        n = len(edited.new[i])
        whole = run(binding, pack([edited.sequences[i]]), edits=[edited.edits[i]]).logits[0]
        torch.testing.assert_close(
            edited.logits[i, : n + 1][: whole.shape[0] - len(row) + 1],
            whole[len(row) - 1 :][:NEW],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("kw", "error", "match"),
    [
        ({"edits": [Ablate("L1.z")]}, EditError, "when"),
        ({"edits": [Ablate("L1.z")], "when": "always"}, EditError, "when"),
        ({"edits": [Ablate("L1.z@-1")], "when": "generated"}, EditError, "names a position"),
        ({"edits": [Ablate("L1.z@9")], "when": "prompt"}, MicrotomeError, "outside"),
        ({"edits": [Ablate("L9.z")], "when": "prompt"}, MicrotomeError, "no layer 9"),
        ({"edits": [[Ablate("L1.z")]], "when": "prompt"}, EditError, "1 lists of edits for 3 prompts"),
        ({"temperature": -1.0}, ModelError, "temperature"),
    ],
)
def test_what_generation_refuses(kw: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _generate("llama", **kw)


def test_an_edit_of_generated_tokens_that_are_never_read_is_an_error() -> None:
    with pytest.raises(EditError, match="never fired"):
        generate(
            tiny.bound("llama"),
            pack(ROWS),
            edits=[Ablate("L1.z")],
            when="generated",
            max_new_tokens=1,
            stop=False,
        )


def test_context_and_nan_are_refused() -> None:
    with pytest.raises(ModelError, match="context of 64"):
        generate(tiny.bound("llama"), pack([[5] * 62]), max_new_tokens=3)
    with pytest.raises(ModelError, match="NaN"):
        _generate("llama", [Edit("L1.z", lambda x: x * float("nan"))], "both")


def test_unequal_prompts_are_refused_where_padding_leaks() -> None:
    with pytest.raises(ModelError, match="different lengths"):
        _generate("recurrent_gemma")
    _generate("recurrent_gemma", rows=tiny.prompts(2, 5))


def test_nothing_is_left_after_an_exception() -> None:
    def explode(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    for name in ("llama", "gptj"):
        for cache in (True, False):
            with pytest.raises(ZeroDivisionError):
                _generate(name, [Edit("L1.pattern", explode)], "generated", cache=cache)
        assert not torch.overrides._get_current_function_mode_stack()


def test_what_generation_returns_can_be_run_also_where_a_reference_is_as_short_as_what_was_read() -> None:
    """The last token is never read back, so the edits that are returned do not name it."""
    binding = tiny.bound("llama")
    prompt, over = tiny.prompts(1, 3), tiny.prompts(4, 6, 1)
    made = generate(binding, pack(prompt), edits=[Ablate("L1.mlp_out", "mean", over=over)], when="generated", max_new_tokens=4, stop=False)  # fmt: skip
    assert [str(e.site) for e in made.edits[0]] == ["L1.mlp_out@3:6"]
    again = run(binding, pack(made.sequences), edits=[list(made.edits[0])])
    torch.testing.assert_close(again.logits[:, 2:6], made.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "falcon-alibi", "opt", "gemma3", "jamba"])
def test_samples_of_one_prompt_read_it_once_and_are_those_of_whole_forwards(family: str) -> None:
    binding = tiny.bound(family)
    prompt = ROWS[0]
    made = [generate(binding, pack([prompt] * 5), max_new_tokens=6, temperature=8.0, seed=3, cache=cache, stop=False)
            for cache in (True, False)]  # fmt: skip
    assert made[0].new == made[1].new and len(set(made[0].new)) > 1
    torch.testing.assert_close(made[0].logits, made[1].logits, rtol=0, atol=1e-4)
    whole = run(binding, pack(made[0].sequences)).logits[:, len(prompt) - 1 : -1]
    torch.testing.assert_close(made[0].logits, whole, rtol=0, atol=1e-4)
