"""What a probe can be told beyond model, data and sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from microtome.errors import TaskError

CLOSED = ("mass_mean", "whitened", "ridge")
"""Kinds with a closed form: one factorisation per site serves every shuffled label."""
VECTOR = (*CLOSED, "logistic")
KINDS = (*VECTOR, "mean_pooled", "attention")


@dataclass(frozen=True)
class Ask:
    """How the model itself is asked for the label.

    words: of the negative and the positive class, as they stand in an answer.
    templates: prompts with "{text}" and, where wanted, "{about}", "{negative}", "{positive}"; () for the built-in wordings.
    chat: put them through the chat template where the tokenizer has one.
    shots: examples from the training part in one further wording; 0 for none.
    """

    words: tuple[str, str]
    templates: tuple[str, ...] = ()
    chat: bool = True
    shots: int = 4


@dataclass(frozen=True)
class ProbeOptions:
    """Settings of `probe`.

    shares: of texts for training, validation and test; by: groupings that may not straddle them and whose groups are the units
    of every statistic (None: all; (): none, which makes the result invalid where there are any); split: three
    lists of indices instead. positive: the class to tell from the others (needed with more than two).
    ridge: penalty as a share of the mean eigenvalue of the standardised covariance; C: scikit-learn's for logistic ones.
    permutations: shuffled label columns of the closed-form probes; logistic_permutations: of the logistic one, at the selected
    site; random_directions: isotropic ones. attention_sites: sites with an attention-pooled probe; attention_shuffles: its
    null. twin: run the randomly initialised twin. batch: texts per forward.
    causal: run the causal test where the model can be asked; prompts: texts of each class in it; directions: null ones of
    either family; layers: at most so many sites to choose its place from.
    """

    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    by: tuple[str, ...] | None = None
    split: tuple[tuple[int, ...], ...] | None = None
    positive: str = ""
    ridge: float = 0.1
    C: float = 0.1
    permutations: int = 1000
    logistic_permutations: int = 200
    random_directions: int = 199
    attention_sites: int = 2
    attention_shuffles: int = 4
    twin: bool = True
    batch: int = 16
    causal: bool = True
    prompts: int = 8
    directions: int = 199
    layers: int = 6

    @classmethod
    def of(cls, given: ProbeOptions | Mapping[str, Any] | None) -> ProbeOptions:
        """Options from a mapping.

        Raises
        ------
        TaskError: an option that does not exist, or a number below what it counts.
        """
        if isinstance(given, ProbeOptions):
            return given
        told = {k: _tuples(v) for k, v in (given or {}).items()}
        known = [f.name for f in fields(cls)]
        if unknown := [k for k in told if k not in known]:
            raise TaskError(
                f"a probe has no option {unknown[0]!r}",
                why=f"it has {', '.join(known)}",
                instead="one of them",
            )
        made = cls(**told)
        if min(made.permutations, made.logistic_permutations, made.random_directions, made.directions) < 19:
            raise TaskError("fewer than 19 draws of a null", why="no draw of it can reach p = 0.05", instead="19 or more")  # fmt: skip
        return made


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, Sequence) and not isinstance(value, str) else value  # fmt: skip


def checked_kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    """Kinds in their order, with a closed-form one among them: without it there is no family-wise null.

    Raises
    ------
    TaskError: an unknown kind, or none with a closed form.
    """
    wanted = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if unknown := [k for k in wanted if k not in KINDS]:
        raise TaskError(
            f"{unknown[0]!r} is not a kind of probe",
            why=f"there are {', '.join(KINDS)}",
            instead="some of them",
        )
    if not set(wanted) & set(CLOSED):
        raise TaskError(f"kinds {wanted} have no closed form", why="the null over all sites is made of closed-form probes on shuffled labels",
                        instead='add "mass_mean"')  # fmt: skip
    return tuple(k for k in KINDS if k in wanted)
