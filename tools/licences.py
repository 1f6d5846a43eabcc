"""DEPENDENCIES.md: what `pip install atesc` installs, and under which licence.

Read from the metadata of the installed packages. Run by `make licences`.
"""

import re
from configparser import ConfigParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BSD, APACHE, MIT, ISC, PSF, MPL = "BSD", "Apache-2.0", "MIT", "ISC", "PSF", "MPL-2.0"
WORDS = {  # what packages write -> licence; the first that fits counts
    "nvidia": "NVIDIA, proprietary",
    "mozilla": MPL,
    "mpl": MPL,
    "gpl": "GPL",
    "general public": "GPL",
    "apache": APACHE,
    "python software foundation": PSF,
    "psf": PSF,
    "isc": ISC,
    "bsd": BSD,
    "matplotlib project": BSD,
    "redistribution and use": BSD,
    "mit": MIT,
}
UNSAID = {"cuda-toolkit": "NVIDIA, proprietary"}  # not in the metadata, but in the documentation
FREE = {BSD, APACHE, MIT, ISC, PSF}
LIMITED = {  # not permissive, and why they may stay
    "NVIDIA, proprietary": (
        "the CUDA libraries that torch's Linux wheels depend on. NVIDIA's licence permits to use "
        "them and to pass them on unchanged. torch's CPU wheels do not need them"
    ),
    MPL: "copyleft for changes to the package's own files only; `atesc` changes none",
}


def required(extra: str = "") -> list[str]:
    """The direct requirements in settings.ini, of the package or of an extra."""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"][f"{extra}_requirements" if extra else "requirements"].split()


def closure(requirements: list[str]) -> dict[str, Distribution]:
    """Name -> distribution of everything that installing `requirements` brings here."""
    found, todo = {}, list(requirements)
    for text in todo:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        todo += found[name].requires or []
        for extra in requirement.extras:
            todo += [
                r.split(";")[0]
                for r in found[name].requires or []
                if Requirement(r).marker and Requirement(r).marker.evaluate({"extra": extra})
            ]
    return dict(sorted(found.items()))


def licence(package: Distribution) -> str:
    """The package's licence, of several the most demanding one."""
    said = package.metadata
    classifiers = [text for text in said.get_all("Classifier") or [] if text.startswith("License")]
    text = " ".join(
        [said.get("License-Expression") or (said.get("License") or "")[:200], *classifiers]
    ).lower()
    name = re.sub(r"[-_.]+", "-", said["Name"]).lower()
    return next(
        (kind for word, kind in WORDS.items() if re.search(rf"\b{word}", text)),
        UNSAID.get(name, "unknown"),
    )


def rows(packages: dict[str, Distribution], direct: list[str]) -> list[str]:
    """Lines of a Markdown table, a licence each."""
    kinds: dict[str, list[str]] = {}
    names = {Requirement(text).name for text in direct}
    for name, package in packages.items():
        kinds.setdefault(licence(package), []).append(f"**{name}**" if name in names else name)
    return [
        "| licence | packages |",
        "|---|---|",
        *(f"| {kind} | {', '.join(kinds[kind])} |" for kind in sorted(kinds)),
    ]


TEXT = """# What `atesc` depends on

Read from the metadata of what is installed, on Linux with torch's CUDA wheel, by `make licences`.
The names in bold are those in `settings.ini`. Versions are not pinned, so `pip install --upgrade`
brings the security fixes of a dependency.

## `pip install atesc`

{core}

## `pip install 'atesc[notebooks]'`

`atesc run`, the experiment notebooks, tables and the page *explore* need these as well. Neither
papermill nor Jupyter brings pandas: the tables are its data frames.

{extra}

## Licences that are not permissive

{limited}

A test fails when a package has another licence, or one that cannot be read.

## Known vulnerabilities

`make audit` installs [pip-audit](https://pypi.org/project/pip-audit/) into an environment of its
own and asks the Python Packaging Advisory Database about every installed package. It needs the
network.
"""


def render() -> str:
    """The whole document."""
    core, extra = closure(required()), closure(required("notebooks"))
    new = {name: package for name, package in extra.items() if name not in core}
    return TEXT.format(
        core="\n".join(rows(core, [*required(), *required("notebooks")])),
        extra="\n".join(rows(new, required("notebooks"))),
        limited="\n".join(f"- **{kind}**: {reason}." for kind, reason in LIMITED.items()),
    )


if __name__ == "__main__":
    (ROOT / "DEPENDENCIES.md").write_text(render(), encoding="utf-8")
