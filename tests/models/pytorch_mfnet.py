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
    ):
        self.params, self.heads, self.scales = params, heads, scales
        self.separate_embeddings = separate_embeddings
        self.support_attention, self.scale_attention = support_attention, scale_attention
        self.query_fusion, self.way_fusion = query_fusion, way_fusion
        self.binary_branches = binary_branches

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
            prototype = self.prototype(maps, [label == way for label in labels])
            per_way.append(self.combine_scales(query, prototype))

        if self.binary_branches:
            decoded = [self.decode(features) for features in per_way]
            log_p = [F.log_softmax(logits, dim=0) for logits, _ in decoded]
            background = torch.stack([one[0] for one in log_p]).max(dim=0).values
            logits = torch.stack([background, *(one[1] for one in log_p)])
            return logits, [embedding for _, embedding in decoded]
        joint = torch.cat(per_way) if self.way_fusion == "concat" else sum(per_way)
        logits, embedding = self.decode(joint)
        return logits, [embedding]

    def prototype(self, maps, masks):
        """Eq. 2 and 3, and the mean over shots."""
        vectors = []
        for features, mask in zip(maps, masks, strict=True):
            features = convolve(self.params["embeddings_0"], features).relu()
            small = resize(torch.as_tensor(mask).double()[None], features.shape[1:])[0]
            vectors.append((features * small).sum((1, 2)) / (small.sum() + 5e-4))
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

    def combine_scales(self, query, prototype):
        """One way's S_n: eq. 4 and 5."""
        size = query.shape[1:]
        scores, transformed = [], []
        for scale in range(self.scales):
            layers = self.params[f"branches_{scale}"]
            pooled = F.adaptive_avg_pool2d(query, [math.ceil(n / 2**scale) for n in size])
            vector = prototype[:, None, None].expand(-1, *pooled.shape[1:])
            x = pooled + vector if self.query_fusion == "add" else torch.cat([pooled, vector])
            transform = layers["Conv_0"]
            if self.scale_attention:
                hidden = convolve(layers["Conv_0"], x).relu()
                hidden = convolve(layers["Conv_1"], hidden).relu()
                scores.append(resize(convolve(layers["Conv_2"], hidden), size))
                transform = layers["Conv_3"]
            y = residual_block(layers["ResidualBlock_0"], convolve(transform, x))
            transformed.append(resize(y, size))
        if not self.scale_attention:
            return sum(transformed) / len(transformed)
        exponentials = [score.exp() for score in scores]
        total = sum(exponentials)
        return sum(e / total * y for e, y in zip(exponentials, transformed, strict=True))

    def decode(self, joint):
        """Logits and the embedding that metric learning works on."""
        layers = self.params["decoder"]
        embedding = convolve(layers["Conv_0"], joint)
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
