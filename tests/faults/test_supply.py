"""What is installed: the lock file fits what setup.cfg asks for, and has a hash of every file."""

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def test_the_lock_file_has_what_is_asked_for_with_hashes():
    lines = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in lines if re.match(r"[\w.-]+==", line)]
    assert len(entries) > 80 and all("--hash=sha256:" in entry for entry in entries)
    locked: dict[str, list[str]] = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^ ;]+)", entry).groups()
        locked.setdefault(canonicalize_name(name), []).append(version)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    wanted = (setup["options"]["install_requires"], extras["dev"], extras["eval"])
    asked = [Requirement(line) for part in wanted for line in part.split("\n")
             if line.strip() and not line.strip().startswith("#")]  # fmt: skip
    assert len(asked) > 25
    for requirement in asked:
        versions = locked[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in versions), requirement


def test_the_lock_file_names_no_place():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|file://|--index|--find-links", text)
