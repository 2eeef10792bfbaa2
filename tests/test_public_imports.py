"""Every documented import leads to the documented class."""

import importlib
import inspect
import pickle
from importlib.metadata import version

import pytest

from ml_debugger import data_filter, evaluator, monitoring, training
from ml_debugger.core import MLDebuggerError, __version__, task
from ml_debugger.core import errors as all_errors
from ml_debugger.core.errors import TaskNotInstalledError

LEAVES = {
    ("ml_debugger.training", "ClassificationTracer"): (
        "ml_debugger.training.classification.classification_torchtracer",
        "ClassificationTrainingTorchTracer",
    ),
    ("ml_debugger.monitoring", "ClassificationLogger"): (
        "ml_debugger.monitoring.classification.classification_torchlogger",
        "ClassificationTorchLogger",
    ),
    ("ml_debugger.data_filter", "ClassificationDataFilter"): (
        "ml_debugger.data_filter.classification.classification_torch_data_filter",
        "ClassificationTorchDataFilter",
    ),
    ("ml_debugger.training", "ObjectDetectionTracer"): (
        "ml_debugger.training.object_detection.object_detection_torchtracer",
        "ObjectDetectionTrainingTorchTracer",
    ),
    ("ml_debugger.monitoring", "ObjectDetectionLogger"): (
        "ml_debugger.monitoring.object_detection.object_detection_torchlogger",
        "ObjectDetectionTorchLogger",
    ),
    ("ml_debugger.data_filter", "ObjectDetectionDataFilter"): (
        "ml_debugger.data_filter.object_detection.object_detection_torch_data_filter",
        "ObjectDetectionTorchDataFilter",
    ),
    ("ml_debugger.training", "ObjectDetection3DTracer"): (
        "ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer",
        "ObjectDetection3DTrainingTorchTracer",
    ),
    ("ml_debugger.monitoring", "ObjectDetection3DLogger"): (
        "ml_debugger.monitoring.object_detection_3d.object_detection_3d_torchlogger",
        "ObjectDetection3DTorchLogger",
    ),
    ("ml_debugger.data_filter", "ObjectDetection3DDataFilter"): (
        "ml_debugger.data_filter.object_detection_3d.object_detection_3d_torch_data_filter",
        "ObjectDetection3DTorchDataFilter",
    ),
    ("ml_debugger.evaluator", "Evaluator"): ("ml_debugger.evaluator.evaluator", "Evaluator"),
}

BASES = {
    "ClassificationTrainingTorchTracer": ("TrainingTracer", "ClassificationTorchTracer"),
    "ClassificationTorchLogger": ("MonitoringLogger", "ClassificationTorchTracer"),
    "ClassificationTorchDataFilter": ("CommonDataFilter", "ClassificationTorchTracer"),
    "ObjectDetectionTrainingTorchTracer": ("TrainingTracer", "ObjectDetectionTorchTracer"),
    "ObjectDetectionTorchLogger": ("MonitoringLogger", "ObjectDetectionTorchTracer"),
    # documented beside the logger; a filter that were one would have two ways to be called
    "ObjectDetectionTorchDataFilter": (
        "CommonObjectDetectionDataFilter",
        "ObjectDetectionTorchTracer",
    ),
    "ObjectDetection3DTrainingTorchTracer": ("TrainingTracer", "ObjectDetection3DTorchTracer"),
    "ObjectDetection3DTorchLogger": ("MonitoringLogger", "ObjectDetection3DTorchTracer"),
    "ObjectDetection3DTorchDataFilter": (
        "CommonObjectDetectionDataFilter",
        "ObjectDetection3DTorchTracer",
    ),
}

FACADES = {
    training: (
        "Tracer",
        {
            "TrainingTracer",
            "ClassificationTracer",
            "ObjectDetectionTracer",
            "ObjectDetection3DTracer",
        },
    ),
    monitoring: (
        "Logger",
        {
            "MonitoringLogger",
            "ClassificationLogger",
            "ObjectDetectionLogger",
            "ObjectDetection3DLogger",
        },
    ),
    data_filter: (
        "DataFilter",
        {
            "BBoxStrategy",
            "ClassificationDataFilter",
            "CommonDataFilter",
            "FilterConfig",
            "ObjectDetectionDataFilter",
            "ObjectDetection3DDataFilter",
            "SamplingConfig",
        },
    ),
}


