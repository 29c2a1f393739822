"""The architecture: which room may import which, as one literal dict against the imports of every module."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"masformer", "tasks"}
# A room may import itself and what stands here; a script of `eval/` may import every room, and nobody imports a script.
BELOW = {
    "errors": set(),
    "records": {"errors", "tasks"},
    "prompting": {"records", "errors", "tasks"},
    "metrics": {"errors"},
    "scoring": {"metrics", "records", "errors", "tasks"},
    "config": {"scoring", "prompting", "records", "errors", "tasks"},
    "runtime": {"config", "records", "errors", "masformer", "tasks"},
    "reporting": {"scoring", "metrics", "records", "errors", "tasks"},
    "ratings": {"reporting", "scoring", "metrics", "records", "errors", "tasks"},
    "viewing": {"reporting", "scoring", "records", "errors", "tasks"},
    "generation": {"reporting", "scoring", "config", "runtime", "prompting", "records", "errors", "masformer", "tasks"},
    "engines": {"losses", "generation", "config", "runtime", "prompting", "records", "errors", "masformer", "tasks"},
    "judging": {"engines", "scoring", "metrics", "runtime", "records", "errors", "tasks"},
    "losses": {
        *("generation", "reporting", "scoring", "config", "runtime"),
        *("prompting", "records", "errors", "masformer", "tasks"),
    },
    "training": {"reporting", "config", "runtime", "prompting", "records", "errors", "masformer", "tasks"},
    "studies": {"reporting", "scoring", "metrics", "config", "runtime", "records", "errors", "tasks"},
    "interop": {
        *("reporting", "generation", "scoring", "metrics", "config"),
        *("runtime", "prompting", "records", "errors", "masformer"),
    },
    "masformer": set(),
    "tasks": set(),
}
# The rooms of masformer; its modules at the top may import all of them.
BELOW_MASFORMER = {
    "plans": {"errors"},
    "attention": {"plans", "errors", "compiled", "hardware", "tuning"},
    "checkpoints": {"plans", "convert", "errors", "hardware", "model_type", "probe"},
}
# Rooms whose import must not import torch; what needs it, such as trackers, imports it when it is called.
WITHOUT_TORCH = (
    "errors",
    "records",
    "prompting",
    "metrics",
    "scoring",
    "config",
    "reporting",
    "ratings",
    "viewing",
    "tasks",
)


def imports(file: Path, *, at_import: bool = False) -> set[str]:
    """Return the modules that a file imports, type annotations left out; `at_import` leaves functions out too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if at_import:
        tree.body = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(module: str) -> str | None:
    """Return the room that a module lies in: of eval its folder or file, else its package; None for others."""
    package, *rest = module.split(".")
    return rest[0] if package == "eval" and rest else package if package in PACKAGES else None


FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file
    for package in ("eval", "masformer", "tasks")
    for file in sorted((ROOT / package).rglob("*.py"))
}
SCRIPTS = {module.split(".")[1] for module in FILES if module.count(".") == 1 and module.startswith("eval.")} - {
    "__init__",
    "errors",
}


def test_imports_go_one_way() -> None:
    wrong = []
    for module, file in FILES.items():
        room = room_of(module)
        for name in imports(file):
            imported = room_of(name)
            if imported is None or imported in (room, "__init__"):
                continue
            allowed = BELOW.keys() if room in SCRIPTS else BELOW.get(str(room), set())
            if imported not in allowed:
                wrong.append(f"{module} imports {name}")
    assert sorted(wrong) == []


def test_no_permission_is_unused_and_rooms_have_an_order() -> None:
    used = {(room_of(module), room_of(name)) for module, file in FILES.items() for name in imports(file)}
    assert [(room, below) for room, rooms in BELOW.items() for below in rooms if (room, below) not in used] == []
    TopologicalSorter(BELOW).prepare()  # raises for a circle


def test_the_rooms_of_masformer_go_one_way_too() -> None:
    wrong = []
    for module, file in FILES.items():
        package, room, *rest = [*module.split("."), ""]
        if package == "masformer" and room in BELOW_MASFORMER and rest != [""]:
            named = {name.split(".")[1] for name in imports(file) if name.startswith("masformer.")}
            wrong += [f"{module} imports {name}" for name in named - {room} - BELOW_MASFORMER[room]]
    assert sorted(wrong) == []


def test_every_room_is_in_the_architecture() -> None:
    rooms = {room_of(module) for module in FILES} - SCRIPTS - {"eval", "__init__", None}
    assert rooms == BELOW.keys()


def test_what_needs_no_model_imports_no_torch() -> None:
    heavy = ("torch", "transformers", "accelerate")
    wrong = [
        f"{module} imports {name}"
        for module, file in FILES.items()
        if room_of(module) in WITHOUT_TORCH
        for name in imports(file, at_import=True)
        if name.split(".")[0] in heavy
    ]
    assert sorted(wrong) == []
