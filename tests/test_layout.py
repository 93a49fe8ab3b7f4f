"""The import arrows of the house run one way, and files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path("ldlm_jax")
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imports(path))


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("orbax", {"checkpoint.py"}),
        ("grain", {"data"}),
        ("tensorflow_datasets", {"data"}),
        ("tokenizers", {"data"}),
        ("ml_collections", {"config.py", "run_folder.py"}),
        ("tensorboardX", {"metrics.py"}),
        ("safetensors", {"teachers"}),
        ("gguf", {"teachers"}),
        ("tensorflow", set()),
        ("torch", set()),
        ("transformers", set()),
    ],
)
def test_only_some_files_import(package, allowed):
    users = {p.relative_to(PACKAGE).parts[0] for p in FILES if uses(p, package)}
    assert users <= allowed


def test_arrows_run_one_way():
    for path in (PACKAGE / "diffusion").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("ldlm_jax")}
        assert all(name.startswith("ldlm_jax.diffusion") for name in ours), path
        assert not uses(path, "flax"), path
    for path in (PACKAGE / "models").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("ldlm_jax")}
        assert all(name.startswith("ldlm_jax.models") for name in ours), path
    for path in FILES:
        assert not uses(path, "experiments") and not uses(path, "tests"), path


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 420
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            signature = node.body[0].lineno - node.lineno
            body = node.end_lineno - node.lineno - len(docstring.splitlines()) - signature
            assert body <= 75, f"{node.name} has {body} lines"
