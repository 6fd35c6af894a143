"""What can be had without the model: words and length, on the same split."""

from __future__ import annotations

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.methods.probing.design import Design
from microtome.methods.probing.fitted import logistic

WORDS = 20_000


def bag_of_words(d: Design, texts: tuple[str, ...] = ()) -> FloatArray:
    """Scores [item] of logistic regression on counts of words and of pairs of words, fitted on the training texts.

    texts: others to score (default: the design's own).
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipe = make_pipeline(
        CountVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), max_features=WORDS),
        LogisticRegression(max_iter=2000),
    )
    pipe.fit([d.data.texts[i] for i in d.train], d.truth[d.train])
    return np.asarray(pipe.decision_function(list(texts or d.data.texts)), dtype=np.float64)


def length(d: Design, tokens: list[int]) -> FloatArray:
    """Scores [item] of logistic regression on numbers of tokens, characters and words."""
    rows = np.array(
        [[n, len(t), len(t.split())] for n, t in zip(tokens, d.data.texts, strict=True)], dtype=np.float64
    )
    return logistic(rows[d.train], d.truth[d.train], C=1.0).scores(rows)[:, 0]
