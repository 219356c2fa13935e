"""MFNet spelled out in PyTorch, way by way and scale by scale: what ours must equal."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from pytorch_layers import (
    aspp,
    average_inside,
    beside,
    conv,
    interpolate,
    join,
    residual,
    shot_weights,
    shrink,
)


@dataclasses.dataclass
class MFNet:
    """The network behind the backbone, from (1, channel, h, w) feature maps on.

    Attributes:
        weights: of the Flax module.
        others: the fields of our method of these names.
    """

    weights: dict
    heads: int = 4
    scales: int = 4
    separate_embeddings: bool = True
    support_attention: bool = True
    scale_attention: bool = True
    query_fusion: str = "add"
    way_fusion: str = "concat"
    binary_branches: bool = False
    compare_supports: bool = False
    hierarchy: bool = False
    aspp: bool = False

    def __call__(self, support_maps, support_label, query_map):
        """Logits (class, h, w) and, for each decoder pass, its embedding (channel, h, w).

        Args:
            support_maps: a list for each way, of (1, channel, h, w).
            support_label: (way, shot, height, width).
            query_map: (1, channel, h, w).
        """
        number = 1 if self.separate_embeddings else 0
        query = conv(query_map, self.weights[f"embeddings_{number}"]).relu()
        per_way = []
        for way, (maps, labels) in enumerate(zip(support_maps, support_label, strict=True), 1):
            vectors = self.vectors(maps, labels == way)
            if not self.compare_supports:
                vectors = [self.prototype(vectors)]
            per_way.append(self.combine_scales(query, vectors))

        if self.binary_branches:
            logits, embeddings = self.decode(torch.cat(per_way))  # the ways are a batch
            return join(logits), embeddings
        joint = torch.cat(per_way, dim=1) if self.way_fusion == "concat" else sum(per_way)
        logits, embeddings = self.decode(joint)
        return logits[0], embeddings

    def vectors(self, maps, masks):
        """The supports' objects, a vector (1, channel) each."""
        vectors = []
        for features, mask in zip(maps, masks, strict=True):
            features = conv(features, self.weights["embeddings_0"]).relu()
            vectors.append(average_inside(features, shrink(mask, features.shape[2:])))
        return vectors

    def prototype(self, vectors):
        """Eq. 2 and 3, and the mean over shots."""
        if not self.support_attention or len(vectors) == 1:
            return sum(vectors) / len(vectors)

        w_a, w_b, w_v = (self.weights[f"relations_{i}"]["kernel"].T for i in range(3))
        depth = len(w_a) // self.heads
        modulated = []
        for own in vectors:
            related = []
            for head in range(self.heads):
                part = slice(head * depth, (head + 1) * depth)
                left = own @ w_a[:, part]
                dots = [
                    (left * (other @ w_b[:, part])).sum() / math.sqrt(depth) for other in vectors
                ]
                shares = torch.stack(dots).softmax(dim=0)
                values = [other @ w_v[:, part] for other in vectors]
                related.append(sum(w * v for w, v in zip(shares, values, strict=True)))
            modulated.append(own + torch.cat(related, dim=1))
        return sum(modulated) / len(modulated)

    def combine_scales(self, query, vectors):
        """One way's S_n: eq. 4 and 5."""
        size = query.shape[2:]
        scores, transformed = [], []
        for scale in range(self.scales):
            pooled = F.adaptive_avg_pool2d(query, [math.ceil(n / 2**scale) for n in size])
            if self.query_fusion == "add":
                pairs = [pooled + vector[..., None, None] for vector in vectors]
            else:
                pairs = [beside(pooled, vector) for vector in vectors]
            found = [self.branch(self.weights[f"branches_{scale}"], x) for x in pairs]
            if len(pairs) > 1:
                layers = self.weights[f"shot_scores_{scale}"]
                shares = shot_weights(pairs, layers["Conv_0"], layers["Conv_1"])
                parts = zip(*found, strict=True)
                found = [[sum(w * x for w, x in zip(shares, part, strict=True)) for part in parts]]
            score, y = found[0]
            scores.append(interpolate(score, size))
            transformed.append(y)
        if self.hierarchy:
            return self.merge(self.weights["merging"], transformed)
        transformed = [interpolate(y, size) for y in transformed]
        if not self.scale_attention:
            return sum(transformed) / len(transformed)
        exponentials = [score.exp() for score in scores]
        total = sum(exponentials)
        return sum(e / total * y for e, y in zip(exponentials, transformed, strict=True))

    def branch(self, layers, x):
        """The score and the transformed features of one scale."""
        score, transform = torch.zeros_like(x[:, :1]), layers["Conv_0"]
        if self.scale_attention and not self.hierarchy:
            hidden = conv(x, layers["Conv_0"]).relu()
            hidden = conv(hidden, layers["Conv_1"]).relu()
            score, transform = conv(hidden, layers["Conv_2"]), layers["Conv_3"]
        y = conv(x, transform)
        return score, y + residual(y, layers["ResidualBlock_0"])

    def merge(self, layers, maps):
        """Each scale with what the one before gave, and all of them side by side."""
        levels = []
        for number, x in enumerate(maps):
            if number:
                both = torch.cat([x, interpolate(levels[-1], x.shape[2:])], dim=1)
                x = x + conv(both, layers[f"Conv_{number - 1}"]).relu()
            levels.append(x + residual(x, layers[f"ResidualBlock_{number}"]))
        whole = torch.cat([interpolate(x, maps[0].shape[2:]) for x in levels], dim=1)
        return conv(whole, layers[f"Conv_{len(maps) - 1}"]).relu()

    def decode(self, joint):
        """Logits and the embedding that metric learning works on."""
        layers = self.weights["decoder"]
        embedding = conv(joint, layers["Conv_0"])
        if self.aspp:
            y = aspp(embedding, layers["ASPP_0"])
        else:
            y = embedding + residual(embedding, layers["ResidualBlock_0"])
        return conv(y, layers["Conv_1"]), embedding
