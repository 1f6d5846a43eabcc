"""Read settings.ini, nbdev's one configuration file, so that nothing is said twice."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = here / "README.md"
text = readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"]


def absolute(link: re.Match) -> str:
    """A relative link of the README as a package index needs it: with the repository's address."""
    place = "raw" if link[1] else "blob"
    return f"{link[1]}[{link[2]}]({cfg['git_url']}/{place}/{cfg['branch']}/{link[3]})"


notebooks = cfg["notebooks_requirements"].split()

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=re.sub(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)]+)\)", absolute, text),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    # The experiment notebooks travel in the wheel, so that `atesc run` works without a checkout.
    packages=[*find_packages(include=["atesc", "atesc.*"]), "atesc.experiments"],
    package_dir={"atesc": "atesc", "atesc.experiments": "nbs/experiments"},
    package_data={"atesc": ["py.typed"], "atesc.experiments": ["*.ipynb"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "notebooks": notebooks,
        "dev": [*notebooks, *cfg["dev_requirements"].split()],
        "docs": [*notebooks, *cfg["docs_requirements"].split()],
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
