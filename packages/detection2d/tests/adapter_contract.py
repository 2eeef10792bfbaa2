"""The tests that every adapter must pass.

Subclass `AdapterContract` with a model of the family. What the adapter says is compared with what
the subclass finds in the model by another way, so let it share no code with the adapter.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.adapters.base import Call, DetectionAdapter
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import Detections, HeadRows, ImageOutput, NMSConfig
from ml_debugger.training import ObjectDetectionTracer

Notes = Mapping[str, Sequence[Call]]


@contextmanager
def noted(model: nn.Module, adapter: DetectionAdapter) -> Iterator[Notes]:
    """Note the calls of the modules that an adapter taps, as the tracer does."""
    calls: dict[str, list[Call]] = {name: [] for name in adapter.taps(model)}

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = tree_map_only(Tensor, Tensor.detach, (args, kwargs, output))
            calls[name].append(Call(*call))

        return keep

    handles = [
        adapter.running(model)
        .get_submodule(path)
        .register_forward_hook(keeper(name), with_kwargs=True)
        for name, path in adapter.taps(model).items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Run(NamedTuple):
    """One forward pass with hooks on, and what the adapter read in it."""

    output: Any
    calls: Notes
    images: list[ImageOutput]


class AdapterContract(ABC):
    """What holds for every adapter. The model must see some boxes in each of the two images."""

    #: The adapter under test.
    adapter: ClassVar[DetectionAdapter]
    #: Whether the head gives a row its best label only; else a row may keep several.
    one_label_a_row: ClassVar[bool] = False
    #: Whether `apply_nms` can change the model; else the settings go to `parse` alone.
    settings_in_model: ClassVar[bool] = True
    #: Settings of which each by itself changes which boxes are seen, and leaves some.
    stricter: ClassVar[NMSConfig]

    # What a subclass gives

    @abstractmethod
    def model(self, **settings: Any) -> nn.Module:
        """Build the same model each time, in evaluation mode.

        Args:
            settings: None, or fields of `NMSConfig` for the model to be built with.
        """

    @abstractmethod
    def model_input(self) -> Any:
        """Return two images, the same each time, of different sizes where the family allows."""

    @abstractmethod
    def sizes(self, model_input: Any) -> list[tuple[int, int]]:
        """Return height and width of each image."""

    def run(self, model: nn.Module, model_input: Any) -> Any:
        """Return what the model returns to its user."""
        return model(model_input)

    @abstractmethod
    def seen(self, output: Any, model_input: Any, config: NMSConfig) -> list[Detections]:
        """Read the boxes that the user sees, without the adapter."""

    @abstractmethod
    def recomputed_scores(
        self, model: nn.Module, model_input: Any, image: int, logits: Tensor
    ) -> Tensor:
        """Compute the scores (r, K) of all rows of an image from its class vectors (r, C)."""

    @abstractmethod
    def recomputed_features(
        self, model: nn.Module, model_input: Any, image: int, rows: Tensor
    ) -> Mapping[str, Tensor]:
        """Compute the feature vectors of some rows of an image without hooks."""

    def training_output(self, model: nn.Module, model_input: Any) -> Any:
        """Return what the model returns in training mode; None if that is read just as well."""
        return None

    def others(self) -> Sequence[nn.Module]:
        """Return models of other families."""
        return []

    def tensors(self, output: Any) -> list[Tensor]:
        """Return all tensors of a bare output, to compare two outputs."""
        return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]

    # What the tests share

    @pytest.fixture(scope="class")
    @classmethod
    def detector(cls) -> nn.Module:
        return cls().model()

    @pytest.fixture(scope="class")
    @classmethod
    def given(cls) -> Any:
        return cls().model_input()

    @pytest.fixture(scope="class")
    @classmethod
    def bare(cls, detector: nn.Module, given: Any) -> Any:
        with torch.no_grad():
            return cls().run(detector, given)

    @pytest.fixture(scope="class")
    @classmethod
    def hooked(cls, detector: nn.Module, given: Any) -> Run:
        return cls().pass_of(detector, given)

    def pass_of(self, model: nn.Module, given: Any, config: NMSConfig | None = None) -> Run:
        with torch.no_grad(), noted(model, self.adapter) as calls:
            output = self.run(model, given)
        config = config or self.adapter.nms(model)
        return Run(output, calls, self.adapter.parse(model, output, calls, config))

    @contextmanager
    def under(self, model: nn.Module, config: NMSConfig) -> Iterator[NMSConfig]:
        """Give the model settings if it takes them; yield what `parse` is to be told."""
        old = self.adapter.nms(model)
        wishes = config.model_dump(exclude_none=True)
        if self.settings_in_model:
            self.adapter.apply_nms(model, config)
        try:
            yield old.model_copy(update=wishes)
        finally:
            if self.settings_in_model:
                self.adapter.apply_nms(model, old)

    def assert_same(self, one: Any, other: Any) -> None:
        assert len(self.tensors(one)) == len(self.tensors(other)) > 0
        for mine, theirs in zip(self.tensors(one), self.tensors(other), strict=True):
            assert torch.equal(mine, theirs)

    # The family

    def test_knows_its_model_and_no_other(self, detector: nn.Module) -> None:
        assert self.adapter.detect(detector)
        for other in [nn.Linear(2, 2), *self.others()]:
            assert not self.adapter.detect(other), type(other)

    def test_names_modules_of_the_model(self, detector: nn.Module) -> None:
        for path in [
            *self.adapter.layers(detector).values(),
            *self.adapter.taps(detector).values(),
        ]:
            detector.get_submodule(path)  # raises where there is none

    def test_counts_images_and_classes(self, detector: nn.Module, given: Any, hooked: Run) -> None:
        assert self.adapter.images(given) in (None, len(self.sizes(given)))
        for image in hooked.images:
            assert rows_of(image).scores.shape[1] == self.adapter.n_class(detector)

    # What the user sees

    def test_hooks_change_nothing(self, bare: Any, hooked: Run) -> None:
        self.assert_same(bare, hooked.output)

    def test_parsing_changes_nothing(
        self, detector: nn.Module, bare: Any, given: Any, hooked: Run
    ) -> None:
        config = self.adapter.nms(detector)
        for image in self.adapter.parse(detector, hooked.output, hooked.calls, config):
            rows_of(image).features(torch.arange(2))
        self.assert_same(bare, hooked.output)
        assert self.adapter.nms(detector) == config

    def test_keeps_the_boxes_that_the_user_sees(
        self, detector: nn.Module, given: Any, bare: Any, hooked: Run
    ) -> None:
        expected = self.seen(bare, given, self.adapter.nms(detector))
        assert len(expected) == len(hooked.images) == 2
        for theirs, image in zip(expected, hooked.images, strict=True):
            assert len(theirs) > 0
            assert torch.equal(image.seen.boxes, theirs.boxes.float())
            assert torch.equal(image.seen.scores, theirs.scores.float())
            assert torch.equal(image.seen.labels, theirs.labels.long())

    def test_says_how_large_the_images_are(self, given: Any, hooked: Run) -> None:
        assert [image.size for image in hooked.images] == self.sizes(given)

    def test_has_the_promised_types(self, hooked: Run) -> None:
        for image in hooked.images:
            rows = rows_of(image)
            for values in (image.seen.boxes, image.seen.scores, rows.boxes, rows.scores):
                assert values.dtype is torch.float32
            assert image.seen.labels.dtype is torch.int64
            assert len(rows.boxes) == len(rows.scores) == len(rows.logits)
            assert rows.boxes.shape[1:] in ((4,), (rows.scores.shape[1], 4))

    def test_keeps_no_graph(self, detector: nn.Module, given: Any, hooked: Run) -> None:
        with torch.enable_grad(), noted(detector, self.adapter) as calls:
            output = self.run(detector, given)
        images = self.adapter.parse(detector, output, calls, self.adapter.nms(detector))
        for image, same in zip(images, hooked.images, strict=True):
            rows = rows_of(image)
            features = rows.features(torch.arange(2)).values()
            for values in (*vars_of(image.seen), rows.scores, rows.boxes, rows.logits, *features):
                assert not values.requires_grad
            assert torch.equal(image.seen.scores, same.seen.scores)

    # What the head said

    def test_links_every_box_to_the_last_bit(self, hooked: Run) -> None:
        for image in hooked.images:
            rows, labels = rows_of(image), image.seen.labels
            found = link(image.seen, rows)
            assert len({*zip(found.tolist(), labels.tolist(), strict=True)}) == len(image.seen)
            assert torch.equal(rows.scores[found, labels], image.seen.scores)
            torch.testing.assert_close(
                rows.boxes_of(found, labels), image.seen.boxes, rtol=1e-5, atol=1e-3
            )
            if self.one_label_a_row:
                assert torch.equal(rows.scores[found].argmax(1), labels)

    def test_scores_follow_from_the_class_vectors(
        self, detector: nn.Module, given: Any, hooked: Run
    ) -> None:
        for i, image in enumerate(hooked.images):
            rows = rows_of(image)
            with torch.no_grad():
                expected = self.recomputed_scores(detector, given, i, rows.logits)
            torch.testing.assert_close(rows.scores, expected, rtol=1e-5, atol=1e-7)

    def test_features_are_those_of_the_row(
        self, detector: nn.Module, given: Any, hooked: Run
    ) -> None:
        for i, image in enumerate(hooked.images):
            rows = rows_of(image)
            # from all levels, and those that matter
            wanted = torch.linspace(0, len(rows.scores) - 1, 40).long()
            wanted = torch.cat([wanted, link(image.seen, rows)])
            features = rows.features(wanted)
            assert features.keys() == self.adapter.layers(detector).keys()
            with torch.no_grad():
                expected = self.recomputed_features(detector, given, i, wanted)
            for alias, values in features.items():
                assert values.shape == expected[alias].shape
                torch.testing.assert_close(values, expected[alias].float(), rtol=1e-4, atol=1e-5)
                # else another row would have done as well
                mistaken = torch.isclose(values, values.roll(1, 0), rtol=1e-3, atol=1e-4).all(1)
                assert mistaken.float().mean() < 0.5

    def test_features_of_no_row_have_their_width(self, hooked: Run) -> None:
        rows = rows_of(hooked.images[0])
        some, none = rows.features(torch.arange(1)), rows.features(torch.arange(0))
        for alias, values in none.items():
            assert values.shape == (0, some[alias].shape[1])

    def test_links_under_autocast(self, detector: nn.Module, given: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            with noted(detector, self.adapter) as calls:
                output = self.run(detector, given)
            inside = self.adapter.parse(detector, output, calls, self.adapter.nms(detector))
        outside = self.adapter.parse(detector, output, calls, self.adapter.nms(detector))
        for image in (*inside, *outside):
            rows = rows_of(image)
            assert len(image.seen) > 0
            found = link(image.seen, rows)
            assert torch.equal(rows.scores[found, image.seen.labels], image.seen.scores)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    @pytest.mark.parametrize("half", [False, True])
    def test_links_on_a_gpu(self, half: bool) -> None:
        model = self.model().cuda()
        given = tree_map_only(Tensor, Tensor.cuda, self.model_input())
        with torch.autocast("cuda", torch.float16, enabled=half):
            images = self.pass_of(model, given).images
        for image in images:
            rows = rows_of(image)
            assert len(image.seen) > 0
            found = link(image.seen, rows)
            assert torch.equal(rows.scores[found, image.seen.labels], image.seen.scores)

    def test_nothing_seen(self, detector: nn.Module, given: Any) -> None:
        with self.under(detector, NMSConfig(score_thresh=1.0)) as config:
            images = self.pass_of(detector, given, config).images
        assert len(images) == 2
        for image in images:
            assert len(image.seen) == 0
            assert image.seen.boxes.shape == (0, 4)
            assert link(image.seen, rows_of(image)).shape == (0,)

    def test_refuses_what_is_not_for_inference(self, given: Any) -> None:
        model = self.model().train()
        with noted(model, self.adapter) as calls:
            output = self.training_output(model, given)
        if output is None:
            pytest.skip("the family returns the same in training mode")
        with pytest.raises(UnsupportedModelError):
            self.adapter.parse(model, output, calls, self.adapter.nms(model))

    # Settings

    def test_settings_are_those_that_the_model_was_built_with(
        self, detector: nn.Module, given: Any, bare: Any
    ) -> None:
        wishes = self.stricter.model_dump(exclude_none=True)
        if not self.settings_in_model:
            with pytest.raises(UnsupportedModelError):
                self.adapter.apply_nms(detector, self.stricter)
            return
        old = self.adapter.nms(detector)
        assert old.model_dump().keys() >= wishes.keys()
        built = self.model(**wishes)
        assert self.adapter.nms(built) == old.model_copy(update=wishes)
        with torch.no_grad():
            expected = self.run(built, given)
            with self.under(detector, self.stricter):
                assert self.adapter.nms(detector) == self.adapter.nms(built)
                self.assert_same(self.run(detector, given), expected)
            assert self.adapter.nms(detector) == old
            self.assert_same(self.run(detector, given), bare)

    @pytest.mark.parametrize("name", NMSConfig.model_fields)
    def test_each_setting_has_an_effect(
        self, name: str, detector: nn.Module, given: Any, hooked: Run
    ) -> None:
        value = getattr(self.stricter, name)
        if value is None:
            assert getattr(self.adapter.nms(detector), name) is None
            return
        with self.under(detector, NMSConfig(**{name: value})) as config:
            images = self.pass_of(detector, given, config).images
        assert any(len(image.seen) for image in images)
        assert any(
            len(image.seen) != len(before.seen)
            or not torch.equal(image.seen.boxes, before.seen.boxes)
            for image, before in zip(images, hooked.images, strict=True)
        )
        if name == "score_thresh":
            assert all((image.seen.scores >= value).all() for image in images)
        if name == "max_detections_per_image":
            assert all(len(image.seen) <= value for image in images)

    # The tracer

    def test_a_tracer_records_and_evaluates_it(self, given: Any) -> None:
        run = self.run

        class Traced(ObjectDetectionTracer):
            def run_model(self, model_input: Any) -> Any:
                return run(self.model, model_input)

        class Filtered(ObjectDetectionDataFilter):
            def run_model(self, model_input: Any) -> Any:
                return run(self.model, model_input)

        model, rounds = self.model(), 2
        with torch.no_grad():
            seen = self.seen(run(model, given), given, self.adapter.nms(model))
        sound = [(one.boxes[:, 2:] > one.boxes[:, :2]).all(1) for one in seen]
        truths = [
            {"boxes": one.boxes[some][::2].clone(), "labels": one.labels[some][::2]}
            for one, some in zip(seen, sound, strict=True)
        ]
        boxes = sum(map(len, seen))
        with Traced(model, "m", "v") as tracer, torch.no_grad():
            assert tracer.layers == self.adapter.layers(model)
            for at in range(rounds):
                ids = [f"{at}-{image}" for image in range(len(seen))]
                output = tracer(given, truths, ids, "val")
                again = self.seen(output, given, self.adapter.nms(model))
                for one, other in zip(seen, again, strict=True):
                    assert torch.equal(one.boxes, other.boxes)
                    assert torch.equal(one.scores, other.scores)
        result = Evaluator("m", "v").request_evaluation()
        units = result.to_pandas()
        assert len(units) == rounds * boxes
        assert (~units.wrong).sum() >= rounds * sum(len(one["boxes"]) for one in truths) // 2
        assert units.finite.all()
        with Filtered(model, "m", "v", result.result_name) as data_filter, torch.no_grad():
            data_filter(given, [f"pool-{image}" for image in range(len(seen))])
            picked = data_filter.query(10, {"top_n": 2})
        assert sorted(picked) == [f"pool-{at}" for at, one in enumerate(seen) if len(one)]


def rows_of(image: ImageOutput) -> HeadRows:
    assert image.rows is not None
    return image.rows


def vars_of(seen: Detections) -> tuple[Tensor, ...]:
    return seen.boxes, seen.scores, seen.labels
