"""How five published codes draw their test episodes and score them, in plain NumPy (and COCO's own
tools, which those use, to read its outlines).

Written from reading them; nothing here knows the library. Line numbers are those of
github.com/kaixin96/PANet, icoz69/CaNet, dvlab-research/PFENet, juhongm999/hsnet and
chunbolang/BAM. What their random generators make of a seed is left out: what is drawn here is drawn
by the same rules, and what is drawn in turn comes in the same turn.

Labels are maps of class ids, in which 0 is background and 255 the border of objects. `classes` are
those that a fold holds out, `rng` is a `numpy.random.Generator`, images are numbers.
"""

from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO

AREA = 2 * 32 * 32  # pixels of a class that make an item: PFENet's util/dataset.py, line 60
NOTHING = (np.nan, np.nan, np.nan)


class Drawn(NamedTuple):
    """One test episode."""

    classes: tuple[int, ...]
    supports: tuple[tuple[int, ...], ...]  # of each class
    query: int
    asked: int  # the class whose list the query is from


def shown_by_class(labels, classes, area=1):
    """Of each class the images that show so many pixels of it, in their order."""
    return {c: [i for i, y in enumerate(labels) if (y == c).sum() >= area] for c in classes}


# ----------------------------------------------------------------------------- PANet


def panet_draw(labels, classes, rng, episodes, ways=1, shots=1):
    """One run's episodes.

    Images that show any pixel of a class are in its list, of `trainaug` (config.py, line 108;
    util/voc_classwise_filenames.py, line 54). An episode has distinct classes in a random order,
    and of each class distinct images (dataloaders/common.py, line 147), the last of which is
    the query where it is that way's turn; which way has it is drawn once a run
    (dataloaders/customized.py, lines 110 and 206).
    """
    lists = shown_by_class(labels, classes)
    way_of_query = rng.integers(ways)
    drawn = []
    for _ in range(episodes):
        chosen = rng.permutation(list(classes))[:ways].tolist()
        supports = []
        for way, class_id in enumerate(chosen):
            count = shots + (way == way_of_query)
            images = rng.permutation(lists[class_id])[:count].tolist()
            if way == way_of_query:
                query = images.pop()
            supports.append(tuple(images))
        drawn.append(Drawn(tuple(chosen), tuple(supports), query, chosen[way_of_query]))
    return drawn


def panet_target(label, classes, size):
    """The query's label at the network's size, by PIL's nearest pixel (dataloaders/transforms.py,
    line 54), in episode numbering with 255 (dataloaders/customized.py, lines 132 to 137).

    On COCO it shows the asked class alone: see `panet_coco_masks`.
    """
    label = nearest(label, size)
    target = np.zeros_like(label)
    target[label == 255] = 255
    for way, class_id in enumerate(classes, start=1):
        target[label == class_id] = way
    return target


def nearest(label, size):
    """A label at another size, each pixel that of the point below its centre, as PIL finds it: by
    adding up steps, so that it is rounded where centres fall between two pixels."""
    rows, columns = (
        np.add.accumulate([side / size / 2, *[side / size] * (size - 1)]).astype(int)
        for side in label.shape
    )
    return label[rows][:, columns]


def panet_coco_masks(file):
    """(Image, number of the category by the order of their ids) to the category's own mask.

    All of its annotations are in it, those of crowds too, and what other objects cover
    (dataloaders/coco.py, lines 52 to 64); an image is in the list of every category that it
    has an annotation of (dataloaders/customized.py, line 246).
    """
    coco = COCO(file)
    categories = sorted(coco.getCatIds())
    masks = {}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        key = annotation["image_id"], categories.index(annotation["category_id"]) + 1
        masks[key] = masks.get(key, 0) | coco.annToMask(annotation)
    return masks


def panet_counts(prediction, target, ways):
    """TP, FP and FN of background and ways, nan where the query does not show it (util/metric.py,
    lines 54 to 65)."""
    known = target != 255
    counts = []
    for number in range(ways + 1):
        there = target == number
        found = (prediction == number) & known
        triple = ((found & there).sum(), (found & ~there).sum(), (there & ~found).sum())
        counts.append(triple if there.any() else NOTHING)
    return np.array(counts, np.float64)


