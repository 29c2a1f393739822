"""What runs is what was tested: every package that an install brings is pinned, and in the lock with hashes."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REMEDY = "run: tox -e pins"


def pins(file: str) -> dict[str, str]:
    """Return the version of each package of a file of pins that is for this machine."""
    found: dict[str, str] = {}
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith((" ", "#")):
            continue
        requirement = Requirement(line.removesuffix("\\"))
        if requirement.marker and not requirement.marker.evaluate():
            continue  # of another platform or version of Python
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert canonicalize_name(requirement.name) not in found, f"{line}: pinned twice"
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def needed(texts: Iterable[str], extras: frozenset[str] = frozenset()) -> dict[str, metadata.Distribution]:
    """Return the installed packages that requirements bring, and what these bring, on this machine."""
    own = PROJECT["project"]["optional-dependencies"]
    queue = [(text, extras) for text in texts]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, metadata.Distribution] = {}
    while queue:
        text, wanted = queue.pop()
        one = Requirement(text)
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in wanted or {""}):
            continue
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name == "masformer":
            queue += [(more, frozenset()) for extra in extras for more in own[extra]]
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # nothing of it runs here
        queue += [(more, extras) for more in found[name].requires or ()]
    return found


def test_every_package_of_an_install_is_pinned_to_the_version_that_is_tested() -> None:
    own = PROJECT["project"]
    packages = needed([*own["dependencies"], "masformer[dev]", *PROJECT["dependency-groups"]["build"]])
    assert len(packages) > 100, "the walk reaches what the requirements require"
    pinned = pins("constraints.txt")
    assert sorted(packages.keys() - pinned.keys()) == [], REMEDY
    if "TOX_ENV_NAME" in os.environ:  # an environment that was made with the pins
        versions = {name: Version(package.version).public for name, package in packages.items()}
        assert {name: (of, pinned[name]) for name, of in versions.items() if of != pinned[name]} == {}


def test_the_lock_has_every_package_of_a_run_with_hashes_in_the_pinned_version() -> None:
    locked = pins("requirements.lock")
    assert sorted(needed(PROJECT["project"]["dependencies"]).keys() - locked.keys()) == [], REMEDY
    assert locked.items() <= pins("constraints.txt").items(), REMEDY
    text = (ROOT / "requirements.lock").read_text()
    with_hash = re.findall(r"^\S+==.* \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(with_hash) == len(re.findall(r"^\S+==", text, re.MULTILINE)) >= len(locked)


def test_the_pins_are_versions_that_the_project_admits() -> None:
    pinned = pins("constraints.txt")
    own = PROJECT["project"]
    texts = [*own["dependencies"], *(text for extra in own["optional-dependencies"].values() for text in extra)]
    for one in map(Requirement, texts):
        if one.name != "masformer":
            assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one


def test_no_file_of_pins_names_an_index() -> None:
    for file in ("constraints.txt", "requirements.lock"):
        text = (ROOT / file).read_text()
        assert "://" not in text
        assert "--index" not in text
        assert "--find-links" not in text
