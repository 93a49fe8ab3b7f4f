"""The documentation site: pages of all READMEs, and of all docstrings, into one folder.

    python docs/build.py build/docs      # or: make docs

Nothing is read from the network. Every page lies where its source lies, so that links between
READMEs hold; what else they link to is copied.
"""

import html
import importlib
import re
import shutil
import sys
import warnings
from pathlib import Path

import pdoc
from pdoc.render_helpers import to_html

ROOT = Path(__file__).parent.parent
# Folders whose READMEs are pages; files of the root.
TREES = ("configs", "ldlm_jax", "experiments", "checkpoints")
FIRST = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r'\b(href|src)="([^"#:]+)(#[^"]*)?"')


def markdown_files() -> list[Path]:
    """READMEs in the order in which they are listed, relative to the root."""
    within = (sorted((ROOT / tree).rglob("README.md")) for tree in TREES)
    return [*map(Path, FIRST), *(file.relative_to(ROOT) for files in within for file in files)]


def title_of(file: Path) -> str:
    """The first heading of a Markdown file."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = next((line for line in lines if line.startswith("# ")), f"# {file.parent}")
    return found.removeprefix("# ").strip()


def navigation(page: Path) -> str:
    """Links from one page to all others."""
    up = "../" * (len(page.parts) - 1)
    groups: dict[str, list[str]] = {}
    for file in markdown_files():
        tree = file.parts[0] if len(file.parts) > 1 else "Start"
        here = " class=here" if file == page else ""
        link = f'<li{here}><a href="{up}{html_page(file)}">{html.escape(title_of(file))}</a></li>'
        groups.setdefault(tree, []).append(link)
    groups["Start"].append(f'<li><a href="{up}ldlm_jax.html">Python: all modules</a></li>')
    return "".join(f"<h2>{name}</h2><ul>{''.join(links)}</ul>" for name, links in groups.items())


def html_page(file: Path) -> Path:
    """Where the page of a Markdown file lies in the site."""
    return Path("index.html") if file == Path("README.md") else file.with_suffix(".html")


def write_markdown(file: Path, out: Path) -> None:
    """Write the page of a Markdown file, and copy what it links to."""

    def moved(found: re.Match) -> str:
        kind, link, anchor = found[1], found[2], found[3] or ""
        target = (ROOT / file.parent / link).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            raise SystemExit(f"{file}: links to {link}, which is not there")
        if target.suffix == ".md":
            page = html_page(target.relative_to(ROOT))
            link = link[: -len(target.name)] + page.name
        else:
            copy = out / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, copy)
        return f'{kind}="{link}{anchor}"'

    body = _LINK.sub(moved, to_html((ROOT / file).read_text(encoding="utf-8")))
    page = out / html_page(file)
    page.parent.mkdir(parents=True, exist_ok=True)
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    page.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title_of(file))}</title><style>{style}</style>"
        f"<nav>{navigation(file)}</nav><main>{body}</main>",
        encoding="utf-8",
    )


def modules() -> list[str]:
    """Names of all modules of the package, in which nothing is imported."""
    files = sorted((ROOT / "ldlm_jax").rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return [name for name in names if not name.endswith("__init__")] + [
        ".".join(file.parent.relative_to(ROOT).parts) for file in files if file.stem == "__init__"
    ]


def write_modules(out: Path) -> None:
    """Write the pages of all modules that can be imported here."""
    for file in markdown_files():
        if file.parts[0] != "ldlm_jax":
            continue
        name = ".".join(file.parent.parts)
        package = importlib.import_module(name)
        package.__doc__ = f"{package.__doc__ or ''}\n\n[In words]({file.parent.name}/README.html)"
    root = sys.modules["ldlm_jax"]
    root.__doc__ += "\n\n[READMEs](index.html)"
    root.__all__ += [name.split(".")[1] for name in modules() if name.count(".") == 1]
    pdoc.render.configure(docformat="google", footer_text="ldlm_jax")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules(), output_directory=out)
    for text in {str(one.message).splitlines()[0] for one in told}:
        if "rror importing" in text or "rror loading" in text:  # it needs an extra
            print("left out:", text, file=sys.stderr)


def main() -> None:
    """Write the whole site."""
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sys.path.insert(0, str(ROOT))
    write_modules(out)
    for file in markdown_files():
        write_markdown(file, out)
    print(f"open {out / 'index.html'}")


if __name__ == "__main__":
    main()
