"""The plain loop: one prompt, one forward, hooks by hand. Knows nothing of microtome; values are [pos, ...].

Three families are written out by hand (llama, gpt2, gemma2) from their module trees; attention is replaced by a textbook
function, so that scores and pattern are not seen through the same seam.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Fn = Callable[[Tensor], Tensor]

# point -> (module inside the layer, "in" or "out", how to cut and shape it)
_LLAMA = {
    "resid_pre": ("", "in", None), "resid_post": ("", "out", None), "ln1_out": ("input_layernorm", "out", None),
    "ln2_out": ("post_attention_layernorm", "out", None), "attn_out": ("self_attn", "out", None), "attn_raw": ("self_attn.o_proj", "out", None),
    "mlp_out": ("mlp", "out", None), "mlp_raw": ("mlp.down_proj", "out", None), "neurons": ("mlp.down_proj", "in", None),
    "mlp_pre": ("mlp.up_proj", "out", None), "mlp_gate": ("mlp.gate_proj", "out", None), "z": ("self_attn.o_proj", "in", "q"),
    "q_pre": ("self_attn.q_proj", "out", "q"), "k_pre": ("self_attn.k_proj", "out", "kv"), "v": ("self_attn.v_proj", "out", "kv"),
    "resid_mid": ("self_attn", "mid", None),
}  # fmt: skip
_GEMMA2 = {**_LLAMA, "ln2_out": ("pre_feedforward_layernorm", "out", None), "attn_out": ("post_attention_layernorm", "out", None),
           "mlp_out": ("post_feedforward_layernorm", "out", None), "resid_mid": ("post_attention_layernorm", "mid", None)}  # fmt: skip
_GPT2 = {
    "resid_pre": ("", "in", None), "resid_post": ("", "out", None), "ln1_out": ("ln_1", "out", None), "ln2_out": ("ln_2", "out", None),
    "attn_out": ("attn", "out", None), "attn_raw": ("attn.c_proj", "out", None), "mlp_out": ("mlp", "out", None), "mlp_raw": ("mlp.c_proj", "out", None),
    "neurons": ("mlp.c_proj", "in", None), "mlp_pre": ("mlp.c_fc", "out", None), "z": ("attn.c_proj", "in", "q"),
    "q_pre": ("attn.c_attn", "out", 0), "q": ("attn.c_attn", "out", 0), "k_pre": ("attn.c_attn", "out", 1), "k": ("attn.c_attn", "out", 1), "v": ("attn.c_attn", "out", 2),
    "resid_mid": ("attn", "mid", None),
}  # fmt: skip
TABLES = {"llama": _LLAMA, "gpt2": _GPT2, "gemma2": _GEMMA2}
POINTS = {kind: (*table, "scores", "pattern") for kind, table in TABLES.items()}


def run(
    hf: nn.Module, ids: Sequence[int], capture: Sequence[str] = (), edits: Sequence[tuple[str, Fn]] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [pos, d_vocab] and captures. hf must run eager attention; `edits` are (site, function of the whole value)."""  # fmt: skip
    kind = hf.config.model_type
    layers = hf.transformer.h if kind == "gpt2" else hf.model.layers
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in dict.fromkeys([*capture, *(s for s, _ in edits)]):
            layer, point = int(site[1 : site.index(".")]), site[site.index(".") + 1 :]
            fns = [fn for s, fn in edits if s == site]
            if point in ("scores", "pattern"):
                continue
            path, side, shape = TABLES[kind][point]
            change = partial(_change, seen, site, fns, hf.config, shape)
            module = layers[layer].get_submodule(path)
            if (
                side == "mid"
            ):  # the stream between attention and MLP is never a module's own output: add the difference
                store: dict[str, Tensor] = {}
                stack.callback(
                    layers[layer].register_forward_pre_hook(partial(_keep, store), with_kwargs=True).remove
                )
                stack.callback(module.register_forward_hook(partial(_mid, store, change)).remove)
            elif side == "in":
                stack.callback(
                    module.register_forward_pre_hook(partial(_in, change), with_kwargs=True).remove
                )
            else:
                stack.callback(module.register_forward_hook(partial(_out, change)).remove)
        home = sys.modules[type(hf).__module__]
        old = home.eager_attention_forward
        stack.callback(setattr, home, "eager_attention_forward", old)
        home.eager_attention_forward = partial(_attention, seen, list(edits))
        return hf(torch.tensor([list(ids)]), use_cache=False).logits[0], seen


def _change(
    seen: dict[str, Tensor], site: str, fns: list[Fn], config: Any, shape: Any, raw: Tensor
) -> Tensor:
    heads = config.num_attention_heads
    x = raw[0]
    if isinstance(shape, int):  # gpt2: three blocks side by side
        width = x.shape[-1] // 3
        whole, x = x.clone(), x[:, shape * width : (shape + 1) * width]
    n = heads if shape != "kv" else config.num_key_value_heads
    x = x if shape is None else x.reshape(len(x), n, -1)
    for fn in fns:
        x = fn(x)
    seen[site] = x
    x = x.reshape(len(x), -1)
    if isinstance(shape, int):
        whole[:, shape * width : (shape + 1) * width] = x
        x = whole
    return x[None]


def _keep(store: dict[str, Tensor], module: nn.Module, args: Any, kwargs: Any) -> None:
    store["in"] = args[0] if args else kwargs["hidden_states"]


def _mid(store: dict[str, Tensor], change: Fn, module: nn.Module, args: Any, out: Any) -> Any:
    raw = out[0] if isinstance(out, tuple) else out
    new = change(store["in"] + raw) - store["in"]
    return (new, *out[1:]) if isinstance(out, tuple) else new


def _in(change: Fn, module: nn.Module, args: Any, kwargs: Any) -> Any:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}


def _out(change: Fn, module: nn.Module, args: Any, out: Any) -> Any:
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def _attention(seen: dict[str, Tensor], edits: list[tuple[str, Fn]], module: nn.Module, q: Tensor, k: Tensor, v: Tensor,
               mask: Tensor | None, scaling: float, softcap: float | None = None, **_: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * scaling
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    n = scores.shape[-1]
    mask = mask if mask is not None else torch.full((n, n), torch.finfo(q.dtype).min).triu(1)
    value = (scores + mask)[0]
    for point in ("scores", "pattern"):
        value = value if point == "scores" else value.softmax(-1)
        for site, fn in edits:
            value = fn(value) if site == f"L{module.layer_idx}.{point}" else value
        seen[f"L{module.layer_idx}.{point}"] = value
    return (value[None] @ v).transpose(1, 2).contiguous(), value[None]
