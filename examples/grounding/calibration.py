# Copyright 2026 The ScanFormer authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
When to stop reading: a score fitted to some samples, and a threshold that the others prove to cost no more accuracy than
the user allows.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import binom, binomtest
from tqdm.auto import tqdm


# Pull of the fitted weights towards 0, in standardized signals. Few samples lose by leaving, so the weights are easily
# fitted to noise. Each is pulled by this times their number: a wider model's can explain no more together than a narrow one's.
RIDGE = 1.5
# Thresholds tried, from those at which hardly a sample leaves to those at which all do.
NUM_THRESHOLDS = 40
# Share of the samples that the stopping score is fitted on. The proof is what takes many.
FIT_SHARE = 1 / 4
# Share of the allowed error that goes into the bound of how many answers change; the rest goes into how many of them lose.
CHANGE_SHARE = 1 / 4
# The fit counts how far the IoU falls within these bounds, rather than whether it falls below 0.5, which hardly happens.
SOFT_BOUNDS = (0.3, 0.7)


@dataclass(frozen=True)
class ScanSamples:
    """
    Samples that were read to the last scale.

    Args:
        signals (`np.ndarray` of shape `(num_samples, num_scales, num_signals)`):
            What each scale showed, of which a stopping score is made; for an `EarlyExitRule` Encoder1's output of [REG].
        iou (`np.ndarray` of shape `(num_samples, num_scales)`):
            IoU of each scale's box with the true one.
        flops (`np.ndarray` of shape `(num_samples, num_scales)`):
            Operations up to and including each scale.
        alternatives (`dict[str, np.ndarray]`, *optional*):
            Single numbers that other rules could look at instead, by name, each of shape `(num_samples, num_scales)`.
    """

    signals: np.ndarray
    iou: np.ndarray
    flops: np.ndarray
    alternatives: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def right(self) -> np.ndarray:
        return self.iou >= 0.5

    def __len__(self) -> int:
        return len(self.iou)

    def __getitem__(self, rows: np.ndarray) -> "ScanSamples":
        alternatives = {name: values[rows] for name, values in self.alternatives.items()}
        return ScanSamples(self.signals[rows], self.iou[rows], self.flops[rows], alternatives)

    def shown_by(self, alternative: str) -> "ScanSamples":
        """The same with one of the alternatives as the only signal."""
        return replace(self, signals=self.alternatives[alternative][:, :, None])

    def losses(self, last_read: np.ndarray) -> np.ndarray:
        """What leaving costs, in {-1, 0, 1}: 1 where the last scale is right and the last one read is not."""
        return self.right[:, -1].astype(int) - self.at(self.right, last_read)

    def saved(self, last_read: np.ndarray) -> float:
        """Share of the operations that leaving saves."""
        return 1 - float(self.at(self.flops, last_read).sum() / self.flops[:, -1].sum())

    @staticmethod
    def at(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return values[np.arange(len(values)), scales]


def fit_logistic(
    features: np.ndarray, targets: np.ndarray, ridge: float, sample_weights: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """
    Logistic regression by Newton's method.

    Args:
        features (`np.ndarray` of shape `(num_samples, num_features)`):
            Any scale; they are standardized.
        targets (`np.ndarray` of shape `(num_samples,)`):
            Probabilities in [0, 1].
        ridge (`float`):
            Pull of the standardized weights towards 0, against a sum over the samples.
        sample_weights (`np.ndarray` of shape `(num_samples,)`, *optional*):
            How much each sample counts in that sum; 1 by default.

    Returns:
        Weights and offset: the probability is `sigmoid(features @ weights + offset)`.
    """
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 1e-9, std, np.inf)  # what never changes gets no weight
    design = np.column_stack([(features - mean) / std, np.ones(len(features))])
    # a little on the offset too: targets that are all 1 have no finite one
    penalty = np.append(np.full(features.shape[1], ridge), 1e-2)
    solution = np.zeros(len(penalty))
    counts = np.ones(len(features)) if sample_weights is None else sample_weights
    for _ in range(100):
        probabilities = sigmoid(design @ solution)
        gradient = design.T @ (counts * (targets - probabilities)) - penalty * solution
        curvature = (design * (counts * probabilities * (1 - probabilities))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        # half a Newton step where a whole one could overshoot
        solution += step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-8:
            break
    weights = solution[:-1] / std
    return weights, float(solution[-1] - weights @ mean)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * values))


