"""A model that is given supports and then segments images."""

import functools
import logging
import math
import os
import pathlib
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax.devices import put, replicated
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method
from fsseg_jax.prediction import sharing
from fsseg_jax.prediction.calibration import CrossValidation
from fsseg_jax.prediction.fitted import Fitted, Shown, as_shown
from fsseg_jax.prediction.fitting import again, fitted_to
from fsseg_jax.prediction.forward import Segmented, forward
from fsseg_jax.prediction.leaving_out import validation, views_as, views_of
from fsseg_jax.prediction.pictures import is_image, overlaid
from fsseg_jax.prediction.programs import Programs
from fsseg_jax.prediction.result import Result, at_own_size
from fsseg_jax.prediction.scores import Scores, compare
from fsseg_jax.prediction.stream import check_images, in_batches, mapped, of_views, read_query
from fsseg_jax.prediction.supports import as_list, class_names, read_supports

BATCH = 2**28  # bytes of the squares of the largest batch

logger = logging.getLogger(__name__)


class Segmenter:
    """A model with its variables: `fit` gives it supports, and `predict` segments images.

    Threads may share one: each call of `predict` or `stream` uses the supports of the last `fit`
    before it.

    Attributes:
        config: the model's configuration; `image_size` and `eval.fit` say how images become
            squares, and `eval.scales`, `predict.flip` and `eval.crf` what is averaged and refined.
        model: the method.
        variables: the model's variables, on the devices.
        forward: the jitted function `forward` of this model: support images, support labels and
            query images to logits.
        fitted: what `fit` has made of the supports; None before.
        trained: whether the model was trained for segmentation; None if that is not known.

    A segmenter can be pickled and copied with its supports; it then uses as many devices as before,
    or all that there are.

    Examples:
        >>> from fsseg_jax import load
        >>> segmenter = load("quickstart", image_size=32, devices=1)
        >>> images = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
        >>> segmenter = segmenter.fit(images[0], boxes=(10, 10, 40, 40))
        >>> segmenter.predict(images[1]).shape
        (60, 80)
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Method,
        variables: Any,
        mesh: Mesh,
        trained: bool | None = None,
    ) -> None:
        # Freezing is for training: `forward` can be differentiated with respect to all parameters.
        self.config, self.model = config, model.clone(freeze_backbone=False)
        self.mesh, self.trained = mesh, trained
        self.variables = put(variables, replicated(mesh))
        self.forward = jax.tree_util.Partial(functools.partial(forward, self.model), self.variables)
        self.fitted: Fitted | None = None
        self._programs = Programs(self.model, mesh, config.image_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of `fit`, in the order of their numbers; none before."""
        return self.fitted.shown.classes if self.fitted else ()

    def __repr__(self) -> str:
        config = self.config
        size = f"{config.image_size} x {config.image_size} pixels"
        words = f"{config.method} on {config.backbone}, {size}"
        words += ", untrained" if self.trained is False else ""
        if self.fitted is None:
            return f"<Segmenter: {words}; call fit>"
        count = len(self.fitted.shown.images)
        supports = f"{count} support{'s' * (count > 1)} of {', '.join(self.classes)}"
        return f"<Segmenter: {words}; {supports}>"

    def __copy__(self) -> "Segmenter":
        """One with supports of its own later, that shares what is compiled and on the devices."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        devices = 0 if self.mesh.size == jax.local_device_count() else self.mesh.size
        variables, fitted = jax.device_get((self.variables, self.fitted))
        config = self.config.to_dict()
        return again, (type(self), config, self.model, variables, devices, self.trained, fitted)

    def fit(
        self,
        images: Any,
        masks: Any = None,
        boxes: Any = None,
        classes: Sequence[str] = (),
        scribbles: Any = None,
        points: Any = None,
    ) -> "Segmenter":
        """Encodes and summarises supports, which replace those of the previous call.

        An image is a support of every class that it shows. Classes with fewer supports than others
        repeat theirs. An image whose mask is black shows none, and is an example of such images
        (`calibration.presence`); at most ten of these are used (`fitted.MOST`).

        Args:
            images: paths, PIL images, or uint8 arrays of (height, width, 3). A single image and its
                mask or boxes need not be in lists.
            masks: one per image, of the same size: see `data.masks`. Numbers are classes, so that
                an image can show several.
            boxes: instead of masks: for each image the box, or the boxes, around the class, as
                (left, top, right, bottom) in pixels.
            classes: names of the classes 1, 2 ...; by default their numbers.
            scribbles: instead of masks: for each image a picture of its size in which strokes are
                drawn: black on the background, any other colour on the class, transparent
                elsewhere; or an array of class numbers, 0 for the background, 254 elsewhere.
            points: instead of masks: for each image the point, or the points, on the class, as
                (x, y) in pixels, or (x, y, n) on the class n, which is 0 for the background.
                Without scribbles or points on the background, the border of the images is taken
                for it (`marks.with_background`).

        Returns:
            the segmenter itself.

        Raises:
            UserError: there are no images, none shows a class, a mask is missing or of another size
                than its image, or the model does not support so many classes.

        Examples:
            >>> mask = np.zeros((60, 80), np.uint8)
            >>> mask[10:40, 10:40] = 1
            >>> segmenter.fit(images[0], mask, classes=["mug"]).classes
            ('mug',)
        """
        supports, numbers = read_supports(images, masks, boxes, scribbles, points)
        kinds = {"masks": masks, "boxes": boxes, "scribbles": scribbles, "points": points}
        name = next(kind for kind, given in kinds.items() if given is not None)
        names = class_names(classes, numbers, name)
        return self.fit_shown(as_shown(supports, names, self.config, numbers, name))

    def fit_shown(self, shown: Shown) -> "Segmenter":
        """`fit`, from squares of the network's size.

        Raises:
            UserError: a class is shown by none of them, or there are too many for the model.
        """
        given = self.model, self._programs, self.variables, self.mesh
        self.fitted = fitted_to(shown, *given, self.config.predict.threshold)
        return self

    def cross_validate(self) -> CrossValidation:
        """How good predictions are, as far as supports tell: each is predicted from the others, or
        a single one's mirror image and crops from itself, which is an upper bound.

        Raises:
            UserError: `fit` has not been called.

        Examples:
            >>> print(segmenter.cross_validate())  # doctest: +ELLIPSIS
            mean IoU ... of mirror images and crops of the supports, ...
        """
        fitted = self._fitted()
        if fitted.validation is not None:
            return fitted.validation
        views = views_of(fitted.shown)
        batches = [self._segment(fitted, x[None], self.mesh.size) for x in views.images]
        seen = views_as(fitted.shown, views, batches, self.model.align_corners)
        found = validation(seen, fitted.calibration, of_views=True)
        assert found is not None  # there are views
        logger.info("cross-validation: %s", found)
        return found

    def _fitted(self) -> Fitted:
        if self.fitted is None:
            raise UserError("predict: call fit first, with images that show the class.")
        return self.fitted

    def predict(self, images: Any, return_probabilities: bool = False, batch_size: int = 8) -> Any:
        """Segments images; each result has the size of its image.

        Args:
            images: one image, or a list or another iterable of them (which `stream` takes one by
                one): paths, PIL images or uint8 arrays.
            return_probabilities: whether to return probabilities too.
            batch_size: number of images that are segmented at once, over all devices; the largest
                has 256 MiB of squares, and results do not depend on it.

        Returns:
            a mask, uint8 of (height, width): 0 for the background, n for class n. With
            `return_probabilities`, a pair of the mask and float32 probabilities of (height, width,
            class), the background first. A list of these for an iterable of images.

        Raises:
            UserError: `fit` has not been called, or an image cannot be read.

        Examples:
            >>> mask, probabilities = segmenter.predict(images[1], return_probabilities=True)
            >>> mask.shape, probabilities.shape
            ((60, 80), (60, 80, 2))
        """
        single = is_image(images)
        stream = self.stream([images] if single else images, return_probabilities, batch_size)
        results = list(stream)
        return results[0] if single else results

    def stream(
        self,
        images: Iterable[Any],
        return_probabilities: bool = False,
        batch_size: int = 8,
        skip_errors: bool = False,
        return_scores: bool = False,
    ) -> Iterator[Any]:
        """Like `predict`, but yields one result after another, while the next images are read.

        Memory is bounded: at most three batches of images are taken before their first result.

        Args:
            images: an iterable of images, which is consumed in the thread that takes the results.
            return_probabilities, batch_size: see `predict`.
            skip_errors: whether an image that cannot be read yields its UserError as the result
                instead of raising it.
            return_scores: whether to return, after the mask and the probabilities if there are any,
                the mean probability of each class where the mask has it, for less memory.

        Raises:
            UserError: `fit` has not been called, or, later, an image cannot be read.

        Examples:
            >>> for mask, scores in segmenter.stream(iter(images), return_scores=True):
            ...     print(mask.shape, scores.shape)
            (60, 80) (2,)
            (60, 80) (2,)
        """
        probabilities, scores = bool(return_probabilities), bool(return_scores)

        def asked_for(result: Result) -> Any:
            more = [result.probabilities] * probabilities + [result.scores] * scores
            return (result.mask, *more) if more else result.mask

        results = self.results(images, probabilities, batch_size)
        return mapped(asked_for, results, raise_errors=not skip_errors)

    def results(
        self, images: Iterable[Any], return_probabilities: bool = False, batch_size: int = 8
    ) -> Generator[Result | UserError]:
        """Like `stream`, but yields all that is known of each image, or the error of reading it.

        Args:
            images, return_probabilities, batch_size: see `stream`.

        Raises:
            UserError: `fit` has not been called, or `images` are none.

        Examples:
            >>> all(0 <= result.confidence <= 1 for result in segmenter.results(iter(images)))
            True
        """
        fitted = self._fitted()
        check_images(images, batch_size)
        config, align_corners = self.config, self.model.align_corners
        classes = len(fitted.labels) + 1
        most = max(8, BATCH // (3 * config.image_size**2))
        return in_batches(
            images,
            read=lambda number, image: read_query(number, image, config, self.model.patch),
            compute=lambda queries, room: of_views(
                queries, config.predict.flip, lambda x: self._segment(fitted, x, room)
            ),
            finish=lambda views, query: at_own_size(
                [view.logits for view in views],
                *(query.shape, config, align_corners, return_probabilities, query.small),
                calibration=fitted.calibration,
                sides=[len(view) for view in query.views],
                likenesses=[view.likeness for view in views],
            ),
            result_bytes=lambda shape: math.prod(shape) * (1 + 4 * classes * return_probabilities),
            batch_size=-(-min(batch_size, most) // self.mesh.size) * self.mesh.size,
            least=self.mesh.size,
        )

    def score(self, images: Any, masks: Any) -> float:
        """The mean IoU of the predicted masks and true ones, in percent; see `compare`.

        Examples:
            >>> 0 <= segmenter.score(images[1], np.eye(60, 80, dtype=np.uint8)) <= 100
            True
        """
        return self.compare(images, masks).mean_iou

    def compare(self, images: Any, masks: Any) -> Scores:
        """Segments images and compares the results with true masks.

        Args:
            images: see `predict`.
            masks: one for each image, as in `fit`; 255 is not counted.

        Returns:
            the mean IoU, that of each class and that of each image, in percent.

        Raises:
            UserError: `fit` has not been called, an image or a mask cannot be read, or they do not
                fit each other.

        Examples:
            >>> scores = segmenter.compare([images[1]], [np.eye(60, 80, dtype=np.uint8)])
            >>> list(scores.per_class), len(scores.per_image)
            (['mug'], 1)
        """
        if is_image(images):
            images, masks = [images], [masks]
        results = self.stream(images)  # which says what is wrong with the images, or the supports
        assert self.fitted is not None
        masks, shown = as_list(masks, "masks"), self.fitted.shown
        return compare(results, masks, shown.classes, shown.numbers)

    @staticmethod
    def overlay(image: Any, mask: UInt8[np.ndarray, "height width"]) -> Image.Image:
        """A picture of a mask over its image: each class in a colour of its own, with its outline.

        Args:
            image: a path, a PIL image or a uint8 array.
            mask: what `predict` has given for it: 0 for the background, n for class n.

        Raises:
            UserError: the image cannot be read, or the mask is none, or of another size.

        Examples:
            >>> segmenter.overlay(images[1], segmenter.predict(images[1])).size
            (80, 60)
        """
        return overlaid(image, mask)

    def save_pretrained(self, folder: str | os.PathLike, supports: bool = True) -> None:
        """Writes the model to a folder that `load` reads: `config.json`, safetensors and a card.

        Args:
            folder: made if it does not exist; a model in it is replaced.
            supports: whether to write the supports of `fit` too, so that the loaded model is
                ready: their images as squares of the network's size, and their labels.

        Raises:
            UserError: the folder cannot be written to.

        Examples:
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     segmenter.save_pretrained(folder)
            ...     load(folder, devices=1).predict(images[1]).shape
            (60, 80)
        """
        path = sharing.check_name(folder, "folder", "where to write the model")
        name = pathlib.Path(os.path.expanduser(path)).resolve().name
        self._save(folder, name, supports)

    def push_to_hub(self, repository: str, private: bool = False, supports: bool = False) -> str:
        """Uploads the model to the Hugging Face hub as `owner/name`, and returns its address.

        Args:
            private: whether others cannot see it.
            supports: see `save_pretrained`; they are images, so that only you know whether others
                may have them.

        Raises:
            UserError: nobody is logged in, the name is not allowed, or there is no network.
        """
        sharing.check_name(repository, "repository", "owner/name on the hub")
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, repository, supports)
            return sharing.upload(folder, repository, private)

    def _segment(
        self, fitted: Fitted, pixels: UInt8[np.ndarray, "query side side 3"], room: int
    ) -> Segmented:
        given = self.variables, fitted.summary, fitted.labels
        return self._programs.segment_at_once(*given, pixels, room)

    def _save(self, folder: str | os.PathLike, name: str, supports: bool) -> None:
        shown = self.fitted.shown if supports and self.fitted else None
        sharing.save(folder, self.config, self.variables, name, trained=self.trained, shown=shown)
