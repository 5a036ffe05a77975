"""Ensembles of experts: the probabilities of several models of one tokenizer, mixed token by token.

- an expert is the model in which a training run ended, of any size; of a run with several replicas it is their mean
- p(x_t | x_<t) = sum over experts j of w_j(t) p_j(x_t | x_<t). Under a posterior, the weight of expert j is its prior
  times the probability that it gave to the sequence so far (Branch-Train-Merge, HDEE); every sequence begins anew
- priors are estimated on validation data, never on the text that is scored
- an expert that several ensembles share is scored once. One domain is scored at a time, and mixed in float64

Serves: HDEE's tables of perplexities and wins, and its figures of mixing, weights and merging.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import logsumexp, softmax

from swarmbook.config import Count, RunConfig
from swarmbook.data import batches, tokenization
from swarmbook.errors import ConfigError
from swarmbook.methods.consistency import ARCHITECTURE
from swarmbook.records.computed import computed
from swarmbook.records.fingerprint import fingerprint_of
from swarmbook.records.progress_bars import bar
from swarmbook.runs import final_states
from swarmbook.training.state_layout import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from swarmbook.training.fleet import Fleet

VERSION = 1  # to be raised whenever the same ensemble would get other numbers; a golden test guards it
DECAY = 0.3  # decay of the priors (HDEE's released code, Branch-Train-Merge)
RELEASED_BATCH = 10  # sequences of a batch in HDEE's released code
AT_ONCE = 24  # experts that are scored side by side, at most

Mixed = tuple[np.ndarray, np.ndarray | None]  # log p of each target [N, T]; weights [k, N, T] if any are defined


class Ensemble(BaseModel):
    """Experts that predict together, and the text on which they are evaluated.

    experts: the runs that end in them. domains: the texts. sequences: the windows, of the experts' length and evenly
    spaced, that are scored of the test split of each domain. prior_sequences: the windows of its validation split that
    give the prior. merged: whether the experts are one model instead, the mean of their weights.
    ValueError without experts or domains, for experts that do not predict the same tokens, and for experts of several
    sizes that are to be merged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: tuple[RunConfig, ...]
    domains: tuple[str, ...]
    sequences: Count = 64
    prior_sequences: Annotated[int, Field(ge=1)] = 24
    merged: bool = False

    @model_validator(mode="after")
    def _consistent(self):
        if not self.experts or not self.domains:
            raise ConfigError(f"an ensemble needs experts and domains; it has {self.experts!r} and {self.domains!r}")
        same = {"tokenizer", "sequence", "precision"} | (ARCHITECTURE - {"replicas"} if self.merged else set())
        for name in sorted(same):
            values = sorted({str(getattr(expert, name)) for expert in self.experts})
            if len(values) > 1:
                why = "to be merged" if name in ARCHITECTURE - {"tokenizer"} else "to predict the same tokens"
                raise ConfigError(f"{name} must be the same for all experts {why}; it is {' and '.join(values)}")
        return self

    @property
    def depends_on(self) -> dict:
        """Everything that its numbers depend on, in the form that `swarmbook.records.computed.computed` takes."""
        tokenizer = self.experts[0].tokenizer
        rules = {**PRIORS, **AVERAGES}
        own = {name: fingerprint_of(rule, name) for name, rule in rules.items() if OURS.get(name) != rule}
        return {
            "ensemble": self.model_dump(mode="json", exclude={"experts"}),
            "experts": [expert.key for expert in self.experts],
            "data": [
                tokenization.fingerprint(domain, tokenizer, self._limit(domain, "test")) for domain in self.domains
            ],
            "version": VERSION,
        } | ({"rules": own} if own else {})

    def _limit(self, domain: str, split: str) -> int | None:
        """The tokens to be read of a corpus that is too large to be tokenized whole; None for all."""
        windows = self.sequences if split == "test" else self.prior_sequences
        return windows * self.experts[0].sequence + 1 if domain.startswith("hub:") else None

    def windows(self, domain: str, split: str) -> np.ndarray:
        """The windows that are scored (split "test") or give the prior ("validation"), int64 [1, N, T + 1]."""
        count = self.sequences if split == "test" else self.prior_sequences
        tokens = tokenization.tokens(domain, split, self.experts[0].tokenizer, self._limit(domain, split))
        return batches.held_out(tokens, self.experts[0].sequence, count)[None]


def posterior(log_p: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The weights [k, N, T] of k experts before each token.

    log_p: their log-probabilities of the targets [k, N, T]. prior: their weights [k] at the start of a sequence.
    """
    total = np.cumsum(log_p, -1)
    before = np.concatenate([np.zeros_like(total[..., :1]), total[..., :-1]], -1)
    with np.errstate(invalid="ignore"):  # where a target is impossible, infinity less infinity is no number
        past = np.where(np.isneginf(log_p), before, total - log_p)
    with np.errstate(divide="ignore"):  # an expert without prior stays without weight
        return softmax(np.log(prior)[:, None, None] + past, axis=0)


def mixed(log_p: np.ndarray, prior: np.ndarray) -> Mixed:
    """The experts' probabilities mixed under the posterior that follows from a prior (HDEE's released code)."""
    return _weighted(log_p, posterior(log_p, prior))


def averaged(log_p: np.ndarray) -> Mixed:
    """The mean of the experts' probabilities."""
    return _weighted(log_p, np.full(log_p.shape, 1 / len(log_p)))


