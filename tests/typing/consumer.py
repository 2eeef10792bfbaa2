"""What a user's type checker knows of the documented names; checked, never run."""

from pathlib import Path
from typing import Any, assert_type

from torch import nn

from ml_debugger.core import ModelVersion, Store, Task, Tracer, Units
from ml_debugger.core.evaluation.result import Result
from ml_debugger.data_filter import (
    BBoxStrategy,
    ClassificationDataFilter,
    CommonDataFilter,
    FilterConfig,
    ObjectDetection3DDataFilter,
    ObjectDetectionDataFilter,
    SamplingConfig,
)
from ml_debugger.data_filter.classification.classification_torch_data_filter import (
    ClassificationTorchDataFilter,
)
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import (
    ClassificationLogger,
    MonitoringLogger,
    ObjectDetection3DLogger,
    ObjectDetectionLogger,
)
from ml_debugger.monitoring.classification.classification_torchlogger import (
    ClassificationTorchLogger,
)
from ml_debugger.training import (
    ClassificationTracer,
    ObjectDetection3DTracer,
    ObjectDetectionTracer,
    TrainingTracer,
)
from ml_debugger.training.classification.classification_torchtracer import (
    ClassificationTrainingTorchTracer,
)
from ml_debugger.training.object_detection.object_detection_torchtracer import (
    ObjectDetectionTrainingTorchTracer,
)
from ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer import (
    ObjectDetection3DTrainingTorchTracer,
)


def detect(model: nn.Module, images: Any, truths: Any) -> None:
    tracer = ObjectDetectionTracer(model, "faster_rcnn", "v1", score_thresh=0.3)
    assert_type(tracer, ObjectDetectionTrainingTorchTracer)
    assert_type(tracer.n_class, int)
    assert_type(tracer(images, truths, ["a"]), Any)
    strategy = BBoxStrategy(top_n=3, aggregation="median")
    with ObjectDetectionDataFilter(model, "faster_rcnn", "v1", filter_config=strategy) as picker:
        assert_type(picker(images, ["a"]), tuple[Any, list[bool | None]])
    with ObjectDetectionLogger(model, "faster_rcnn", "v1") as logger:
        logger(images)


def detect_in_space(model: nn.Module, clouds: Any, truths: Any) -> None:
    tracer = ObjectDetection3DTracer(
        model, "centerpoint", "v1", pc_range=[-50, -50, -5, 50, 50, 3], ground_truth_provider={}
    )
    assert_type(tracer, ObjectDetection3DTrainingTorchTracer)
    assert_type(tracer(clouds, truths, ["a"]), Any)
    strategy = BBoxStrategy(weight_column="pred_size")
    with ObjectDetection3DDataFilter(model, "centerpoint", "v1", filter_config=strategy) as picker:
        assert_type(picker(clouds, ["a"]), tuple[Any, list[bool | None]])
    with ObjectDetection3DLogger(model, "centerpoint", "v1", max_detections_per_frame=9) as logger:
        logger(clouds)


def trace(model: nn.Module, images: Any, labels: Any) -> None:
    tracer = ClassificationTracer(model, "resnet18", "v1", target_layers={"stem": "conv1"})
    assert_type(tracer, ClassificationTrainingTorchTracer)
    base: TrainingTracer = tracer
    root: Tracer = base
    assert_type(root.version, ModelVersion)
    assert_type(tracer(images, labels, ["a"], "val", n_epoch=3), Any)
    assert_type(tracer.layers, dict[str, str])
    assert_type(tracer.export("out", n_epoch=3), Path | None)
    assert_type(tracer.drop_epoch_data(3), dict[str, int])
    assert_type(tracer.wait_for_save(3, interval=1, force=True), None)
    with tracer as entered:
        assert_type(entered, ClassificationTrainingTorchTracer)
    with tracer.attached(labels, ["a"]):
        model(images)


def evaluate() -> Result | None:
    evaluator = Evaluator("resnet18", "v1")
    assert_type(evaluator.model_name, str)
    result = evaluator.get_result("resnet18_v1")
    assert_type(result, Result)
    assert_type(result.result_name, str)
    return evaluator.request_evaluation(n_epoch="latest", options={"seed": 1})


def pick(model: nn.Module, images: Any, result: Result) -> None:
    config = FilterConfig(target_zones=("hotspot",))
    data_filter = ClassificationDataFilter(
        model, "resnet18", "v1", result_name=result.result_name, filter_config=config
    )
    assert_type(data_filter, ClassificationTorchDataFilter)
    base: CommonDataFilter = data_filter
    output, flags = base(images, ["a"])
    assert_type(output, Any)
    assert_type(flags, list[bool | None])
    sampling = SamplingConfig(method="random", seed=1, min_value=0.5)
    data_filter.query(10, {"target_zones": ["hotspot"]}, type_cast=int, sampling=sampling)


def log(model: nn.Module, images: Any) -> None:
    logger = ClassificationLogger(model, "resnet18", "v1", n_epoch=None)
    assert_type(logger, ClassificationTorchLogger)
    base: MonitoringLogger = logger
    assert_type(base(images), Any)
    assert_type(logger.n_epoch, int | None)


def extend(task: type[Task], store: Store, units: Units[Any]) -> None:
    made: type[Tracer] = task.tracer
    purpose: str = made.purpose
    assert_type(len(purpose), int)
    assert_type(store.open(ModelVersion("resnet18", "v1")).task, str)
    assert_type(len(units), int)


def wrong(model: nn.Module) -> None:
    ClassificationTracer(model, "resnet18", 1)  # type: ignore[arg-type]  # pyright: ignore
    ClassificationTracer(model, "resnet18", "v1", result_name="x")  # type: ignore[call-arg]  # pyright: ignore
    Evaluator("resnet18")  # type: ignore[call-arg]  # pyright: ignore
