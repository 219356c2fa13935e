"""PANet spelled out in PyTorch, way by way and photograph by photograph: what ours must equal."""

import torch
import torch.nn.functional as F


class PANet:
    """One episode by the book, eq. 1 to 7: features are up-sampled before anything else.

    Attributes:
        logits: (1 + ways, h, w), what the softmax of eq. 3 takes.
        predicted: which ways the arg max of eq. 4 gives to any position.
        segmentation, alignment: eq. 5 and 7.
    """

    def __init__(
        self,
        support_features,  # a list for each way, of (channel, h, w)
        query_features,  # (channel, h, w)
        support_label,  # (way, shot, height, width)
        query_label,  # (height, width)
        scale=20.0,
        ignored_is_background=True,
        align_corners=False,
    ):
        self.scale, self.align_corners = scale, align_corners
        self.ignored_is_background = ignored_is_background
        supports = [
            (way, features, torch.as_tensor(label))
            for way, (features_of_way, labels_of_way) in enumerate(
                zip(support_features, support_label, strict=True), start=1
            )
            for features, label in zip(features_of_way, labels_of_way, strict=True)
        ]
        ways, shots = len(support_features), len(support_features[0])

        background = 0  # eq. 2
        foreground = [0] * ways  # eq. 1
        for way, features, label in supports:
            large = self.enlarge(features, label.shape)
            background = background + mean_inside(large, self.background(label)) / (ways * shots)
            foreground[way - 1] = foreground[way - 1] + mean_inside(large, label == way) / shots

        self.logits = self.classify(query_features, [background, *foreground])  # eq. 3
        self.segmentation = self.score(self.logits, torch.as_tensor(query_label))  # eq. 5

        # The other way round: prototypes of the query under its own prediction (eq. 4).
        winner = self.logits.argmax(dim=0)
        self.predicted = [bool((winner == way).any()) for way in range(1, ways + 1)]
        self.alignment = torch.zeros((), dtype=query_features.dtype)
        for way, features, label in supports:
            if self.predicted[way - 1]:
                pair = [mean_inside(query_features, winner == index) for index in (0, way)]
                target = torch.full_like(label, 255)
                target[self.background(label)] = 0
                target[label == way] = 1
                score = self.score(self.classify(features, pair), target)  # eq. 6
                self.alignment = self.alignment + score / (ways * shots)  # eq. 7

    def background(self, label):
        return (label == 0) | (label == 255) if self.ignored_is_background else label == 0

    def enlarge(self, maps, shape):
        return F.interpolate(
            maps[None], tuple(shape), mode="bilinear", align_corners=self.align_corners
        )[0]

    def classify(self, features, prototypes):
        return self.scale * torch.stack(
            [F.cosine_similarity(features, p[:, None, None], dim=0) for p in prototypes]
        )

    def score(self, logits, label):
        large = self.enlarge(logits, label.shape)
        return F.cross_entropy(large[None], label[None].long(), ignore_index=255)


def mean_inside(features, mask):
    """(channel, h, w) to (channel,)."""
    return features[:, mask].sum(dim=1) / (mask.sum() + 1e-5)