def fit_stopping_score(samples: ScanSamples) -> tuple[np.ndarray, np.ndarray]:
    """
    For every scale but the last, what leaving there is likely to save, against what it is likely to lose: the odds of the
    score are the operations saved where nothing is lost, per loss. Taken in this order, as in a knapsack, samples save most
    for a given loss. Operations are in units of their mean at that scale, as who stays may still leave at the next. What is
    lost is how much of the way through `SOFT_BOUNDS` the IoU would still have risen. However good the score is, the guarantee
    holds: it rests on the threshold.

    Args:
        samples ([`ScanSamples`]):
            Not those that the threshold is calibrated on.

    Returns:
        Weights of shape `(num_scales - 1, num_signals)` and offsets of shape `(num_scales - 1,)`.
    """
    num_scales, num_signals = samples.signals.shape[1:]
    weights, biases = np.zeros((num_scales - 1, num_signals)), np.zeros(num_scales - 1)
    bounded = samples.iou.clip(*SOFT_BOUNDS)
    for scale in range(num_scales - 1):
        lost = (bounded[:, -1] - bounded[:, scale]).clip(min=0) / (SOFT_BOUNDS[1] - SOFT_BOUNDS[0])
        saved = (samples.flops[:, -1] - samples.flops[:, scale]).clip(min=1.0)
        gained = (1 - lost) * saved / saved.mean()
        weights[scale], biases[scale] = fit_logistic(
            samples.signals[:, scale], gained / (gained + lost), RIDGE * num_signals, gained + lost
        )
    return weights, biases


