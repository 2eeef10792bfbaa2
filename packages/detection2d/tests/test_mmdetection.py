"""The adapters of MMDetection's detectors read them to the last bit.

The models are those of the configurations that MMDetection ships, made small.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.object_detection.adapters.base import DetectionAdapter
from ml_debugger.object_detection.adapters.mmdetection import MMDetectionDETR, MMDetectionRCNN
from ml_debugger.object_detection.adapters.mmdetection_dense import (
    MMDetectionDense,
    MMDetectionYOLOX,
)
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import Detections, NMSConfig
from ml_debugger.training import ObjectDetectionTracer

from .adapter_contract import AdapterContract, noted, rows_of

pytest.importorskip("mmcv.ops", exc_type=ImportError)
mmdet: Any = pytest.importorskip("mmdet")
pytest.importorskip("mmdet.models")

pytestmark = [
    # of mmcv and mmdet themselves, with a torch that is newer than they
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:DeprecationWarning. `num_anchors`:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*autocast.*deprecated:FutureWarning"),
]

CLASSES = 7
SIZES = [(60, 84), (72, 60)]  # of the images as they were loaded
SHAPES = [(80, 112), (96, 81)]  # and as they were resized
RESNET = {
    "depth": 18,
    "base_channels": 8,
    "stem_channels": 8,
    "init_cfg": None,
    "norm_cfg": {"type": "BN", "requires_grad": True},
    "style": "pytorch",
}
NORM = {"bbox_head.norm_cfg": {"type": "GN", "num_groups": 4}}
NECK = {"in_channels": [8, 16, 32, 64], "out_channels": 16}
ALL: list[DetectionAdapter] = [
    MMDetectionRCNN(),
    MMDetectionDense(),
    MMDetectionYOLOX(),
    MMDetectionDETR(),
]


def configuration(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Read the model of a shipped configuration, with changes."""
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / f"{name}.py")
    config.merge_from_dict({f"model.{key}": value for key, value in (changes or {}).items()})
    return config.model


def built(config: Any) -> Any:
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    model = MODELS.build(config)
    for name, weight in model.named_parameters():
        if name == "level_embed":  # left as the memory was, until init_weights
            nn.init.normal_(weight)
    return model


