"""What a model's weights say by themselves: circuits of heads, composition, copying, and roles predicted from them."""

from microtome.methods.weights.heads import FOLDS, HeadCircuits

__all__ = ["FOLDS", "HeadCircuits"]
