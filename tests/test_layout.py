"""The import arrows of the house run one way, and its rooms, files and functions stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path("ldlm_jax")
FILES = sorted(PACKAGE.rglob("*.py"))
# Imported from anywhere.
LEAVES = ("errors", "validate", "version_of", "data.special_ids")

# What each room imports of ours, besides itself and the leaves.
ARROWS = {
    "diffusion": (),
    "models": ("diffusion",),
    "losses": ("models", "diffusion"),
    "parallel": (),
    "pretrained": ("parallel", "models"),
    "puzzles": (),
    "data": ("pretrained", "puzzles"),
    "teachers": ("pretrained", "data", "models", "parallel"),
    "sampling": ("models", "diffusion", "data", "parallel", "workdir", "puzzles"),
    "evals": (
        "sampling",
        "models",
        "diffusion",
        "data",
        "pretrained",
        "parallel",
        "puzzles",
        "telemetry",
        "workdir",
    ),
    "serving": (
        "sampling",
        "models",
        "data",
        "pretrained",
        "parallel",
        "workdir",
        "train_state",
        "puzzles",
    ),
    "telemetry": ("plan",),
    "settings": ("sampling",),
}


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
        ("tokenizers", {"data", "pretrained"}),
        ("ml_collections", {"config.py", "workdir.py"}),
        ("tensorboardX", {"telemetry"}),
        ("safetensors", {"pretrained"}),
        ("gguf", {"pretrained"}),
        ("ldlm_jax.config", {"cli.py", "config.py", "train.py", "workdir.py", "plan"}),
        ("tensorflow", set()),
        ("torch", set()),
        ("transformers", set()),
    ],
)
def test_only_some_files_import(package, allowed):
    users = {p.relative_to(PACKAGE).parts[0] for p in FILES if uses(p, package)}
    assert users <= allowed


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_run_one_way(room):
    allowed = [f"ldlm_jax.{name}" for name in (room, *ARROWS[room], *LEAVES)]
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            if name.startswith("ldlm_jax."):
                assert any(name == a or name.startswith(a + ".") for a in allowed), (path, name)


def test_the_arithmetic_of_noise_knows_no_networks():
    for path in (PACKAGE / "diffusion").glob("*.py"):
        assert not uses(path, "flax") and not uses(path, "ldlm_jax.errors"), path


def test_the_package_imports_neither_experiments_nor_tests():
    for path in FILES:
        assert not uses(path, "experiments") and not uses(path, "tests"), path


def test_only_parallel_and_plan_make_a_mesh():
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
        if names & {"Mesh", "AbstractMesh", "create_device_mesh"}:
            assert path.parts[1] in ("parallel", "plan"), path


def test_rooms_are_few_and_not_empty():
    top = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(top) <= 11, top
    for folder in {path.parent for path in FILES} - {PACKAGE}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) >= 3 and folder.name != "utils", folder


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        docstring = ast.get_docstring(node) or ""
        signature = node.body[0].lineno - node.lineno
        body = node.end_lineno - node.lineno - len(docstring.splitlines()) - signature
        assert body <= 60, f"{node.name} has {body} lines"
        if node.name == "__call__":
            arguments = [*node.args.args, *node.args.kwonlyargs]
            assert len(arguments) - 1 <= 6, f"{node.name} takes {len(arguments) - 1} arguments"
        assert "said" not in {a.arg for a in node.args.args}, node.name