def panet_figures(runs, classes):
    """mean-IoU and binary-IoU over runs, with their standard deviations, in percent.

    A run is a list of (counts, its episode's classes): see util/metric.py, lines 71 to 151. Counts
    are summed by class over a run, and the classes' IoUs averaged; "binary" sums them over all
    classes too.
    """
    means, binaries = [], []
    for run in runs:
        total = {number: np.zeros(3) for number in (0, *classes)}
        for counts, chosen in run:
            for number, triple in zip((0, *chosen), counts, strict=True):
                total[number] += np.nan_to_num(triple)
        ious = {number: triple[0] / triple.sum() for number, triple in total.items()}
        objects = np.sum([total[number] for number in classes], axis=0)
        means.append(np.mean([ious[number] for number in classes]))
        binaries.append(np.mean([ious[0], objects[0] / objects.sum()]))
    figures = {"mean_iou": np.mean(means), "mean_iou_std": np.std(means)}
    figures |= {"binary_iou": np.mean(binaries), "binary_iou_std": np.std(binaries)}
    return {name: 100 * value for name, value in figures.items()}


# ----------------------------------------------------------------------------- CANet


def canet_draw(labels, classes, rng, episodes, area=AREA):
    """The (class, photograph) items of a fold's list in its order, then twice more shuffled, cut
    off at 1,000 (dataset_mask_val.py, lines 24 to 30); the one support is another image of
    the class (lines 39 to 43).

    The lists themselves are not published; their number of items is that of HSNet's.
    """
    lists = shown_by_class(labels, classes, area)
    items = [(query, c) for query in range(len(labels)) for c in classes if query in lists[c]]
    turns = [*items, *rng.permutation(items).tolist(), *rng.permutation(items).tolist()]
    drawn = []
    for query, class_id in turns[:episodes]:
        supports = another(rng, lists[class_id], query, 1)
        drawn.append(Drawn((class_id,), (supports,), query, class_id))
    return drawn


def another(rng, images, query, shots):
    """Images that are not the query, each drawn anew until it is another one."""
    supports = []
    while len(supports) < shots:
        candidate = int(rng.choice(images))
        if candidate != query:
            supports.append(candidate)
    return tuple(supports)


def canet_target(label, class_id):
    """A mask in which all but the class is background, its border too: `Binary_map_aug`'s, of
    which a pixel is foreground where it is 255 (dataset_mask_val.py, line 134)."""
    return (label == class_id).astype(np.uint8)


CANET_SCALES = (0.7, 1.0, 1.3)  # of the query's own size: sec. 5.1, and issue 4 of the repository


# ----------------------------------------------------------------------------- PFENet and BAM


def pfenet_draw(labels, classes, rng, episodes, shots=1, area=AREA):
    """The listed images in their order, pass after pass (test.py, line 182).

    Listed is what shows enough of one of the classes (util/dataset.py, lines 54 to 69). The class
    is any of those that the image shows, be it by one pixel (lines 157 to 174); the supports
    are distinct images that show enough of it (lines 187 to 199). BAM's util/dataset.py, lines
    57 to 83 and 220 to 266, does the same.
    """
    lists = shown_by_class(labels, classes, area)
    listed = sorted({image for shown in lists.values() for image in shown})
    anywhere = shown_by_class(labels, classes)
    drawn = []
    for number in range(episodes):
        query = listed[number % len(listed)]
        class_id = int(rng.choice([c for c in classes if query in anywhere[c]]))
        supports = []
        while len(supports) < shots:
            (candidate,) = another(rng, lists[class_id], query, 1)
            if candidate not in supports:
                supports.append(candidate)
        drawn.append(Drawn((class_id,), (tuple(supports),), query, class_id))
    return drawn


def pfenet_shape(height, width, size):
    """An image's height and width in the square: the longer side is brought to `size`, then
    both lose what is no multiple of 8 (`Resize`, util/transform.py, lines 83 to 101)."""
    if height >= width:
        new = size, int(width * (size / height))
    else:
        new = int(height * (size / width)), size
    return tuple(side - side % 8 for side in new)


