"""The built-in families: importing this package registers them."""

from microtome.model.families import gpt_like, llama_like, mixtures, zoo

__all__ = ["gpt_like", "llama_like", "mixtures", "zoo"]
