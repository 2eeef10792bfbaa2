"""Installed from wheels, as a user installs them, the distributions work together and apart."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parent.parent
THIRD_PARTY = ROOT / "tests" / "third_party" / "acme-ml-debugger-segmentation"

pytestmark = pytest.mark.slow

CORE_ALONE = """
import ml_debugger.core as core
from ml_debugger import data_filter, monitoring, training
from ml_debugger.core.errors import TaskNotInstalledError
from ml_debugger.data_filter.config.filter_config import FilterConfig
from ml_debugger.data_filter.config.sampling_config import SamplingConfig
from ml_debugger.evaluator.evaluator import Evaluator
from ml_debugger.monitoring import MonitoringLogger
from ml_debugger.training import TrainingTracer

for facade, suffix in ((training, "Tracer"), (monitoring, "Logger"), (data_filter, "DataFilter")):
    for prefix, distribution in (
        ("Classification", "ml-debugger-classification"),
        ("ObjectDetection", "ml-debugger-detection2d"),
        ("ObjectDetection3D", "ml-debugger-detection3d"),
    ):
        name = prefix + suffix
        assert name not in dir(facade), name
        try:
            getattr(facade, name)
        except TaskNotInstalledError as error:
            assert str(error).endswith(f"pip install {distribution}"), error
        else:
            raise AssertionError(name)
assert core.__version__
assert issubclass(data_filter.CommonDataFilter, core.Tracer)
print("done")
"""

CLASSIFICATION = """
import torch
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.data_filter.classification import classification_torch_data_filter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ClassificationLogger
from ml_debugger.monitoring.classification import classification_torchlogger
from ml_debugger.training import ClassificationTracer
from ml_debugger.training.classification import classification_torchtracer

assert ClassificationTracer is classification_torchtracer.ClassificationTrainingTorchTracer
assert ClassificationLogger is classification_torchlogger.ClassificationTorchLogger
assert (
    ClassificationDataFilter is classification_torch_data_filter.ClassificationTorchDataFilter
)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
inputs = torch.randn(300, 8)
labels = model(inputs).argmax(1)
labels[::7] = (labels[::7] + 1) % 3
with ClassificationTracer(model, "net", "v1") as tracer, torch.no_grad():
    for start in range(0, 300, 100):
        part = slice(start, start + 100)
        tracer(inputs[part], labels[part], range(start, start + 100), "val", n_epoch=1)
    tracer.wait_for_save()
    assert tracer.export(".").exists()
result = Evaluator("net", "v1").request_evaluation()
assert len(result.samples()) == 300
(name,) = Evaluator("net", "v1").list_results()["result_name"]
assert name == result.result_name
config = {"conditions": [{"error_proba": ">=0"}]}
with (
    ClassificationDataFilter(model, "net", "v1", name, filter_config=config) as data_filter,
    torch.no_grad(),
):
    logits, flags = data_filter(inputs[:50], range(50))
    assert flags == [True] * 50
    ids = data_filter.query(10, "high_error_proba", type_cast=int)
    assert len(set(ids)) == 10 and set(ids) <= set(range(50))
with ClassificationLogger(model, "net", "v1", name) as logger, torch.no_grad():
    logger(inputs)
    assert logger.health()["n"].sum() == 300
print("done")
"""

DETECTION = """
import torch
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.output import DetectionOutput
from ml_debugger.training import ObjectDetectionTracer


class Corners(torch.nn.Module):
    def forward(self, images):
        low = images.mean((2, 3))[:, :2] * 10
        return torch.cat([low, low + 8], 1), images.amax((1, 2, 3)).clamp(0, 1)


class CornersTracer(ObjectDetectionTracer):
    @staticmethod
    def detect(model):
        return isinstance(model, Corners)

    def _get_n_class(self, model):
        return 2

    def _parse_model_output(self, model_output, img_sizes):
        boxes, scores = model_output
        label = torch.ones(1, dtype=torch.int64)
        return [
            DetectionOutput(box[None], score[None], label)
            for box, score in zip(boxes, scores)
        ]


