"""The queries of transformers' detectors, against the library's own post-processing."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection.adapters.huggingface import HuggingFaceDETR
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import Detections, NMSConfig, Placement

from .adapter_contract import AdapterContract, Run, noted, rows_of

_CLASSES = 5
_QUERIES = 60
_STAGES = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 8, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_OWN_BACKBONE = {
    "backbone": None,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "num_labels": _CLASSES,
}
_LAYERS = {
    "d_model": 32,  # Deformable DETR normalises in 32 groups
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": _QUERIES,
}


@torch.no_grad()
def spread(model: nn.Module, head: Any, given: dict[str, Tensor]) -> None:
    """Let queries and classes differ: in new models all are about the same."""
    for name, values in model.named_parameters():
        if "query" in name or "token" in name:
            values.normal_()
        elif values.ndim == 2:
            values.normal_(std=1.5 / values.shape[1] ** 0.5)
    logits = model(**given).logits.flatten(0, 1)
    factor = 3 / logits.std(0)
    head.weight *= factor[:, None]
    head.bias.sub_(logits.mean(0)).mul_(factor)


class HuggingFaceContract(AdapterContract):
    adapter = HuggingFaceDETR()
    settings_in_model = False
    stricter = NMSConfig(score_thresh=0.9, max_detections_per_image=2)
    processor: ClassVar[Any]
    masks: ClassVar[bool] = True

    def build(self) -> nn.Module:
        raise NotImplementedError

    def head(self, model: Any) -> nn.Module:
        return model.class_labels_classifier

    def model(self, **settings: Any) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval()
        spread(model, self.head(model), self.model_input())
        return model

    def model_input(self) -> Any:
        given = {
            "pixel_values": torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
        }
        if self.masks:
            mask = torch.ones(2, 64, 96, dtype=torch.int64)
            mask[1, 48:] = mask[1, :, 80:] = 0
            given["pixel_values"] *= mask[:, None]
            given["pixel_mask"] = mask
        return given

    def sizes(self, model_input: Any) -> list[tuple[int, int]]:
        return [(64, 96), (48, 80) if self.masks else (64, 96)]

    def run(self, model: nn.Module, model_input: Any) -> Any:
        return model(**model_input)

    def seen(self, output: Any, model_input: Any, config: NMSConfig) -> list[Detections]:
        found = self.processor.post_process_object_detection(
            output, threshold=config.score_thresh, target_sizes=self.sizes(model_input)
        )
        return [Detections(one["boxes"], one["scores"], one["labels"]) for one in found]

    def recomputed_scores(
        self, model: nn.Module, model_input: Any, image: int, logits: Tensor
    ) -> Tensor:
        return logits.softmax(1)[:, :-1] if self.one_label_a_row else logits.sigmoid()

    def recomputed_features(
        self, model: nn.Module, model_input: Any, image: int, rows: Tensor
    ) -> dict[str, Tensor]:
        queries = self.run(model, model_input).last_hidden_state[image, -_QUERIES:]
        return {"query": queries[rows]}

    def others(self) -> list[nn.Module]:
        model: Any = self.model()
        inner = getattr(model, model.base_model_prefix, None)  # not so called in every version
        return [] if inner is None else [inner]

    # the settings are what `parse` goes by, and no image processor is asked
    def test_settings_are_those_that_the_model_was_built_with(
        self, detector: nn.Module, given: Any, bare: Any
    ) -> None:
        self.adapter.apply_nms(detector, self.stricter)
        self.assert_same(self.run(detector, given), bare)
        with pytest.raises(UnsupportedModelError, match="no iou_thresh"):
            self.adapter.apply_nms(detector, NMSConfig(iou_thresh=0.5))

    def test_threshold_is_the_processors(
        self, detector: nn.Module, given: Any, hooked: Run
    ) -> None:
        some = float(hooked.images[0].seen.scores.median())
        for threshold in (0.0, 0.3, 0.7, some):
            config = NMSConfig(score_thresh=threshold)
            run = self.pass_of(detector, given, config)
            for theirs, image in zip(self.seen(run.output, given, config), run.images, strict=True):
                assert torch.equal(image.seen.boxes, theirs.boxes)
                assert torch.equal(image.seen.scores, theirs.scores)
                assert torch.equal(image.seen.labels, theirs.labels)
                link(image.seen, rows_of(image))

    def test_most_boxes_are_the_best_in_their_order(
        self, detector: nn.Module, given: Any, hooked: Run
    ) -> None:
        config = NMSConfig(score_thresh=0.5, max_detections_per_image=3)
        for image, before in zip(
            self.pass_of(detector, given, config).images, hooked.images, strict=True
        ):
            scores = before.seen.scores
            best = scores >= scores.sort(descending=True).values[2]
            assert torch.equal(image.seen.scores, scores[best])
            assert torch.equal(image.seen.boxes, before.seen.boxes[best])
            assert torch.equal(image.seen.labels, before.seen.labels[best])

    def test_says_where_the_images_lie(self, given: Any, hooked: Run) -> None:
        whole, padded = (image.placement for image in hooked.images)
        assert whole is None
        assert padded == (Placement((1.0, 1.0), (0.0, 0.0), (64, 96)) if self.masks else None)

    def test_reads_positional_arguments(
        self, detector: nn.Module, given: dict[str, Tensor], hooked: Run
    ) -> None:
        with torch.no_grad(), noted(detector, self.adapter) as calls:
            output = detector(*given.values())
        images = self.adapter.parse(detector, output, calls, self.adapter.nms(detector))
        for image, same in zip(images, hooked.images, strict=True):
            assert image.size == same.size
            assert torch.equal(image.seen.boxes, same.seen.boxes)

    def test_refuses_a_tuple(self, detector: nn.Module, given: Any) -> None:
        with pytest.raises(UnsupportedModelError, match="return_dict=True"):
            self.pass_of(detector, {**given, "return_dict": False})

    def test_half_precision_links(self, given: Any) -> None:
        model = self.model().to(torch.bfloat16)
        pixels = given["pixel_values"].to(torch.bfloat16)
        try:
            run = self.pass_of(model, {**given, "pixel_values": pixels})
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise
            pytest.skip(f"this torch lacks an operator in half precision: {error}")
        for image in run.images:
            rows = rows_of(image)
            assert len(image.seen) > 0
            assert image.seen.scores.dtype is image.seen.boxes.dtype is torch.float32
            found = link(image.seen, rows)
            assert torch.equal(rows.scores[found, image.seen.labels], image.seen.scores)


class TestDetr(HuggingFaceContract):
    stricter = NMSConfig(score_thresh=0.7, max_detections_per_image=2)
    processor = DetrImageProcessor()
    one_label_a_row = True

    def build(self) -> nn.Module:
        backbone = ResNetConfig(**_STAGES, out_features=["stage4"])
        config = DetrConfig(backbone_config=backbone, **_OWN_BACKBONE, **_LAYERS)
        return DetrForObjectDetection(config)

    def test_scales_as_the_processor_does(self, detector: nn.Module) -> None:
        """Boxes brought to the pictures that the processor resized and padded are its own."""
        sizes = [(40, 60), (50, 30)]
        generator = np.random.default_rng(0)
        pictures = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        small = DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
        given = small(images=pictures, return_tensors="pt")
        assert not given["pixel_mask"].all()
        run = self.pass_of(detector, given)
        theirs = small.post_process_object_detection(run.output, target_sizes=sizes)
        for image, expected, (height, width) in zip(run.images, theirs, sizes, strict=True):
            (y, x), scale = image.size, torch.tensor([width, height, width, height])
            mine = image.seen.boxes / torch.tensor([x, y, x, y]) * scale
            assert len(mine) > 0
            torch.testing.assert_close(mine, expected["boxes"])

    def test_auxiliary_losses_do_not_hide_the_last_layer(self, given: Any) -> None:
        model: Any = self.model()
        model.config.auxiliary_loss = True
        plain = self.pass_of(model, given).images
        # with labels the head runs again, on all layers
        truth = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
        run = self.pass_of(model, {**given, "labels": [truth, truth]})
        assert len(run.calls["head"]) == 2
        rows = torch.arange(_QUERIES)
        for image, same in zip(run.images, plain, strict=True):
            found, expected = (rows_of(one).features(rows)["query"] for one in (image, same))
            assert torch.equal(found, expected)
            assert torch.equal(image.seen.scores, same.seen.scores)


class TestConditionalDetr(HuggingFaceContract):
    processor = ConditionalDetrImageProcessor()

    def build(self) -> nn.Module:
        backbone = ResNetConfig(**_STAGES, out_features=["stage4"])
        config = ConditionalDetrConfig(backbone_config=backbone, **_OWN_BACKBONE, **_LAYERS)
        return ConditionalDetrForObjectDetection(config)


class TestDeformableDetr(HuggingFaceContract):
    processor = DeformableDetrImageProcessor()

    def build(self) -> nn.Module:
        backbone = ResNetConfig(**_STAGES, out_features=["stage2", "stage3", "stage4"])
        config = DeformableDetrConfig(backbone_config=backbone, **_OWN_BACKBONE, **_LAYERS)
        return DeformableDetrForObjectDetection(config)

    def head(self, model: Any) -> nn.Module:
        return model.class_embed[1]


class TestDeformableDetrInTwoStages(TestDeformableDetr):
    masks = False  # proposals in the padding are all the same

    def build(self) -> nn.Module:
        backbone = ResNetConfig(**_STAGES, out_features=["stage2", "stage3", "stage4"])
        config = DeformableDetrConfig(
            backbone_config=backbone,
            two_stage=True,
            with_box_refine=True,
            two_stage_num_proposals=_QUERIES,
            **_OWN_BACKBONE,
            **_LAYERS,
        )
        return DeformableDetrForObjectDetection(config)


class TestRTDetr(HuggingFaceContract):
    stricter = NMSConfig(score_thresh=0.98, max_detections_per_image=2)
    processor = RTDetrImageProcessor()
    masks = False
    configs: ClassVar[Any] = RTDetrConfig
    models: ClassVar[Any] = RTDetrForObjectDetection

    def build(self) -> nn.Module:
        backbone = RTDetrResNetConfig(**_STAGES, out_features=["stage2", "stage3", "stage4"])
        config = self.configs(
            backbone_config=backbone,
            **_OWN_BACKBONE,
            encoder_in_channels=[8, 8, 16],
            encoder_hidden_dim=32,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=16,
            decoder_layers=2,
            decoder_attention_heads=2,
            d_model=32,
            num_queries=_QUERIES,
        )
        return self.models(config)

    def head(self, model: Any) -> nn.Module:
        return model.model.decoder.class_embed[1]


class TestRTDetrV2(TestRTDetr):
    configs = RTDetrV2Config
    models = RTDetrV2ForObjectDetection


class TestYolos(HuggingFaceContract):
    stricter = NMSConfig(score_thresh=0.7, max_detections_per_image=2)
    processor = YolosImageProcessor()
    one_label_a_row = True
    masks = False

    def build(self) -> nn.Module:
        config = YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[64, 96],
            num_detection_tokens=_QUERIES,
            num_labels=_CLASSES,
        )
        return YolosForObjectDetection(config)

    def head(self, model: Any) -> nn.Module:
        return model.class_labels_classifier.layers[-1]
