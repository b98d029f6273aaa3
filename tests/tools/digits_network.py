"""A plain network for scikit-learn's digits, for resume.py and determinism.py."""

import itertools

import jax
import numpy as np
import optax


def new_params(widths, seed):
    rng = np.random.default_rng(seed)
    return [
        {
            "weights": rng.normal(0, (2 / rows) ** 0.5, (rows, columns)).astype(np.float32),
            "bias": np.zeros(columns, np.float32),
        }
        for rows, columns in itertools.pairwise(widths)
    ]


def loss_fn(params, batch):
    hidden, labels = batch
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["weights"] + layer["bias"])
    logits = hidden @ params[-1]["weights"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
