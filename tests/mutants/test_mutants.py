"""Named faults, each put in on purpose and caught by a named test: a suite that lets one through is no suite."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planted
import probed
import steerable
import test_circuits_evaluate
import test_controls_draws
import test_controls_roc
import test_controls_signflip
import test_methods_controls
import test_methods_diff
import test_methods_examples
import test_methods_functions
import test_methods_planted
import test_methods_probe
import test_methods_steering
import test_methods_tokens
import test_metrics
import test_probing_fits
import test_replay_exact
import test_results_verdict
import test_sites_hook_names
import test_store_capture
import test_store_kills
import test_tasks_pairs
import test_trace_capture
import test_trace_edits
import test_weights_factored
from microtome import methods, metrics
from microtome.activations import capturing, layout, writing
from microtome.circuits import hypotheses, judged, measures, nulls, stability
from microtome.circuits.linked import Walk
from microtome.controls import detection, directions, intervals, shuffles, signflip
from microtome.directions import contrast, estimate
from microtome.directions.contrast import Contrast
from microtome.errors import MicrotomeError
from microtome.methods import (
    ablating,
    diffing,
    donors,
    example_search,
    lens,
    patching,
    sets,
    token_attributing,
)
from microtome.methods import setting as settings
from microtome.methods.probing import capture as reading
from microtome.methods.steer import Study
from microtome.methods.weights import HeadCircuits
from microtome.model import noise
from microtome.model.tokens import Tokens
from microtome.replay import bench, memo, sources
from microtome.sites import At
from microtome.tasks.pairs import PairTask
from microtome.trace import generate, session


@dataclass(frozen=True)
class Mutant:
    """A fault: where it is put, what stands there then, and the test that must notice."""

    name: str
    place: Any
    attribute: str
    fault: Callable[[Any], Any]
    caught_by: Callable[[], None]


def _planted(check: Callable[..., None]) -> Callable[[], None]:
    def run() -> None:
        model = planted.one_head()
        task = planted.pairs(model)
        single = methods.activation_patching(
            model, task, sites=["L*H*.z", "L*.mlp_out"], positions="all", held_out=planted.pairs(model, n=24, seed=9), seed=0
        )  # fmt: skip
        check(single)

    run.__name__ = check.__name__
    return run


def _at_equal_norm(real: Any) -> Any:
    def null(self: Contrast, estimator: Any, norm: float | None, draws: int, seed: int) -> Any:
        return real(self, estimator, float(np.linalg.norm(estimator(self.values, self.labels))), draws, seed)

    return null


def _by_the_measure(real: Any) -> Any:
    def choose(self: Study) -> None:
        self.best = int(self.effects[:, self.explore].mean(1).argmax())

    return choose


def _clean_contrast() -> None:
    test_methods_steering.test_shuffled_labels_at_equal_norm_are_the_direction_itself_where_the_contrast_is_clean()


def _few_arrangements() -> None:
    test_controls_draws.test_ranks_among_few_arrangements_have_the_chance_that_p_says(4, 3)


def _largest_fluent_dose() -> None:
    test_methods_steering.test_the_dose_is_the_largest_fluent_one_and_reported_on_the_other_half(
        steerable.model()
    )


def _shifted_position(real: Any) -> Any:
    def resolve(self, length, spans=None):
        low, high = real(self, length, spans)
        return (low - 1, high - 1) if self.single and low else (low, high)

    return resolve


def _wrong_head(real: Any) -> Any:
    return lambda store, point, layer, rows, cols, heads: real(store, point, layer, rows, cols, None if heads is None else heads - 1)  # fmt: skip


def _other_groups(real: Any) -> Any:
    def group(bench, prompts, rows_of):
        made = real(bench, prompts, rows_of)
        return replace(made, scored=made.scored.max().expand_as(made.scored).clone())

    return group


def _uncorrected(real: Any) -> Any:
    """Each flip's first cell instead of its largest: no correction for the number of cells."""
    return lambda scaled, signs: real(scaled[:1], signs)


def _first_kept(real: Any) -> Any:
    def base(self, key, make, budget):
        return real(self, "one key for all", make, budget)

    return base


def _leaky_split(real: Any) -> Any:
    def split(self, by="template", held_out=0.5, *, seed):
        kept, _ = real(self, by, held_out, seed=seed)
        return kept, kept

    return split


