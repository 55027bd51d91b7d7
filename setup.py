"""Packaging of tfcsmf; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def _version() -> str:
    """Reads `__version__` without importing the package (and its needs)."""
    text = (ROOT / "tfcsmf" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise RuntimeError(
            'tfcsmf/__init__.py should hold a line `__version__ = "..."`'
        )
    return found.group(1)


def _requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.partition("#")[0].strip() for line in lines]
    return [line for line in lines if line]


def _readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


# Preparation on many machines (tfcsmf.data.sharded.beam_pipeline).
BEAM = ["apache-beam==2.77.*"]
TEST = [
    *BEAM,
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
]
# Exact minor versions: a new formatter or checker release must not break `make lint`.
DEV = [*TEST, "ruff==0.17.*", "mypy==2.4.*", "types-PyYAML>=6.0.12"]

setup(
    name="tfcsmf",
    version=_version(),
    description=(
        "Multi-objective embedding-based retrieval in TensorFlow: "
        "one network, one vector and one index for a cascade of objectives"
    ),
    long_description=_readme(),
    long_description_content_type="text/markdown",
    author="The tfcsmf Authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["tfcsmf", "tfcsmf.*"]),
    package_data={
        "tfcsmf": ["py.typed"],
        "tfcsmf.evaluation": ["*.html.j2"],
        "tfcsmf.serving": ["deploy/*", "explorer.html"],
    },
    install_requires=_requirements(),
    extras_require={"beam": BEAM, "test": TEST, "dev": DEV},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
