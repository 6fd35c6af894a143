"""Dumb ways in which a claim about a model's inside is often wrong, each with a check that can be run.

From the guide's lists of pitfalls and gotchas (Nanda 2025) and the papers named with each. `covers`: for a technique, the controls
of it that rule this out when all of them ran and passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from microtome.llm.checks import Call, Check, Command, Name, Value

__all__ = ["BATTERY", "Hypothesis"]


@dataclass(frozen=True)
class Hypothesis:
    """A way of being wrong.

    methods: the techniques whose results it can explain; empty: any. when: what else must be so of the evidence: "" nothing,
    "judged", "post_hoc", "one_seed" (not two seeds or more), "few" (fewer than 20 prompts, or unknown). instead: other checks for
    some techniques.
    """

    name: str
    statement: str
    check: Check
    methods: tuple[str, ...] = ()
    covers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    when: str = ""
    instead: tuple[tuple[str, Check], ...] = field(default=(), repr=False)

    def check_for(self, method: str) -> Check:
        """The check to run where the evidence is of this technique."""
        return dict(self.instead).get(method, self.check)

    def controls_of(self, method: str) -> tuple[str, ...]:
        """The controls of a technique that rule this out together; empty: none does."""
        return dict(self.covers).get(method, ())


_MODEL, _TASK = ("model", Name("model")), ("task", Name("task"))
_SEED = ("seed", 0)
_LOADED = 'model = mt.load("{model}"); task = mt.task("{task}", model)'
_PATCHES = (
    "activation_patching",
    "path_patching",
    "attribution_patching",
    "cross_model_patching",
    "distributed_alignment_search",
)
_ABLATIONS = (
    "ablation",
    "component_set",
    "directional_ablation",
    "circuit_discovery",
    "circuit_evaluation",
    "head_roles",
)
_CAUSAL = (*_PATCHES, *_ABLATIONS)
_PROBES = ("probe", "generalisation", "unsupervised")
_STEERS = ("steering", "directional_ablation", "function_vector")
_READS = (
    "logit_lens",
    "lenses",
    "attention_patterns",
    "max_activating",
    "score_description",
    "direct_logit_attribution",
    "patchscope",
)
_CIRCUITS = ("circuit_discovery", "circuit_evaluation", "circuit_robustness", "component_set")


def _call(technique: str, *arguments: tuple[str, Value]) -> Call:
    return Call(technique, (_MODEL, _TASK, *arguments))


_PROBE_AGAIN = Check("groups that lie on both sides of the split", Command(("probe", "{task}", "--model", "{model}", "--by", "template")),
                     "the accuracy holds when no template is in both halves", "the accuracy falls to chance, or to that of the bag of words", "minutes")  # fmt: skip

BATTERY: tuple[Hypothesis, ...] = (
    Hypothesis(
        "general_damage", "The edit breaks the model: it would hurt any text as much.",
        Check("general damage", _call("ablation", ("sites", "{site}"), ("by", "mean"), ("off_task", Name("other_task.clean")), _SEED),
              "damage on the task is far above damage on unrelated prompts", "both are alike", "minutes", f"{_LOADED}; other_task: a task about something else"),
        methods=(*_ABLATIONS, "steering"),
        covers=(("ablation", ("off_task",)), ("directional_ablation", ("harmless_kl",)), ("steering", ("fluency", "off_task"))),
        instead=(("steering", Check("general damage", Command(("steer", "{task}", "--model", "{model}", "--text")),
                                    "fluency and unrelated answers hold at the dose that works", "they fall where the effect begins", "minutes")),),
    ),
    Hypothesis(
        "mlp0_always_matters", "The part matters on every input, as the first MLP does: it is no finding about this task.",
        Check("a part that every input needs", _call("ablation", ("sites", ("L0.mlp_out", "{site}")), ("by", "mean"), ("off_task", Name("other_task.clean")), _SEED),
              "the part costs more on the task than off it, the first MLP costs as much on both", "the part looks like the first MLP", "minutes", f"{_LOADED}; other_task: a task about something else"),
        methods=_CAUSAL, covers=(("ablation", ("off_task",)), ("activation_patching", ("irrelevant", "other_cells")), ("path_patching", ("irrelevant", "other_cells"))),
    ),
    Hypothesis(
        "token_frequency", "The model says the more frequent token, whatever the prompt.",
        Check("a preference for one of the answers", _call("behaviour", _SEED),
              "the answer changes with the prompt on both sides of the pairs", "one side of the pairs is right, the other at or below chance", "seconds", _LOADED),
        methods=("behaviour", "logit_lens", "direct_logit_attribution", "dissect", "patchscope", *_CAUSAL),
        covers=(("behaviour", ("both_sides",)), ("logit_lens", ("other_answers",)), ("direct_logit_attribution", ("corrupt_side",)), ("activation_patching", ("value_matters", "wrong_value"))),
    ),
    Hypothesis(
        "not_the_behaviour", "The model does not do the task in this setting, so there is no mechanism of it to find.",
        Check("a model that is at chance", _call("behaviour", _SEED), "accuracy is above chance, with its interval", "it is not", "seconds", _LOADED),
        methods=("behaviour", "dissect", "logit_lens", "direct_logit_attribution", *_CAUSAL), covers=(("behaviour", ("above_chance",)), ("circuit_evaluation", ("contrast",)), ("circuit_discovery", ("ends",)), ("cross_model_patching", ("behaviour_differs",))),
    ),
    Hypothesis(
        "length", "Length tells the classes apart, or moves the measure.",
        Check("length", Command(("probe", "{task}", "--model", "{model}")), "a classifier of length alone is at chance", "it does as well", "minutes"),
        methods=(*_PROBES, "chain_of_thought", "steering", "score_description"), covers=(("probe", ("length",)), ("chain_of_thought", ("length_position",))),
        instead=(("chain_of_thought", Check("length and place of a sentence", Call("chain_of_thought", (_MODEL, ("prompts", Name("prompts")), _SEED)), "importance is above what length and place predict", "it follows them", "an hour", "prompts: as in the run")),
                 ("steering", Check("length of what is said", Command(("steer", "{task}", "--model", "{model}", "--text")), "the effect is there per word", "longer answers carry it", "minutes"))),
    ),
    Hypothesis(
        "position", "The part reads a place, not a content: it does the same wherever anything stands there.",
        Check("a fixed place", _call("attention_patterns", ("texts", Name('{"other places": other_task.clean}')), _SEED), "the pattern follows the content when places change", "it stays at the place", "minutes",
              f"{_LOADED}; other_task: the same content at other places"),
        methods=("attention_patterns", "activation_patching", "path_patching", "head_roles", "circuit_discovery", "chain_of_thought"),
        covers=(("attention_patterns", ("shuffled_keys", "other_texts")), ("head_roles", ("natural_text",)), ("chain_of_thought", ("length_position",)), ("activation_patching", ("value_matters",))),
    ),
    Hypothesis(
        "template_leakage", "One template, entity or duplicate is on both sides of the split.",
        _PROBE_AGAIN, methods=(*_PROBES, "activation_patching", "component_set", "circuit_evaluation", "function_vector", "distributed_alignment_search"),
        covers=(("probe", ("split",)), ("generalisation", ("split",)), ("unsupervised", ("split",)), ("function_vector", ("held_out",)), ("activation_patching", ("held_out",)),
                ("component_set", ("held_out_faithfulness",)), ("circuit_evaluation", ("held_out",)), ("distributed_alignment_search", ("held_out_entities", "held_out_templates"))),
        instead=tuple((m, Check("templates seen before", _call("activation_patching", ("sites", "{site}"), ("held_out", Name("held_out_task")), _SEED),
                                "the effect is there on templates not used to find it", "it is not", "minutes", f"{_LOADED}; held_out_task: the task with other templates")) for m in ("activation_patching", "component_set", "circuit_evaluation", "distributed_alignment_search")),
    ),
    Hypothesis(
        "label_in_the_input", "The label can be read off the words: no model is needed.",
        Check("surface features", Command(("tasks", "describe", "{task}")), "the linter finds nothing, and a bag of words is at chance", "a bag of words does as well as the probe", "seconds"),
        methods=_PROBES, covers=(("probe", ("bag_of_words", "own_token")), ("generalisation", ("bag_of_words", "own_token")), ("unsupervised", ("own_token", "other_features"))),
    ),
    Hypothesis(
        "best_of_many_cells", "The best of many cells was picked: the largest of so many draws looks good by chance.",
        Check("selection", _call("activation_patching", ("sites", "{site}"), ("held_out", Name("held_out_task")), _SEED), "the selected cell has the effect on prompts it was not selected on", "it shrinks to its null", "minutes",
              f"{_LOADED}; held_out_task: mt.task with another seed"),
        methods=("activation_patching", "ablation", "attribution_patching", "path_patching", "cross_model_patching", "direct_logit_attribution", "logit_lens", "probe", "dissect", "circuit_discovery"),
        covers=tuple((m, ("sign_flip",)) for m in ("activation_patching", "ablation", "attribution_patching", "path_patching", "cross_model_patching", "direct_logit_attribution", "logit_lens")),
        instead=(("probe", Check("the best layer", Command(("probe", "{task}", "--model", "{model}", "--site", "{site}", "--seed", "1")), "the layer fixed beforehand does as well on another split", "it does not", "minutes")),),
    ),
    Hypothesis(
        "one_seed", "It is the luck of one seed: of the prompts drawn, the split or the start.",
        Check("one draw", Command(("dissect", "{task}", "--model", "{model}", "--seed", "1")), "the same parts come out", "others do", "minutes"), when="one_seed",
        instead=tuple((m, Check("one draw", Command(("probe", "{task}", "--model", "{model}", "--seed", "1")), "the same accuracy at the same place", "another", "minutes")) for m in _PROBES)
        + (("steering", Check("one draw", Command(("steer", "{task}", "--model", "{model}", "--seed", "1")), "the same effect at the same dose", "another", "minutes")),),
    ),
    Hypothesis(
        "too_few_prompts", "There are too few prompts for any effect to be told from chance, or only a huge one.",
        Check("a small sample", Command(("dissect", "{task}", "--model", "{model}", "--pairs", "40")), "the interval narrows around the same value", "the value moves to its null", "minutes"), when="few",
    ),
    Hypothesis(
        "narrow_prompts", "It holds on these prompts: other words, other templates, another source would not show it.",
        Check("one kind of prompt", _call("activation_patching", ("sites", "{site}"), ("held_out", Name("other_task")), _SEED), "the effect is there on a set that someone else wrote", "it is not", "minutes", f"{_LOADED}; other_task: the same behaviour in other words"),
        covers=(("circuit_robustness", ("robust",)), ("prompt_grid", ("paraphrases",)), ("distributed_alignment_search", ("held_out_templates",)), ("function_vector", ("other_template",))),
        instead=tuple((m, Check("one kind of text", Call("generalisation", (_MODEL, ("data", Name("[data, other_data]")), ("sites", "{site}"), _SEED)), "trained on one set, it tells the other's classes apart", "it is at chance there", "minutes",
                                "data: the labelled texts; other_data: made in another way")) for m in _PROBES),
    ),
    Hypothesis(
        "off_distribution", "The edit leaves what the model ever sees; the effect is of that.",
        Check("an unnatural value", _call("ablation", ("sites", "{site}"), ("by", "resample"), _SEED), "resampled from other prompts the effect is as large as with the mean or zero", "it is much smaller", "minutes", _LOADED),
        methods=(*_ABLATIONS, "activation_patching", "steering", "chain_of_thought"),
        covers=(("activation_patching", ("noise", "irrelevant")), ("steering", ("natural_noise",)), ("directional_ablation", ("natural_noise",)), ("chain_of_thought", ("off_distribution",))),
    ),
    Hypothesis(
        "dormant_direction", "The subspace moves the output through directions that the model does not use (Makelov et al. 2023).",
        Check("an illusion of the subspace", _call("distributed_alignment_search", ("variable", Name("variable")), ("site", "{site}"), _SEED), "the part in the null space of what reads it does nothing, and it has natural variance", "the null-space part carries the effect", "an hour", f"{_LOADED}; variable: as in the run"),
        methods=("distributed_alignment_search",), covers=(("distributed_alignment_search", ("null_space", "natural_variance")),),
    ),
    Hypothesis(
        "off_by_one", "A bug: the position before or after is read, or logits at i are taken for token i.",
        Check("off by one", Command(("tasks", "show", "{task}", "--model", "{model}")), "the scored position and the spans are those meant, token by token", "they are one off", "seconds"),
        covers=(("probe", ("own_token",)), ("generalisation", ("own_token",)), ("unsupervised", ("own_token",))),
        instead=(("chain_of_thought", Check("off by one", Command(("models", "check", "{model}")), "every name means what the table of points says", "a check fails", "minutes")),),
    ),
    Hypothesis(
        "wrong_token", "A bug: the answer's token lacks its leading space, or only the first of several tokens is read.",
        Check("the wrong token", Command(("tasks", "show", "{task}", "--model", "{model}")), "the answers are the tokens that follow the prompt", "another token, or a part of one", "seconds"),
        methods=("behaviour", "logit_lens", "direct_logit_attribution", "dissect", "prompt_grid", "patchscope", "steering", *_CAUSAL),
    ),
    Hypothesis(
        "first_token", "The first token, with its large norm and the attention that ends there, makes the mean, the pattern or the direction.",
        Check("the first token", Call("max_activating", (_MODEL, ("corpus", Name("mt.corpus()")), ("of", "{site}"), _SEED)), "without the first token the same examples are on top", "the top is first tokens", "minutes", 'model = mt.load("{model}")'),
        methods=("steering", "directional_ablation", "max_activating", "attention_patterns", "model_diff", *_PROBES), covers=(("steering", ("first_token",)), ("max_activating", ("first_token",)), ("probe", ("own_token",)), ("generalisation", ("own_token",))),
    ),
    Hypothesis(
        "padding", "A bug: pads are read, or the side of the padding changes what is computed.",
        Check("padding and batching", Command(("models", "check", "{model}")), "alone, batched and padded on either side the activations are equal", "they differ beyond the noise floor", "minutes"),
        covers=(("prompt_grid", ("alone",)), ("chain_of_thought", ("alone",)), ("max_activating", ("same_alone",)), ("model_diff", ("batching",)), ("probe", ("own_token",))),
    ),
    Hypothesis(
        "chat_template", "A bug: a chat model is asked without its template, or with the wrong one; it degrades a little and hides.",
        Check("the chat template", Call("prompt_grid", (_MODEL, ("prompts", Name("grid")), ("design", "one"), _SEED)), "with and without the template the behaviour is there", "it is there in one of them only", "minutes", "grid: the prompts with the template as a factor"),
        methods=("prompt_grid", "behaviour", "steering", "directional_ablation", "chain_of_thought", "dissect", "model_diff"), covers=(("prompt_grid", ("paraphrases",)),),
    ),
    Hypothesis(
        "judge_bias", "The judge likes what is long, first, fluent or its own; the effect is the judge's.",
        Check("the judge", Call("calibrate_judge", tuple((k, Name(k)) for k in ("judge", "labelled", "generator", "positive", "negative"))), "it agrees with hand labels and shows no bias; the effect outlives its error", "it is invalid, or biased by what the edit changes", "an hour",
              "judge: microtome.llm.judging.Judge; labelled: hand labels; generator: the model's name; positive, negative: control texts"),
        when="judged",
    ),
    Hypothesis(
        "sandbagged_baseline", "The baseline was not tried as hard: a prompt, a bag of words or a plain difference of means does as well.",
        Check("a weak baseline", Command(("steer", "{task}", "--model", "{model}", "--system", "PROMPT")), "it beats a prompt that was tuned for as long", "the prompt does as well", "minutes"),
        methods=(*_STEERS, *_PROBES, "lenses", "model_diff"),
        covers=(("steering", ("prompting",)), ("probe", ("bag_of_words", "ask")), ("generalisation", ("bag_of_words",)), ("function_vector", ("in_context", "task_vector")), ("lenses", ("constant", "other_text"))),
        instead=tuple((m, Check("a weak baseline", Command(("probe", "{task}", "--model", "{model}", "--words", "CLASS=WORD,CLASS=WORD")), "it beats asking the model, and a bag of words", "either does as well", "minutes")) for m in _PROBES),
    ),
    Hypothesis(
        "cherry_picked", "The examples were chosen: random ones would not look so.",
        Check("chosen examples", Command(("tasks", "show", "{task}", "--model", "{model}", "-k", "20", "--seed", "1")), "examples drawn at random show it too", "only the chosen ones do", "seconds"),
        covers=(("max_activating", ("disjoint", "beyond_the_top")), ("score_description", ("disjoint", "beyond_the_top"))),
        instead=tuple((m, Check("the top only", Command(("examples", "{site}", "--model", "{model}", "--describe", "DESCRIPTION")), "the description holds below the top, on held-out text", "it fits the top only", "minutes")) for m in ("max_activating", "score_description")),
    ),
    Hypothesis(
        "any_direction", "Any vector of this norm, or any direction of this site, would do as much.",
        Check("a random direction", Command(("steer", "{task}", "--model", "{model}")), "random and shuffled-label vectors of equal norm do much less", "they do as much", "minutes"),
        methods=(*_STEERS, *_PROBES, "patchscope", "max_activating", "score_description", "distributed_alignment_search"),
        covers=(("steering", ("shuffled_labels", "isotropic")), ("directional_ablation", ("random_directions", "shuffled_labels")), ("function_vector", ("shuffled_labels", "random_vectors")), ("probe", ("shuffled_labels", "random_direction")),
                ("generalisation", ("shuffled_labels",)), ("unsupervised", ("shuffled_labels",)), ("patchscope", ("random_vectors",)), ("max_activating", ("random_directions",)), ("score_description", ("random_directions", "shuffled_descriptions")),
                ("distributed_alignment_search", ("random_subspace", "shuffled_labels"))),
        instead=(("max_activating", Check("any direction", Command(("examples", "{site}", "--model", "{model}")), "random directions are less selective", "they are as selective", "minutes")),),
    ),
    Hypothesis(
        "untrained_would_too", "A model with random weights shows the same: it is the architecture or the input.",
        Check("random weights", Command(("probe", "{task}", "--model", "{model}")), "the probe of a random twin is far below", "it is as good", "minutes"),
        methods=(*_PROBES, "head_roles", "composition", "vocabulary_svd", "lenses", "distributed_alignment_search"),
        covers=(("probe", ("random_twin",)), ("generalisation", ("random_twin",)), ("head_roles", ("random_weights",)), ("composition", ("random_weights",)), ("vocabulary_svd", ("random_weights",)), ("lenses", ("untrained",)), ("distributed_alignment_search", ("random_twin",))),
        instead=(("head_roles", Check("random weights", Command(("heads", "--model", "{model}")), "heads of random weights score far below", "they do not", "minutes")),),
    ),
    Hypothesis(
        "there_but_not_used", "The information is there and nothing reads it: correlation, not use.",
        Check("no causal role", _call("activation_patching", ("sites", "{site}"), ("mode", "noise"), _SEED), "patching it moves the answer as its value says", "nothing moves", "minutes", _LOADED),
        methods=(*_PROBES, *_READS, "head_roles"), covers=(("probe", ("causal",)), ("head_roles", ("ablation",))),
    ),
    Hypothesis(
        "self_repair", "Other parts take over when it is removed (or do so here only): a small effect does not show that it is idle.",
        Check("backup parts", _call("component_set", ("ranking", Name("ranking")), ("held_out", Name("held_out_task")), _SEED), "removing the set together costs what the parts' effects add up to", "together they cost much more than alone", "minutes",
              f"{_LOADED}; ranking: the sweep's result; held_out_task: mt.task with another seed"),
        methods=("ablation", "circuit_discovery", "circuit_evaluation"), covers=(("circuit_discovery", ("completeness",)), ("circuit_evaluation", ("completeness",))),
    ),
    Hypothesis(
        "approximation", "The gradient's estimate is not the effect: saturated attention and cancelling paths give false zeros (Kramar et al. 2024).",
        Check("a linear estimate", _call("activation_patching", ("sites", "{site}"), _SEED), "true patching ranks the parts alike, low ones included", "large effects stand where the estimate says none", "minutes", _LOADED),
        methods=("attribution_patching", "token_attribution", "circuit_discovery"), covers=(("attribution_patching", ("approximation", "missed")), ("token_attribution", ("completeness", "agreement")), ("circuit_discovery", ("faithful", "cancelling"))),
    ),
    Hypothesis(
        "one_direction_of_patching", "Sufficient is taken for necessary: the other direction of patching was not tried.",
        Check("sufficiency for necessity", _call("activation_patching", ("sites", "{site}"), ("mode", "noise"), _SEED), "noising it breaks what denoising it restored", "nothing breaks", "minutes", _LOADED), methods=("activation_patching", "path_patching"),
    ),
    Hypothesis(
        "the_metric", "The metric makes it: a probability hides what pushes down, a difference hides what moves both.",
        Check("one metric", _call("activation_patching", ("sites", "{site}"), ("metrics", ("logit_diff", "logprob_diff", "kl")), _SEED), "the same cells stand out under each", "they change with the metric", "minutes", _LOADED), methods=("activation_patching", "ablation", "path_patching", "dissect"),
    ),
    Hypothesis(
        "any_circuit", "A random circuit of the same size does as well.",
        Check("any circuit of this size", _call("circuit_evaluation", ("circuit", Name("circuit")), ("held_out", Name("held_out_task")), _SEED), "random and strong circuits of its size are far below", "some are as faithful", "an hour", f"{_LOADED}; circuit: as found; held_out_task: mt.task with another seed"),
        methods=_CIRCUITS, covers=(("circuit_evaluation", ("random_circuits", "strong_circuits")), ("circuit_discovery", ("random_edges",)), ("circuit_robustness", ("random_circuits",)), ("component_set", ("matched_sets", "strong_sets"))),
    ),
    Hypothesis(
        "general_drift", "Any training moves the model so: the difference is not about what was taught.",
        Check("drift", Command(("diff", "MODEL", "TUNED", "--unrelated", "OTHER")), "the unrelated tuning lacks the difference", "it has it too", "minutes"),
        methods=("model_diff", "cross_model_patching"), covers=(("model_diff", ("unrelated", "noise_models")), ("cross_model_patching", ("unrelated", "noise_models"))),
    ),
    Hypothesis(
        "seen_before", "The claim was made to fit what had been seen: the evidence cannot count for it.",
        Check("hindsight", Command(("dissect", "{task}", "--model", "{model}", "--seed", "2")), "a prediction written down before this run comes true", "it does not", "minutes", "write the prediction first: study.predict(...)"), when="post_hoc",
    ),
)  # fmt: skip
"""The built-in battery, in the order shown."""
