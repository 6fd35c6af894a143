"""Lenses that are fitted to a text: tuned and Jacobian, beside the logit lens on the same data; and patchscopes."""