def geometric(log_p: np.ndarray) -> Mixed:
    """The mean of the experts' log-probabilities, which is no distribution (`simple_avg` in HDEE's released code)."""
    return log_p.mean(0), None


def uniform_prior(log_p: np.ndarray) -> np.ndarray:
    """The prior [k] that gives every expert the same weight."""
    return np.full(len(log_p), 1 / len(log_p))


def cached_prior(log_p: np.ndarray, first: int = 0) -> np.ndarray:
    """The prior [k] that the recursion of HDEE's released code gives over all sequences [k, N, T].

    What it has learnt is multiplied by 0.3^i at the i-th sequence, and the prior locks on to one expert. first: the
    number of sequences that came before these, which counts in i.
    """
    kept = np.zeros(len(log_p))  # logarithms, not normalised
    for i, total in enumerate(log_p.sum(-1).T, first):  # [k] of each sequence
        with np.errstate(divide="ignore"):  # a weight of 0 stays 0
            kept = np.logaddexp((i + 1) * np.log(DECAY) + kept, np.log(softmax(total + kept)))
    return softmax(kept)


def cached_prior_as_released(log_p: np.ndarray) -> np.ndarray:
    """The prior [k] that HDEE's released code comes to over sequences [k, N, T]: that of the last ten.

    It begins the recursion of `cached_prior` anew in every batch of ten sequences, and goes on counting them. Its 100
    sequences are whole batches. Of another number, the last ten count here.
    """
    first = max(0, log_p.shape[1] - RELEASED_BATCH)
    return cached_prior(log_p[:, first:], first)


def moving_average_prior(log_p: np.ndarray) -> np.ndarray:
    """The prior [k] of Branch-Train-Merge: an exponential moving average of the mean posterior of each sequence."""
    prior = uniform_prior(log_p)
    for i in range(log_p.shape[1]):
        prior = (1 - DECAY) * prior + DECAY * posterior(log_p[:, i : i + 1], prior).mean((1, 2))
    return prior


def top(prior: np.ndarray, count: int) -> np.ndarray:
    """A prior [k] of which only the `count` largest entries are kept, scaled to the sum 1; of equal ones the first."""
    kept = np.argsort(-prior, kind="stable")[:count]
    chosen = np.zeros_like(prior)
    chosen[kept] = prior[kept]
    return chosen / chosen.sum()


# A further prior or average is registered here by a name; its code is then part of what an ensemble depends on.
PRIORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform prior": uniform_prior,
    "cached prior": cached_prior,
    "moving average": moving_average_prior,
}
AVERAGES: dict[str, Callable[[np.ndarray], Mixed]] = {
    "mean of probabilities": averaged,
    "geometric mean": geometric,
}
OURS = {**PRIORS, **AVERAGES}  # `VERSION` stands for the numbers of these
WEIGHTINGS = (*PRIORS, *AVERAGES, "top 1", "top 2", "best expert")  # those that come with the library


def perplexities(
    ensembles: Sequence[Ensemble], recorded: str | Path | None = None, device: str = "auto", show: bool = True
) -> list[pd.DataFrame]:
    """For each ensemble a table with the columns domain, weighting, quantity and value.

    weighting: one of `WEIGHTINGS`, or "expert 1" and so on for a single expert. "best expert" is the one with the
    lowest loss on what is scored, chosen with hindsight. quantity: "loss" in nats per token and "error", its standard
    error over sequences; for a weighting also "weight 1" and so on, the mean weight of each expert over tokens, and
    "prior 1" and so on, where they exist. The perplexity is exp(loss).
    Experts that are not in the store are trained first. An ensemble whose numbers are recorded or stored needs none.
    """
    asked = [ensemble.depends_on for ensemble in ensembles]

    def compute(wanted: list[dict]) -> Iterator[pd.DataFrame]:
        for batch in _batches([ensembles[asked.index(what)] for what in wanted]):
            yield from _scored(batch, device, show)

    return computed(asked, compute, recorded)


