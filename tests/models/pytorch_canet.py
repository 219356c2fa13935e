"""CANet spelled out in PyTorch, one way and one image at a time: what ours must equal.

Not `benchmarks.torch_reference`, which has only the published fusion, one way and full width.
"""

import torch
import torch.nn.functional as F


def to_tensors(params):
    """Flax's nested parameters as `{"aspp.Conv_0.kernel": tensor}`, kernels as OIHW doubles."""
    tensors = {}
    for name, value in params.items():
        if hasattr(value, "items"):
            inner = to_tensors(value)
            tensors |= {f"{name}.{rest}": tensor for rest, tensor in inner.items()}
        else:
            tensor = torch.tensor(value).double()
            tensors[name] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    return tensors


def enlarge(maps, shape):
    """(channel, h, w) to another size; the centres of the corner pixels map to each other."""
    return F.interpolate(maps[None], tuple(shape), mode="bilinear", align_corners=True)[0]


class CANet:
    """Without dropout. Feature maps are (channel, h, w), masks (height, width)."""

    def __init__(self, weights, refinements=4, fusion="attention", epsilon=5e-4):
        self.weights, self.refinements, self.fusion = weights, refinements, fusion
        self.epsilon = epsilon

    def convolution(self, x, name, dilation=1):
        kernel, bias = self.weights[f"{name}.kernel"], self.weights[f"{name}.bias"]
        padding = dilation * (kernel.shape[-1] // 2)
        return F.conv2d(x[None], kernel, bias, padding=padding, dilation=dilation)[0]

    def embed(self, stages):
        """What both branches share: the backbone's feature maps, at the last one's size."""
        size = stages[-1].shape[1:]
        together = torch.cat([enlarge(x, size) for x in stages])
        return F.relu(self.convolution(together, "embedding", dilation=2))

    def binary_logits(self, supports, masks, query, first=None):
        """(2, h, w) of one way; `first` is what the first pass takes for the last prediction."""
        if first is None:
            first = torch.zeros(2, *query.shape[1:], dtype=query.dtype)
        vectors = [self.pool(x, mask) for x, mask in zip(supports, masks, strict=True)]
        if len(vectors) == 1 or self.fusion == "feature_average":
            return self.refine(self.compare(query, sum(vectors) / len(vectors)), first)
        if self.fusion == "attention":
            powers = [torch.exp(self.attend(query, vector)) for vector in vectors]
            compared = torch.zeros_like(query)
            for vector, power in zip(vectors, powers, strict=True):
                compared = compared + power / sum(powers) * self.compare(query, vector)
            return self.refine(compared, first)
        # Both other fusions make one prediction a shot.
        logits = [self.refine(self.compare(query, vector), first) for vector in vectors]
        if self.fusion == "mask_average":
            confidence = sum(F.softmax(x, dim=0) for x in logits) / len(logits)
            return torch.log(confidence + 1e-7)
        # The union: of each position, the prediction that is surest of the object.
        best, margin = logits[0].clone(), logits[0][1] - logits[0][0]
        for x in logits[1:]:
            surer = x[1] - x[0] > margin
            best = torch.where(surer, x, best)
            margin = torch.where(surer, x[1] - x[0], margin)
        return best

    def pool(self, features, mask):
        """(channel,): mean of the features over a mask that is reduced to their size."""
        small = enlarge(mask[None].to(features.dtype), features.shape[1:])
        return (features * small).sum(dim=(1, 2)) / (small.sum() + self.epsilon)

    def beside(self, query, vector):
        return torch.cat([query, vector[:, None, None].expand(-1, *query.shape[1:])])

    def compare(self, query, vector):
        return F.relu(self.convolution(self.beside(query, vector), "comparison", dilation=2))

    def attend(self, query, vector):
        """One number a shot."""
        x = F.relu(self.convolution(self.beside(query, vector), "attention_0"))
        x = F.max_pool2d(x[None], kernel_size=3, stride=2, padding=1)[0]
        return self.convolution(x, "attention_1").mean()

    def refine(self, compared, prediction):
        """The iterative optimization module, time after time; logits of the last one."""
        for _ in range(1 + self.refinements):
            logits = self.optimize(compared, prediction)
            prediction = F.softmax(logits, dim=0)
        return logits

    def optimize(self, compared, prediction):
        x = compared + self.residual(torch.cat([compared, prediction]), "blocks_0")
        x = x + self.residual(x, "blocks_1")
        x = x + self.residual(x, "blocks_2")
        image = x.mean(dim=(1, 2), keepdim=True)
        branches = [
            F.relu(self.convolution(image, "aspp.Conv_0")).expand_as(x),
            F.relu(self.convolution(x, "aspp.Conv_1")),
            F.relu(self.convolution(x, "aspp.Conv_2", dilation=6)),
            F.relu(self.convolution(x, "aspp.Conv_3", dilation=12)),
            F.relu(self.convolution(x, "aspp.Conv_4", dilation=18)),
        ]
        x = F.relu(self.convolution(torch.cat(branches), "aspp.Conv_5"))
        return self.convolution(x, "classifier")

    def residual(self, x, name):
        x = self.convolution(F.relu(x), f"{name}.Conv_0")
        return self.convolution(F.relu(x), f"{name}.Conv_1")


def join(binary_logits):
    """(1 + ways, h, w) of the binary logits of each way: the winner is the surest."""
    logs = [F.log_softmax(logits, dim=0) for logits in binary_logits]
    background = torch.stack([x[0] for x in logs]).max(dim=0).values
    return torch.stack([background, *(x[1] for x in logs)])


def loss(binary_logits, label):
    """Mean over ways of the cross-entropy at the label's size; 255 counts for nothing."""
    total = 0
    for way, logits in enumerate(binary_logits, start=1):
        target = (label == way).long()
        target[label == 255] = 255
        large = enlarge(logits, label.shape)
        total = total + F.cross_entropy(large[None], target[None], ignore_index=255)
    return total / len(binary_logits)
