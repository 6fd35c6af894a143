"""`Model`: the one object a user holds. It joins what `model`, `trace` and `replay` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from microtome.errors import TaskError
from microtome.model.binding import Binding, bind
from microtome.model.facts import Facts
from microtome.model.tokens import Bos, Padding, Tokens, chat_text, token_strings, tokens_of, where_it_stands
from microtome.model.weights import Weights
from microtome.results.events import emit_look
from microtome.sites import Site
from microtome.trace import scope
from microtome.trace.edits import BaseEdit, Edits
from microtome.trace.generate import Generation, When
from microtome.trace.generate import generate as _generate
from microtome.trace.grad import grad as _grad
from microtome.trace.run import Logits, numerics_of
from microtome.trace.run import run as _run
from microtome.trace.spill import Spill
from microtome.trace.trace import Trace

if TYPE_CHECKING:
    from pathlib import Path

    from microtome.certificate import Certificate
    from microtome.model.load import Loaded


class Model:
    """An untouched Hugging Face causal language model with standard names on top.

    Attributes
    ----------
    hf, tokenizer: the module and tokenizer as loaded; never changed.
    facts: what the model is, layer by layer.
    weights: its weights in the standard orientation, as views.
    name, source, card: where it comes from. `reasons` explains dtype and device.
    asked: how to load it again (`Loaded.asked`, or of a model of the zoo what `zoo.build` was given); None for a module in memory.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.hf: nn.Module = loaded.hf
        self.tokenizer: Any = loaded.tokenizer
        self.name, self.source, self.card = loaded.name, loaded.source, loaded.card
        self.reasons: Mapping[str, str] = loaded.reasons
        self.asked: Mapping[str, Any] | None = loaded.asked
        self._file_hash = loaded.weight_hash
        self.binding: Binding = bind(self.hf)
        self.binding.tokenizer = self.tokenizer
        self._certificate: Certificate | None = None
        if not self.binding.known:
            from microtome.certificate import certify

            self._certificate = certify(self, withdraw=True)

    @property
    def facts(self) -> Facts:
        """Sizes, layers, and what this family lacks and why."""
        return self.binding.facts

    @cached_property
    def weights(self) -> Weights:
        """Weights by their standard names."""
        return Weights(self.binding)

    @property
    def hash(self) -> str:
        """Hash of the weights and config (hex). A module in memory is hashed again when its tensors have changed."""
        from microtome.model.hashing import model_hash

        return model_hash(self.hf, self._file_hash)

    @property
    def numerics(self) -> dict[str, str]:
        """Dtype, attention implementation and device of an ordinary run."""
        return numerics_of(self.binding, None)

    def certificate(self) -> Certificate:
        """Check on this very model that every name means what the table says (design: identities, parity, noise)."""
        from microtome.certificate import certify

        if self._certificate is None:
            self._certificate = certify(self)
        return self._certificate

    def tokens(self, prompts: Any, *, bos: Bos = "model", padding: Padding = "right") -> Tokens:
        """Prompts as tokens. bos: "model" (what the tokenizer does by itself), True or False."""
        return tokens_of(prompts, self.tokenizer, bos=bos, padding=padding)

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation under the model's own chat template."""
        return chat_text(self.tokenizer, messages, add_generation_prompt=add_generation_prompt)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as text."""
        return token_strings(self.tokenizer, ids)

    def single_token(self, text: str) -> int:
        """The id of a text that is exactly one token; with a space in front, as it follows another word.

        Raises
        ------
        TaskError: it is several; its pieces are shown.
        """
        ids = where_it_stands(self.tokenizer, text)
        if len(ids) == 1:
            return ids[0]
        hint = ""
        if text and not text.startswith(" ") and len(where_it_stands(self.tokenizer, " " + text)) == 1:
            hint = f'; with a leading space, "{" " + text}", it is one'
        raise TaskError(f'"{text}" is {len(ids)} tokens: {self.strings(ids)}', why=f"a single-token metric reads one logit{hint}",
                        instead='choose another word, or metric="logprob_diff"')  # fmt: skip

    def run(
        self,
        prompts: Any,
        capture: str | Site | Sequence[str | Site] = (),
        edits: Edits = (),
        logits: Logits = "all",
        *,
        bos: Bos = "model",
        padding: Padding = "right",
        attention: str | None = None,
        memory: int | None = None,
        folder: str | Path | None = None,
    ) -> Trace:
        """One forward with captures and edits; see `trace.run.run`.

        memory: bytes of captures to hold (None: half of what is free); what exceeds it is written to safetensors files
        in `folder` (None: a temporary one, removed with the trace) and read from there when asked for.

        Example: `t = model.run("Hello", capture=["L*.resid_pre", "L9H6.pattern"]); t["L9H6.pattern"]`.
        """  # fmt: skip
        sites = [capture] if isinstance(capture, str | Site) else list(capture)
        tokens = self.tokens(prompts, bos=bos, padding=padding)
        emit_look(self, prompts, [str(s) for s in sites])
        return _run(
            self.binding,
            tokens,
            capture=sites,
            edits=self._with_scope(edits, len(tokens)),
            logits=logits,
            attention=attention,
            spill=Spill(memory, folder),
        )

    def grad(
        self,
        prompts: Any,
        metric: Callable[[Tensor], Tensor],
        sites: str | Site | Sequence[str | Site],
        edits: Edits = (),
        *,
        bos: Bos = "model",
        attention: str | None = None,
    ) -> Trace:
        """d metric / d site; see `trace.grad.grad`. `g["L9.z"]` has the shape of the point."""
        wanted = [sites] if isinstance(sites, str | Site) else list(sites)
        tokens = self.tokens(prompts, bos=bos)
        emit_look(self, prompts, [str(s) for s in wanted])
        return _grad(
            self.binding,
            tokens,
            metric,
            sites=wanted,
            edits=self._with_scope(edits, len(tokens)),
            attention=attention,
        )

    def generate(
        self,
        prompts: Any,
        edits: Edits = (),
        when: When | None = None,
        max_new_tokens: int = 20,
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        cache: bool = True,
        stop: bool = True,
        bos: Bos = "model",
    ) -> Generation:
        """Continue prompts with edits in force; see `trace.generate.generate`."""
        tokens = self.tokens(prompts, bos=bos, padding="left")
        emit_look(self, prompts, ())
        return _generate(self.binding, tokens, edits=self._with_scope(edits, len(tokens)), when=when, max_new_tokens=max_new_tokens,
                         temperature=temperature, seed=seed, cache=cache, stop=stop)  # fmt: skip

    def stream(
        self,
        prompts: Sequence[Any],
        capture: str | Site | Sequence[str | Site],
        *,
        batch: int = 16,
        edits: Sequence[BaseEdit] = (),
        logits: Logits = None,
        bos: Bos = "model",
    ) -> Iterator[Trace]:
        """Traces of batches of prompts, one after the other: for data larger than memory."""
        for start in range(0, len(prompts), batch):
            yield self.run(prompts[start : start + batch], capture, edits, logits, bos=bos)

    @contextmanager
    def editing(self, *edits: BaseEdit) -> Iterator[Model]:
        """Keep edits in force in every run inside the block, before the run's own edits; always taken back.

        For `run`, `grad`, `stream` and `generate`. Techniques refuse to run inside: their results would not say so.
        """
        with scope.editing(self.hf, edits):
            yield self

    def _with_scope(self, edits: Edits, n: int) -> Edits:
        scoped = scope.in_force(self.hf)
        own: list[Any] = list(edits)
        if own and all(isinstance(e, list | tuple) for e in own):
            return [[*scoped, *row] for row in own]
        return [*scoped, *own]

    def __repr__(self) -> str:
        f = self.facts
        return f"Model({self.name!r}: {f.family}, {f.n_layers} layers, d_model {f.d_model}, {f.n_params / 1e6:.0f} M parameters, {self.numerics['dtype']})"
