"""Train a small 3D detector of one's own, and find out where it fails (about a minute)."""

from math import pi

import torch
from torch import nn
from torch.nn.functional import logsigmoid, max_pool2d

from ml_debugger.data_filter import ObjectDetection3DDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetection3DLogger
from ml_debugger.object_detection_3d.analysis import error_types
from ml_debugger.object_detection_3d.output import Detection3DOutput
from ml_debugger.object_detection_3d.scenes import CLASSES, GROUND, make_scenes
from ml_debugger.training import ObjectDetection3DTracer

REACH, CELLS = 20.0, 80  # the map: 80 x 80 cells of half a metre; rows along y, columns along x
CELL = 2 * REACH / CELLS


def block(before, after, stride=1):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


def frames(counts):
    """Number the frames of what lies one frame after the other."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


class Pillars(nn.Module):
    """Finds boxes in a list of point clouds, as PointPillars and CenterPoint do."""

    def __init__(self):
        super().__init__()
        self.point = nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.fine = block(17, 32)
        self.coarse = nn.Sequential(block(32, 48, 2), block(48, 48), block(48, 48))
        self.up = nn.Sequential(nn.ConvTranspose2d(48, 32, 2, 2), nn.ReLU())
        self.trunk = block(64, 48)
        self.heat = nn.Conv2d(48, len(CLASSES), 1)  # is the centre of an object in this cell?
        self.shape = nn.Conv2d(48, 10, 1)  # and what is its box? As in `shapes`
        nn.init.constant_(self.heat.bias, -4)
        self.score_thresh, self.most = 0.3, 50

    def forward(self, clouds):
        return [self.peaks(*one) for one in zip(*self.maps(clouds), strict=True)]

    def maps(self, clouds):
        points = torch.cat(clouds)
        place, height = (points[:, :2] + REACH) / CELL, points[:, 2:3] - GROUND
        at = place.long().clamp(0, CELLS - 1)
        cell = (frames([len(one) for one in clouds]) * CELLS + at[:, 1]) * CELLS + at[:, 0]
        known = [place - at - 0.5, points[:, :2] / REACH, height, height**2, points[:, 3:]]
        vectors = self.point(torch.cat(known, 1))
        empty = vectors.new_zeros(len(clouds) * CELLS**2, 16)
        largest = empty.scatter_reduce(0, cell[:, None].expand(-1, 16), vectors, "amax")
        count = cell.bincount(minlength=len(empty)).float().log1p()
        pillars = torch.cat([largest, count[:, None]], 1).view(-1, CELLS, CELLS, 17)
        fine = self.fine(pillars.permute(0, 3, 1, 2))
        trunk = self.trunk(torch.cat([fine, self.up(self.coarse(fine))], 1))
        return self.heat(trunk), self.shape(trunk)

    def peaks(self, heat, shape):
        """Return the boxes where a class is likelier than anything in the cells around."""
        score, label = heat.sigmoid().max(0)
        peak = score == max_pool2d(score[None], 3, 1, 1)[0]
        best, at = torch.where(peak, score, 0).flatten().topk(self.most)
        best, at = best[best >= self.score_thresh], at[best >= self.score_thresh]
        boxes = self.decoded(shape, at)
        return {"boxes": boxes, "scores": best, "labels": label.flatten()[at], "cells": at}

    def decoded(self, shape, at):
        """Return the boxes of some cells."""
        across, along, z, *sides, sin, cos, sin2, cos2 = shape.flatten(1)[:, at]
        x, y = (at % CELLS + across) * CELL - REACH, (at // CELLS + along) * CELL - REACH
        yaw = torch.atan2(sin2, cos2) / 2  # one of two: which end is the front is another question
        back = sin * yaw.sin() + cos * yaw.cos() < 0
        yaw = torch.where(back, yaw + torch.where(yaw < 0, pi, -pi), yaw)
        return torch.stack([x, y, z, *torch.stack(sides).exp(), yaw], 1)

    def loss(self, clouds, truths):
        heat, shape = self.maps(clouds)
        boxes = [one["boxes"][~one["ignored"]] for one in truths]
        labels = torch.cat([one["labels"][~one["ignored"]] for one in truths])
        frame, boxes = frames([len(one) for one in boxes]), torch.cat(boxes)
        place, yaw = (boxes[:, :2] + REACH) / CELL, boxes[:, 6:]
        at = place.long()
        # the focal loss of CenterNet: the heat wanted falls off around a centre
        middles = torch.arange(CELLS) + 0.5
        wide = boxes[:, 3:5].amin(1)[:, None, None] / CELL / 3 + 0.4
        x, y = ((middles - one[:, None]) ** 2 for one in place.T)
        blobs = torch.exp(-(y[:, :, None] + x[:, None]) / (2 * wide**2))
        wanted = torch.zeros_like(heat)
        for one, label, blob in zip(frame, labels, blobs, strict=True):
            wanted[one, label] = torch.maximum(wanted[one, label], blob)
        wanted[frame, labels, at[:, 1], at[:, 0]] = 1
        score = heat.sigmoid()
        right = (1 - score) ** 2 * logsigmoid(heat)
        wrong = (1 - wanted) ** 4 * score**2 * logsigmoid(-heat)
        focal = -torch.where(wanted == 1, right, wrong).sum()
        turn = [yaw.sin(), yaw.cos(), (2 * yaw).sin(), (2 * yaw).cos()]
        shapes = torch.cat([place - at, boxes[:, 2:3], boxes[:, 3:6].log(), *turn], 1)
        off = (shape[frame, :, at[:, 1], at[:, 0]] - shapes).abs().sum()
        return (focal + off) / max(len(boxes), 1)


class OfPillars:
    """What tracer, data filter and logger cannot know of this model."""

    @staticmethod
    def detect(model):
        return isinstance(model, Pillars)

    def _get_n_class(self, model):
        return len(CLASSES)

    def _register_model_hooks(self, model):
        def keep(module, given, heat):
            self.trunk, self.heat = given[0].detach().flatten(2), heat.detach().flatten(2)

        return [model.heat.register_forward_hook(keep)]

    def _parse_model_output(self, model_output):
        outputs = []
        for one, trunk, heat in zip(model_output, self.trunk, self.heat, strict=True):
            at = one["cells"]
            about = {"logits": heat[:, at].T, "features": {"trunk": trunk[:, at].T}}
            outputs.append(Detection3DOutput(one["boxes"], one["scores"], one["labels"], **about))
        return outputs


class PillarsTracer(OfPillars, ObjectDetection3DTracer):
    pass


class PillarsDataFilter(OfPillars, ObjectDetection3DDataFilter):
    pass


class PillarsLogger(OfPillars, ObjectDetection3DLogger):
    pass


def batches(scenes, size=5):
    """Give ids, clouds and truths, as any data loader does."""
    for start in range(0, len(scenes), size):
        some = scenes[start : start + size]
        clouds = [torch.from_numpy(one.points) for one in some]
        names = ("boxes", "labels", "num_points", "ignored")
        truths = [{name: torch.from_numpy(getattr(one, name)) for name in names} for one in some]
        yield list(range(start, start + len(some))), clouds, truths


def learn(model, scenes, epochs=6):
    """Train; after each epoch, give its number."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * len(scenes) // 5)
    for epoch in range(epochs):
        model.train()
        for _, clouds, truths in batches(scenes):
            loss = model.loss(clouds, truths)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        yield epoch


