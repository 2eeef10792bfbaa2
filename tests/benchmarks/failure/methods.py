"""What a user would take instead: scores that are learnt, where at all, on the evaluation set.

A method gives two risks, larger = more likely wrong: of the evaluated inputs, each made without
its own label, and of the pool. Risks that are no probabilities are Platt-scaled on the evaluation
set (Platt 1999) before a Brier score or a calibration error is taken of them.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors

from failure.variants import Traced

Risk = NDArray[np.float64]


class Risks(NamedTuple):
    """Risks of the evaluated inputs and of the pool; `proba` where they are probabilities."""

    evaluation: Risk
    pool: Risk
    proba: bool = False


Method = Callable[[Traced, Traced], Risks]


# From logits


def _logits(function: Callable[[Risk], Risk], *, proba: bool = False) -> Method:
    def method(evaluation: Traced, pool: Traced) -> Risks:
        return Risks(
            *(function(part.logits.astype(np.float64)) for part in (evaluation, pool)), proba
        )

    return method


def _scaled(function: Callable[[Risk], Risk], *, proba: bool = False) -> Method:
    """Apply a function to logits divided by the temperature that fits the evaluation set."""

    def method(evaluation: Traced, pool: Traced) -> Risks:
        known = evaluation.labels >= 0
        logits, labels = evaluation.logits[known].astype(np.float64), evaluation.labels[known]

        def loss(log_t: float) -> float:
            share = log_softmax(logits / np.exp(log_t), axis=1)
            return float(-share[np.arange(len(labels)), labels].mean())

        t = float(np.exp(minimize_scalar(loss, bounds=(-2.5, 5), method="bounded").x))
        parts = (part.logits.astype(np.float64) / t for part in (evaluation, pool))
        return Risks(*(function(part) for part in parts), proba)

    return method


def _doubt(logits: Risk) -> Risk:
    return 1 - np.exp(log_softmax(logits, axis=1)).max(axis=1)


def _odds(logits: Risk) -> Risk:
    doubt = np.clip(_doubt(logits), 1e-9, 1 - 1e-9)
    return np.log(doubt) - np.log1p(-doubt)


def _entropy(logits: Risk) -> Risk:
    share = log_softmax(logits, axis=1)
    return -(np.exp(share) * share).sum(axis=1)


def _margin(logits: Risk) -> Risk:
    two = np.partition(np.exp(log_softmax(logits, axis=1)), -2, axis=1)[:, -2:]
    return two[:, 0] - two[:, 1]


def _energy(logits: Risk) -> Risk:
    return -logsumexp(logits, axis=1)


# From the features of the last layer


def _last(part: Traced) -> NDArray[np.float32]:
    return list(part.features.values())[-1]


def _neighbours(evaluation: Traced, query: NDArray[Any], k: int, *, own: bool) -> tuple[Any, Any]:
    index = NearestNeighbors(n_neighbors=k + own).fit(_last(evaluation))
    distance, rows = index.kneighbors(query)
    return distance[:, own:], rows[:, own:]


def knn_distance(evaluation: Traced, pool: Traced) -> Risks:
    """Sun et al. 2022: the distance to the tenth neighbour, on features of length one."""

    def unit(part: Traced) -> NDArray[np.float32]:
        values = _last(part)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)

    index = NearestNeighbors(n_neighbors=11).fit(unit(evaluation))
    own, other = (index.kneighbors(unit(part))[0] for part in (evaluation, pool))
    return Risks(np.log(own[:, 10] + 1e-9), np.log(other[:, 9] + 1e-9))


def knn_disagreement(evaluation: Traced, pool: Traced) -> Risks:
    """The share of the ten nearest evaluated inputs that are not of the predicted class."""
    risks = []
    for part, own in ((evaluation, True), (pool, False)):
        _, rows = _neighbours(evaluation, _last(part), 10, own=own)
        risks.append((evaluation.labels[rows] != part.prediction[:, None]).mean(axis=1))
    return Risks(*risks)


def trust_score(evaluation: Traced, pool: Traced) -> Risks:
    """Jiang et al. 2018: distance to the predicted class over that to the nearest other one."""
    labels = evaluation.labels
    classes = [c for c in np.unique(labels) if c >= 0]

    def risk(part: Traced, *, own: bool) -> Risk:
        values = _last(part)
        nearest = np.full((len(values), len(classes)), np.inf)
        for column, c in enumerate(classes):
            members = np.flatnonzero(labels == c)
            index = NearestNeighbors(n_neighbors=min(2, len(members))).fit(
                _last(evaluation)[members]
            )
            distance, rows = index.kneighbors(values)
            self_seen = own & (members[rows[:, 0]] == np.arange(len(values)))
            nearest[:, column] = np.where(self_seen, distance[:, -1], distance[:, 0])
        is_own = part.prediction[:, None] == np.array(classes)
        same = np.where(is_own, nearest, np.inf).min(axis=1)
        other = np.where(is_own, np.inf, nearest).min(axis=1)
        same = np.where(np.isfinite(same), same, 2 * other)
        return np.log(np.maximum(same, 1e-6)) - np.log(np.maximum(other, 1e-6))

    return Risks(risk(evaluation, own=True), risk(pool, own=False))


def _crossed(evaluation: Traced, pool: Traced, fit: Callable[[Any, Any], Any]) -> Risks:
    """Judge the evaluated inputs by five-fold fits and the pool by a fit to all of them."""
    features, wrong = _last(evaluation).astype(np.float64), evaluation.wrong
    own = np.zeros(len(wrong))
    stratum = wrong if min(wrong.sum(), (~wrong).sum()) >= 5 else np.zeros(len(wrong), bool)
    for inside, outside in StratifiedKFold(5, shuffle=True, random_state=0).split(
        features, stratum
    ):
        judge = fit(features[inside], evaluation.labels[inside])
        own[outside] = judge(features[outside], evaluation.prediction[outside])
    judge = fit(features, evaluation.labels)
    return Risks(own, judge(_last(pool).astype(np.float64), pool.prediction))


def mahalanobis(evaluation: Traced, pool: Traced) -> Risks:
    """Lee et al. 2018: the distance to the nearest class, with a shared covariance."""

    def fit(x: Any, y: Any) -> Any:
        means = np.stack([x[y == c].mean(axis=0) for c in np.unique(y[y >= 0])])
        known = y >= 0
        place = np.searchsorted(np.unique(y[known]), y[known])
        precision = LedoitWolf(assume_centered=True).fit(x[known] - means[place]).precision_

        def judge(values: Any, _prediction: Any) -> Risk:
            apart = values[:, None, :] - means
            return np.einsum("ncd,de,nce->nc", apart, precision, apart).min(axis=1)

        return judge

    return _crossed(evaluation, pool, fit)


def discriminant(evaluation: Traced, pool: Traced) -> Risks:
    """Relative Mahalanobis of the predicted class (Ren et al. 2021): its log-odds under LDA."""

    def fit(x: Any, y: Any) -> Any:
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y)

        def judge(values: Any, prediction: Any) -> Risk:
            scores = model.decision_function(values)
            if scores.ndim == 1:
                scores = np.column_stack([-scores, scores])
            is_own = prediction[:, None] == model.classes_
            own = np.where(is_own, scores, -np.inf).max(axis=1)
            rest = np.where(is_own, -np.inf, scores).max(axis=1)
            return np.clip(rest - np.where(np.isfinite(own), own, rest - 20), -50, 50)

        return judge

    return _crossed(evaluation, pool, fit)


# cleanlab


def cleanlab_ood_features(evaluation: Traced, pool: Traced) -> Risks:
    """Kuan & Mueller 2022: mean distance to ten neighbours among the evaluated inputs."""
    from cleanlab.outlier import OutOfDistribution

    model = OutOfDistribution()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = model.fit_score(features=_last(evaluation), verbose=False)
        return Risks(1 - own, 1 - model.score(features=_last(pool)))


def cleanlab_ood_probs(evaluation: Traced, pool: Traced) -> Risks:
    """The same authors' score from predicted probabilities, adjusted by the labels."""
    from cleanlab.outlier import OutOfDistribution

    model = OutOfDistribution()
    known = evaluation.labels >= 0
    shares = [
        np.exp(log_softmax(part.logits.astype(np.float64), axis=1)) for part in (evaluation, pool)
    ]
    adjust = len(np.unique(evaluation.labels[known])) == shares[0].shape[1]
    if not adjust:
        model = OutOfDistribution({"adjust_pred_probs": False})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit_score(
            pred_probs=shares[0][known],
            labels=evaluation.labels[known] if adjust else None,
            verbose=False,
        )
        return Risks(*(1 - model.score(pred_probs=part) for part in shares))