def _forgiving(real: Any) -> Any:
    """Mandatory controls that are missing or did not run are left out of account."""

    def verdict(controls, mandatory=(), p=None, alpha=0.001, smallest_p=None):
        ran = [c for c in controls if c.passed is not None]
        return real(ran, tuple(m for m in mandatory if m in {c.name for c in ran}), p, alpha, smallest_p)

    return verdict


def _on_copier(check: Callable[..., None], *more: Any) -> Callable[[], None]:
    """A test that takes the copier and its pairs."""
    return lambda: check(planted.copier(), planted.copied(n=16), *more)


def _exchanged(real: Any) -> Any:
    other = {"same_value": "irrelevant", "irrelevant": "same_value"}

    def given(self, task, kind, seed):
        made = real(self, task, other.get(kind, kind), seed)
        twin = {"same_value": task.clean, "irrelevant": task.corrupt}.get(kind, made)
        return replace(made, kind=kind, variables=twin.variables)

    return given


def _turned(real: Any) -> Any:
    def setting(model, task, mode="denoise", metrics=()):
        return real(model, task, "noise" if mode == "denoise" else "denoise", metrics)

    return setting


def _ratio_of_each_prompt(real: Any) -> Any:
    def ratio(effects, total, clusters, **more):
        made = real(effects, total, clusters, **more)
        return replace(made, estimate=(effects / total).mean(1))

    return ratio


def _no_zeros(real: Any) -> Any:
    return lambda effects, clusters, *, structurally_zero=None, **more: real(effects, clusters, **more)


def _stale(real: Any) -> Any:
    def build(self, *args):
        source = real(self, *args)
        return replace(source, values=lambda *a: 1.5 * source.values(*a))

    return build


def _on_task(real: Any) -> Any:
    return lambda model, s, chosen, by, source, other, seed: real(
        model, s, chosen, by, source, s.task.clean, seed
    )


def _on_one_head(check: Callable[..., None], *more: Any) -> Callable[[], None]:
    """A test that takes the model with one head and pairs that it does."""

    def run() -> None:
        model = planted.one_head()
        check(model, planted.pairs_done(model), *more)

    return run


def _noise_is_unstable() -> None:
    model = planted.one_head()
    with pytest.MonkeyPatch.context() as patch:
        test_circuits_evaluate.test_scores_that_are_noise_are_not_stable(
            model, planted.pairs_done(model), patch
        )


def _no_first_point(real: Any) -> Any:
    def roc(scores, truth):
        made = real(scores, truth)
        return replace(made, false=made.false[1:], true=made.true[1:], thresholds=made.thresholds[1:],
                       area=float(np.trapezoid(made.true[1:], made.false[1:])))  # fmt: skip

    return roc


def _power_cuts() -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(layout, "WINDOW_TOKENS", 16)
        patch.setattr(layout, "SHARD_BYTES", 4000)
        test_store_kills.test_stopped_before_and_after_every_fsync_and_rename_and_gone_on_with(None, True, patch, Path(folder))  # fmt: skip


def _counted_first(real: Any) -> Any:
    def put(self, window, buffers):
        def content(column):
            return memoryview(writing.raw(buffers[column.site])).cast("B")

        self.pieces.append([writing.files.digest_of(content(c)) for c in self.columns])
        self._cursor()
        self.pieces.pop()
        real(self, window, buffers)

    return put


def _one_further(real: Any) -> Any:
    def take(self, view, frame):
        return real(self, view if self.target is None else view.roll(1, 1), frame)

    return take


def _examples_brute_force() -> None:
    docs = np.random.default_rng(0).integers(3, 97, (40, 30)).tolist()
    test_methods_examples.test_top_and_sample_are_what_a_brute_force_finds("L1.neurons", test_methods_examples.tiny.loaded("llama"), docs)  # fmt: skip


def _averaged_first(real: Any) -> Any:
    return lambda trace, values, positions, first_token: real(trace, values, positions, True)


def _first_token_average() -> None:
    model = steerable.model()
    found = estimate.mean_difference(model, steerable.texts(80), steerable.SITE)
    test_methods_steering.test_mean_difference_is_the_difference_of_hand_made_means(model, found)


def _off_by_one(real: Any) -> Any:
    return lambda place: real((place[0], place[1] - 1)) if isinstance(place[1], int) else real(place)