@pytest.mark.parametrize(("public", "leaf"), LEAVES.items(), ids=lambda pair: pair[1])
def test_public_name_is_the_documented_class(public, leaf):
    found = getattr(importlib.import_module(public[0]), public[1])
    assert found is getattr(importlib.import_module(leaf[0]), leaf[1])
    # tracebacks, pickles and the reference say what the manual says
    assert (found.__module__, found.__qualname__) == leaf
    assert pickle.loads(pickle.dumps(found)) is found
    assert inspect.getdoc(found)


@pytest.mark.parametrize(("name", "bases"), BASES.items())
def test_documented_bases(name, bases):
    (leaf,) = [pair for pair in LEAVES.values() if pair[1] == name]
    found = getattr(importlib.import_module(leaf[0]), name)
    assert tuple(base.__name__ for base in found.__bases__) == bases


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ml_debugger.data_filter.config.bbox_strategy", "BBoxStrategy"),
        ("ml_debugger.data_filter.config.filter_config", "FilterConfig"),
        ("ml_debugger.data_filter.config.sampling_config", "SamplingConfig"),
    ],
)
def test_settings_have_one_class(module, name):
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(data_filter, name)
    assert callable(found.validate_dict)


def test_leaves_can_be_imported_first():
    """Each order of imports works in a process of its own; here, all have been imported."""
    from ml_debugger.classification.task import ClassificationTask
    from ml_debugger.training import ClassificationTracer

    assert ClassificationTask.tracer is ClassificationTracer


@pytest.mark.parametrize("facade", FACADES, ids=lambda facade: facade.__name__)
def test_facades_list_what_is_there(facade):
    suffix, names = FACADES[facade]
    assert names <= set(dir(facade))
    for name in names:
        assert hasattr(facade, name)
    assert f"Other{suffix}" not in dir(facade)


@pytest.mark.parametrize("facade", FACADES, ids=lambda facade: facade.__name__)
@pytest.mark.parametrize("prefix", task.KNOWN)
def test_a_documented_task_that_is_not_installed(facade, prefix, monkeypatch):
    """As if it were not: tests of the wheels see it where it really is not."""
    name = prefix + FACADES[facade][0]
    others = {one: entry for one, entry in task.installed().items() if one != prefix}
    monkeypatch.setattr(task, "installed", lambda: others)
    monkeypatch.delattr(facade, name, raising=False)
    task.load.cache_clear()
    with pytest.raises(TaskNotInstalledError) as raised:
        exec(f"from {facade.__name__} import {name}", {})
    advice = f"pip install {task.KNOWN[prefix]}"
    assert advice in str(raised.value)
    assert prefix in str(raised.value)
    assert isinstance(raised.value, ImportError)
    assert isinstance(raised.value, MLDebuggerError)


@pytest.mark.parametrize("facade", FACADES, ids=lambda facade: facade.__name__)
def test_unknown_names(facade):
    suffix, _ = FACADES[facade]
    for name in (f"Other{suffix}", suffix, "Classification", "__wrapped__", "nothing"):
        assert not hasattr(facade, name)
    with pytest.raises(AttributeError, match=f"'{facade.__name__}' has no attribute 'nothing'"):
        facade.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from {facade.__name__} import Other{suffix}", {})
    # tools that look at every name of a module meet no error
    assert inspect.getmembers(facade)


def test_core_and_evaluator_export_what_they_say():
    for module in (importlib.import_module("ml_debugger.core"), evaluator):
        for name in module.__all__:
            assert hasattr(module, name)
    assert __version__ == version("ml-debugger-core")


def test_the_namespace_has_no_file():
    import ml_debugger

    assert ml_debugger.__file__ is None
    assert not hasattr(ml_debugger, "__version__")


def test_errors_are_those_that_callers_expect():
    documented = {
        "InputError": ValueError,
        "StrategyError": ValueError,
        "EpochError": TypeError,
        "LayerNotCapturedError": KeyError,
        "UnsupportedModelError": TypeError,
        "ResultNotFoundError": LookupError,
        "TaskNotInstalledError": ImportError,
        "SyncError": ConnectionError,
    }
    for name, builtin in documented.items():
        assert issubclass(getattr(all_errors, name), builtin)
    ours = [one for name, one in vars(all_errors).items() if name.endswith("Error")]
    assert all(issubclass(one, MLDebuggerError) for one in ours)
    assert issubclass(all_errors.LicenseError, MLDebuggerError)
