"""The HTML page of an evaluation: scores, protocol and a gallery of episodes.

The page is a single file: images are embedded, the style is inline, there is no script, and a
content security policy stops browsers from fetching anything. A template engine would be one more
dependency for a page of one template and few loops.
"""

import base64
import dataclasses
import html
import io
import json
import os
import pathlib
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.evaluation.protocol import NOTHING
from fsseg_jax.files import write_text
from fsseg_jax.models import default_options

# Colours of the ways, used cyclically: rare in photographs, and distinct for the colour-blind.
WAY_COLOURS = (
    *((255, 40, 130), (0, 200, 255), (255, 210, 0), (125, 85, 255), (60, 220, 110)),
    *((255, 125, 20), (20, 90, 255), (160, 80, 30), (240, 240, 240)),
)
LONG_SIDE = 200  # pixels of an embedded image: twelve five-shot examples stay below 2 MB
SCORES = {
    "mean_iou": "mean-IoU",
    "mean_iou_star": "mIoU*",
    "binary_iou": "binary-IoU",
    "binary_iou_shown": "binary-IoU of shown classes",
    "binary_iou_merged": "binary-IoU of merged classes",
}


@dataclasses.dataclass(frozen=True)
class Example:
    """An episode of the gallery, at the network's size.

    Labels are in episode numbering: 0 background, n + 1 the class of way n, 255 ignored, 254 not
    labelled.
    """

    title: str  # why this episode is shown
    iou: float  # percent
    classes: tuple[str, ...]  # names of the ways
    support_ids: tuple[tuple[str, ...], ...]  # names of the images, by way and shot
    query_id: str
    support_image: UInt8[np.ndarray, "way shot height width 3"]
    support_label: UInt8[np.ndarray, "way shot height width"]
    query_image: UInt8[np.ndarray, "height width 3"]
    query_label: UInt8[np.ndarray, "height width"]
    prediction: UInt8[np.ndarray, "height width"]


