"""All fields of the configuration except those of `model`, which depend on the method."""

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from fsseg_jax.data import annotations
from fsseg_jax.models import default_options
from fsseg_jax.models.option import Field

# How queries are drawn.
SAMPLING = ("classes", "items", "photographs")
BORDER = ("ignored", "background")

FIELDS: dict[str, Field] = {
    # ------------------------------------------------------------------ the model and its input
    "backbone": Field(
        "vgg16",
        "The backbone: vgg16; resnet50, which takes torchvision's and timm's weights; "
        "resnet50_caffe, which takes the original ones, with the stride of a layer on its first "
        "1 x 1 convolution; resnet101; Vision Transformers, whose stages are their blocks, with or "
        "without registers: dinov2_s, _b, _l and _g, dinov2_s_reg and so on; and dinov3_s, "
        "_s_plus, _b, _l and _h_plus; or small, a narrow encoder for training from scratch.",
    ),
    "backbone_statistics": Field(
        "stored",
        "What the backbone's batch normalisation uses in training: the stored statistics, as "
        "HSNet's published code does, or those of the batch, as CANet's and PFENet's do even if "
        "the backbone is frozen.",
        choices=("stored", "batch"),
    ),
    "init": Field(
        "",
        "Pretrained weights of the backbone: a .safetensors, .npz or .pth file, or a repository on "
        "the Hugging Face hub; empty for random weights. Files of Vision Transformers may be "
        "timm's, transformers' or Meta's.",
    ),
    "dtype": Field(
        "float32",
        "The dtype of the computation; parameters, losses and metrics are float32.",
        choices=("float32", "bfloat16"),
    ),
    "rematerialise": Field(
        False,
        "Compute activations again in the backward pass instead of keeping them: less memory, "
        "about a third more time.",
    ),
    "ways": Field(1, "Classes of an episode.", least=1, most=254),
    "shots": Field(1, "Support images of each class.", least=1),
    "support_annotation": Field(
        "dense",
        "Annotation of the class in supports, in training and evaluation: a dense mask, the box "
        "of one random object (PANet sec. 4.4), the largest_box (PANet's published code), a "
        "scribble along the skeleton of the class and one in the background, one_scribble in a "
        "class (PANet's published code, with annotation_width = 1), or a point inside.",
        choices=annotations.KINDS,
    ),
    "annotation_width": Field(
        5, "Width of scribbles and points, in pixels of the network's input.", least=1, most=1000
    ),
    "image_size": Field(
        417,
        "Side of the squares that images are resized to; networks that divide it by 32 need 32.",
        least=32,
        most=8192,
    ),
    "seed": Field(
        0, "Seed of the parameters, the training episodes and their augmentation.", most=2**32 - 1
    ),
    # ------------------------------------------------------------------ the machine
    "platform": Field("", "cpu, gpu or tpu; empty for the best one that JAX finds."),
    "devices": Field(0, "Number of devices to use; 0 for all.", least=0),
    "distributed": Field(
        False, "Run as one of several processes, which the scripts in launch/ start."
    ),
    "compilation_cache": Field(
        True,
        "Keep compiled programs in the user's cache folder for the next run, or in "
        "JAX_COMPILATION_CACHE_DIR where that is set.",
    ),
    # ------------------------------------------------------------------ data
    "data.name": Field("voc", "The data set: voc, coco, fss1000, folder, tfds or shapes."),
    "data.root": Field("", "The folder of the data set; shapes needs none."),
    "data.fold": Field(
        0, "The fold, that is, which classes are held out from training, for the test."
    ),
    "data.folds": Field(
        4,
        "Number of folds into which the classes of a folder or of a TFDS data set are dealt, in "
        "their order. 1 holds all of them out, for testing. 0 holds out none, to train on all of "
        "one's own classes: training and test then differ by their images, which are those of the "
        "splits or, without splits, a fifth of each class for the test.",
        least=0,
    ),
    "data.coco.folds": Field(
        "a",
        "COCO's folds: fold i holds out categories 20 i + 1 to 20 i + 20 (a: PANet, MFNet) or "
        "i + 1, i + 5, ... (b: FWB, HSNet); canet has 40 categories for training, 20 for "
        "selection and 20 for the test.",
        choices=("a", "b", "canet"),
    ),
    "data.coco.masks": Field(
        "label",
        "COCO's masks: one label an image, the smaller object on the larger and crowds ignored; "
        "or a mask for each category alone, to which overlaps and crowds belong (PANet's "
        "published code).",
        choices=("label", "category"),
    ),
    "data.tfds.name": Field(
        "",
        "With data.name = tfds: a data set prepared as ArrayRecord; data.root is its data_dir.",
    ),
    "data.tfds.image": Field("image", "Name of the feature that holds images."),
    "data.tfds.label": Field("segmentation", "Name of the feature that holds class ids."),
    "data.tfds.instances": Field(
        "", "Name of the feature that holds numbers of objects, if there is one."
    ),
    "data.tfds.allow_code": Field(
        False,
        "Let TFDS import the modules of features that are not its own, which a data set names and "
        "which run as code: only for data that you trust.",
    ),
    "data.pipeline": Field(
        "auto",
        "Where training batches are made: by tfdata on the host, for data sets of any size, or on "
        "the device, which holds all images and needs no work from the host. auto is tfdata where "
        "TensorFlow is installed, and device otherwise; both make the same episodes.",
        choices=("auto", "tfdata", "device"),
    ),
    "data.device.size": Field(
        0,
        "Side of the squares that the device pipeline holds; 0 for image_size. A larger one keeps "
        "detail that data.augment.scale can enlarge.",
        least=0,
        most=8192,
    ),
    "data.device.sharded": Field(False, "Each device holds a part of the images instead of all."),
    "data.device.cache": Field(True, "Keep decoded images in the user's cache folder."),
    "data.train_split": Field(
        "",
        "Split of training; empty for the data set's own (voc: trainaug if it is there, "
        "otherwise train).",
    ),
    "data.split": Field(
        "", "Split of tests and selection; empty for the data set's own (voc: val)."
    ),
    "data.train_min_pixels": Field(
        2048,
        "An image is an item of a class that covers this many of its pixels, at its own size, in "
        "training. 2 x 32 x 32 is PFENet's rule; lower it where training images are stored "
        "smaller.",
        least=0,
    ),
    "data.min_pixels": Field(2048, "The same in tests and selection.", least=0),
    "data.held_out_photographs": Field(
        "keep",
        "Training images that show held-out classes: keep them, with those classes as background "
        "(PANet's published code and most others), or drop them.",
        choices=("keep", "drop"),
    ),
    "data.sampling": Field(
        "classes",
        "How training draws queries: a class and then an image of it (classes: PANet's published "
        "code, which trains all classes alike); all items, pairs of class and image, in turn, in "
        "a new random order each time (items: CANet's code; an epoch of SST, LTAF-Net and MFNet "
        "is one pass over them too); or all images in turn, with one of their classes "
        "(photographs: PFENet's code).",
        choices=SAMPLING,
    ),
    "data.border": Field(
        "ignored",
        "What the label 255 of training images counts as (the border of objects on VOC, crowds "
        "on COCO): ignored, as in PANet's code, or background, as in CANet's. Pixels outside of "
        "an image after augmentation are always ignored.",
        choices=BORDER,
    ),
    "data.augment.flip": Field(True, "Flip horizontally, half the time (PANet sec. 4.1)."),
    "data.augment.scale": Field(
        (1.0, 1.0),
        "Resize to a random multiple of image_size in this range, and crop.",
        above=0,
        most=10,
    ),
    "data.augment.rotation": Field(
        0.0, "Rotate by up to this many degrees in either direction.", least=0, most=180
    ),
    "data.augment.query": Field(True, "Augment queries too, not only supports."),
    "data.augment.crop_query": Field(
        True,
        "False: do not scale queries, so that no crop removes the object.",
    ),
    "data.shapes.train": Field(
        2000, "With data.name = shapes: number of training images.", least=1, most=10**6
    ),
    "data.shapes.val": Field(600, "Number of validation images.", least=1, most=10**6),
    "data.shapes.pixels": Field(96, "Side of an image.", least=16, most=8192),
    # ------------------------------------------------------------------ training
    "train.steps": Field(30_000, "Number of steps (PANet sec. 4.1); 0 if epochs is set.", least=0),
    "train.epochs": Field(
        0,
        "Instead of steps: passes over the items of the base classes, one episode per item (or, "
        "with data.sampling = photographs, over their images, one episode per image).",
        least=0,
        most=10**6,
    ),
    "train.batch_size": Field(1, "Episodes per step, over all devices.", least=1),
    "train.accumulate": Field(
        1,
        "Compute a batch in this many parts, one after another, and accumulate their gradients: "
        "the memory of one part for the same step (except for batch statistics, which are per "
        "part).",
        least=1,
    ),
    "train.steps_per_dispatch": Field(
        1,
        "Steps per call of the compiled function. More of them keep a fast accelerator from "
        "waiting for the host between steps; CPUs gain nothing, and compile each of them. Stopping "
        "waits for the calls in flight, at most two; tfdata puts all their batches on the device.",
        least=1,
    ),
    "train.learning_rate": Field(1e-3, "The learning rate (PANet sec. 4.1).", least=0),
    "train.new_layers_rate": Field(
        1.0, "Multiplies the learning rate of all parameters but the backbone's.", least=0
    ),
    "train.schedule": Field(
        "step", "How the learning rate decays.", choices=("step", "poly", "constant")
    ),
    "train.decay_every": Field(10_000, "Step schedule: steps between decays.", least=1),
    "train.decay_factor": Field(0.1, "Step schedule: the factor of each decay.", least=0),
    "train.poly_power": Field(0.9, "Poly schedule: the exponent.", least=0),
    "train.warmup": Field(0, "Steps of linear warm-up from 0.", least=0),
    "train.momentum": Field(0.9, "Momentum of SGD.", least=0, below=1),
    "train.weight_decay": Field(
        5e-4, "Weight decay, added to the gradient as in PyTorch.", least=0
    ),
    "train.log_every": Field(
        50, "Steps between summaries, at which losses are checked too.", least=1
    ),
    "train.save_every": Field(1000, "Steps between checkpoints.", least=1),
    "train.eval_every": Field(
        1000, "Steps between evaluations that select the best checkpoint.", least=1
    ),
    "train.eval_episodes": Field(500, "Episodes of each of these evaluations.", least=1),
    "train.eval_pictures": Field(
        4, "Of these, how many are drawn for TensorBoard with their predictions.", least=0
    ),
    "train.select_on": Field(
        "base",
        "Classes that select the best checkpoint: base (validation images of training classes), "
        "those that the data set keeps for validation (fss1000; coco with folds = canet), or "
        "novel, as published code does, which leaks the test into training. base+novel keeps the "
        "best checkpoint by either, so that both figures can be reported; best means the first.",
        choices=("base", "validation", "novel", "base+novel", "validation+novel"),
    ),
    "train.if_data_changed": Field(
        "error",
        "What to do if a run is continued and names, sizes or masks of its images are no longer "
        "those of its checkpoint: stop with an error, because the run would be of neither, or "
        "continue with the new ones.",
        choices=("error", "continue"),
    ),
    "train.test_before_and_after": Field(
        False, "Also evaluate on the held-out classes before the first step and after the last."
    ),
    # ------------------------------------------------------------------ evaluation
    "eval.protocol": Field(
        "",
        "A published protocol (panet, canet, pfenet, hsnet, bam or mfnet): sets the fields that "
        "fsseg_jax/config/presets.py lists; other overrides take precedence.",
    ),
    "eval.setup": Field(
        "one_of_ways",
        "one_of_ways: a query shows at least one class of its episode; metaseg: all images of an "
        "episode show person and one other held-out class (MFNet sec. IV-B).",
        choices=("one_of_ways", "metaseg"),
    ),
    "eval.sampling": Field(
        "classes",
        "How queries are drawn, see data.sampling. PANet's code takes classes, CANet's and "
        "HSNet's items, which weights classes by how often they occur, PFENet's photographs.",
        choices=SAMPLING,
    ),
    "eval.scored_at": Field(
        "network",
        "Compare masks at the size of the network's input, as PANet's and HSNet's codes do, or at "
        "that of each image, as CANet's and PFENet's do.",
        choices=("network", "photograph"),
    ),
    "eval.fit": Field(
        "stretch",
        "How images become squares of image_size: stretched; or letterboxed, the longer side at "
        "image_size, both sides multiples of 8, the rest black and ignored (PFENet). own leaves "
        "queries at their own size and stretches only supports (CANet's best figure).",
        choices=("stretch", "letterbox", "own"),
    ),
    "eval.buckets": Field(
        4,
        "With eval.fit = own, images of similar sizes share a compiled function, in this many "
        "groups: fewer take longer to run, more take longer to compile; figures do not change.",
        least=1,
    ),
    "eval.scales": Field(
        (1.0,),
        "Segment the query at these multiples of its size, and average the predicted "
        "probabilities (CANet).",
    ),
    "eval.border": Field(
        "ignored",
        "What the label 255 of queries (the border of objects on VOC) counts as: ignored or, as "
        "in CANet's published code, background. Results report both, this one first.",
        choices=BORDER,
    ),
    "eval.threshold": Field(
        "",
        "Also report figures at the threshold that is best on validation images of base classes "
        "(or of validation classes), which shows how much of a difference is due to calibration.",
        choices=("", "base", "validation"),
    ),
    "eval.crf.iterations": Field(
        0,
        "Iterations of DenseCRF on every prediction (CANet table 4), which needs the extra crf; 0 "
        "for none. CANet gives no settings: the following are those of the library's example.",
        least=0,
    ),
    "eval.crf.smooth": Field(
        (3.0, 3.0), "Smoothness kernel: range in pixels, and weight.", least=0
    ),
    "eval.crf.colour": Field(
        (80.0, 13.0, 10.0),
        "Colour kernel: range in pixels, range in grey levels, and weight.",
        least=0,
    ),
    "eval.checkpoint": Field(
        "best",
        "The checkpoint: last, best, or, of a run that keeps several best ones, best_base, "
        "best_validation or best_novel; if a run has no such checkpoint, the closest one is used "
        "and reported.",
        choices=("best", "last", "best_base", "best_validation", "best_novel"),
    ),
    "eval.runs": Field(5, "Runs with different seeds (PANet sec. 4.1).", least=1),
    "eval.episodes": Field(1000, "Episodes per run.", least=1),
    "eval.seed": Field(0, "Seed of the first run; later runs count up from it.", most=2**32 - 1),
    "eval.episodes_file": Field("", "Score this list of episodes instead, as one run."),
    "eval.batch_size": Field(
        8, "Episodes scored at a time; changes memory and speed, not the score.", least=1
    ),
    "eval.together": Field(
        1,
        "Images and episodes that a device computes as one batch. More are faster on accelerators, "
        "but results may differ in the last digits.",
        least=1,
    ),
    "eval.feature_dtype": Field(
        "float16",
        "The dtype in which encoded images are stored.",
        choices=("float16", "bfloat16", "float32"),
    ),
    "eval.cache": Field(
        8.0,
        "GiB of encoded images that each device holds at a time. If all of them need more, "
        "episodes are scored in parts, class by class; images that parts share are kept in a "
        "temporary file.",
        above=0,
    ),
    "eval.gallery": Field(4, "Best, median and worst episodes in the report.", least=0),
    # ------------------------------------------------------------------ prediction
    "predict.threshold": Field(
        0.0,
        "Probability from which a pixel is of a class rather than of the background, and no image "
        "is taken for one without the class; 0 finds both out by predicting each support from the "
        "others.",
        least=0,
        below=1,
    ),
    "predict.flip": Field(
        False,
        "Segment the mirror image too, and average the probabilities, for twice the time; of "
        "predictions alone, as no paper's evaluation does so. eval.scales and eval.crf concern "
        "predictions as well.",
    ),
}


def default_config(method: str = "panet") -> ConfigDict:
    """All fields with their defaults, which the files in `configs/` change.

    Args:
        method: see `models.METHODS`.

    Raises:
        UserError: there is no such method.

    Examples:
        >>> default_config("canet").model.refinements
        4
    """
    fields = unflatten_dict({name: field.default for name, field in FIELDS.items()}, sep=".")
    config = ConfigDict({"method": method, "model": default_options(method), **fields})
    return config.lock()  # a config file that sets an unknown field fails
