"""Recording the validation and test loops of OpenMMLab's runners, by a line of their config.

Importing this module registers the hook. It needs MMEngine, which whoever has a runner has.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from torch import nn
from typing_extensions import override

from ml_debugger.core.detection.tracer import DetectionTracer
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.core.inputs import as_name
from ml_debugger.core.layers import unwrap
from ml_debugger.core.task import installed, load
from ml_debugger.training.tracer import TrainingTracer

#: What names a sample, best first: a file is the same in every run, and its name alone may not be
#: unique; `sample_idx` is the place in the data set.
_KEYS = ("lidar_path", "img_path", "img_id", "sample_idx")


@HOOKS.register_module()
class MLDebuggerHook(Hook):  # type: ignore[misc, unused-ignore]  # without MMEngine it is Any
    """Records what a detector says in each validation and test loop of a `Runner`.

    Ids, ground truth and epochs come from the runner: ids from the metainfo of the data samples,
    ground truth from their `gt_instances`, `gt_instances_3d` or `eval_ann_info`, where there are
    any. The tracer is that of the installed task that knows the model. It is on the model while
    a loop runs, and off again when the loop ends, also by an error.

    The epoch is the number of epochs trained, or of iterations where a loop counts nothing else;
    None where the runner has trained nothing.

    Example:
        `custom_imports = dict(imports=["ml_debugger.training.mmengine"])` and
        `custom_hooks = [dict(type="MLDebuggerHook", model_name="centerpoint",
        version_name="v1")]` in the runner's config.
    """

    def __init__(
        self,
        model_name: str,
        version_name: str,
        dataset_type: str | None = None,
        id_key: str | None = None,
        **settings: Any,
    ) -> None:
        """Take what the tracer is made with; it is made when a loop begins.

        Args:
            model_name: Stands for an architecture.
            version_name: Stands for training conditions and data.
            dataset_type: The split; None takes 'val' in validation loops and 'test' in test loops.
            id_key: Which value of a sample's metainfo is its id; None takes the first of
                `lidar_path`, `img_path`, `img_id` and `sample_idx` that all of a batch have.
            **settings: Further arguments of the tracer, such as `score_thresh` or `home`.

        Raises:
            InputError: A name does not fit.
        """
        self._names = as_name(model_name, "model_name"), as_name(version_name, "version_name")
        self._split = None if dataset_type is None else as_name(dataset_type, "dataset_type")
        self._id_key, self._settings = id_key, settings
        self._loops: list[BaseLoop] = []

    @override
    def before_run(self, runner: Any) -> None:
        """Look that the model can be traced, before anything is trained, and watch the loops.

        Raises:
            UnsupportedModelError: No installed task knows the model, or it cannot run here.
            InputError: The tracer has no such argument.
        """
        kind = _tracer_of(unwrap(runner.model))
        try:
            inspect.signature(kind).bind(runner.model, *self._names, **self._settings)
        except TypeError as error:
            raise InputError(f"MLDebuggerHook: {error} of {kind.__name__}") from None
        # no hook is called when a loop ends by an error, so that it is wrapped; and only what has
        # been built already: the properties without underscore would build the other loop
        for split in ("val", "test"):
            loop = getattr(runner, f"_{split}_loop", None)
            if isinstance(loop, BaseLoop) and not any(loop is one for one in self._loops):
                self._loops.append(loop)
                loop.run = partial(self._traced, loop.run, kind, runner, split)

    @override
    def after_run(self, runner: Any) -> None:
        """Leave the loops as they were."""
        while self._loops:
            # that of the instance, over that of its class; another hook may have been faster
            vars(self._loops.pop()).pop("run", None)

    def _traced(
        self, run: Callable[[], Any], kind: type[TrainingTracer], runner: Any, split: str
    ) -> Any:
        """Run a loop with a tracer on the model."""
        with kind(unwrap(runner.model), *self._names, **self._settings) as tracer:
            self._settings.pop("force_table_recreate", None)  # or it would drop earlier epochs
            self._tracer, self._seen = tracer, set[str]()
            # to ask for the epoch builds the training loop, whose data set may not be there
            trains = isinstance(getattr(runner, "_train_loop", None), BaseLoop)
            epoch = runner.epoch or runner.iter if trains else 0
            self._where = self._split or split, epoch or None
            with ExitStack() as self._step:
                return run()

    def _before(self, data_batch: Any) -> None:
        samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
        if not isinstance(samples, Sequence) or not all(
            hasattr(one, "metainfo") for one in samples
        ):
            raise InputError(
                "MLDebuggerHook needs batches with a data sample an input, as a dict with "
                "'inputs' and 'data_samples'; see PackDetInputs, and do without augmentation"
            )
        ids = _ids([one.metainfo for one in samples], self._id_key)
        for one in ids:
            if one in self._seen:
                raise InputError(
                    f"two samples of a loop have the id {one!r}, so that one's record would "
                    "replace the other's; give MLDebuggerHook an id_key that differs, such as "
                    "'sample_idx'"
                )
            self._seen.add(one)
        truths = samples if any(map(_labelled, samples)) else None
        self._step.enter_context(self._tracer.attached(truths, ids, *self._where))

    @override
    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._before(data_batch)

    @override
    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._step.close()

    @override
    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._before(data_batch)

    @override
    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._step.close()


def _tracer_of(model: nn.Module) -> type[TrainingTracer]:
    """Return the tracer of the installed task that knows a detector."""
    for prefix in installed():
        kind = load(prefix).tracer
        if not issubclass(kind, DetectionTracer) or not issubclass(kind, TrainingTracer):
            continue
        if kind.detect(model):
            adapter = kind.families.of(model)
            if adapter is not None:
                adapter.accept(model)
            return kind
    raise UnsupportedModelError(
        f"no installed task knows {type(model).__name__}; pip install ml-debugger-detection2d for "
        "detectors of MMDetection, ml-debugger-detection3d for those of MMDetection3D, or a "
        "package with an adapter for it"
    )


def _ids(metas: Sequence[Mapping[str, Any]], key: str | None) -> list[str]:
    keys = _KEYS if key is None else (key,)
    for name in keys:
        found = [meta.get(name) for meta in metas]
        if all(isinstance(one, str | int | np.integer | PathLike) for one in found):
            return [str(one) for one in found]
    raise InputError(
        f"data samples have no {' or '.join(keys)} that names one input; their metainfo has "
        f"{sorted(set().union(*metas))}. Add one to meta_keys of the pipeline's last step, or give "
        "MLDebuggerHook another id_key"
    )


def _labelled(sample: Any) -> bool:
    """Tell whether a sample says what is true; pipelines add empty instances where nothing is."""
    if getattr(sample, "eval_ann_info", None):
        return True
    solid = getattr(sample, "gt_instances_3d", None)
    if solid is not None:
        return "bboxes_3d" in solid
    return "bboxes" in getattr(sample, "gt_instances", ())