torch.manual_seed(0)
model, images = Corners(), torch.rand(60, 3, 16, 16)
truths = [
    {"boxes": box[None] + (at % 3) * 3, "labels": [1]}
    for at, box in enumerate(model(images)[0])
]
with CornersTracer(model, "corners", "v1") as tracer:
    tracer(images, truths, range(60), "val")
result = Evaluator("corners", "v1").request_evaluation()
assert len(result.samples()) == 60 and len(result.truths()) == 60
try:
    ObjectDetectionTracer(torch.nn.Linear(2, 2), "linear", "v1")
except UnsupportedModelError as error:
    assert "torchvision" in str(error), error
else:
    raise AssertionError
print("done")
"""

DETECTION_3D = """
import torch
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection_3d.output import Detection3DOutput
from ml_debugger.training import ObjectDetection3DTracer


class Middle(torch.nn.Module):
    def forward(self, clouds):
        sides = torch.tensor([4.0, 2.0, 1.5, 0.0])
        return torch.stack([torch.cat([one.mean(0)[:3], sides]) for one in clouds])


class MiddleTracer(ObjectDetection3DTracer):
    @staticmethod
    def detect(model):
        return isinstance(model, Middle)

    def _get_n_class(self, model):
        return 2

    def _parse_model_output(self, model_output):
        label = torch.ones(1, dtype=torch.int64)
        return [
            Detection3DOutput(box[None], box[:1].abs().clamp(0, 1), label) for box in model_output
        ]


torch.manual_seed(0)
model, clouds = Middle(), list(torch.randn(60, 9, 4))
truths = {
    str(at): {"boxes": box[None] + (at % 3) * torch.eye(7)[:1], "labels": [1]}
    for at, box in enumerate(model(clouds))
}
with MiddleTracer(model, "middle", "v1", ground_truth_provider=truths) as tracer:
    tracer(clouds, None, range(60), "val")
for overlap in ("bev", "3d", "distance"):
    result = Evaluator("middle", "v1").request_evaluation(options={"overlap": overlap})
    assert len(result.samples()) == 60 and len(result.truths()) == 60

vendored = type("VoxelNet", (torch.nn.Linear,), {"__module__": "mmdet3d.models.detectors.voxelnet"})
for model, advice in (
    (torch.nn.Linear(2, 2), "known are MMDetection3D"),
    (vendored(2, 2), "mmdet3d is not installed: install mmcv, "),
):
    try:
        ObjectDetection3DTracer(model, "linear", "v1")
    except UnsupportedModelError as error:
        assert advice in str(error), error
    else:
        raise AssertionError
print("done")
"""

THIRD_PARTY_NAMES = """
from ml_debugger import data_filter, monitoring, training

for facade, suffix in ((training, "Tracer"), (monitoring, "Logger"), (data_filter, "DataFilter")):
    for prefix in ("Segmentation", "Classification"):
        assert prefix + suffix in dir(facade)
        assert getattr(facade, prefix + suffix).__name__