def raw(seed: int = 0) -> dict[str, Any]:
    """Return what a data loader gives: images as they were resized, and what is known of them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for (height, width), shape in zip(SIZES, SHAPES, strict=True):
        images.append(torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8))
        truth = InstanceData(
            bboxes=torch.tensor([[10.0, 10.0, 50.0, 60.0]]),
            labels=torch.tensor([1]),
            masks=BitmapMasks([torch.ones(shape, dtype=torch.uint8).numpy()], *shape),
        )
        sample = DetDataSample(
            metainfo={
                "ori_shape": (height, width),
                "img_shape": shape,
                "scale_factor": (shape[1] / width, shape[0] / height),
            },
            gt_instances=truth,
        )
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


@cache
def preprocessor() -> Any:
    from mmdet.models import DetDataPreprocessor

    return DetDataPreprocessor(
        [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], pad_size_divisor=32
    )


def given(seed: int = 0) -> dict[str, Any]:
    return {**preprocessor()(raw(seed), False), "mode": "predict"}


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Scale every layer to outputs of deviation 1: untrained, they all but vanish on the way."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    done = set()

    def scale(layer: Any, args: Any, output: Tensor) -> Tensor | None:
        if layer in done or not len(output):
            return None
        done.add(layer)
        deviation = output.std()
        if not deviation > 0:
            return None
        layer.weight /= deviation
        return output / deviation

    handles = []
    for layer in layers:
        if layer.bias is not None:
            layer.bias.zero_()
        handles.append(layer.register_forward_hook(scale))
    model.eval()(**given(1))
    for handle in handles:
        handle.remove()


class MMDetectionContract(AdapterContract):
    """What MMDetection's detectors have in common."""

    config: ClassVar[str]
    changes: ClassVar[Mapping[str, Any]]
    where: ClassVar[str] = "test_cfg"  # path of the settings

    def model(self, **settings: Any) -> nn.Module:
        model = self.build(**settings)
        model.load_state_dict(spread_weights(type(self)))
        return model.eval()

    def build(self, **settings: Any) -> Any:
        names = {
            "score_thresh": "score_thr",
            "iou_thresh": "nms.iou_threshold",
            "max_detections_per_image": "max_per_img",
        }
        wishes = {f"{self.where}.{names[name]}": value for name, value in settings.items()}
        return built(configuration(self.config, {**self.changes, **wishes}))

    def model_input(self) -> Any:
        return given()

    def run(self, model: nn.Module, model_input: Any) -> Any:
        # the boxes are put into the very samples that were given
        return model(**deepcopy(model_input))

    def sizes(self, model_input: Any) -> list[tuple[int, int]]:
        return SIZES

    def seen(self, output: Any, model_input: Any, config: NMSConfig) -> list[Detections]:
        found = [one.pred_instances for one in output]
        return [Detections(one.bboxes, one.scores, one.labels) for one in found]

    def tensors(self, output: Any) -> list[Tensor]:
        return [value for one in output for value in one.pred_instances.values()]

    def training_output(self, model: nn.Module, model_input: Any) -> Any:
        if not model.with_mask:
            for sample in model_input["data_samples"]:
                sample.gt_instances.pop("masks", None)
        return model(**{**model_input, "mode": "loss"})

    def others(self) -> Sequence[nn.Module]:
        with torch.device("meta"):
            configs = [ORIGINALS[adapter] for adapter in ALL if type(adapter) is not self.kind()]
            return [built(configuration(name, {"backbone.init_cfg": None})) for name in configs]

    def kind(self) -> type[DetectionAdapter]:
        return type(self.adapter)

    def samples(self, model_input: Any) -> Any:
        return deepcopy(model_input["data_samples"])

    def test_links_under_autocast(self, detector: nn.Module, given: Any) -> None:
        # mmcv suppresses no boxes in bfloat16 on a CPU, nor does it cut them out of a map
        model: Any = self.model()
        for part in model.modules():
            if "nms" in (getattr(part, "test_cfg", None) or {}):
                part.test_cfg.nms = None
            if type(part).__name__ == "RoIAlign":
                part.register_forward_pre_hook(lambda _, args: tuple(x.float() for x in args))
                part.register_forward_hook(lambda _, args, output: output.bfloat16())
        assert self.adapter.nms(model).iou_thresh is None
        super().test_links_under_autocast(model, given)

    def test_tells_where_the_image_lies(self, hooked: Any) -> None:
        for image, (height, width), size in zip(hooked.images, SHAPES, SIZES, strict=True):
            assert image.placement.size == (96, 128)
            assert image.placement.offset == (0, 0)
            x, y = image.placement.scale
            assert (size[0] * y, size[1] * x) == pytest.approx((height, width))

    def test_reads_what_a_runner_calls(self, detector: Any, hooked: Any) -> None:
        detector.data_preprocessor = preprocessor()
        with noted(detector, self.adapter) as calls:
            output = detector.test_step(raw())
        images = self.adapter.parse(detector, output, calls, self.adapter.nms(detector))
        for image, same in zip(images, hooked.images, strict=True):
            assert torch.equal(image.seen.boxes, same.seen.boxes)
            assert torch.equal(rows_of(image).scores, rows_of(same).scores)
        assert self.adapter.images(raw()) == self.adapter.images(given()) == 2
        assert self.adapter.images(given()["inputs"]) == 2

    def test_takes_what_the_loader_gives(self, detector: Any, hooked: Any) -> None:
        detector.data_preprocessor = preprocessor()
        with ObjectDetectionTracer(detector, "m", "v") as tracer, torch.no_grad():
            said = tracer(raw(), raw()["data_samples"], ["a", "b"], "val")
        for one, same in zip(said, hooked.images, strict=True):
            assert torch.equal(one.pred_instances.bboxes, same.seen.boxes)


