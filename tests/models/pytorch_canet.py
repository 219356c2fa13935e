"""CANet spelled out in PyTorch, one way and one image at a time: what ours must equal.

Not `benchmarks.torch_reference`, which has only the published fusion, one way and full width.
"""

import torch
import torch.nn.functional as F
from pytorch_layers import (
    aspp,
    average_inside,
    beside,
    conv,
    join_stages,
    residual,
    shot_weights,
    shrink,
)


class CANet:
    """Without dropout. Feature maps are (1, channel, h, w), masks (height, width)."""

    def __init__(self, weights, refinements=4, fusion="attention", epsilon=5e-4):
        self.weights, self.refinements, self.fusion = weights, refinements, fusion
        self.epsilon = epsilon

    def embed(self, stages):
        """What both branches share: the backbone's feature maps, at the last one's size."""
        return F.relu(conv(join_stages(stages), self.weights["embedding"], dilation=2))

    def binary_logits(self, supports, masks, query, first=None):
        """(1, 2, h, w) of one way; `first` is what the first pass takes for the last prediction."""
        if first is None:
            first = torch.zeros(1, 2, *query.shape[2:], dtype=query.dtype)
        vectors = [self.pool(x, mask) for x, mask in zip(supports, masks, strict=True)]
        if len(vectors) == 1 or self.fusion == "feature_average":
            return self.refine(self.compare(query, sum(vectors) / len(vectors)), first)
        if self.fusion == "attention":
            pairs = [beside(query, vector) for vector in vectors]
            first_layer, second_layer = self.weights["attention_0"], self.weights["attention_1"]
            shares = shot_weights(pairs, first_layer, second_layer)
            compared = torch.zeros_like(query)
            for vector, share in zip(vectors, shares, strict=True):
                compared = compared + share * self.compare(query, vector)
            return self.refine(compared, first)
        # Both other fusions make one prediction a shot.
        logits = [self.refine(self.compare(query, vector), first) for vector in vectors]
        if self.fusion == "mask_average":
            confidence = sum(F.softmax(x, dim=1) for x in logits) / len(logits)
            return torch.log(confidence + 1e-7)
        # The union: of each position, the prediction that is surest of the object.
        best = logits[0]
        for x in logits[1:]:
            best = torch.where(x[:, 1] - x[:, 0] > best[:, 1] - best[:, 0], x, best)
        return best

    def pool(self, features, mask):
        """(1, channel): mean of the features over a mask that is reduced to their size."""
        return average_inside(features, shrink(mask, features.shape[2:]), self.epsilon)

    def compare(self, query, vector):
        return F.relu(conv(beside(query, vector), self.weights["comparison"], dilation=2))

    def refine(self, compared, prediction):
        """The iterative optimization module, time after time; logits of the last one."""
        for _ in range(1 + self.refinements):
            logits = self.optimize(compared, prediction)
            prediction = F.softmax(logits, dim=1)
        return logits

    def optimize(self, compared, prediction):
        together = torch.cat([compared, prediction], dim=1)
        x = compared + residual(together, self.weights["blocks_0"])
        x = x + residual(x, self.weights["blocks_1"])
        x = x + residual(x, self.weights["blocks_2"])
        return conv(aspp(x, self.weights["aspp"]), self.weights["classifier"])