def main():
    torch.manual_seed(0)
    train, val, pool = (make_scenes(n, seed) for seed, n in enumerate((400, 200, 200)))
    model = Pillars()
    layers = {"trunk": "trunk"}  # what is recorded of each box: the vector of its cell
    with PillarsTracer(model, "pillars", "v1", layers) as tracer:
        for epoch in learn(model, train):
            with torch.no_grad():
                for ids, clouds, truths in batches(val):
                    tracer(clouds, truths, ids, "val", epoch)  # not model(clouds)
    torch.save(model.state_dict(), "pillars.pt")

    result = Evaluator("pillars", "v1").request_evaluation(options={"class_names": CLASSES})
    print(result.summary(), error_types(result).to_string(), sep="\n")
    print(result.report("detection3d.html"))

    name = result.result_name
    with PillarsDataFilter(model, "pillars", "v1", name) as chosen:
        with torch.no_grad():
            for ids, clouds, _ in batches(pool):
                chosen(clouds, ids)
        print(chosen.query(10, {"top_n": 3}, type_cast=int, explain=True).to_string())

    with PillarsLogger(model, "pillars", "v1", name) as logger:
        with torch.no_grad():
            for reach in (REACH, 0.6 * REACH):  # then all is nearer
                for _, clouds, _ in batches(make_scenes(100, seed=3, reach=reach)):
                    logger(clouds)
        health = logger.health(window=250)  # boxes: some 50 frames
        print(health[["estimated_accuracy", "low", "high", "drift", "drift_p"]].to_string())


if __name__ == "__main__":
    main()