@cache
def spread_weights(family: type[MMDetectionContract]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = family().build()
    spread(model)
    weights: dict[str, Tensor] = model.state_dict()
    return weights


class RCNNContract(MMDetectionContract):
    adapter = ALL[0]
    where = "test_cfg.rcnn"
    changes: ClassVar[Mapping[str, Any]] = {
        "backbone": RESNET,
        "neck": NECK,
        "rpn_head.in_channels": 16,
        "rpn_head.feat_channels": 16,
        "roi_head.bbox_roi_extractor.out_channels": 16,
        "roi_head.bbox_head.in_channels": 16,
        "roi_head.bbox_head.fc_out_channels": 32,
        "roi_head.bbox_head.num_classes": CLASSES,
        "test_cfg.rpn.max_per_img": 40,
        "test_cfg.rcnn.score_thr": 0.2,
        "test_cfg.rcnn.max_per_img": 20,
    }
    stricter = NMSConfig(score_thresh=0.4, iou_thresh=0.05, max_detections_per_image=3)

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        odds = logits.exp()
        return (odds / odds.sum(1, keepdim=True))[:, :CLASSES]

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> Mapping[str, Tensor]:
        from mmdet.structures.bbox import bbox2roi

        maps = model.extract_feat(model_input["inputs"])
        proposals = model.rpn_head.predict(maps, self.samples(model_input), rescale=False)
        rois = bbox2roi([proposals[image].bboxes])
        rois[:, 0] = image
        vectors = model.roi_head.bbox_roi_extractor(maps[:4], rois).flatten(1)
        for layer in model.roi_head.bbox_head.shared_fcs:
            vectors = layer(vectors).relu()
        return {"box": vectors[rows]}


class TestFasterRCNN(RCNNContract):
    config = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco"


class TestMaskRCNN(RCNNContract):
    config = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco"
    changes: ClassVar[Mapping[str, Any]] = RCNNContract.changes | {
        "roi_head.mask_roi_extractor.out_channels": 16,
        "roi_head.mask_head.in_channels": 16,
        "roi_head.mask_head.conv_out_channels": 16,
        "roi_head.mask_head.num_classes": CLASSES,
    }


class DenseContract(MMDetectionContract):
    adapter = ALL[1]
    changes: ClassVar[Mapping[str, Any]] = {
        "backbone": RESNET,
        "neck": NECK,
        "bbox_head.in_channels": 16,
        "bbox_head.feat_channels": 16,
        "bbox_head.num_classes": CLASSES,
        "test_cfg.max_per_img": 20,
    }
    a_cell = 1

    def towered(self, head: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what the last classification layer reads on each level."""
        return [nn.Sequential(*head.cls_convs)(level) for level in maps]

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        scores = 1 / (1 + (-logits).exp())
        said = model.bbox_head(model.extract_feat(model_input["inputs"]))
        if len(said) == 3:
            factor = torch.cat([level[image].flatten() for level in said[2]])
            scores = scores / (1 + (-factor).exp())[:, None]
        return scores

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> Mapping[str, Tensor]:
        maps = self.towered(model.bbox_head, model.extract_feat(model_input["inputs"]))
        cells = [
            level[image, :, y, x]
            for level in maps
            for y in range(level.shape[2])
            for x in range(level.shape[3])
            for _ in range(self.a_cell)
        ]
        return {"class": torch.stack([cells[row] for row in rows.tolist()])}


class TestRetinaNet(DenseContract):
    config = "retinanet/retinanet_r50_fpn_1x_coco"
    stricter = NMSConfig(score_thresh=0.97, iou_thresh=0.05, max_detections_per_image=3)
    a_cell = 9


class TestRTMDet(DenseContract):
    config = "rtmdet/rtmdet_tiny_8xb32-300e_coco"
    stricter = NMSConfig(score_thresh=0.95, iou_thresh=0.05, max_detections_per_image=3)
    changes: ClassVar[Mapping[str, Any]] = {
        "backbone.init_cfg": None,
        "backbone.norm_cfg.type": "BN",
        "neck.norm_cfg.type": "BN",
        "bbox_head.norm_cfg.type": "BN",
        "bbox_head.num_classes": CLASSES,
        "test_cfg.max_per_img": 20,
    }

    def towered(self, head: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        return [
            nn.Sequential(*tower)(level) for tower, level in zip(head.cls_convs, maps, strict=True)
        ]


class NoThresholdContract(DenseContract):
    """A score has a factor that the threshold of the model does not know."""

    stricter = NMSConfig(iou_thresh=0.0, max_detections_per_image=3)

    def test_nothing_seen(self, detector: nn.Module, given: Any) -> None:
        with pytest.raises(UnsupportedModelError, match="score_thresh"):
            self.adapter.apply_nms(detector, NMSConfig(score_thresh=1.0))
        model: Any = self.model()
        model.bbox_head.test_cfg.score_thr = 1.0
        for image in self.pass_of(model, given).images:
            assert len(image.seen) == 0
            assert image.seen.boxes.shape == (0, 4)
            assert link(image.seen, rows_of(image)).shape == (0,)


class TestFCOS(NoThresholdContract):
    config = "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco"
    changes: ClassVar[Mapping[str, Any]] = (
        DenseContract.changes | NORM | {"test_cfg.max_per_img": 100}
    )


class TestATSS(NoThresholdContract):
    config = "atss/atss_r50_fpn_1x_coco"
    changes: ClassVar[Mapping[str, Any]] = DenseContract.changes | NORM


class TestYOLOX(DenseContract):
    adapter = ALL[2]
    one_label_a_row = True
    config = "yolox/yolox_tiny_8xb8-300e_coco"
    stricter = NMSConfig(score_thresh=0.8, iou_thresh=0.0)
    changes: ClassVar[Mapping[str, Any]] = {
        "bbox_head.num_classes": CLASSES,
        "test_cfg.score_thr": 0.6,
    }

    def towered(self, head: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        return [tower(level) for tower, level in zip(head.multi_level_cls_convs, maps, strict=True)]


class DETRContract(MMDetectionContract):
    adapter = ALL[3]
    stricter = NMSConfig(max_detections_per_image=3)
    changes: ClassVar[Mapping[str, Any]] = {
        "backbone": RESNET,
        "bbox_head.num_classes": CLASSES,
        "encoder.num_layers": 2,
        "decoder.num_layers": 2,
    }

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        return 1 / (1 + (-logits).exp())

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> Mapping[str, Tensor]:
        maps = model.extract_feat(model_input["inputs"])
        said = model.forward_transformer(maps, self.samples(model_input))
        return {"query": said["hidden_states"][-1][image, rows]}

    def test_nothing_seen(self, detector: nn.Module, given: Any) -> None:
        with pytest.raises(UnsupportedModelError, match="score_thresh"):
            self.adapter.apply_nms(detector, NMSConfig(score_thresh=1.0))

    def test_refuses_more_boxes_than_the_queries_give(self, detector: Any) -> None:
        most = detector.num_queries * (CLASSES if detector.bbox_head.loss_cls.use_sigmoid else 1)
        model = self.model(max_detections_per_image=most)
        assert all(len(image.seen) == most for image in self.pass_of(model, given()).images)
        with pytest.raises(InputError, match="queries"):
            self.adapter.apply_nms(detector, NMSConfig(max_detections_per_image=most + 1))


class TestDETR(DETRContract):
    config = "detr/detr_r50_8xb2-150e_coco"
    one_label_a_row = True
    changes: ClassVar[Mapping[str, Any]] = DETRContract.changes | {"neck.in_channels": [64]}

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        odds = logits.exp()
        return (odds / odds.sum(1, keepdim=True))[:, :CLASSES]


class TestDeformableDETR(DETRContract):
    config = "deformable_detr/deformable-detr_r50_16xb2-50e_coco"
    changes: ClassVar[Mapping[str, Any]] = DETRContract.changes | {
        "neck.in_channels": [16, 32, 64],
        "num_queries": 50,
    }


#: A configuration as it is shipped, for each adapter.
ORIGINALS = {
    ALL[0]: TestFasterRCNN.config,
    ALL[1]: TestRetinaNet.config,
    ALL[2]: TestYOLOX.config,
    ALL[3]: TestDETR.config,
}


def tiny(name: str, changes: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    model = built(configuration(name, changes))
    spread(model)
    return model


SEESAW = {
    "_delete_": True,
    "type": "SeesawLoss",
    "num_classes": CLASSES,
    "return_dict": True,
}
DOUBLE = {
    **{key: value for key, value in TestFasterRCNN.changes.items() if "fc_out" not in key},
    "roi_head.bbox_head.num_convs": 1,
    "roi_head.bbox_head.num_fcs": 1,
    "roi_head.bbox_head.conv_out_channels": 16,
    "roi_head.bbox_head.fc_out_channels": 32,
}
THREE_LEVELS = {**DETRContract.changes, "neck.in_channels": [16, 32, 64], "num_queries": 50}
ONE_LEVEL = {**DETRContract.changes, "neck.in_channels": [64], "num_queries": 50}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (TestFasterRCNN.config, {"roi_head.bbox_head.reg_class_agnostic": True}),
        (
            TestFasterRCNN.config,
            {"roi_head.bbox_head.loss_cls": SEESAW, "test_cfg.rcnn.score_thr": 0.05},
        ),
        ("double_heads/dh-faster-rcnn_r50_fpn_1x_coco", DOUBLE),
        (
            TestRetinaNet.config,
            {"bbox_head.loss_cls": {"type": "CrossEntropyLoss", "_delete_": True}},
        ),
        ("free_anchor/freeanchor_r50_fpn_1x_coco", TestRetinaNet.changes),
        ("conditional_detr/conditional-detr_r50_8xb2-50e_coco", ONE_LEVEL),
        ("dab_detr/dab-detr_r50_8xb2-50e_coco", ONE_LEVEL),
        ("deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco", THREE_LEVELS),
        ("dino/dino-4scale_r50_8xb2-12e_coco", {**THREE_LEVELS, "test_cfg.max_per_img": 60}),
    ],
)
def test_reads_relatives(name: str, changes: Mapping[str, Any]) -> None:
    of_test = {TestFasterRCNN.config: TestFasterRCNN, TestRetinaNet.config: TestRetinaNet}
    model = tiny(name, {**(of_test[name].changes if name in of_test else {}), **changes})
    (reader,) = (adapter for adapter in ALL if adapter.detect(model))
    with torch.no_grad(), noted(model, reader) as calls:
        output = model(**given())
    for image in reader.parse(model, output, calls, reader.nms(model)):
        rows = rows_of(image)
        assert len(image.seen) > 0
        assert rows.scores.shape == (len(rows.logits), CLASSES)
        found = link(image.seen, rows)
        assert torch.equal(rows.scores[found, image.seen.labels], image.seen.scores)
        ((alias, path),) = reader.layers(model).items()
        assert rows.features(found)[alias].shape[0] == len(found)
        # the class vectors are what the last layer makes of the features
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Linear):
            expected = layer(rows.features(found)[alias])
            torch.testing.assert_close(expected, rows.logits[found], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
        "sabl/sabl-retinanet_r50_fpn_1x_coco",
        "ssd/ssd300_coco",
        "yolo/yolov3_d53_8xb8-320-273e_coco",
        "gfl/gfl_r50_fpn_1x_coco",
        "paa/paa_r50_fpn_1x_coco",
        "tood/tood_r50_fpn_1x_coco",
        "vfnet/vfnet_r50_fpn_1x_coco",
        "foveabox/fovea_r50_fpn_4xb4-1x_coco",
        "reppoints/reppoints-bbox_r50_fpn-gn_head-gn-grid_1x_coco",
        "ddq/ddq-detr-4scale_r50_8xb2-12e_coco",
        "rpn/rpn_r50_fpn_1x_coco",
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco",
    ],
)
def test_knows_no_head_that_works_in_its_own_way(name: str) -> None:
    with torch.device("meta"):
        model = built(configuration(name, {"backbone.init_cfg": None}))
    assert not any(adapter.detect(model) for adapter in ALL)


def test_reads_images_without_proposals() -> None:
    model: Any = TestFasterRCNN().model()
    model.rpn_head.test_cfg.max_per_img = 0
    for image in TestFasterRCNN().pass_of(model, given()).images:
        rows = rows_of(image)
        assert rows.scores.shape == (0, CLASSES)
        assert rows.boxes.shape == (0, CLASSES, 4)
        assert rows.logits.shape == (0, CLASSES + 1)
        assert rows.features(torch.arange(0))["box"].shape == (0, 32)
        assert link(image.seen, rows).shape == (0,)


def test_knows_no_boxes_with_an_angle() -> None:
    model: Any = TestFasterRCNN().build()
    assert ALL[0].detect(model)
    model.roi_head.bbox_head.bbox_coder.encode_size = 5
    assert not ALL[0].detect(model)


def test_refuses_suppression_that_changes_scores() -> None:
    name = "faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco"
    model = built(configuration(name, TestFasterRCNN.changes))
    with pytest.raises(UnsupportedModelError, match="soft_nms"):
        ALL[0].nms(model)


def test_changes_the_settings_of_one_model_only() -> None:
    config = configuration(TestRetinaNet.config, TestRetinaNet.changes)
    one, other = built(config), built(config)
    with ObjectDetectionTracer(one, "m", "v", **TestRetinaNet.stricter.model_dump()):
        assert ALL[1].nms(one) == TestRetinaNet.stricter
        assert ALL[1].nms(other).max_detections_per_image == 20
        assert config.test_cfg.max_per_img == 20


@pytest.mark.parametrize("kind", [TestFasterRCNN, TestRetinaNet])
def test_the_very_settings_come_back(kind: Any) -> None:
    model: Any = kind().build()
    head = model.roi_head if kind is TestFasterRCNN else model.bbox_head
    own, before = head.test_cfg, deepcopy(head.test_cfg)
    first = ObjectDetectionTracer(model, "m", "v", iou_thresh=0.1)
    head.test_cfg.max_per_img = 9
    second = ObjectDetectionTracer(model, "m", "v", iou_thresh=0.2, score_thresh=0.9)
    first.close()
    assert head.test_cfg.nms.iou_threshold == 0.2
    second.close()
    assert head.test_cfg is own
    assert own == {**before, "max_per_img": 9}
