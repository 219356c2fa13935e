"""What the site has beside docs/: pages from other folders, and a page for each public module.

Documents link to each other and to files of the repository as GitHub shows them; here such a link
leads to the page of the site that the file has become, or to the file in the repository.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parent.parent
# Pages that are elsewhere in the repository.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "configs/README.md": "configs.md",
    "launch/README.md": "launch.md",
}
# Rooms of the API, in the order in which a reader needs them, and what they hold.
ROOMS = {
    "prediction": "Loading models, fitting them to supports, segmenting images",
    "models": "The five methods and what they share",
    "backbones": "VGG-16, ResNets, Vision Transformers, and their weights",
    "data": "Sources, file formats, masks, the sampler and the pipelines",
    "training": "The step, its state, checkpoints and curves",
    "evaluation": "Protocols, metrics, the evaluator, reports and published tables",
    "config": "Fields, files and overrides",
}
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")


def modules(room: str) -> list[str]:
    """The public modules of a room with something public in them, by their dotted names."""
    found = []
    for path in sorted((ROOT / "fsseg_jax" / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        public = re.search(r"^(def|class) [a-z A-Z]", path.read_text("utf-8"), re.MULTILINE)
        if public and not any(part.startswith("_") for part in parts) and "static" not in parts:
            found.append(".".join(parts))
    return found


def reference() -> dict[str, str]:
    """The pages of the API."""
    names = {"load": "prediction.loading", "Segmenter": "prediction.segmenter"}
    names |= {"forward": "prediction.forward", "Episode": "episode"}
    first = ["# API", "", "What `fsseg_jax` itself exports, and the modules behind it.", ""]
    pages = {}
    for name, module in names.items():
        first += [f"## fsseg_jax.{name}", "", f"::: fsseg_jax.{module}.{name}", ""]
        first += ["    options: {show_root_heading: false, heading_level: 3}", ""]
    first += ["## Modules", ""]
    for room, what in ROOMS.items():
        first += [f"**{what}**", ""]
        for module in modules(room):
            place = f"{module.removeprefix('fsseg_jax.').replace('.', '/')}.md"
            pages[f"reference/{place}"] = f"# {module}\n\n::: {module}\n"
            first.append(f"- [`{module}`]({place})")
        first.append("")
    return {"reference/index.md": "\n".join(first), **pages}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for source, place in MOVED.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, place, content=text))
    for place, text in reference().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to where their files are on the site, or in the repository."""
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    source = {new: old for old, new in MOVED.items()}.get(place, f"docs/{place}")

    def led(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if (ROOT / path / "README.md").is_file() and f"{path}/README.md" in MOVED:
            path = f"{path}/README.md"
        new = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if new and files.get_file_from_path(new):
            return (
                f"{before}{posixpath.relpath(new, posixpath.dirname(place))}{hash_}{anchor}{after}"
            )
        if not (ROOT / path).exists():
            raise ValueError(f"{source}: {target} does not exist")
        return f"{before}{config.repo_url}/blob/main/{path}{hash_}{anchor}{after}"

    return LINK.sub(led, markdown)
