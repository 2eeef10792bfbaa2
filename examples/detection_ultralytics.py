"""Train a YOLO on generated scenes, and trace what it says of others after each epoch (40 s).

Ultralytics predicts with a fused copy of the network, and what its head said is gone when callbacks
of `on_predict_batch_end` or `on_val_batch_end` run: the tracer must make the call itself, as in
`tracer(images, truths, ids)`. A callback is still the place for it. When that of `on_model_save`
runs, the weights of the epoch are in a file, the same ones that Ultralytics validates.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from ultralytics import YOLO

from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.analysis import error_types
from ml_debugger.object_detection.scenes import CLASSES, make_scenes
from ml_debugger.training import ObjectDetectionTracer

SIZE = 64
SETTINGS = {"score_thresh": 0.01, "iou_thresh": 0.3}  # scores are low after so few steps
ROOT = Path.cwd() / "scenes"


def save(split, n, seed):
    """Write scenes as Ultralytics wants them; return boxes and labels of each file."""
    truths = {}
    for at, scene in enumerate(make_scenes(n, seed, SIZE)):
        image, text = (ROOT / kind / split / f"{at:03d}" for kind in ("images", "labels"))
        for one in (image, text):
            one.parent.mkdir(parents=True, exist_ok=True)
        image = image.with_suffix(".png")
        Image.fromarray((255 * scene.image.transpose(1, 2, 0)).astype(np.uint8)).save(image)
        x1, y1, x2, y2 = scene.boxes.T / SIZE
        labels = scene.labels - 1  # YOLO has no background
        rows = np.column_stack([labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        np.savetxt(text.with_suffix(".txt"), rows, "%g")
        truths[str(image)] = {"boxes": scene.boxes, "labels": labels}
    return truths


save("train", 128, 0)
val, pool = save("val", 60, 1), save("pool", 60, 2)
names = "".join(f"  {at}: {name}\n" for at, name in enumerate(CLASSES[1:]))
data = ROOT / "data.yaml"
data.write_text(f"path: {ROOT}\ntrain: images/train\nval: images/val\nnames:\n{names}")


def load(weights):
    """Return what predicts with some weights; settings go in `overrides`, not in the call."""
    yolo = YOLO(weights)
    yolo.overrides.update(imgsz=SIZE, verbose=False)
    return yolo


def trace(trainer):
    """Record what the weights of an epoch say of the validation images."""
    images = list(val)  # paths are ids as well
    with ObjectDetectionTracer(load(trainer.last), "yolo", "v1", **SETTINGS) as tracer:
        tracer(images, list(val.values()), images, "val", trainer.epoch)


yolo = YOLO("yolov8n.yaml")
yolo.add_callback("on_model_save", trace)
small = {"epochs": 15, "imgsz": SIZE, "batch": 8, "nbs": 8, "workers": 0, "device": "cpu"}
learning = {"optimizer": "AdamW", "lr0": 0.002, "warmup_epochs": 0, "mosaic": 0.0}
yolo.train(data=data, project=ROOT, plots=False, val=False, verbose=False, **small, **learning)

result = Evaluator("yolo", "v1").request_evaluation(options={"class_names": CLASSES[1:]})
print(result.summary())
print(error_types(result).to_string())
print(result.report("yolo.html", images=lambda path: path))

last, name = load(yolo.trainer.last), result.result_name
with ObjectDetectionDataFilter(last, "yolo", "v1", name, **SETTINGS) as data_filter:
    data_filter(list(pool), list(pool))
    print(data_filter.query(10, {"top_n": 3}, include_empty=True, explain=True).to_string())
