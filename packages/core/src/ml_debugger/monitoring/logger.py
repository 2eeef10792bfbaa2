"""Watching a model in use, without ground truth."""

import os
import threading
import time
import uuid
from typing import Any

import numpy as np
import torch

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.core.inference import InferenceTracer
from ml_debugger.core.tracer import arguments_of


class MonitoringLogger(InferenceTracer):
    """Records a deployed model's calls; with a result, also how well it is probably doing."""

    purpose = "monitoring"

    def __call__(
        self,
        model_input: Any,
        input_ids: Any | None = None,
        dataset_type: str = "deploying",
        **kwargs: Any,
    ) -> Any:
        """Run the model on a batch and record what it saw and said.

        Args:
            model_input: What the model takes; a mapping is passed as keyword arguments.
            input_ids: One id an input; None makes one up for each, unique and, in a process,
                in the order of the calls. Where the input is neither a tensor nor a mapping of
                tensors, the model's output tells how many.
            dataset_type: The split.
            **kwargs: Values of the additional fields; passed on to `_parse_and_save_io_data`.

        Returns:
            The model's output, untouched.

        Raises:
            InputError: (a ValueError) Something given does not fit; the model has not run, unless
                only its output could tell. Nothing of the call is recorded.
            StoreError: Records cannot be written, and no more can be kept in memory.
        """
        if input_ids is None:
            inputs = self.count_inputs(*arguments_of(model_input))
            if inputs is None:
                return self._trace_uncounted(model_input, dataset_type, kwargs)
            input_ids = unique_ids(inputs)
        return self._trace(model_input, None, input_ids, dataset_type, self.n_epoch, kwargs)[0]

    def _trace_uncounted(self, model_input: Any, dataset_type: str, kwargs: dict[str, Any]) -> Any:
        """Record a call of which only the model's output tells how many inputs it had."""
        self._check_open()
        # what can be checked before the model runs: all but the number of the fields' values
        given = [kwargs[name] for name in self._fields.fields if name in kwargs]
        lengths = [len(one) for one in given if isinstance(one, list | tuple)]
        lengths += [
            len(one) for one in given if isinstance(one, np.ndarray | torch.Tensor) and one.ndim
        ]
        guess = lengths[0] if lengths else 1
        self._checked(None, unique_ids(guess), None, dataset_type, self.n_epoch, kwargs)
        with self._capture.recording() as activations:
            output = self.run_model(model_input)
        try:
            inputs = self._read(model_input, output, activations).n_inputs
        except UnsupportedModelError:  # left to an overridden `_parse_and_save_io_data`
            inputs = len(model_input) if isinstance(model_input, list | tuple) else guess
        call = self._checked(None, unique_ids(inputs), None, dataset_type, self.n_epoch, kwargs)
        truth = call.pop("ground_truth")
        self._parse_and_save_io_data(model_input, output, truth, activations=activations, **call)
        return output

    def health(
        self, window: int = 1000, dataset_type: str = "deploying", *, confidence: float = 0.95
    ) -> Any:
        """Summarise what was recorded, window by window.

        Without a result there are the counts and the scores; with one also the estimates.

        Args:
            window: Inputs a window; the last may hold fewer. A detector's images count whole,
                those without a box too.
            dataset_type: The split to look at.
            confidence: Of the interval of the estimated accuracy, in (0, 1).

        Returns:
            A pandas frame with a row a window: `start` and `end` (UTC), `inputs`, `n` (units: the
            inputs again, or a detector's boxes), `mean_score`, `not_finite`. With a result also
            `estimated_accuracy` with `low` and `high`, which reach farther under drift;
            `estimated_errors`; `estimated_critical_errors`, those expected in critical_hotspot;
            `outlier_share`, of units whose outlier p-value is at most 0.05; `drift`, whether the
            window is less like the evaluated units than chance explains at a rate of false alarms
            of 1 % a window (of the boxes of an image, which are no independent evidence, it looks
            at one), NA where the window or the result has fewer than 20 inputs with a unit, which
            could not tell; `drift_p`, the p-value behind it, and the three that it is made of,
            `feature_drift_p`, `error_proba_drift_p` and `zone_drift_p`, NaN where not known; and a
            column for each zone, `stable_coverage` for example: its share of the window.

        Raises:
            InputError: `window` or `confidence` is out of range.
        """
        from ml_debugger.core.evaluation.windows import health

        return health(self._pool(dataset_type, may_mix=True), window=window, confidence=confidence)


class _Clock:
    """Counts up in the 122 bits of a UUID of version 7: 48 of milliseconds, 74 of its own."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew; a forked child would go on with its parent's numbers."""
        self._lock = threading.Lock()
        self._last = 0

    def take(self, n: int) -> list[int]:
        """Return n numbers, each larger than all before it."""
        now = (time.time_ns() // 1_000_000) << 74
        steps = os.urandom(4 * n)
        with self._lock:
            if now > self._last:  # else within a millisecond, or the clock was put back
                # half of the range is left to count in
                self._last = now | int.from_bytes(os.urandom(10), "big") >> 7
            taken = []
            for at in range(0, 4 * n, 4):
                self._last += 1 + int.from_bytes(steps[at : at + 4], "big")
                taken.append(self._last)
        return taken


_clock = _Clock()
os.register_at_fork(after_in_child=_clock.forget)


def unique_ids(n: int) -> list[str]:
    """Return ids that sort by time: UUIDs of version 7 (RFC 9562).

    In a process each is larger than all before it; across processes to the millisecond.
    """
    ids = []
    for number in _clock.take(n):
        stamp, high, low = number >> 74, number >> 62 & 0xFFF, number & (1 << 62) - 1
        value = stamp << 80 | 0x7 << 76 | high << 64 | 0x2 << 62 | low
        ids.append(str(uuid.UUID(int=value)))
    return ids
