"""Watching a model in use, without ground truth."""

import uuid
from typing import Any

from ml_debugger.core.inference import InferenceTracer
from ml_debugger.core.inputs import batch_size


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
            input_ids: One id an input; None makes one up for each, unique and in order of time.
            dataset_type: The split.
            **kwargs: Values of the additional fields; passed on to `_parse_and_save_io_data`.

        Returns:
            The model's output, untouched.

        Raises:
            InputError: (a ValueError) Something given does not fit; the model has not run.
            StoreError: Records cannot be written, and no more can be kept in memory.
        """
        if input_ids is None:
            input_ids = unique_ids(batch_size(model_input) or 1)
        return self._trace(model_input, None, input_ids, dataset_type, self.n_epoch, kwargs)[0]

    def health(
        self, window: int = 1000, dataset_type: str = "deploying", *, confidence: float = 0.95
    ) -> Any:
        """Summarise what was recorded, window by window.

        Without a result there are the counts and the scores; with one also the estimates.

        Args:
            window: Inputs a window; the last may hold fewer.
            dataset_type: The split to look at.
            confidence: Of the interval of the estimated accuracy, in (0, 1).

        Returns:
            A pandas frame with a row a window: `start` and `end` (UTC), `n`, `mean_score`,
            `not_finite`; with a result also `estimated_accuracy`, `low`, `high`,
            `estimated_errors`, `estimated_critical_errors` (errors expected in
            critical_hotspot), `outlier_share` and `drift`.

        Raises:
            InputError: `window` or `confidence` is out of range.
        """
        from ml_debugger.core.evaluation.windows import health

        return health(self._pool(dataset_type), window=window, confidence=confidence)


def unique_ids(n: int) -> list[str]:
    """Return ids that sort by time: UUIDs of version 7 (RFC 9562)."""
    import os
    import time

    stamp = time.time_ns() // 1_000_000
    noise = os.urandom(10 * n)
    ids = []
    for at in range(n):
        low = int.from_bytes(noise[10 * at : 10 * at + 10], "big")
        value = (stamp << 80 | low) & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
        ids.append(str(uuid.UUID(int=value)))
    return ids