def overlay(
    image: UInt8[np.ndarray, "height width 3"], label: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a label in episode numbering over its image.

    A way is tinted in its colour of `WAY_COLOURS` and outlined on its inner side, ignored pixels
    are hatched in grey, and the background is unchanged. If some pixels are not labelled, those are
    unchanged, and the background is darkened.

    Examples:
        >>> image, label = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
        >>> label[10:30, 20:50] = 1
        >>> picture = overlay(image, label)
        >>> picture.shape, picture[0, 0].tolist(), (picture[20, 30] > 0).any().item()
        ((40, 60, 3), [0, 0, 0], True)
    """
    partial = bool((label == UNLABELLED).any())
    line = max(1, round(max(label.shape) / 110))  # wide enough for the gallery's small images
    filters = ndimage.minimum_filter, ndimage.maximum_filter  # Pillow's take seconds per image
    lowest, highest = (filter_(label, 2 * line + 1, mode="nearest") for filter_ in filters)

    # Only pixels that change are computed, which are usually few.
    changed = np.nonzero((label != UNLABELLED) & (partial | (label != 0)))
    own = label[changed]
    stripes = np.where(np.add(*changed) // (2 * line) % 2, 240, 110)
    colour = np.array(WAY_COLOURS)[(own.astype(int) - 1) % len(WAY_COLOURS)]
    colour = np.where((own == IGNORE)[:, None], stripes[:, None], colour)
    colour[own == 0] = 0
    kinds = [own == 0, own == IGNORE, (lowest != highest)[changed]]
    opacity = np.select(kinds, [0.6, 0.7, 1], 0.4)[:, None]
    result = image.copy()
    result[changed] = np.rint(image[changed] * (1 - opacity) + colour * opacity)
    return result


def write_report(
    path: str | os.PathLike, results: Mapping[str, Any], gallery: Mapping[str, Sequence[Example]]
) -> None:
    """Writes the page, atomically.

    Args:
        path: the HTML file; its folder must exist.
        results: the contents of `results.json`. Scores are in percent, and None for a class that
            no episode shows; `episodes` is the number in one run; `measured` are named figures that
            the method defines.
        gallery: examples by heading, in display order.
    """
    names = dict(SCORES)
    if results["ways"] == 1:  # the definitions of each score agree
        names = {key: names[key] for key in ("mean_iou", "binary_iou")}
    several = len(results["runs"]) > 1  # a single run has no deviation
    spread = {key: f" ± {_number(results[f'{key}_std'])}" if several else "" for key in names}
    page = string.Template(_PAGE).substitute(
        head=HEAD,
        style=STYLE,
        model=_text(f"{results['method']} · {results['backbone']}"),
        setting=_text(f"{results['ways']}-way {results['shots']}-shot · {classes_of(results)}"),
        scores="".join(
            f"<div><b>{_number(results[key])}</b>{spread[key]}<small>{name}, %</small></div>"
            for key, name in names.items()
        ),
        facts="".join(
            f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in _facts(results)
        ),
        columns="".join(f"<th>{name}" for name in names.values()),
        runs="".join(_row(*cells) for cells in _runs(results, spread)),
        beside=_beside(results, names),
        mean=_number(results["mean_iou"]),
        bars=_bars(results["per_class"]),
        gallery="".join(
            f"<h2>{_text(heading)}</h2>{''.join(map(_example, examples))}"
            for heading, examples in gallery.items()
            if examples
        ),
        protocol="".join(_row(*item) for item in results["protocol"].items()),
    )
    write_text(pathlib.Path(path), page)


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values for the head of the page."""
    minutes, seconds = divmod(round(results["seconds"]), 60)
    yield "Protocol", results["protocol"]["hash"]
    yield "Episode list", results["episodes_hash"]
    yield "Episodes", f"{len(results['runs'])} x {results['episodes']}"
    yield "Weights", results["checkpoint"]
    yield "Time", f"{minutes} min {seconds} s"
    for name, value in changed_options(results).items():
        yield name.replace("_", " "), value
    for name, value in results.get("measured", {}).items():
        yield name.capitalize(), "—" if value is None else f"{value:.3g}"


def _runs(results: Mapping[str, Any], spread: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """The rows of the table of runs, and of their means if there are several."""
    for run in results["runs"]:
        yield run["seed"], *(_number(run[key]) for key in spread), run["episodes_hash"]
    if len(results["runs"]) > 1:
        yield "mean", *(_number(results[key]) + std for key, std in spread.items()), ""


def _bars(per_class: Mapping[str, float | None]) -> str:
    """The bars of the classes, best first."""
    classes = sorted(per_class.items(), key=lambda item: item[1] or 0, reverse=True)
    return "".join(
        f"<li><span>{_text(name)}</span><div><i style='width:{iou or 0:.1f}%'></i></div>"
        f"<b>{_number(iou)}</b></li>"
        for name, iou in classes
    )


def other_figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """The figures of the same predictions under other rules, with a name for each rule.

    They are for each meaning of the border, at another threshold, and of ablations.
    """
    for border, figures in results.get("borders", {}).items():
        yield f"label 255 is {border}", figures
    if at := results.get("thresholded"):
        yield f"at threshold {at['threshold']:.2f}, best on {at['chosen_on']} classes", at
    for name, figures in results.get("without", {}).items():
        yield name, figures
        if at := figures.get("thresholded"):
            yield f"{name}, at threshold {at['threshold']:.2f}", at


def _beside(results: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A card with `other_figures`; empty if there are none."""
    head = "".join(f"<th>{name}" for name in ("", *names.values()))
    body = "".join(
        _row(words, *(_number(figures[key]) for key in names))
        for words, figures in other_figures(results)
    )
    if not body:
        return ""
    return f"<h2>Under other rules</h2><div class=card><table><tr>{head}</tr>{body}</table></div>"


def classes_of(results: Mapping[str, Any]) -> str:
    """Which classes were tested, in a few words."""
    if results["protocol"].get("folds") == NOTHING:
        return NOTHING
    return "listed classes" if results["fold"] is None else f"fold {results['fold']}"


def changed_options(results: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the method that differ from its defaults, from an evaluation's results."""
    defaults = default_options(results["method"])
    return {
        name: value
        for name, value in results["model"].items()
        if json.dumps(value) != json.dumps(defaults.get(name))
    }


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(percent: float | None) -> str:
    return "—" if percent is None or np.isnan(percent) else f"{percent:.1f}"


def _row(*cells: Any) -> str:
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _figure(image: UInt8[np.ndarray, "height width 3"], caption: str, name: str = "") -> str:
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    picture.save(file, "jpeg", quality=80, optimize=True)
    return (
        f"<figure><img src='data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}' "
        f"alt='{_text(caption)} {_text(name)}' width={picture.width} height={picture.height}>"
        f"<figcaption>{_text(caption)} <code>{_text(name)}</code></figcaption></figure>"
    )


def _example(example: Example) -> str:
    ways = []
    supports = zip(example.support_image, example.support_label, example.support_ids, strict=True)
    for way, (name, shots) in enumerate(zip(example.classes, supports, strict=True)):
        figures = [
            _figure(overlay(image, label), "support", image_id)
            for image, label, image_id in zip(*shots, strict=True)
        ]
        chip = f"<i style='background:rgb{WAY_COLOURS[way % len(WAY_COLOURS)]}'></i>"
        ways.append(f"<div><p>{chip}{_text(name)}</p><div class=row>{''.join(figures)}</div></div>")
    size = "large" if sum(map(len, example.support_ids)) <= 2 else "small"
    query = example.query_image
    return (
        f"<article><h3>{_text(example.title)} <b>IoU {_number(example.iou)}</b></h3>"
        f"<div class=episode><div class='ways {size}'>{''.join(ways)}</div><div><p>query</p>"
        f"<div class='row large'>{_figure(query, 'image', example.query_id)}"
        f"{_figure(overlay(query, example.query_label), 'truth (hatched: ignored)')}"
        f"{_figure(overlay(query, example.prediction), 'prediction')}</div></div></div></article>"
    )


STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --text: #1c1d20; --dim: #686c74;
  --line: #e2e2de; --bar: #3b5fdb; --mark: #1c1d20 }
@media (prefers-color-scheme: dark) { :root { --page: #131417; --card: #1c1e23; --text: #e8e9eb;
  --dim: #9ba0a9; --line: #32353c; --bar: #7896ff; --mark: #fff } }
* { box-sizing: border-box; margin: 0; padding: 0 }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1120px; margin: auto; padding: 32px 20px }
h1 { font-size: 22px } h1 span, small, dt, th, p, figcaption { color: var(--dim); font-weight: 400 }
h2 { font-size: 17px; margin: 32px 0 10px } h3 { font-size: 15px } h3 b { margin-left: 10px }
code { font: 12px ui-monospace, monospace } small { display: block; font-size: 13px }
header, article, .card { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 18px 20px; margin-bottom: 14px; overflow-x: auto }
.scores, dl, .episode, .ways, .row { display: flex; flex-wrap: wrap; gap: 10px 36px }
.scores { margin-top: 14px; font-size: 18px } .scores b { font-size: 52px; line-height: 1.1 }
dl { flex: 1 1 22rem; font-size: 15px; gap: 8px 28px }
dt { font-size: 12px } dd { font-weight: 600 } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums } .runs tr:last-child td { border: 0; font-weight: 600 }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 0 14px } .columns section { display: flex; flex-direction: column }
li { display: grid; grid-template-columns: 8.5em 1fr 3em; gap: 10px; align-items: center;
  margin-bottom: 6px }
li span { overflow-wrap: anywhere; line-height: 1.15 }
li div { position: relative; height: 12px; background: var(--line); border-radius: 3px }
li i { display: block; height: 100%; background: var(--bar); border-radius: 3px }
li div::after { content: ""; position: absolute; inset: -3px auto -3px var(--mean); width: 2px;
  background: var(--mark) } li b { text-align: right; font-variant-numeric: tabular-nums }
.episode { gap: 10px 28px; margin-top: 6px } .ways { gap: 10px 20px } .row { gap: 8px }
p { font-size: 13px; margin-bottom: 4px } p i { display: inline-block; width: 11px; height: 11px;
  border-radius: 3px; margin-right: 6px } figure { width: 86px } .large figure
  { width: min(170px, 36vw) } img { display: block; width: 100%; height: auto; border-radius: 6px }
figcaption { font-size: 12px; margin-top: 3px; line-height: 1.35; overflow-wrap: anywhere }
summary { cursor: pointer }
"""
HEAD = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel=icon href="data:,">"""
_PAGE = """$head<title>$model, $setting</title><style>$style</style>
<header><h1>$model <span>$setting</span></h1>
<div class=scores>$scores<dl>$facts</dl></div></header>
<div class=columns><section><h2>Runs</h2><div class=card><table class=runs>
<tr><th>seed$columns<th>episode list</tr>$runs</table></div></section>
<section><h2>IoU per class</h2><div class=card><ul style="--mean:$mean%">$bars</ul>
<small>Line: mean-IoU, $mean</small></div></section></div>
$beside
$gallery
<h2>Protocol</h2><details class=card><summary>All settings</summary><table>$protocol</table>
</details></html>
"""