assert training.SegmentationTracer.__module__ == "acme_segmentation"
print("done")
"""


def runs(environment, script, tmp_path):
    printed = environment.run("-W", "error", "-c", script, MLD_HOME=str(tmp_path / "home"))
    assert printed.splitlines()[-1] == "done"


def test_core_alone(make_environment, tmp_path):
    environment = make_environment("ml-debugger-core")
    installed = environment.has()
    assert "ml-debugger-classification" not in installed
    assert not {"torchvision", "pytest", "timm", "transformers"} & set(installed)
    runs(environment, CORE_ALONE, tmp_path)
    printed = environment.run(environment.folder / "bin" / "ml-debugger", "--help")
    assert "Usage" in printed
    command = str(environment.folder / "bin" / "ml-debugger")
    told = subprocess.run([command, "serve"], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "pip install ml-debugger-server" in told.stderr


def test_the_service_starts_by_one_command(make_environment, tmp_path):
    environment = make_environment("ml-debugger-server")
    installed = set(environment.has())
    assert not {"ml-debugger-classification", "psycopg", "s3fs", "pytest"} & installed
    command = [environment.folder / "bin" / "ml-debugger", "serve", "--port", "0"]
    variables = {"MLD_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("serving on "))
            with urlopen(f"{line.split()[-1]}/ready") as answer:
                assert json.load(answer) == {"status": "ready"}
        finally:
            process.terminate()
    assert process.returncode == 0
    assert (tmp_path / "service" / "first_login.json").stat().st_mode & 0o777 == 0o600


def test_testing_says_what_it_needs(make_environment):
    environment = make_environment("ml-debugger-core")
    script = "try:\n import ml_debugger.testing\nexcept ImportError as error:\n print(error)"
    assert "pip install pytest" in environment.run("-c", script)


def test_classification_pulls_core(classification_environment, tmp_path):
    installed = classification_environment.has()
    assert {"ml-debugger-core", "ml-debugger-classification"} <= set(installed)
    assert "torchvision" not in installed
    runs(classification_environment, CLASSIFICATION, tmp_path)


def test_detection2d_needs_no_family_of_detectors(make_environment, tmp_path):
    environment = make_environment("ml-debugger-detection2d")
    installed = set(environment.has())
    families = {"torchvision", "transformers", "ultralytics", "mmdet", "mmcv"}
    assert not {"ml-debugger-classification", *families} & installed
    runs(environment, DETECTION, tmp_path)


def test_detection3d_needs_no_family_of_detectors(make_environment, tmp_path):
    environment = make_environment("ml-debugger-detection3d")
    installed = set(environment.has())
    others = {"ml-debugger-classification", "ml-debugger-detection2d"}
    families = {"torchvision", "mmdet3d", "mmdet", "mmcv", "mmengine"}
    assert not {*others, *families, "shapely"} & installed
    runs(environment, DETECTION_3D, tmp_path)
    readme = (ROOT / "packages" / "detection3d" / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    variables = {"MLD_HOME": str(tmp_path / "readme"), "COLUMNS": "120"}
    environment.run("-W", "error", "-c", example, **variables)
    printed = environment.run(environment.folder / "bin" / "ml-debugger", "results", **variables)
    assert "my_detector" in printed


def test_a_third_party_task(make_environment, wheels, tmp_path):
    """The last steps undo the first: what is left works as if the rest had never been there."""
    third_party = "acme-ml-debugger-segmentation"
    environment = make_environment(
        "ml-debugger-classification", third_party, also=("pytest", "pytest-timeout")
    )
    runs(environment, THIRD_PARTY_NAMES, tmp_path)
    tests = THIRD_PARTY / "tests"
    config = THIRD_PARTY / "pyproject.toml"
    printed = environment.run("-m", "pytest", "-p", "no:cacheprovider", "-c", config, tests)
    assert " passed" in printed
    assert "skipped" not in printed

    environment.uninstall(third_party)
    runs(environment, CLASSIFICATION, tmp_path)
    environment.uninstall("ml-debugger-classification")
    runs(environment, CORE_ALONE, tmp_path)


def test_the_meta_distribution_installs_all(make_environment, wheels, tmp_path):
    environment = make_environment("ml-debugger")
    ours = {name for name in environment.has() if name.startswith("ml-debugger")}
    assert ours == {
        "ml-debugger",
        "ml-debugger-core",
        "ml-debugger-classification",
        "ml-debugger-detection2d",
        "ml-debugger-detection3d",
    }
    runs(environment, CLASSIFICATION, tmp_path)


def test_environments_are_not_ours(classification_environment):
    printed = classification_environment.run(
        "-c", "import ml_debugger.core as c; print(c.__file__)"
    )
    assert Path(printed.strip()).is_relative_to(classification_environment.folder)
    assert str(ROOT / "packages") not in printed
    assert classification_environment.python != Path(sys.executable)
