"""Losses computed from known constants."""

import numpy as np

from finetune.scaling.laws import LAWS, PUBLISHED, SOURCES, Law

TRUE = {entry.law: dict(entry.constants) for entry in PUBLISHED if entry.source == SOURCES.kaplan}
TRUE["hoffmann"] = next(
    dict(entry.constants) for entry in PUBLISHED if entry.source == SOURCES.refit
)


def make_values(law: Law, size: int = 6) -> np.ndarray:
    """(R, V) values: a grid of N and D, or of the one variable."""
    ranges = {"N": (1e7, 1e10), "D": (1e9, 3e11), "C": (1e17, 1e22), "S_min": (1e3, 3e5)}
    axes = [
        np.geomspace(*ranges[name], size if len(law.variables) > 1 else 2 * size)
        for name in law.variables
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def make_losses(law_name: str, noise: float = 0.0, seed: int = 0, size: int = 6):
    """Values (R, V) and losses (R,) of a law with log-normal noise."""
    law = LAWS[law_name]
    values = make_values(law, size)
    theta = np.log([TRUE[law_name][name] for name in law.constants])
    generator = np.random.default_rng(seed)
    error = noise * generator.standard_normal(len(values))
    return values, np.exp(law.log_loss(theta, np.log(values)) + error)