def pfenet_target(label, class_id):
    """The original label in the corner of a square of its longer side, the rest 255 (test.py, lines
    196 to 200); other classes are background (util/dataset.py, lines 176 to 181)."""
    height, width = label.shape
    target = np.full((max(label.shape),) * 2, 255, np.uint8)
    target[:height, :width] = np.where(label == 255, 255, label == class_id)
    return target


def areas(prediction, target):
    """Intersections and unions of background and foreground, in pixels that are not 255.

    PFENet's util/util.py, lines 67 to 79, BAM's lines 84 to 96, HSNet's common/evaluation.py, lines
    15 to 37: predictions become 255 where the label is, and are in neither bin then. CANet's
    utils.py, lines 119 to 121, has the foreground's alone.
    """
    prediction = np.where(target == 255, 255, prediction)
    inter = np.array([((prediction == target) & (prediction == n)).sum() for n in (0, 1)])
    sizes = [np.array([(x == n).sum() for n in (0, 1)]) for x in (prediction, target)]
    return inter, sizes[0] + sizes[1] - inter


def figures(counted, drawn):
    """mean-IoU and FB-IoU in percent, from `areas`; PFENet's test.py, lines 212 to 246, BAM's
    test.py, lines 260 to 327, HSNet's common/logger.py, lines 29 to 45, and CANet's train.py, lines
    243 to 253, which has the mean alone.

    Areas are summed by class; FB-IoU sums background and foreground over all episodes. (PFENet's
    class meter is shifted by one place, `subcls - 1`, which no mean sees; PFENet and BAM add 1e-10
    to unions, HSNet raises those of 0 to 1.)
    """
    totals = {episode.asked: np.zeros((2, 2)) for episode in drawn}
    for pair, episode in zip(counted, drawn, strict=True):
        totals[episode.asked] += pair
    mean = np.mean([inter[1] / union[1] for inter, union in totals.values()])
    inter, union = sum(totals.values())
    return {"mean_iou": 100 * mean, "binary_iou": 100 * np.mean(inter / union)}


# ----------------------------------------------------------------------------- HSNet


def hsnet_draw(labels, classes, rng, episodes, shots=1, area=AREA):
    """PASCAL-5i: the items of a fold's list in its order, again from the start as often as need be
    (data/pascal.py, lines 30 and 33); supports are other images of the class, an image
    may come twice among them (lines 99 to 103)."""
    lists = shown_by_class(labels, classes, area)
    items = [(query, c) for query in range(len(labels)) for c in classes if query in lists[c]]
    drawn = []
    for number in range(episodes):
        query, class_id = items[number % len(items)]
        supports = another(rng, lists[class_id], query, shots)
        drawn.append(Drawn((class_id,), (supports,), query, class_id))
    return drawn


def hsnet_fss_draw(labels, classes, rng, shots=1):
    """FSS-1000: every image of every test class once (data/fss.py, lines 32 and 82 to 94)."""
    return hsnet_draw(labels, classes, rng, len(labels), shots, area=1)


def hsnet_coco_draw(labels, classes, rng, episodes, shots=1, area=AREA):
    """COCO-20i: a class and an image of it at random, whatever the number of the episode
    (data/coco.py, lines 33 and 84 to 99)."""
    lists = shown_by_class(labels, classes, area)
    drawn = []
    for _ in range(episodes):
        class_id = int(rng.choice(list(classes)))
        query = int(rng.choice(lists[class_id]))
        supports = another(rng, lists[class_id], query, shots)
        drawn.append(Drawn((class_id,), (supports,), query, class_id))
    return drawn


def hsnet_target(label, class_id):
    """A label at the network's size in two numbers and 255 (data/pascal.py, lines 70 to 75)."""
    return np.where(label == 255, 255, label == class_id)


# ----------------------------------------------------------------------------- folds


def coco_split_a(fold):
    """20 classes in a row (PANet's util/utils.py, lines 23 to 29)."""
    return tuple(range(20 * fold + 1, 20 * fold + 21))


def coco_split_b(fold):
    """Every fourth class (PFENet's util/dataset.py, lines 104 to 115, under the configurations'
    `use_split_coco`; HSNet's data/coco.py, line 62; BAM's as PFENet's)."""
    return tuple(fold + 1 + 4 * number for number in range(20))