def _own_tokens() -> None:
    """The control itself, on a short probe: rows that are not their tokens' own make it invalid."""
    result = methods.probe(probed.model(), probed.texts(), kinds=("mass_mean",), options=test_methods_probe.LIGHT)  # fmt: skip
    assert test_methods_probe.controls(result)["own_token"].passed


def _uncached_only(real: Any) -> Any:
    """Edits reach the prompt's pass alone where a cache is kept."""
    return lambda self, width: [] if self.kept is not None and self.read else real(self, width)


def _occluded_next(real: Any) -> Any:
    def occlusion(q, source):
        values, out = real(q, source)
        return tuple(np.roll(v, 1) for v in values), out

    return occlusion


def _planted_token() -> None:
    """As `test_every_way_finds_the_planted_token_and_no_other`, of one way."""
    model = test_methods_tokens.worded.copier()
    found = methods.token_attribution(model, test_methods_tokens.asked(model), how=["occlusion"], orders=2, seed=0)  # fmt: skip
    assert found.effects.values[0, ..., 0].mean(-1).argmax() == planted.WHERE


def _next_group(real: Any) -> Any:
    def read(self, layer):
        values, out = real(self, layer)
        return values.roll(self._repeat(layer), 0), out

    return read


def _same_vectors(real: Any) -> Any:
    return lambda self, name, seed: self.changed[name].double()