def table_of(log_p: np.ndarray, development: np.ndarray) -> list[tuple[str, str, float]]:
    """Rows (weighting, quantity, value) of one domain, from the experts' log p of the scored targets [k, N, T].

    development: their log p of the targets of the validation split [k, n, T], which gives the priors.
    """
    priors = {name: prior(development) for name, prior in PRIORS.items()}
    priors |= {f"top {n}": top(priors["moving average"], n) for n in (1, 2)}
    ways = {name: partial(mixed, prior=prior) for name, prior in priors.items()} | AVERAGES
    rows = []
    for name, way in ways.items():
        found, weights = way(log_p)
        rows += _losses(name, found)
        if weights is not None:
            rows += [(name, f"weight {j + 1}", w) for j, w in enumerate(weights.mean((1, 2)).tolist())]
        rows += [(name, f"prior {j + 1}", p) for j, p in enumerate(priors.get(name, np.empty(0)).tolist())]
    for j, own in enumerate(log_p):
        rows += _losses(f"expert {j + 1}", own)
    return rows + _losses("best expert", log_p[log_p.mean((1, 2)).argmax()])


def _weighted(log_p: np.ndarray, weights: np.ndarray) -> Mixed:
    with np.errstate(divide="ignore"):
        return logsumexp(np.log(weights) + log_p, axis=0), weights


def _losses(weighting: str, log_p: np.ndarray) -> list[tuple[str, str, float]]:
    """The loss and its standard error from log p [N, T]; sequences count as independent, tokens do not."""
    each = -log_p.mean(-1)
    error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan
    return [(weighting, "loss", float(each.mean())), (weighting, "error", float(error))]


def _batches(ensembles: Sequence[Ensemble]) -> Iterator[list[Ensemble]]:
    """Ensembles that follow one another and ask the same, in batches of at most `AT_ONCE` different experts.

    The experts of one ensemble stay together, however many they are.
    """
    batch: list[Ensemble] = []
    for ensemble in ensembles:
        asked = ensemble.model_dump(include={"domains", "sequences", "prior_sequences"})
        alike = (
            batch
            and asked == batch[0].model_dump(include=set(asked))
            and ensemble.experts[0].tokenizer == (batch[0].experts[0].tokenizer)
        )
        if batch and not (alike and len({e.key for b in (*batch, ensemble) for e in b.experts}) <= AT_ONCE):
            yield batch
            batch = []
        batch.append(ensemble)
    if batch:
        yield batch


def _scored(batch: Sequence[Ensemble], device: str, show: bool) -> list[pd.DataFrame]:
    """The tables of ensembles that ask the same; every expert scores every domain once."""
    experts = {expert.key: expert for ensemble in batch for expert in ensemble.experts}
    states = final_states(experts.values(), device, show)
    models = {key: (config, [states[key]]) for key, config in experts.items()}
    members = []
    for i, ensemble in enumerate(batch):
        members.append([expert.key for expert in ensemble.experts])
        if ensemble.merged:
            models[f"merged {i}"] = (ensemble.experts[0], [states[key] for key in members[i]])
            members[i] = [f"merged {i}"]
    fleets = _side_by_side(models, device)
    rows: list[list[tuple]] = [[] for _ in batch]
    for domain in bar(batch[0].domains, desc=f"{len(models)} experts", unit="domain", disable=not show):
        scored, development = (_log_p(fleets, batch[0].windows(domain, split)) for split in ("test", "validation"))
        for own, names in zip(rows, members, strict=True):
            found = table_of(*(np.stack([part[name] for name in names]) for part in (scored, development)))
            own += [(domain, *row) for row in found]
    return [pd.DataFrame(own, columns=["domain", "weighting", "quantity", "value"]) for own in rows]


def _side_by_side(models: dict[str, tuple[RunConfig, list[dict]]], device: str) -> list[tuple[list[str], "Fleet"]]:
    """Fleets with the names of their models: one Fleet for all models of a size.

    models: by name a configuration and final states; the model is the mean over the replicas of all these states.
    """
    from swarmbook.training.fleet import Fleet

    sizes: dict[object, list[str]] = {}
    for name, (config, _) in models.items():
        vocabulary = tokenization.vocabulary(config.tokenizer)
        sizes.setdefault((config.shape(vocabulary), config.precision), []).append(name)
    fleets = []
    for (shape, precision), names in sizes.items():
        fleet = Fleet(shape, [0] * len(names), device, precision, compile=False)
        for row, name in enumerate(names):
            parts = [state["fleet"] for state in models[name][1]]
            fleet.load_state_dict({part: _mean(part, [state[part] for state in parts]) for part in parts[0]}, [row])
        fleets.append((names, fleet))
    return fleets


def _mean(name: str, weights: Sequence["Tensor"]) -> "Tensor":
    """The mean of a weight over replicas and states, in the form that `Fleet.state_dict` has for one replica."""
    import torch

    axis = WEIGHTS.replica_axis(name)
    return torch.cat(list(weights), axis).mean(axis, keepdim=True)


def _log_p(fleets: list[tuple[list[str], "Fleet"]], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """By model the log p of the targets of tokens [1, N, T + 1], each float64 [N, T]."""
    found = {}
    for names, fleet in fleets:
        found |= dict(zip(names, -fleet.nats(tokens).double().cpu().numpy(), strict=True))
    return found
