"""MFNet spelled out in PyTorch, way by way and scale by scale: what ours must equal."""

import math

import torch
import torch.nn.functional as F


def as_tensors(params):
    """Nested dictionaries of arrays as tensors in double precision that gather gradients."""
    if isinstance(params, dict):
        return {name: as_tensors(value) for name, value in params.items()}
    return torch.tensor(params, dtype=torch.float64, requires_grad=True)


def gradients(params):
    """What `as_tensors` made, as the gradients that they gathered (zeros where there are none)."""
    if isinstance(params, dict):
        return {name: gradients(value) for name, value in params.items()}
    return (torch.zeros_like(params) if params.grad is None else params.grad).numpy()


class MFNet:
    """The network behind the backbone, from (channel, h, w) feature maps on.

    Attributes:
        params: tensors under the names of our parameters, kernels with their channels last.
        others: the fields of our method of these names.
    """

    def __init__(
        self,
        params,
        heads=4,
        scales=4,
        separate_embeddings=True,
        support_attention=True,
        scale_attention=True,
        query_fusion="add",
        way_fusion="concat",
        binary_branches=False,
        compare_supports=False,
        hierarchy=False,
        aspp=False,
    ):
        self.params, self.heads, self.scales = params, heads, scales
        self.separate_embeddings = separate_embeddings
        self.support_attention, self.scale_attention = support_attention, scale_attention
        self.query_fusion, self.way_fusion = query_fusion, way_fusion
        self.binary_branches = binary_branches
        self.compare_supports, self.hierarchy, self.aspp = compare_supports, hierarchy, aspp

    def __call__(self, support_maps, support_label, query_map):
        """Logits (class, h, w) and, for each decoder pass, its embedding (channel, h, w).

        Args:
            support_maps: a list for each way, of (channel, h, w).
            support_label: (way, shot, height, width).
            query_map: (channel, h, w).
        """
        number = 1 if self.separate_embeddings else 0
        query = convolve(self.params[f"embeddings_{number}"], query_map).relu()
        per_way = []
        for way, (maps, labels) in enumerate(zip(support_maps, support_label, strict=True), 1):
            masks = [label == way for label in labels]
            vectors = self.vectors(maps, masks)
            if not self.compare_supports:
                vectors = [self.prototype(vectors)]
            per_way.append(self.combine_scales(query, vectors))

        if self.binary_branches:
            decoded = [self.decode(features) for features in per_way]
            log_p = [F.log_softmax(logits, dim=0) for logits, _ in decoded]
            background = torch.stack([one[0] for one in log_p]).max(dim=0).values
            logits = torch.stack([background, *(one[1] for one in log_p)])
            return logits, [embedding for _, embedding in decoded]
        joint = torch.cat(per_way) if self.way_fusion == "concat" else sum(per_way)
        logits, embedding = self.decode(joint)
        return logits, [embedding]

    def vectors(self, maps, masks):
        """The supports' objects, a vector each."""
        vectors = []
        for features, mask in zip(maps, masks, strict=True):
            features = convolve(self.params["embeddings_0"], features).relu()
            small = resize(torch.as_tensor(mask).double()[None], features.shape[1:])[0]
            vectors.append((features * small).sum((1, 2)) / (small.sum() + 5e-4))
        return vectors

    def prototype(self, vectors):
        """Eq. 2 and 3, and the mean over shots."""
        if not self.support_attention or len(vectors) == 1:
            return sum(vectors) / len(vectors)

        w_a, w_b, w_v = (self.params[f"relations_{i}"]["kernel"] for i in range(3))
        depth = len(vectors[0]) // self.heads
        modulated = []
        for own in vectors:
            related = []
            for head in range(self.heads):
                part = slice(head * depth, (head + 1) * depth)
                left = own @ w_a[:, part]
                dots = [left @ (other @ w_b[:, part]) / math.sqrt(depth) for other in vectors]
                weights = torch.stack(dots).softmax(dim=0)
                values = [other @ w_v[:, part] for other in vectors]
                related.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            modulated.append(own + torch.cat(related))
        return sum(modulated) / len(modulated)

    def combine_scales(self, query, vectors):
        """One way's S_n: eq. 4 and 5."""
        size = query.shape[1:]
        scores, transformed = [], []
        for scale in range(self.scales):
            pooled = F.adaptive_avg_pool2d(query, [math.ceil(n / 2**scale) for n in size])
            pairs = []
            for vector in vectors:
                vector = vector[:, None, None].expand(-1, *pooled.shape[1:])
                add = self.query_fusion == "add"
                pairs.append(pooled + vector if add else torch.cat([pooled, vector]))
            found = [self.branch(self.params[f"branches_{scale}"], x) for x in pairs]
            if len(pairs) > 1:
                weights = self.shot_weights(self.params[f"shot_scores_{scale}"], pairs)
                parts = zip(*found, strict=True)
                found = [[sum(w * x for w, x in zip(weights, part, strict=True)) for part in parts]]
            score, y = found[0]
            scores.append(resize(score, size))
            transformed.append(y)
        if self.hierarchy:
            return self.merge(self.params["merging"], transformed)
        transformed = [resize(y, size) for y in transformed]
        if not self.scale_attention:
            return sum(transformed) / len(transformed)
        exponentials = [score.exp() for score in scores]
        total = sum(exponentials)
        return sum(e / total * y for e, y in zip(exponentials, transformed, strict=True))

    def branch(self, layers, x):
        """The score and the transformed features of one scale."""
        attention = self.scale_attention and not self.hierarchy
        score, transform = torch.zeros_like(x[:1]), layers["Conv_0"]
        if attention:
            hidden = convolve(layers["Conv_0"], x).relu()
            hidden = convolve(layers["Conv_1"], hidden).relu()
            score, transform = convolve(layers["Conv_2"], hidden), layers["Conv_3"]
        return score, residual_block(layers["ResidualBlock_0"], convolve(transform, x))

    def shot_weights(self, layers, pairs):
        """CANet's attention over shots, of pairs with the query."""
        scores = []
        for x in pairs:
            hidden = convolve(layers["Conv_0"], x).relu()
            hidden = F.max_pool2d(hidden[None], 3, 2, 1)[0]
            scores.append(convolve(layers["Conv_1"], hidden).mean())
        return torch.stack(scores).softmax(dim=0)

    def merge(self, layers, maps):
        """Each scale with what the one before gave, and all of them side by side."""
        levels = []
        for number, x in enumerate(maps):
            if number:
                beside = torch.cat([x, resize(levels[-1], x.shape[1:])])
                x = x + convolve(layers[f"Conv_{number - 1}"], beside).relu()
            levels.append(residual_block(layers[f"ResidualBlock_{number}"], x))
        whole = torch.cat([resize(x, maps[0].shape[1:]) for x in levels])
        return convolve(layers[f"Conv_{len(maps) - 1}"], whole).relu()

    def pyramid(self, layers, x):
        """ASPP."""
        mean = convolve(layers["Conv_0"], x.mean((1, 2), keepdim=True)).relu()
        parts = [mean.expand(-1, *x.shape[1:]), convolve(layers["Conv_1"], x).relu()]
        for number, dilation in enumerate((6, 12, 18), 2):
            kernel, bias = layers[f"Conv_{number}"]["kernel"], layers[f"Conv_{number}"]["bias"]
            kernel = kernel.permute(3, 2, 0, 1)
            y = F.conv2d(x[None], kernel, bias, padding=dilation, dilation=dilation)[0]
            parts.append(y.relu())
        return convolve(layers["Conv_5"], torch.cat(parts)).relu()

    def decode(self, joint):
        """Logits and the embedding that metric learning works on."""
        layers = self.params["decoder"]
        embedding = convolve(layers["Conv_0"], joint)
        if self.aspp:
            y = self.pyramid(layers["ASPP_0"], embedding)
        else:
            y = residual_block(layers["ResidualBlock_0"], embedding)
        return convolve(layers["Conv_1"], y), embedding


def convolve(layer, x):
    kernel = layer["kernel"].permute(3, 2, 0, 1)
    return F.conv2d(x[None], kernel, layer.get("bias"), padding=kernel.shape[-1] // 2)[0]


def residual_block(layers, x):
    y = convolve(layers["Conv_0"], x.relu())
    return x + convolve(layers["Conv_1"], y.relu())


def resize(x, size):
    return F.interpolate(x[None], tuple(size), mode="bilinear", align_corners=True)[0]