MUTANTS = [
    Mutant("a leaked split passes", test_methods_probe, "split_control", lambda real: lambda d: replace(real(d), passed=True), test_methods_probe.test_a_leak_shows_in_shuffled_labels_too),
    Mutant("a probe's labels are not shuffled", shuffles, "_draw", lambda real: lambda truth, index, draws, rng: np.repeat(np.asarray(truth)[:, None], draws, 1), test_probing_fits.test_the_same_runs_with_a_planted_label_are_found),
    Mutant("a probe reads the token before", reading, "address", _off_by_one, _own_tokens),
    Mutant("an average has the first token in it", contrast, "_pooled", _averaged_first, _first_token_average),
    Mutant("a query head reads another group's values", HeadCircuits, "_vo_of", _next_group, test_weights_factored.test_full_circuits_equal_dense_ones),
    Mutant("steering ends where the cache begins", generate._Loop, "_writes", _uncached_only, lambda: test_methods_steering.test_steering_changes_generated_tokens_equally_with_and_without_cache("llama", "both")),
    Mutant("shuffled demonstrations keep their answers", test_methods_functions, "demonstrations", lambda real: lambda *a, shuffled: real(*a, shuffled=False), test_methods_functions.test_shuffled_demonstrations_keep_no_answer_and_held_out_words_stay_out),
    Mutant("an occlusion belongs to the token behind", token_attributing, "_occlusion", _occluded_next, _planted_token),
    Mutant("a noise model has the fine-tune's own directions", noise.RandomChange, "_spectrum", _same_vectors, test_methods_diff.test_random_changes_keep_what_they_say),
    Mutant("noise is as large as it happens to be", diffing, "_rescaled", lambda real: lambda theirs, own, model, leave_out: own, lambda: test_methods_diff.test_noise_is_rescaled_until_the_outputs_differ_as_much(30.0)),
    Mutant("any difference counts", test_methods_diff, "against_draws", lambda real: lambda *a, least=0.0, **more: real(*a, **more), test_methods_diff.test_what_nobody_would_look_at_is_no_finding_and_the_level_holds),
    Mutant("one of two tests is enough", test_methods_diff, "stricter", lambda real: lambda one, other: one, test_methods_diff.test_the_stricter_of_two_tests_is_called_where_both_are),
    Mutant("a store counts what is not on the disk yet", writing.InFolder, "put", _counted_first, _power_cuts),
    Mutant("a store keeps the token before", capturing.Sink, "take", _one_further, test_store_capture.test_rows_say_which_item_and_position),
    Mutant("the smallest activations are kept", example_search._Best, "add", lambda real: lambda self, got, mask, items: real(self, -got, mask, items), _examples_brute_force),
    Mutant("an area counts ties as won", detection, "_midrank", lambda real: lambda ordered, at: np.searchsorted(ordered, at, "right").astype(float), test_methods_examples.test_areas_are_those_of_the_roc_and_intervals_cover),
    Mutant("a ROC begins at its first flag", test_controls_roc, "roc", _no_first_point, test_controls_roc.test_it_is_scikit_learns_at_every_threshold_with_ties),
    Mutant("dependence is permuted over templates", test_controls_roc, "hsic_test", lambda real: lambda a, b, groups, **more: real(a, b, range(len(a)), **more), test_controls_roc.test_a_level_of_templates_is_no_dependence),
    Mutant("CPR takes absolute scores", measures, "ranked", lambda real: lambda *a, absolute: real(*a, absolute=True), _on_one_head(test_circuits_evaluate.test_ten_sizes_are_one_batch_and_signed_and_absolute_differ)),
    Mutant("an area is a mean over sizes", measures, "_area", lambda real: lambda k, y, log: float(np.mean(y)), test_circuits_evaluate.test_areas_of_a_perfect_ranking),
    Mutant("KL is averaged over the vocabulary", metrics, "_mean_per_prompt", lambda real: lambda steps, plan: real(steps, plan) / 99, _on_one_head(test_circuits_evaluate.test_kl_is_summed_over_the_vocabulary)),
    Mutant("null circuits need no path", Walk, "sets", lambda real: lambda self, draws: [], _on_one_head(test_circuits_evaluate.test_null_circuits_have_the_shape_are_linked_and_are_not_the_circuit)),
    Mutant("a null circuit is the circuit", Walk, "sets", lambda real: lambda self, draws: [np.sort(self.start)] * draws, _on_one_head(test_circuits_evaluate.test_null_circuits_have_the_shape_are_linked_and_are_not_the_circuit)),
    Mutant("an arrangement of labels comes twice", shuffles, "_distinct", lambda real: lambda columns: columns, _few_arrangements),
    Mutant("shuffled labels' directions are drawn out to the real one's norm", Contrast, "null", _at_equal_norm, _clean_contrast),
    Mutant("noise has the labels' own axis", directions, "unexplained", lambda real: lambda data, labels, groups: np.array(data), _clean_contrast),
    Mutant("the dose is chosen by the measure", Study, "choose", _by_the_measure, _largest_fluent_dose),
    Mutant("labels are not shuffled", nulls, "halved", lambda real: lambda codes, seed, draw: np.zeros(len(codes), bool), _on_one_head(test_circuits_evaluate.test_the_planted_circuit_beats_shuffled_labels)),
    Mutant("inflated circuits are not inflated", hypotheses, "_path", lambda real: lambda case, rng: case.chosen, _on_one_head(test_circuits_evaluate.test_random_paths_of_inflated_circuits_go_from_the_embedding_to_the_logits)),
    Mutant("bootstrap circuits are all one", stability, "_jaccard", lambda real: lambda a, b: np.ones((len(a), len(b))), _noise_is_unstable),
    Mutant("gaps of completeness are taken from their mean", judged, "_largest_gap", lambda real: lambda table: table.assign(gap=table["gap"] - table["gap"].mean()).iloc[0], test_circuits_evaluate.test_two_copies_of_a_mechanism_are_two_circuits),
    Mutant("a position is off by one", At, "resolve", _shifted_position, test_trace_capture.test_a_position_drops_its_axis_and_a_slice_keeps_it),
    Mutant("a sweep reads the wrong head", sources, "_gather", _wrong_head, _planted(test_methods_planted.test_patching_finds_the_planted_head_and_nothing_else)),
    Mutant("a sweep skips one position too many", sources, "_agree", lambda real: lambda a, b: real(a, b) + 1, test_replay_exact.test_skipped_cells_are_zeros_that_the_long_way_confirms),
    Mutant("a padded prompt is scored at another's end", bench, "_group", _other_groups, lambda: test_replay_exact.test_prompts_of_different_lengths_share_a_sweep_and_change_nothing("llama")),
    Mutant("a kept run is returned for other prompts", memo.Memo, "base", _first_kept, test_replay_exact.test_runs_kept_for_later_sweeps_stay_within_their_budget),
    Mutant("a receipt is written for nothing", session, "_stamp", lambda real: lambda receipt, old, new: real(receipt, old, old), test_trace_edits.test_receipts_say_how_large_the_change_was),
    Mutant("pads are counted as positions", Tokens, "starts", lambda real: property(lambda self: tuple(0 for _ in range(len(self)))), lambda: test_trace_capture.test_positions_count_the_prompts_own_tokens_whatever_the_padding("left")),
    Mutant("answer and wrong are exchanged", metrics, "_at", lambda real: lambda values, terms, columns: -real(values, terms, columns), test_metrics.test_logit_diff_is_the_answers_logit_minus_the_wrong_ones),
    Mutant("the maximum over cells is forgotten", signflip, "_largest", _uncorrected, test_controls_signflip.test_more_null_cells_make_the_same_effect_less_sure),
    Mutant("noise donors have no size", test_controls_draws, "noise_donor", lambda real: lambda *a, **k: np.zeros_like(real(*a, **k)), test_controls_draws.test_noise_has_the_patch_norm_and_spans_natural_differences_only),
    Mutant("a control that did not run counts as passed", test_results_verdict, "verdict", _forgiving, test_results_verdict.test_a_forgotten_and_an_idle_control_are_both_unchecked_and_told_apart),
    Mutant("held-out prompts are the prompts explored", PairTask, "split", _leaky_split, lambda: test_tasks_pairs.test_splits_share_no_cluster_and_lose_no_pair(7, 0.9, 6)),
    Mutant("a foreign name means another point", test_sites_hook_names.PLAIN, "blocks.attn.hook_z", lambda real: "v", lambda: test_sites_hook_names.test_every_name_holds_their_tensor_or_is_refused(test_sites_hook_names.Fixture("llama"))),
    Mutant("donors are exchanged", planted.Lookup, "donors", _exchanged, _on_copier(test_methods_controls.test_a_planted_mechanism_passes_every_control, "denoise", {})),
    Mutant("base and donor are exchanged", patching, "setting", _turned, _on_copier(test_methods_controls.test_clean_activations_raise_the_answer_and_corrupt_ones_lower_it, "denoise", 1)),
    Mutant("effects are normalised prompt by prompt", patching, "normalised_effect", _ratio_of_each_prompt, test_methods_controls.test_unequal_totals_do_not_make_a_ratio_of_each_prompt),
    Mutant("structural zeros stay in the family", patching, "sign_flip", _no_zeros, _on_copier(test_methods_controls.test_cells_that_cannot_differ_are_not_in_the_family)),
    Mutant("held-out pairs need not be held out", patching, "shares", lambda real: lambda task, other: "", _on_copier(test_methods_controls.test_held_out_pairs_must_be_held_out)),
    Mutant("null sets are the chosen set", sets, "matched_sets", lambda real: lambda strata, target, n, *, seed: np.array([sorted(target)] * n), _on_copier(test_methods_controls.test_the_null_sets_are_not_the_chosen_one)),
    Mutant("a head is read by its group's number", sources, "_gather", lambda real: lambda store, point, layer, rows, cols, heads: real(store, point, layer, rows, cols, None if heads is None else heads // 2), _planted(test_methods_planted.test_patching_finds_the_planted_head_and_nothing_else)),
    Mutant("off-task text is the task's", ablating, "_off_task", _on_task, _on_copier(test_methods_controls.test_damage_off_the_task_is_measured_off_the_task)),
    Mutant("prompts are resampled, not clusters", intervals, "as_clusters", lambda real: lambda labels: real(np.arange(len(labels))), test_methods_controls.test_copies_of_prompts_do_not_narrow_a_bootstrap),
    Mutant("every prompt is a cluster", settings, "clusters_of", lambda real: lambda task: tuple(map(str, range(task.n))), lambda: test_methods_controls.test_prompts_of_one_template_are_one_cluster(planted.copier())),
    Mutant("labels leak into their own null", lens, "_derangement", lambda real: lambda n, seed: np.arange(n), _on_copier(test_methods_controls.test_other_answers_are_other_peoples)),
    Mutant("the identity patch is skipped", donors, "Settings", lambda real: lambda skip=True: real(), _on_copier(test_methods_controls.test_the_identity_control_patches_something)),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_the_fault_is_caught(mutant: Mutant, monkeypatch) -> None:
    mutant.caught_by()  # without the fault it passes
    if isinstance(mutant.place, dict):
        monkeypatch.setitem(mutant.place, mutant.attribute, mutant.fault(mutant.place[mutant.attribute]))
    else:
        monkeypatch.setattr(
            mutant.place, mutant.attribute, mutant.fault(getattr(mutant.place, mutant.attribute))
        )
    with pytest.raises((AssertionError, MicrotomeError, pytest.fail.Exception)):
        mutant.caught_by()
