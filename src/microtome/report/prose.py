"""The words of a report: what each kind of stage asks, what it cannot show, what a verdict means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..results.verdicts import INVALID, NULL, SUPPORTED, UNCHECKED, UNDERPOWERED

if TYPE_CHECKING:
    from ..results.result import Result

VERDICT = {
    SUPPORTED: "The effect stands out from its null, and every control that it needs passed.",
    NULL: "What was measured could be chance, or something that must not have the effect has it too.",
    INVALID: "A deterministic check failed. Do not use these numbers.",
    UNDERPOWERED: "With so few prompts no outcome could have counted as an effect, so its absence says nothing either.",
    UNCHECKED: "A control that it needs, or the test itself, did not run. Nobody knows yet whether to believe it.",
}
GLYPH = {SUPPORTED: "✓", NULL: "○", INVALID: "✕", UNDERPOWERED: "▽", UNCHECKED: "?"}
SLUG = {
    SUPPORTED: "supported",
    NULL: "null",
    INVALID: "invalid",
    UNDERPOWERED: "underpowered",
    UNCHECKED: "unchecked",
}

TITLE = {
    "behaviour": "Does the model do it?",
    "activation_patching": "Activation patching",
    "attribution_patching": "Attribution patching",
    "direct_logit_attribution": "Direct logit attribution",
    "head_roles": "What heads are for, by their weights",
    "lenses": "Lenses beside each other",
    "logit_lens": "Logit lens",
    "ablation": "Ablation",
    "attention_patterns": "What the heads attend to",
    "component_set": "The smallest set found",
    "circuit_discovery": "A circuit of edges",
    "composition": "Which heads read which",
    "circuit_evaluation": "A circuit tested",
    "circuit_robustness": "A circuit under other choices",
    "distributed_alignment_search": "A subspace for a variable",
    "cross_model_patching": "One model's activations in the other",
    "model_diff": "Two models compared",
    "path_patching": "Path patching",
    "generalisation": "A probe on other data",
    "probe": "A probe",
    "unsupervised": "Directions without labels",
    "steering": "Steering",
    "prompt_grid": "Prompts, one factor at a time",
    "directional_ablation": "A direction removed everywhere",
    "token_attribution": "What each token adds",
    "training_dynamics": "Training, step by step",
    "dissect": "The whole",
    "max_activating": "Where units are most active",
    "score_description": "A description tried",
    "function_vector": "A task as a vector",
    "chain_of_thought": "Sentences of a chain of thought",
}

_ASKED = {
    "behaviour": "How often does the model prefer the answer to the wrong answer, and by how much?",
    "direct_logit_attribution": "Through the final norm, with its scale held fixed: how much does each part write directly towards the answer?",
    "head_roles": "Which heads attend to the previous token, do induction and copy: do the weights alone say it, do the heads do it, and is it missed when they are taken away?",
    "lenses": "Read by the model's own unembedding, by a fitted map and by the mean Jacobian: what does the stream say at each layer of the same text, how far is it from what the model says in the end, and does it know how sure it is?",
    "logit_lens": "If the model stopped after each layer and read its stream out, what would it say?",
    "attention_patterns": "How much of each head's attention goes to the previous token, to an earlier copy of the token, to what followed that copy, to itself, to the first token?",
    "component_set": "How few heads and MLPs carry the effect when all others are replaced, and does the set still do so on prompts it was not chosen on?",
    "composition": "By the weights alone: how much of what each head writes do later heads read by their queries, keys and values, and how much would they if one were turned at random?",
    "circuit_discovery": "Which edges does the model need: what one part writes and another reads, everything else carrying the corrupt prompt's values?",
    "circuit_evaluation": "Do these edges carry the behaviour, all of it and nothing else, and would other edges have done as well?",
    "circuit_robustness": "How far does the circuit's faithfulness depend on what is left out, of what, where, by what, in which direction and on which prompts?",
    "distributed_alignment_search": "Is there a subspace of this site whose exchange between two prompts exchanges one variable, on prompts that it was not trained on?",
    "cross_model_patching": "Which single activation of one model, put into the other on the same prompt, carries its behaviour over?",
    "model_diff": "Where do two models differ on the same tokens, by how much, and would models whose weights were moved as far at random differ as much?",
    "path_patching": "If only what travels from one part to another along named paths is changed, and all else is as on the base run, how far does the answer move?",
    "generalisation": "Does a probe trained on one dataset tell the classes of another apart, better than shared words and untrained weights do, and are the directions one?",
    "unsupervised": "Do directions that were found without labels tell the label, and what else do they tell?",
    "probe": "Can the label be read from these activations on texts of other groups, better than from the words, from untrained weights or by asking, and does the model use what is read?",
    "directional_ablation": "Does the behaviour go when the direction is taken out of the whole stream, and come where it is added?",
    "function_vector": "Does one vector, taken from prompts with demonstrations, make the model do the task where there are none, on words it was not taken from?",
    "steering": "If a direction is added to the stream, does the text change as the concept says, more than with directions that carry nothing, and before it falls apart?",
    "prompt_grid": "What does one change of the prompt do to the answer while all else stays, and is it more than a change of wording does?",
    "token_attribution": "Which tokens of the prompt raise the answer, and does removing them in that order take it away faster than any order would?",
    "training_dynamics": "What does the same method say of each checkpoint of a training, and of networks with the last weights in random order?",
    "max_activating": "On which tokens is each unit largest, what does it do on all the others, and do tokens say where it is active better than for a random direction?",
    "score_description": "Does this description say at which tokens of held-out text the unit is most active, better than it says so of random directions and than other descriptions would?",
    "chain_of_thought": "How far does each sentence before the answer move the distribution of answers, beyond what sampling alone does?",
}
_WAYS = {
    "gradient": "one gradient, to first order",
    "ig-inputs": "gradients averaged between the two prompts' embeddings",
    "ig-activations": "gradients averaged between the two prompts' activations",
    "relp": "a gradient with rules in place of the derivatives of MLPs and norms",
    "atp*": "one gradient, with attention patterns recomputed for queries and keys",
}
_PATCHED = {
    "denoise": "Run the corrupt prompt, put in the clean activation at one place, and see how far the answer comes back. This asks what is sufficient.",
    "noise": "Run the clean prompt, put in the corrupt activation at one place, and see how much of the answer is lost. This asks what is necessary.",
}

_LIMITS = {
    "behaviour": (
        "Other prompts of the same kind may go differently: the interval is about prompts like these.",
    ),
    "activation_patching": (
        "A cell says that this place carries what differs between the two prompts, not how it is computed.",
        "Denoising shows what suffices and noising what is needed; the two maps need not agree.",
        "What is the same in both prompts is invisible here, however much the model uses it.",
    ),
    "attribution_patching": (
        "A gradient misses saturated attention and effects that cancel: a small estimate does not clear a part.",
    ),
    "direct_logit_attribution": (
        "Only direct writing is counted. A part that works through later parts has a small piece.",
        "The scale of the final norm is held fixed.",
    ),
    "head_roles": (
        "A head whose role comes from the stream that other parts write cannot be told from its own weights.",
        "A head that does a thing need not be the only one: others may take over when it is gone.",
    ),
    "lenses": (
        "A fitted lens shows what can be told from the stream, which is more than what the model has made of it by then.",
        "Near the final distribution is not the same as right: a lens that shows another answer in the middle may show something true.",
    ),
    "logit_lens": (
        "Early layers are not in the basis of the output: a low line there does not say that the answer is absent.",
    ),
    "ablation": (
        "Later parts may take over from an ablated one (self-repair), so damage is a lower bound.",
        "An ablated model is off its usual distribution; how far depends on the reference that was put in.",
    ),
    "attention_patterns": (
        "Where a head looks is not what it moves, and not whether that matters.",
        "A head's name holds for the texts it was measured on.",
    ),
    "chain_of_thought": (
        "A sentence on which the answer rests need not say what the model computed: text can be needed and untrue.",
        "An edited chain may be one that the model would never write, and a model may take an edit back.",
        "The finding is about this chain; another sample of the same question reasons otherwise.",
    ),
    "prompt_grid": (
        "A factor of a prompt that moves the answer says nothing yet of how the model computes it.",
        "The effects are about these wordings and these levels; another wording may turn them round.",
    ),
    "token_attribution": (
        "An attribution is relative to its baseline: another baseline gives other numbers.",
        "A prompt with tokens removed is off the model's usual distribution.",
        "A token that is needed together with another can have no attribution of its own, or both all of it.",
    ),
    "component_set": (
        "A faithful set is not the only one: parts that are backups of each other can be left out in turn.",
        "Faithfulness is about these prompts, this metric and this replacement for everything else.",
    ),
    "composition": (
        "A large score says that one head could read another, not that it does on any text.",
        "Two heads may share a direction that everything writes and everything reads.",
    ),
    "circuit_discovery": (
        "Other edges may do the same work when these are gone, and under another of the six choices others may be found.",
    ),
    "circuit_evaluation": (
        "No second circuit found does not say that there is none: it was searched by scores of the whole model.",
        "Completeness was tried for some parts of the circuit, not for all subsets.",
    ),
    "circuit_robustness": (
        "Each choice was changed alone unless the grid was asked for: two changes together may do what neither does.",
    ),
    "distributed_alignment_search": (
        "A subspace that can be exchanged need not be one that the model uses: where one linear map reads the site its parts are tested, elsewhere they cannot be.",
        "No subspace found does not say that there is none: training may have missed it, or it is not linear.",
    ),
    "cross_model_patching": (
        "A place that carries the difference over need not be where it was trained: everything above the change carries it too.",
        "Patched activations meet weights they were not trained with: a small effect does not clear a place.",
    ),
    "model_diff": (
        "A difference says where two models part, not what it is for: patch it across the models, or steer with it.",
        "A change that these texts do not reach (a backdoor without its trigger) is invisible here, except in the weights.",
        "Every fine-tune drifts: without an unrelated one to compare, a difference need not be about what was trained.",
        "Noise models ask whether the size of the difference needs a direction; they are no model of training.",
    ),
    "path_patching": (
        "Paths that were not asked for carry nothing here: a small effect says nothing about the sender as a whole.",
        "What is frozen on a path (see the title) is part of the question: freed, the same path may carry more or less.",
    ),
    "generalisation": (
        "That two datasets share a direction does not say what it is: whatever goes with the label in both may be it.",
        "One place and one kind of probe for all datasets: each may have a better one of its own.",
    ),
    "unsupervised": (
        "Without labels nothing says which feature was meant, nor which end of it is which: an accuracy here was given its sign by labels.",
        "Features that nobody named may be told better still.",
    ),
    "probe": (
        "What can be read need not be used: only the causal test speaks of use, and only through the answers to one question.",
        "The label's neighbours (topic, tone, wording) may be what is read: a probe cannot tell the label from what goes with it in these texts.",
    ),
    "directional_ablation": (
        "A behaviour that goes without a direction may need much else besides it.",
        "Harmless prompts are a sample: text of another kind may change more.",
    ),
    "function_vector": (
        "The first token of the answer is counted, not the whole of it.",
        "A vector that does a task need not be what the model uses when demonstrations are there.",
    ),
    "steering": (
        "That a direction moves the output does not say that the model uses it by itself.",
        "A score is not the text: read the samples.",
    ),
    "training_dynamics": (
        "One training from one seed: another may take other steps, or arrive elsewhere.",
        "A measure that rises before the accuracy need not be what the accuracy waits for.",
    ),
    "max_activating": (
        "The largest activations are a small part of all: a story that fits them may fit nothing below.",
        "Another corpus has other examples; what a unit reads is not what it is used for.",
        "Logits are direct writing through the final norm's linear part: its division, biases, a softcap and later layers are left out.",
    ),
    "score_description": (
        "A description that predicts where a unit is active does not say what the unit does.",
        "Words are looked for in the text, and their likeness measured by the model's own embeddings: a true description in other words may score low without a judge.",
    ),
}
_ALWAYS = ("One model, one task, one kind of counterfactual: another may tell another story.",)


def asked(result: Result) -> str:
    """What a stage asked, in one or two sentences; "" for a kind unknown here."""
    parameters: Mapping[str, Any] = {} if result.query is None else result.query.parameters
    if result.kind == "activation_patching":
        return _PATCHED.get(
            str(parameters.get("mode")),
            "Replace one activation at a time by that of another prompt and see what changes.",
        )
    if result.kind == "attribution_patching":
        way = _WAYS.get(str(parameters.get("how")), _WAYS["gradient"])
        return f"What would it do to patch each {'edge' if parameters.get('of') == 'edges' else 'part'}, estimated by {way}?"
    if result.kind == "ablation":
        how = {
            "zero": "zeros",
            "mean": "its mean over reference prompts",
            "resample": "its value on other prompts",
        }.get(str(parameters.get("by")))
        return f"Replace each part by {how or 'something uninformative'}: what is lost on the task, and what elsewhere?"
    return _ASKED.get(result.kind, "")


def limits(result: Result) -> tuple[str, ...]:
    """What this result and its stages do not show, each sentence once."""
    found = [*_LIMITS.get(result.kind, ())]
    for child in result.children:
        found += limits(child)
    return tuple(dict.fromkeys(s for s in found if s not in _ALWAYS)) + _ALWAYS


def title_of(result: Result) -> str:
    """A heading for a stage that was given no name."""
    return TITLE.get(result.kind, result.kind.replace("_", " ").capitalize())
