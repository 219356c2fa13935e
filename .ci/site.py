"""What the site has beside docs/: pages from other folders, and the index of the reference.

The pages of docs/reference are the list of what is public; tests read it there, too.

Documents link to each other and to files of the repository as GitHub shows them; here such a link
leads to the page of the site that the file has become, or to the file in the repository.
"""

import pathlib
import posixpath
import re
import tomllib

import griffe
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
# A link, or a block of code, in which there is none.
LINK = re.compile(
    r"^(?P<fence>`{3,}).*?^(?P=fence)$|(?P<before>!?\[[^\]]*\]\()(?P<target>[^)\s]+)(?P<after>\))",
    re.MULTILINE | re.DOTALL,
)


def index(pages: list[Page]) -> str:
    """Every name of the reference with its first sentence, page by page."""
    package = griffe.load("fsseg_jax", search_paths=[ROOT], resolve_aliases=True)
    lines = []
    for page in pages:
        text, place = page.file.content_string, posixpath.basename(page.file.src_uri)
        title = text.split("\n", 1)[0].removeprefix("# ")
        lines += ["", f"## [{title}]({place})", "", "| | |", "| --- | --- |"]
        for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
            docstring = package[name.removeprefix("fsseg_jax.")].docstring
            paragraph = " ".join(docstring.value.split("\n\n")[0].split())
            first = re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]
            lines.append(f"| [`{name}`]({place}#{name}) | {first} |")
    return "\n".join([*lines, ""])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Says where the repository is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config.repo_url, config.repo_name = project["urls"]["Repository"], "GitHub"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for source, place in MOVED.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to where their files are on the site, or in the repository."""
    place = page.file.src_uri
    if place == "reference/index.md":
        markdown += index([other for other in page.parent.children if other is not page])
    source = {new: old for old, new in MOVED.items()}.get(place, f"docs/{place}")

    def led(match: re.Match[str]) -> str:
        before, target, after = match.group("before", "target", "after")
        path, hash_, anchor = (target or "").partition("#")
        if not path or "://" in target:
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