def cleanlab_label_quality(evaluation: Traced, pool: Traced) -> Risks:
    """Northcutt et al. 2021: the quality of the prediction, taken for a given label."""
    from cleanlab.rank import get_label_quality_scores

    risks = []
    for part in (evaluation, pool):
        shares = np.exp(log_softmax(part.logits.astype(np.float64), axis=1))
        quality = get_label_quality_scores(
            part.prediction, shares, method="normalized_margin", adjust_pred_probs=False
        )
        risks.append(1 - quality)
    return Risks(*risks)


#: Every method but ours, by the name in the table.
METHODS: dict[str, Method] = {
    "max softmax": _logits(_doubt, proba=True),
    "max softmax, temperature": _scaled(_doubt, proba=True),
    "max softmax, temperature, Platt": _scaled(_odds),
    "entropy": _scaled(_entropy),
    "margin": _scaled(_margin),
    "energy": _logits(_energy),
    "kNN distance": knn_distance,
    "kNN disagreement": knn_disagreement,
    "Mahalanobis": mahalanobis,
    "relative Mahalanobis (LDA)": discriminant,
    "Trust Score": trust_score,
    "cleanlab OOD, features": cleanlab_ood_features,
    "cleanlab OOD, probabilities": cleanlab_ood_probs,
    "cleanlab label quality": cleanlab_label_quality,
}


def platt(risks: Risks, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the pool's error probabilities."""
    if risks.proba:
        return risks.pool
    if wrong.all() or not wrong.any():
        return np.full(len(risks.pool), (wrong.sum() + 0.5) / (len(wrong) + 1))
    centre, spread = risks.evaluation.mean(), max(float(risks.evaluation.std()), 1e-12)
    model = LogisticRegression(C=10).fit((risks.evaluation[:, None] - centre) / spread, wrong)
    return model.predict_proba((risks.pool[:, None] - centre) / spread)[:, 1]
