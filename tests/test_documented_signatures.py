"""Parameters have the documented names, order, kinds and defaults; ours are keyword-only."""

import inspect
from inspect import Parameter

import pytest

from ml_debugger.data_filter import (
    ClassificationDataFilter,
    ObjectDetection3DDataFilter,
    ObjectDetectionDataFilter,
)
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import (
    ClassificationLogger,
    ObjectDetection3DLogger,
    ObjectDetectionLogger,
)
from ml_debugger.training import (
    ClassificationTracer,
    ObjectDetection3DTracer,
    ObjectDetectionTracer,
)

# As the documentation writes them, without `self`: `*` begins keyword-only parameters.
TRACER = {
    "__init__": (
        "model, model_name, version_name, target_layers=None, additional_fields=None, "
        "additional_label_fields=None, auto_sync=False, force_table_recreate=False, "
        "api_endpoint=None, api_key=None"
    ),
    "__call__": (
        "model_input, ground_truth, input_ids, dataset_type='train', n_epoch=None, **kwargs"
    ),
    "get_hooked_features": "layer_name",
    "export": "output_path=None, n_epoch=None",
    "wait_for_save": "n_epoch=None, interval=3, *, force=False",
    "upload": "n_epoch=None, *, force=False",
    "drop_epoch_data": "n_epoch",
    "drop_version_data": "",
}

# The page of the classification logger is not known; that of the detection logger is, and the
# classification tracer and data filter differ from theirs by the detection parameters alone.
LOGGER = {
    "__init__": (
        "model, model_name, version_name, result_name=None, n_epoch='latest', target_layers=None, "
        "additional_fields=None, auto_sync=True, force_table_recreate=False, api_endpoint=None, "
        "api_key=None"
    ),
    "__call__": "model_input, input_ids=None, dataset_type='deploying', **kwargs",
    "get_hooked_features": "layer_name",
    "export": "output_path=None",
    "wait_for_save": "interval=3",
    "upload": "",
}

DATA_FILTER = {
    "__init__": (
        "model, model_name, version_name, result_name=None, n_epoch='latest', filter_config=None, "
        "target_layers=None, additional_fields=None, auto_sync=False, "
        "force_table_recreate=False, api_endpoint=None, api_key=None"
    ),
    "__call__": "model_input, input_ids, dataset_type='pool', **kwargs",
    "get_hooked_features": "layer_name",
    "export": "output_path=None",
    "wait_for_save": "interval=3",
    "upload": "",
    "query": "n_data, strategy, dataset_type='pool', type_cast=None",
}

DETECTION = "n_class=None, score_thresh=None, iou_thresh=None, max_detections_per_image=None"
DETECTION_3D = DETECTION.replace("per_image", "per_frame")


def of_detection(methods: dict[str, str], more: str = DETECTION) -> dict[str, str]:
    return {**methods, "__init__": f"{methods['__init__']}, {more}"}


EVALUATOR = {
    "__init__": "model_name, version_name, api_endpoint=None, api_key=None",
    "request_evaluation": "method_name='default', result_name=None, n_epoch='latest', options=None",
    "list_results": "result_name=None, method_name=None, n_epoch='latest'",
    "get_result": "result_name",
}

DOCUMENTED = [
    pytest.param(owner, method, written, id=f"{owner.__name__}.{method}")
    for owner, methods in {
        ClassificationTracer: TRACER,
        ClassificationLogger: LOGGER,
        ClassificationDataFilter: DATA_FILTER,
        ObjectDetectionTracer: of_detection(TRACER),
        ObjectDetectionLogger: of_detection(LOGGER),
        ObjectDetectionDataFilter: of_detection(DATA_FILTER),
        ObjectDetection3DTracer: of_detection(
            TRACER, f"{DETECTION_3D}, pc_range=None, ground_truth_provider=None"
        ),
        ObjectDetection3DLogger: of_detection(LOGGER, DETECTION_3D),
        ObjectDetection3DDataFilter: of_detection(DATA_FILTER, DETECTION_3D),
        Evaluator: EVALUATOR,
    }.items()
    for method, written in methods.items()
]


def parameters(function: object) -> list[tuple[str, object, object]]:
    found = list(inspect.signature(function).parameters.values())[1:]  # type: ignore[arg-type]
    return [(one.name, one.kind, one.default) for one in found]


def documented(written: str) -> list[tuple[str, object, object]]:
    names: dict[str, object] = {}
    exec(f"def function(self, {written}): ...", names)
    return parameters(names["function"])


@pytest.mark.parametrize(("owner", "method", "written"), DOCUMENTED)
def test_signature_is_the_documented_one(owner, method, written):
    wanted = documented(written)
    names = {name for name, *_ in wanted}
    found = parameters(getattr(owner, method))
    ours = [(name, kind) for name, kind, _ in found if name not in names]
    assert [one for one in found if one[0] in names] == wanted
    assert all(kind is Parameter.KEYWORD_ONLY for _, kind in ours), ours


@pytest.mark.parametrize(("owner", "method", "written"), DOCUMENTED)
def test_our_own_parameters_can_be_left_out(owner, method, written):
    names = {name for name, *_ in documented(written)}
    found = parameters(getattr(owner, method))
    assert not [
        name for name, _, default in found if name not in names and default is inspect._empty
    ]


@pytest.mark.parametrize(("owner", "method", "written"), DOCUMENTED)
def test_documented_methods_have_a_docstring(owner, method, written):
    assert inspect.getdoc(getattr(owner, method))


@pytest.mark.parametrize(
    "owner",
    [
        ClassificationTracer,
        ClassificationLogger,
        ClassificationDataFilter,
        ObjectDetectionTracer,
        ObjectDetectionLogger,
        ObjectDetectionDataFilter,
        ObjectDetection3DTracer,
        ObjectDetection3DLogger,
        ObjectDetection3DDataFilter,
    ],
)
def test_constructor_is_written_out_in_the_leaf(owner):
    """Help and editors show the parameters, not `*args`."""
    assert "__init__" in vars(owner)
    kinds = {kind for _, kind, _ in parameters(owner.__init__)}
    assert kinds == {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}