def stopping_scores(signals: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Of shape `(num_samples, num_scales - 1)`, from signals of shape `(num_samples, num_scales, num_signals)`."""
    return sigmoid((signals[:, :-1] * weights).sum(2) + biases)


def last_scale_read(scores: np.ndarray, threshold: float) -> np.ndarray:
    """The first scale whose stopping score reaches the threshold, or the last of all; of shape `(num_samples,)`."""
    leaves = np.column_stack([scores >= threshold, np.ones(len(scores), dtype=bool)])
    return leaves.argmax(axis=1)


def candidate_thresholds(scores: np.ndarray) -> np.ndarray:
    """Thresholds from strict to lax, between which about as many stopping scores lie."""
    return np.unique(np.quantile(scores, np.linspace(0, 1, NUM_THRESHOLDS)))[::-1]


def is_proven(num_losers: int, num_winners: int, num_samples: int, alpha: float, confidence: float) -> bool:
    """
    Whether the expected loss is at most `alpha`, by a test that is exact for any number of samples. Given how many answers
    change, losers among them are binomial. If the expected loss exceeds `alpha`, a change is a loser with a probability
    above (1 + `alpha` / rate of changes) / 2. That rate is not known, but seldom lies above its upper confidence bound
    (Clopper and Pearson, Biometrika 1934), and what is left of the allowed error is for the binomial test at this bound, as
    Berger and Boos (JASA 1994) treat what a hypothesis leaves open.

    Args:
        num_losers, num_winners (`int`):
            Samples whose loss is 1, and -1. Those of the rest is 0.
        num_samples (`int`):
            Number of independent samples.
        alpha (`float`):
            The expected loss that is tested against.
        confidence (`float`):
            1 - the probability of a proof where the expected loss exceeds `alpha`, at most.
    """
    error, num_changes = 1 - confidence, num_losers + num_winners
    changes = binomtest(num_changes, num_samples, alternative="less")
    most_changes = changes.proportion_ci(1 - CHANGE_SHARE * error, method="exact").high
    if most_changes <= alpha:
        return True
    chance = binom.cdf(num_losers, num_changes, (1 + alpha / most_changes) / 2)
    return bool(chance <= (1 - CHANGE_SHARE) * error)


def num_samples_needed(alpha: float, confidence: float) -> int:
    """The number of samples, [`FIT_SHARE`] of them for the fit, with fewer of which nothing is proven if no answer changes."""
    held_out = math.ceil(math.log(CHANGE_SHARE * (1 - confidence)) / math.log(1 - alpha))
    return math.ceil(held_out / (1 - FIT_SHARE))


def learn_then_test(
    thresholds: np.ndarray, held_out: ScanSamples, scores: np.ndarray, alpha: float, confidence: float
) -> float | None:
    """
    The laxest threshold that is proven: with probability `confidence` over the draw of the held out samples, accuracy
    falls by no more than `alpha` on new ones. Learn then test (Angelopoulos, Bates, Candès, Jordan and Lei, Annals of
    Applied Statistics 2025) with fixed sequence testing: thresholds are tested from strict to lax, each at the full level,
    until the first that cannot be proven. So the risk need not grow with the threshold.

    Args:
        thresholds (`np.ndarray` of shape `(num_thresholds,)`):
            From strict to lax, chosen without a look at the held out samples.
        held_out ([`ScanSamples`]):
            Samples that nothing has looked at yet.
        scores (`np.ndarray` of shape `(num_samples, num_scales - 1)`):
            Their stopping scores.
        alpha, confidence (`float`):
            The guarantee.

    Returns:
        `float`, or `None` where no threshold can be proven.
    """
    proven = None
    for threshold in thresholds:
        losses = held_out.losses(last_scale_read(scores, threshold))
        if not is_proven(int((losses > 0).sum()), int((losses < 0).sum()), len(losses), alpha, confidence):
            break
        proven = float(threshold)
    return proven


@dataclass(frozen=True)
class Calibration:
    """A stopping score with the threshold that is proven for it, `None` where none is."""

    weights: np.ndarray
    biases: np.ndarray
    threshold: float | None
    num_samples: int

    def scores(self, samples: ScanSamples) -> np.ndarray:
        return stopping_scores(samples.signals, self.weights, self.biases)

    def last_scale_read(self, samples: ScanSamples) -> np.ndarray:
        """Of shape `(num_samples,)`; without a threshold every scale is read."""
        return last_scale_read(self.scores(samples), np.inf if self.threshold is None else self.threshold)


def calibrate(samples: ScanSamples, alpha: float, confidence: float, rng: np.random.Generator) -> Calibration:
    """
    Fit a stopping score to a random `FIT_SHARE` of the samples, and prove a threshold on the others.

    Args:
        samples ([`ScanSamples`]):
            Independent draws of the data that the guarantee is to hold for.
        alpha, confidence (`float`):
            See [`learn_then_test`].
        rng (`np.random.Generator`):
            Splits the samples.
    """
    rows = rng.permutation(len(samples))
    cut = round(FIT_SHARE * len(samples))
    fitted, held_out = samples[rows[:cut]], samples[rows[cut:]]
    weights, biases = fit_stopping_score(fitted)
    thresholds = candidate_thresholds(stopping_scores(fitted.signals, weights, biases))
    scores = stopping_scores(held_out.signals, weights, biases)
    return Calibration(
        weights, biases, learn_then_test(thresholds, held_out, scores, alpha, confidence), len(held_out)
    )


def check_guarantee(
    samples: ScanSamples, alpha: float, confidence: float, num_trials: int, rng: np.random.Generator
) -> dict[str, dict]:
    """
    Whether the guarantee holds on repeated calibrations, in two ways. `splits`: calibrated on a random half and judged on
    the other, whose accuracy is itself uncertain by what its size allows. `resampled`: calibrated on as many samples drawn
    from all with replacement, and judged on all, which is then the very distribution that they were drawn from.

    Returns:
        `dict`: for each way, lists of `num_trials` entries: `drop`, what accuracy falls by, and `saved`, the share of
        operations; and `exceeded`, the share of trials whose drop exceeds `alpha`.
    """
    checks = {}
    for way in ("splits", "resampled"):
        drops, saved = [], []
        for _ in tqdm(range(num_trials), desc=f"Checking the guarantee, {way}", leave=False):
            if way == "splits":
                rows = rng.permutation(len(samples))
                drawn, judged = samples[rows[: len(rows) // 2]], samples[rows[len(rows) // 2 :]]
            else:
                drawn, judged = samples[rng.integers(len(samples), size=len(samples))], samples
            last_read = calibrate(drawn, alpha, confidence, rng).last_scale_read(judged)
            drops.append(float(judged.losses(last_read).mean()))
            saved.append(judged.saved(last_read))
        checks[way] = {"exceeded": float(np.mean(np.array(drops) > alpha)), "drop": drops, "saved": saved}
    return checks
