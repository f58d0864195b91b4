"""Heads of detectors: anchors, distributions of distances, queries, and NonMaxSuppression within the graph."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.architecture import SCRIPT, Architecture, Input, images
from models.blocks import Block, Residual, conv

PIXELS = {"x": Input(images())}
CLASSES, BINS = 3, 8


class YoloDistances(nn.Module):
    """YOLOv8: two resolutions, distances of the sides as expectations over bins, one joined output."""

    def __init__(self, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.stem, self.down = (
            nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), conv(8, 16, 3, 2, act=nn.SiLU)),
            conv(16, 16, 3, 2, act=nn.SiLU),
        )
        self.fuse = conv(32, 16, 1, act=nn.SiLU)
        self.box = nn.ModuleList(nn.Conv2d(16, 4 * BINS, 1) for _ in range(2))
        self.cls = nn.ModuleList(nn.Conv2d(16, CLASSES, 1) for _ in range(2))
        self.dfl = nn.Conv2d(BINS, 1, 1, bias=False)
        self.dfl.weight.data[:] = torch.arange(BINS).view(1, BINS, 1, 1)
        self.dfl.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.down(a)
        a = self.fuse(torch.cat([a, nn.functional.interpolate(b, scale_factor=2, mode="nearest")], 1))
        boxes, scores, anchors, strides = [], [], [], []
        for level, (value, stride) in enumerate(((a, 4), (b, 8))):
            n, _, h, w = value.shape
            boxes.append(self.box[level](value).view(n, 4 * BINS, h * w))
            scores.append(self.cls[level](value).view(n, CLASSES, h * w))
            ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            # The older exporter makes doubles of cells that nobody casts.
            cells = torch.stack([xs, ys]).view(2, h * w)
            anchors.append(cells if self.doubles else cells.to(x.dtype))
            strides.append(torch.full((1, h * w), float(stride)))
        box, score, anchor, stride = (torch.cat(each, -1) for each in (boxes, scores, anchors, strides))
        n, _, cells = box.shape
        distance = self.dfl(box.view(n, 4, BINS, cells).transpose(2, 1).softmax(1)).view(n, 4, cells)
        left_top, right_bottom = distance.chunk(2, 1)
        first, second = anchor - left_top, anchor + right_bottom
        box = torch.cat([(first + second) / 2, second - first], 1) * stride
        return torch.cat([box, score.sigmoid()], 1)


class YoloAnchors(nn.Module):
    """YOLOv5: anchors of each cell, everything through a Sigmoid, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), conv(8, 16, 3, 2, act=nn.SiLU), Residual(16, 16))
        self.head = nn.Conv2d(16, 2 * (5 + CLASSES), 1)
        self.register_buffer("anchors", torch.tensor([[6.0, 8.0], [14.0, 11.0]]).view(1, 2, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.stem(x))
        n, _, h, w = y.shape
        y = y.view(n, 2, 5 + CLASSES, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((xs, ys), 2).view(1, 1, h, w, 2).float()
        centre, size, rest = y.split((2, 2, 1 + CLASSES), 4)
        y = torch.cat(((centre * 2 - 0.5 + grid) * 4, (size * 2) ** 2 * self.anchors, rest), 4)
        return y.view(n, 2 * h * w, 5 + CLASSES)


class Ssd(nn.Module):
    """SSD: boxes coded against anchors, Softmax over the classes; corners and scores are the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2)), conv(16, 16, 3, 2)
        self.box = nn.ModuleList(nn.Conv2d(16, 8, 3, 1, 1) for _ in range(2))
        self.cls = nn.ModuleList(nn.Conv2d(16, 2 * (CLASSES + 1), 3, 1, 1) for _ in range(2))
        cells = torch.rand(160, 2, generator=torch.Generator().manual_seed(3))
        self.register_buffer("anchors", torch.cat([cells, 0.1 + 0.2 * cells.flip(1)], 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(x)
        maps = (a, self.down(a))
        flat = lambda heads, width: torch.cat(  # noqa: E731
            [head(m).permute(0, 2, 3, 1).reshape(m.shape[0], -1, width) for head, m in zip(heads, maps, strict=True)], 1
        )
        box, scores = flat(self.box, 4), flat(self.cls, CLASSES + 1).softmax(-1)
        centre = self.anchors[:, :2] + box[..., :2] * 0.1 * self.anchors[:, 2:]
        size = self.anchors[:, 2:] * torch.exp(box[..., 2:] * 0.2)
        return torch.cat([centre - size / 2, centre + size / 2], -1), scores


class CentreNet(nn.Module):
    """CenterNet: peaks of a heat map by a MaxPool, the best of them, and what other maps say there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 12, 3, 2), Residual(12, 16, 2), nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU()
        )
        self.heat, self.size = nn.Conv2d(16, CLASSES, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        heat = self.heat(y).sigmoid()
        peaks = heat * (nn.functional.max_pool2d(heat, 3, 1, 1) == heat).float()
        n = heat.shape[0]
        scores, where = peaks.view(n, -1).topk(8)
        size = self.size(y).view(n, 2, -1).transpose(1, 2)
        place = where % size.shape[1]
        return scores, size.gather(1, place.unsqueeze(-1).expand(-1, -1, 2))


class Detr(nn.Module):
    """DETR: queries that attend to the pixels' features, classes and boxes of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2)), nn.Parameter(torch.randn(6, 16))
        self.place = nn.Parameter(torch.randn(64, 16) * 0.2)
        self.encoder = Block(16, 2, act=nn.ReLU)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.cls, self.box = nn.Linear(16, CLASSES + 1), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(self.stem(x).flatten(2).transpose(1, 2) + self.place)
        found = self.decoder(self.queries.unsqueeze(0).expand(x.shape[0], -1, -1), memory)
        return self.cls(found), self.box(found).sigmoid()


def suppress_yolo(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put corners, a Transpose of the scores and a NonMaxSuppression behind YOLO's output; the picks are the output."""
    nodes = [
        helper.make_node("Split", ["y", "nms_sizes"], ["nms_box", "nms_scores"], axis=1),
        helper.make_node("Transpose", ["nms_box"], ["nms_boxes"], perm=[0, 2, 1]),
    ]
    constants = {"nms_sizes": np.array([4, CLASSES])}
    return suppressed(model, nodes, constants, boxes="nms_boxes", scores="nms_scores", centred=1, keep=())


def suppress_ssd(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a NonMaxSuppression behind SSD's outputs, and the picked boxes beside them."""
    nodes = [helper.make_node("Transpose", ["scores"], ["nms_scores"], perm=[0, 2, 1])]
    return suppressed(model, nodes, {}, boxes="boxes", scores="nms_scores", centred=0, keep=("boxes", "scores"))


def suppressed(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    boxes: str,
    scores: str,
    centred: int,
    keep: tuple[str, ...],
) -> onnx.ModelProto:
    """Return the network with a NonMaxSuppression whose picks, [picks, 3], and their boxes are outputs."""
    constants |= {"nms_most": np.array([5]), "nms_iou": np.float32([0.5]), "nms_score": np.float32([0.3])}
    constants |= {"nms_columns": np.array([0, 2])}
    limits = ["nms_most", "nms_iou", "nms_score"]
    nodes += [
        helper.make_node("NonMaxSuppression", [boxes, scores, *limits], ["picks"], center_point_box=centred),
        helper.make_node("Gather", ["picks", "nms_columns"], ["nms_rows"], axis=1),
        helper.make_node("GatherND", [boxes, "nms_rows"], ["found"]),
    ]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    kept = [output for output in made.graph.output if output.name in keep]
    del made.graph.output[:]
    picks = helper.make_tensor_value_info("picks", TensorProto.INT64, ["picked", 3])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["picked", 4])
    made.graph.output.extend([*kept, picks, found])
    return made


PICKED = frozenset({"picks", "found"})
ARCHITECTURES = [
    Architecture("yolo_dfl", lambda: YoloDistances(doubles=True), PIXELS),
    Architecture("yolo_anchors", YoloAnchors, PIXELS),
    Architecture(
        "yolo_nms",
        lambda: YoloDistances(doubles=False),
        PIXELS,
        exporters=(SCRIPT,),
        finish=suppress_yolo,
        varying=PICKED,
    ),
    Architecture("ssd", Ssd, PIXELS, ("boxes", "scores")),
    Architecture("ssd_nms", Ssd, PIXELS, ("boxes", "scores"), (SCRIPT,), finish=suppress_ssd, varying=PICKED),
    Architecture("centernet", CentreNet, PIXELS, ("scores", "size")),
    Architecture("detr", Detr, PIXELS, ("classes", "boxes")),
]
