"""What the symbols in reports mean."""

from __future__ import annotations

MEANINGS = {
    "CE": "cross-entropy of the tokens, what predicting them costs",
    "KL": "divergence of the encoder's Q(Z|S) from the prior, the information that Z may carry",
    "CE + KL": "the negative ELBO, an upper bound of -log P(S)",
    "nll": "negative log-likelihood -log P(S); of a Free model its tightest upper bound",
    "Z": "the latent: drawn at random before the tokens are written, in the paper bits at each position",
    "κ": "free bits, the KL for each token that the objective does not penalise",
    "floor": "the entropy of the data, the least cost that any model can reach",
    "I(Z; factor)": "mutual information: how many bits Z carries about a factor of the data",
    "H": "entropy of a factor, the most that Z can carry about it",
}


OF_LATENT = {"KL", "CE + KL", "Z", "κ"}


def glossary(*symbols: str, free: bool = True, floor: bool = False) -> list[tuple[str, str]]:
    """The symbols with their meanings. free: include those of a latent; floor: add the floor."""
    shown = [*(symbol for symbol in symbols if free or symbol not in OF_LATENT), *(["floor"] if floor else [])]
    return [(symbol, MEANINGS[symbol]) for symbol in shown]
