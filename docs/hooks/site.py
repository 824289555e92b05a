"""What the site has besides the pages of docs/: the README as its first page, the recipes, and the reference.

Recipes are the docstrings of configs. The reference is made of those of the package, a page for each room with all its
modules. A link from a page to a file outside
of docs/ becomes the name of the file: what it names is in the repository and not on the site.
"""

import ast
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "diffusion_jax"
FRONT = {
    "sample": "tasks.drawing",
    "load_model": "loading",
    "save_model": "systems.folder",
    "train_step": "training.trainer",
    "Samples": "data.samples",
    "Model": "systems.model",
    "Pipeline": "pipelines.pipeline",
}
LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    files.append(File.generated(config, "index.md", content=first_page()))
    files.append(File.generated(config, "recipes.md", content=recipes()))
    for name, content in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ become names."""
    folder = ROOT / "docs" / Path(page.file.src_uri).parent

    def inside(match: re.Match[str]) -> str:
        text, target = match.groups()
        if ":" in target or target.startswith("#"):
            return match[0]
        path = Path(os.path.normpath(folder / target.partition("#")[0]))
        if path == ROOT / "README.md":
            return f"[{text}]({os.path.relpath(ROOT / 'docs' / 'index.md', folder)})"
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        return text if "`" in text else f"`{path.relative_to(ROOT)}`"

    return LINK.sub(inside, markdown)


def first_page() -> str:
    """The README, whose links are from the root of the repository."""
    text = (ROOT / "README.md").read_text()
    return re.sub(r"""(\]\(|src=")docs/""", r"\1", text)


def recipes() -> str:
    """All configs, with what their docstrings say."""
    parts = ["# Recipes", "Each is a short program that holds data only: `--config=` and its path, or its name."]
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if "def get_config" in path.read_text():
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            parts += [f"## {path.relative_to(ROOT / 'configs').with_suffix('')}", said]
    return "\n\n".join(parts) + "\n"


def reference() -> dict[str, str]:
    """The pages of the reference by name."""
    front = [f"- [`dj.{name}`][diffusion_jax.{where}.{name}]" for name, where in FRONT.items()]
    about = "What `import diffusion_jax as dj` gives; [From Python](../python.md) has examples."
    pages = {"index": _page("diffusion_jax", about, ["\n".join(front)])}
    for room in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        modules = sorted(path for path in room.rglob("*.py") if not _is_bare(path))
        pages[room.name] = _page(room.name, "", [f"::: {_dotted(path)}" for path in modules])
    alone = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__", "console"))
    pages["modules"] = _page("Single modules", "", [f"::: {_dotted(path)}" for path in alone])
    return pages


def _page(title: str, about: str, parts: list[str]) -> str:
    return "\n\n".join([f"# {title}", *([about] if about else []), *parts]) + "\n"


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_bare(path: Path) -> bool:
    """Whether a file of a package says nothing."""
    return path.name == "__init__.py" and not path.read_text().lstrip().startswith('"""')
